"""Bidirectional Monte Carlo: the log evidence of simulated data from both sides."""

from itertools import chain
from typing import Any

import pyro
import torch
import xarray as xr
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.passes import piece_size
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.evaluation import evaluating
from pyro_vae.sources import resolve_device
from pyro_vae.traces import CHUNK_SIZE, Programs, simulate

from .ais import PIECE, annealed, reverse_annealed
from .hmc import NUM_LEAPFROGS, pilot_step_sizes
from .importance import importance_estimates

__all__ = ["bdmc"]


def bdmc(
    vae: Programs,
    num_data: int,
    *,
    num_steps: int = 1000,
    num_chains: int = 16,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Bounds on log p(x) from both sides, for data that are simulated from the model.

    .. math:: \mathbb E\, \text{lower} \le \mathbb E \log p(x) \le \mathbb E\, \text{upper}, \quad
              z^* \sim p(z),\ x \sim p(x \mid z^*)

    ``lower`` is :func:`ais_log_evidence`. For ``upper`` chains start at :math:`z^*`, which is an
    exact draw from p(z|x), and go the same way back to the prior: their mean weight has
    expectation 1 / p(x). The mean difference bounds the error of AIS, with this model and this
    number of steps, from above. It says nothing for sure about real data: how far a posterior of
    theirs is like one of simulated data, the model's fit decides. The simulated x are complete:
    nothing is vouched for where values are missing.

    Args:
        vae: A VAE, or a model and guide that declare ``event_shape``, the shape of one x.
        num_data: Number of simulated data.
        num_steps: Number T of temperatures after the first.
        num_chains: Number R of chains for each datum in each direction.
        chunk_size: As for :func:`ais_log_evidence`.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``simulation``: ``lower`` and ``upper``, in nats; ``lower_mcse`` and ``upper_mcse``,
        their Monte Carlo standard errors from the spread of the chains' weights, the second given
        the common :math:`z^*` (NaN for one chain); ``acceptance`` of the chains of ``lower``.
        Single intervals may be turned around by noise; the means may not.

    Raises:
        ValueError: If a number does not fit, the model has not one observed site of shape
            ``(N, *event_shape)``, or a latent site takes other values than
            :func:`ais_log_evidence` can treat.
        TypeError: If ``vae`` does not declare ``event_shape``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> bounds = bdmc(vae, 5, num_steps=2, num_chains=4)
        >>> sorted(bounds.data_vars)
        ['acceptance', 'lower', 'lower_mcse', 'upper', 'upper_mcse']

    References:
        Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using
        bidirectional Monte Carlo, section 3. https://arxiv.org/abs/1511.02543
        Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based
        generative models, section 3.2. https://arxiv.org/abs/1611.04273
    """
    num_data = positive_integer(num_data, "num_data")
    num_steps = positive_integer(num_steps, "num_steps")
    num_chains = positive_integer(num_chains, "num_chains")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    like = _like(vae)
    size = piece_size(max(1, PIECE // num_chains), like)
    found: list[dict[str, Tensor]] = []
    for start in range(0, num_data, size):
        piece = like.expand(min(size, num_data - start), *like.shape[1:])
        with evaluating(vae, seed, "BDMC", len(found), device=like.device):
            found.append(_bounds(vae, piece, num_steps, num_chains, chunk_size))
    columns = {name: torch.cat([columns[name] for columns in found]) for name in found[0]}
    return xr.Dataset(
        {name: ("simulation", values.cpu().numpy()) for name, values in columns.items()},
        coords={"simulation": range(num_data)},
        attrs={
            "units": "nats per datum",
            "num_steps": num_steps,
            "num_chains": num_chains,
            "num_leapfrogs": NUM_LEAPFROGS,
            "seed": seed,
        },
    )


def _bounds(
    vae: Programs, like: Tensor, num_steps: int, num_chains: int, chunk_size: int
) -> dict[str, Tensor]:
    simulation = simulate(vae, like)
    joint = RealJoint(vae, simulation.x, chunk_size=chunk_size)
    truth = joint.to_real(joint.joint.flat(simulation.values))
    with pyro.validation_enabled(
        is_validate=False
    ):  # a diverged proposal is rejected, and no error
        # The pilot sees x and not the true z, of which the frozen step sizes must know nothing.
        step_sizes = pilot_step_sizes(joint, num_steps, num_chains)
        forward, acceptance = annealed(joint, step_sizes, num_chains)
        start = truth.expand(num_chains, *truth.shape)
        backward = reverse_annealed(joint, step_sizes, start)
    lower, upper = importance_estimates(forward), importance_estimates(backward)
    return {
        "lower": lower["log_evidence"],
        "lower_mcse": lower["mcse"],
        "upper": -upper["log_evidence"],
        "upper_mcse": upper["mcse"],
        "acceptance": acceptance,
    }


def _like(vae: Any) -> Tensor:
    """A row of zeros that stands in for x."""
    event_shape = getattr(vae, "event_shape", None)
    if event_shape is None:
        raise TypeError(
            f"vae must declare event_shape, the shape of one x, for data to be simulated; got "
            f"{type(vae).__name__} without it. Set vae.event_shape = torch.Size([...])."
        )
    tensors = chain(vae.parameters(), vae.buffers()) if isinstance(vae, nn.Module) else iter(())
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    device = resolve_device(vae, "auto")
    return torch.zeros(1, *event_shape, dtype=dtype, device=device)
