"""Data drawn anew from the model, with z from the prior or from the guide."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.traces import Programs, Runs
from pyro_vae.traces.runs import store_untouched
from pyro_vae.traces.sites import scored_sites

__all__ = ["Replication", "replicate", "replications"]

ROWS_AT_A_TIME = 2000


class Replication(NamedTuple):
    """A draw of x for each datum, and what it was drawn from.

    Attributes:
        x: ``(N, *event_shape)``.
        p: The observed site's distribution p(x|z) at the z drawn.
    """

    x: Tensor
    p: Any


def replicate(programs: Programs, x: Tensor, *, from_guide: bool) -> Replication:
    """Draw x from p(x|z), z drawn from p(z) or, for each datum, from q(z|x).

    Args:
        programs: Model and guide, with any number of latent sites.
        x: Data, ``(N, *event_shape)``.
        from_guide: Whether z is drawn from q(z|x).

    Raises:
        ValueError: If the model does not have one observed site of the shape of x, or if the guide
            lacks a latent site.
        TypeError: If the model has no latent site, as an autoencoder's: what it draws is at the
            code of the row's own x, from neither prior nor posterior.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> replicate(vae, torch.zeros(5, 3), from_guide=True).x.shape
        torch.Size([5, 3])
    """
    model = programs.model
    with store_untouched():
        if from_guide:
            trace = poutine.trace(programs.guide).get_trace(x)
            model = poutine.replay(model, trace=trace)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(x)
    sites = dict(scored_sites(trace))
    observed = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    if sites and len(observed) == len(sites):
        raise TypeError(
            f"vae must have a model that samples a latent site, for data to be drawn anew; got "
            f"{type(programs).__name__}, whose model samples none. An autoencoder encodes to a "
            "point."
        )
    site = next(iter(observed.values()), None)
    if site is None or len(observed) > 1 or site["value"].shape != x.shape:
        shapes = {name: tuple(site["value"].shape) for name, site in observed.items()}
        raise ValueError(
            f"model must have one observed site of the shape of x, {tuple(x.shape)}, for data "
            f"to be drawn from it; got {shapes}."
        )
    return Replication(site["value"], site["fn"])


def replications(
    vae: Programs, x: Tensor, num_samples: int, *, from_guide: bool, seed: int, purpose: str
) -> Iterator[tuple[Tensor, Replication]]:
    """Replications of all rows of x, draw by draw, and each of them piece by piece.

    Evaluation mode, no gradient, and a noise that depends on ``seed``, ``purpose``, the draw and
    the piece alone.

    Yields:
        The row numbers of the piece, and its replication.

    Raises:
        TypeError: As :func:`replicate` does.
        ValueError: As :func:`replicate` does; also where z is drawn from the guide and leaves a
            site to be summed out.
    """
    parts = per_datum_parts(vae)
    for draw in range(num_samples):
        for number, (piece, index) in enumerate(pieces(parts, x, ROWS_AT_A_TIME)):
            with (
                evaluating(vae, seed, purpose, draw, number, device=x.device),
                at_rows(parts, index),
            ):
                if from_guide and draw == number == 0:
                    _refuse_summed_out(Runs(vae, piece).summed_out)
                replication = replicate(vae, piece, from_guide=from_guide)
            yield index, replication


def _refuse_summed_out(names: Collection[str]) -> None:
    if names:
        raise ValueError(
            f"guide must have every latent site for x to be drawn given x; got {list(names)} in "
            "the model alone. Add the site to the guide, or use the prior predictive."
        )
