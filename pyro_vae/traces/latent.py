"""The one latent site of programs that have just one."""

from typing import Any, NamedTuple

from pyro import distributions as dist
from torch import Tensor

from .runs import Programs, Runs

__all__ = ["LatentSite", "latent_site"]


class LatentSite(NamedTuple):
    """A latent site under both programs.

    Attributes:
        name: Its name.
        q: Distribution q(z|x) with batch shape ``(N,)``.
        p: Distribution p(z) with batch shape ``(N,)``.
    """

    name: str
    q: dist.TorchDistribution
    p: dist.TorchDistribution


def latent_site(programs: Programs, x: Tensor) -> LatentSite:
    """The distributions q(z|x) and p(z) of programs with one latent vector for each datum.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.

    Raises:
        ValueError: If there are several latent sites, or it is no continuous vector.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> site = latent_site(vae, torch.zeros(5, 3))
        >>> site.name, site.q.batch_shape, site.p.event_shape
        ('z', torch.Size([5]), torch.Size([2]))
    """
    runs = Runs(programs, x)
    names = [*runs.latent, *runs.summed_out]
    if len(names) != 1 or len(runs.log_q(runs.guide_trace)) != 1:
        raise ValueError(
            "programs must have one latent site, a vector z for each datum, for this diagnostic; "
            f"got the sites {names}."
        )
    q: Any = runs.guide_trace.nodes[names[0]]["fn"]
    p: Any = runs.model_trace.nodes[names[0]]["fn"]
    if len(q.event_shape) != 1 or q.batch_shape != (len(x),) or q.support.is_discrete:
        raise ValueError(
            f"latent site {names[0]!r} must be one continuous vector for each datum; got "
            f"{type(q).__name__} with batch shape {tuple(q.batch_shape)} and event shape "
            f"{tuple(q.event_shape)}."
        )
    return LatentSite(names[0], q, p)
