"""The optimizer's twin for a fit by several processes."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer

from .one_torch import OneTorchOptim
from .processes import Processes

__all__ = ["DistributedOptim"]


class DistributedOptim(OneTorchOptim):
    r"""One step of one optimizer with the gradients of all processes.

    .. math:: g = \frac{\sum_r \nabla \sum_{i \in B_r} \ell_i}{\sum_r |B_r|}

    Each process r hands SVI its part :math:`B_r` of a batch. Before the update the gradients of
    the sums over rows, and the numbers of rows, are summed over the processes in one message, so
    that parts of different sizes count by their rows and the step is that of one process on the
    whole batch. All processes see the same gradient, so that parameters stay bitwise equal and a
    gradient that is not finite is skipped by all. In a group of one it is a
    :class:`OneTorchOptim`.

    What a program computes from its whole batch it computes from its part here: networks that
    normalize over the batch (whose running averages then differ: ``fit`` gives all processes
    those of the first after every epoch), and the floor of free bits under a batch's mean KL.

    Every process has to start from the same parameters and to register the same ones in the same
    step; the first is checked. :meth:`Processes.broadcast` makes them the same.

    Args:
        constructor: Makes the optimizer from a list of parameters.
        clip_norm: Largest global norm of the per-datum gradient; None leaves it as it is.

    Attributes:
        num_data: Rows of this process behind the next gradient; after a step those of all.
        wants_stop: Whether this process wants to end; after a step whether any of them does.
        processes: The group.

    Raises:
        ValueError: If ``clip_norm`` is neither positive nor None.

    Example:
        A script for ``torchrun --standalone --nproc-per-node=2 script.py``, which by itself is a
        group of one. It has literal programs and a literal SVI:

        >>> import pyro, pyro_vae as pv
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_vae.optim.processes import started
        >>> from pyro_vae.seeding import seeded
        >>> class Mean:  # x ~ N(a, 1): minus log p(x) has the gradient N a - sum x
        ...     def __init__(self):
        ...         self.net = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(()))})
        ...     def model(self, x):
        ...         pyro.module("mean", self.net)
        ...         with pyro.plate("data", len(x), dim=-1):
        ...             pyro.sample("x", dist.Normal(self.net["a"], 1.0), obs=x)
        ...     def guide(self, x):
        ...         pass
        >>> x = torch.tensor([1.0, 2.0, 6.0])
        >>> with started(device="cpu") as processes, pyro.get_param_store().scope():
        ...     program = Mean()
        ...     processes.broadcast(program.net.parameters())
        ...     optim = DistributedOptim(lambda params: torch.optim.SGD(params, lr=1.0))
        ...     svi = SVI(program.model, program.guide, optim, Trace_ELBO())
        ...     own = processes.part(x)
        ...     with seeded(0, "noise", 0, *processes.noise):
        ...         optim.num_data = len(own)
        ...         loss = svi.step(own)
        >>> program.net["a"].item()
        3.0
    """

    def __init__(
        self,
        constructor: Callable[[list[Tensor]], Optimizer],
        *,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(constructor, clip_norm=clip_norm)
        self.processes = Processes.current()
        self.wants_stop = False
        self._num_checked = 0

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step with the gradients that all processes hold, and release them."""
        params = list(params)
        if self.processes.size > 1:
            self._register(params)
            self._check_start()
            self._sum_gradients()
        super().__call__(params)

    def take_part(self) -> None:
        """Take one step without rows of one's own: programs cannot run on none.

        Raises:
            RuntimeError: If no step with rows was taken before, which tells the parameters.
        """
        if not self.params:
            raise RuntimeError(
                "the first batch must have rows for every process; got none for process "
                f"{self.processes.rank} of {self.processes.size}. Take larger batches."
            )
        self.num_data = 0
        for param in self.params:
            param.grad = None
        self(self.params)

    def _check_start(self) -> None:
        """Refuse new parameters that are not the same on every process."""
        new = self.params[self._num_checked :]
        if not new:
            return
        # The name of a module may be of this process alone, as that of a VAE is.
        names = [str(pyro.get_param_store().param_name(p)).rpartition("$$$")[2] for p in new]
        known = [(name, tuple(p.shape), str(p.dtype)) for name, p in zip(names, new, strict=True)]
        if not self.processes.same(repr(known)):
            raise RuntimeError(
                "programs must register the same parameters on every process; got "
                f"{', '.join(names)} on process {self.processes.rank}."
            )
        if not self.processes.agree(new):
            raise RuntimeError(
                "parameters must be equal on all processes before the first step; got different "
                "ones. Call Processes.current().broadcast([*net.parameters(), *net.buffers()]) "
                "for each network, or seed every process alike before they are made."
            )
        self._num_checked = len(self.params)

    def _sum_gradients(self) -> None:
        """Put the sum over processes in place of each gradient, of the rows and of the wish."""
        params, grads = self.params, [p.grad for p in self.params]
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in params), torch.float32)
        has_grad = [grad is not None for grad in grads]
        # The counts travel along: a message of their own would take as long as a small gradient.
        counts = [self.num_data, self.wants_stop, *has_grad]
        parts = [params[0].new_tensor(counts, dtype=dtype)]
        parts += [
            p.new_zeros(p.numel(), dtype=dtype) if grad is None else grad.reshape(-1).to(dtype)
            for p, grad in zip(params, grads, strict=True)
        ]
        sizes = [len(part) for part in parts]
        found, *summed = self.processes.sum_(torch.cat(parts)).split(sizes)
        num_data, num_stops, *num_grads = found.tolist()
        self.num_data, self.wants_stop = round(num_data), num_stops > 0
        for param, values, number in zip(params, summed, num_grads, strict=True):
            # A parameter that no process used has no gradient in one process either.
            if number > 0:
                grad = values.view(param.shape).to(param.dtype)
                is_plain = param.is_contiguous()
                param.grad = grad if is_plain else torch.empty_like(param).copy_(grad)
