"""Data drawn anew from the model, with z from the prior or from the guide."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.diagnostics.passes import piece_size
from pyro_vae.distributions import SharedVarianceNormal
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import PerDatumPart, at_rows, per_datum_parts, pieces
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

    def cdf(self, x: Tensor) -> Tensor | None:
        """P(X <= x | z) of each element of x, where they are independent and it is known."""
        p = self.p
        if isinstance(p, SharedVarianceNormal):
            p = Normal(p.mean, p.variance.sqrt(), validate_args=False)
        while hasattr(p, "base_dist") and hasattr(p, "reinterpreted_batch_ndims"):
            p = p.base_dist
        if p.event_shape or torch.broadcast_shapes(p.batch_shape, x.shape) != x.shape:
            return None
        try:
            cdf: Tensor = p.cdf(x)
        except NotImplementedError:
            return None
        return cdf


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
    vae: Programs,
    x: Tensor,
    num_samples: int,
    *,
    from_guide: bool,
    seed: int,
    purpose: str,
    by_piece: bool = False,
) -> Iterator[tuple[Tensor, Replication]]:
    """Replications of all rows of x, a piece of one draw at a time.

    Evaluation mode, no gradient, and a noise that depends on ``seed``, ``purpose``, the draw and
    the piece alone. Draw by draw, each of them piece by piece; with ``by_piece`` the other way
    round, for what is averaged over draws.

    Yields:
        The row numbers of the piece, and its replication.

    Raises:
        TypeError: As :func:`replicate` does.
        ValueError: As :func:`replicate` does; also where z is drawn from the guide and leaves a
            site to be summed out.
    """
    parts = per_datum_parts(vae)
    size = piece_size(ROWS_AT_A_TIME, x)
    order = _by_piece if by_piece else _by_draw
    for place, (draw, number, piece, index) in enumerate(order(parts, x, num_samples, size)):
        with (
            evaluating(vae, seed, purpose, draw, number, device=x.device),
            at_rows(parts, index),
            # The first run has validated the parameters; to do it again takes a fifth of the time.
            pyro.validation_enabled(is_validate=place == 0),
        ):
            if from_guide and place == 0:
                _refuse_summed_out(Runs(vae, piece).summed_out)
            replication = replicate(vae, piece, from_guide=from_guide)
        yield index, replication


Part = tuple[int, int, Tensor, Tensor]


def _by_draw(
    parts: Sequence[PerDatumPart], x: Tensor, num_samples: int, size: int
) -> Iterator[Part]:
    """Draw, number of the piece, piece and row numbers."""
    for draw in range(num_samples):
        for number, (piece, index) in enumerate(pieces(parts, x, size)):
            yield draw, number, piece, index


def _by_piece(
    parts: Sequence[PerDatumPart], x: Tensor, num_samples: int, size: int
) -> Iterator[Part]:
    for number, (piece, index) in enumerate(pieces(parts, x, size)):
        for draw in range(num_samples):
            yield draw, number, piece, index


def _refuse_summed_out(names: Collection[str]) -> None:
    if names:
        raise ValueError(
            f"guide must have every latent site for x to be drawn given x; got {list(names)} in "
            "the model alone. Add the site to the guide, or use the prior predictive."
        )
