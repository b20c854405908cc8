"""The joint density as a function of the latent values."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .densities import CHUNK_SIZE
from .runs import Programs, Runs, draws_of_a_run, values_of, with_values
from .sites import plates_of

__all__ = ["JointDensity"]


class JointDensity:
    r"""Log p(z) and log p(x|z) at any z, for R values of z at each of N data.

    Latent sites are laid side by side, each flattened, in the model's order:
    ``(R, N, num_dims)``.

    Args:
        programs: Model and guide; the guide says which sites are latent.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        chunk_size: Rows times values that go through the model at once, but at least N.

    Attributes:
        chunk_size: The same.
        runs: The programs' runs at x.
        num_data: Number N of data.
        num_dims: Length of z.

    Raises:
        ValueError: If there is no latent site, or one is discrete or lies in a plate inside the
            plate "data".

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> joint = JointDensity(vae, torch.zeros(5, 3))
        >>> log_prior, log_likelihood = joint(torch.zeros(7, 5, 2))
        >>> round(log_prior[0, 0].item(), 4), log_likelihood.shape  # -log(2 pi)
        (-1.8379, torch.Size([7, 5]))
    """

    def __init__(self, programs: Programs, x: Tensor, *, chunk_size: int = CHUNK_SIZE) -> None:
        self.chunk_size = chunk_size
        self.runs = Runs(programs, x)
        self._shapes = {}
        if not self.runs.latent:
            rest = list(self.runs.summed_out)
            raise ValueError(
                "programs must have a latent site, sampled by the guide, for this diagnostic; got "
                f"{f'the sites {rest} alone, to be summed out' if rest else 'none'}. An "
                "autoencoder encodes to a point."
            )
        for name in self.runs.latent:
            site: Any = self.runs.model_trace.nodes[name]
            if set(plates_of(site)) != {-1}:
                raise ValueError(
                    f"latent site {name!r} must lie in the plate 'data' alone; got the plates "
                    f"{plates_of(site)}. Make the inner plate part of the event with .to_event()."
                )
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"latent site {name!r} must be continuous; got {type(site['fn']).__name__}. "
                    'Leave it out of the guide and mark it infer={"enumerate": "parallel"} in '
                    "the model to have it summed out."
                )
            self._shapes[name] = torch.Size(site["value"].shape[1:])
        self.num_data = len(x)
        self.num_dims = sum(math.prod(shape) for shape in self._shapes.values())

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z), each ``(R, N)``, in nats, at z of shape ``(R, N, num_dims)``.

        With a summed-out discrete site y, log p(z) is that of z with y summed out.
        """
        some = max(1, self.chunk_size // max(1, self.num_data))
        if len(z) <= some:
            return self._at(z)
        log_prior, log_likelihood = zip(*map(self._at, z.split(some)), strict=True)
        return torch.cat(log_prior), torch.cat(log_likelihood)

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        values = self.split(z)
        if self.runs.takes_draws:
            trace = with_values(self.runs.guide_trace, values)
            log_p = self.runs.log_p(self.runs.replayed(trace, len(z)))
            return self._prior_and_likelihood(log_p)
        if len(z) > 1 and self.runs.takes_rows:
            repeated = self.runs.repeated(len(z))
            trace = with_values(
                repeated.guide_trace, {n: value.flatten(0, 1) for n, value in values.items()}
            )
            return self._prior_and_likelihood(repeated.log_p(repeated.replayed(trace)))
        rows = []
        for draw in range(len(z)):
            trace = with_values(
                self.runs.guide_trace, {name: value[draw] for name, value in values.items()}
            )
            rows.append(self._prior_and_likelihood(self.runs.log_p(self.runs.replayed(trace))))
        log_prior, log_likelihood = zip(*rows, strict=True)
        return torch.stack(log_prior), torch.stack(log_likelihood)

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites, ``(..., *event_shape)``, of z, ``(..., num_dims)``."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        return {
            name: part.reshape(*z.shape[:-1], *shape)
            for (name, shape), part in zip(
                self._shapes.items(), z.split(sizes, dim=-1), strict=True
            )
        }

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """The reverse of :meth:`split`; values of other sites are left out."""
        parts = []
        for name, shape in self._shapes.items():
            value = values[name]
            parts.append(value.reshape(*value.shape[: value.dim() - len(shape)], -1))
        return torch.cat(parts, dim=-1)

    def guide_draws(self, num_draws: int) -> Tensor:
        """Draws from q(z|x), ``(R, N, num_dims)``."""
        return self._drawn(num_draws, Runs.new_guide_trace)

    def prior_draws(self, num_draws: int) -> Tensor:
        """Draws from p(z), ``(R, N, num_dims)``."""
        return self._drawn(num_draws, Runs.new_prior_trace)

    def guide_draws_by_draws(self, num_draws: int) -> Iterator[Tensor]:
        """:meth:`guide_draws`, a few of them at a time."""
        return self._runs_of_draws(num_draws, Runs.new_guide_trace)

    def _drawn(self, num_draws: int, run: Callable[..., Any]) -> Tensor:
        # Filled in piece by piece, so that there is no second copy.
        found: Tensor | None = None
        start = 0
        for values in self._runs_of_draws(num_draws, run):
            if found is None:
                found = values.new_empty(num_draws, *values.shape[1:])
            found[start : start + len(values)] = values
            start += len(values)
        if found is None:
            raise ValueError(f"num_draws must be positive; got {num_draws}.")
        return found

    def _runs_of_draws(self, num_draws: int, run: Callable[..., Any]) -> Iterator[Tensor]:
        """Draws of a run of guide or model, ``(R, N, num_dims)`` at a time."""
        if self.runs.takes_draws:
            for size in draws_of_a_run(num_draws, self.num_data):
                yield self.flat(values_of(run(self.runs, size)))
        elif num_draws > 1 and self.runs.takes_rows:
            for size in draws_of_a_run(num_draws, self.num_data):
                values = self.flat(values_of(run(self.runs.repeated(size))))
                yield values.unflatten(0, (size, self.num_data))
        else:
            for _ in range(num_draws):
                yield self.flat(values_of(run(self.runs))).unsqueeze(0)

    def _prior_and_likelihood(self, log_p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        log_prior = [log_p[name] for name in self.runs.latent]
        log_likelihood = [log_p[name] for name in self.runs.observed]
        return sum(log_prior[1:], start=log_prior[0]), sum(
            log_likelihood[1:], start=log_likelihood[0]
        )
