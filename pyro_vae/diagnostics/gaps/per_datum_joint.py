"""Log p(x, z) at the data of a search, or at some of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.seeding import seeded
from pyro_vae.traces import CHUNK_SIZE, JointDensity, Programs

__all__ = ["RowsJoint"]


class RowsJoint:
    r"""Log p(x, z) as a function of z, for all data or, inside :meth:`at`, for some of them.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        chunk_size: Rows times values that go through the model at once, but at least N.

    Attributes:
        chunk_size: The same.
        num_data: Number N of data.
        device: Where the data are.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> joint = RowsJoint(vae, torch.zeros(5, 3))
        >>> with joint.at(torch.tensor([4, 1])) as two:
        ...     two(torch.zeros(7, 2, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, programs: Programs, x: Tensor, *, chunk_size: int = CHUNK_SIZE) -> None:
        self._programs, self._x, self.chunk_size = programs, x, chunk_size
        self._density = JointDensity(programs, x, chunk_size=chunk_size)
        self.num_data, self.device = len(x), x.device
        # What it finds out at its first use takes noise, which must not come from an evaluation's.
        with seeded(0, "joint", device=x.device):
            self._density.guide_draws(1)

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x, z), ``(R, N)``, in nats, at z of shape ``(R, N, k)``."""
        log_prior, log_likelihood = self._density(z)
        return log_prior + log_likelihood

    @contextmanager
    def at(self, index: Tensor) -> Iterator["RowsJoint"]:
        """The same for the rows of these numbers, ascending, while the block lasts."""
        if len(index) == self.num_data:
            yield self
            return
        with at_rows(per_datum_parts(self._programs), index):
            yield RowsJoint(self._programs, self._x[index], chunk_size=self.chunk_size)
