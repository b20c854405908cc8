"""The prior that is a mixture of the guide's own answers to learned pseudo-inputs."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Self

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.datasets import checked_rows
from pyro_vae.distributions import DistributionModule
from pyro_vae.modes import evaluation_mode
from pyro_vae.seeding import generator

__all__ = ["VampPrior"]


class VampPrior(DistributionModule):
    r"""Variational mixture of posteriors: the guide at K learned pseudo-inputs.

    .. math:: p(z) = \sum_{j=1}^K w_j\, q(z \mid u_j)

    The prior with the largest ELBO is the guide's average over the data; this is that average over
    K rows that are learned. The guide is the VAE's own module, so training reaches it through the
    prior too, and a VAE with this prior is put together in two steps:

        vae = pv.VAE(prior=priors.StandardNormal(k), likelihood=..., guide=guide)
        vae = vae.with_prior(priors.VampPrior.from_data(guide, x))

    There is no closed form for the KL from the guide: it is estimated from draws.

    Args:
        guide: Module that maps x to q(z|x), an encoder's.
        pseudo_inputs: Where u starts, ``(K, *event_shape of x)``. They are kept in the guide's
            type and on its device, and are free to leave the range of the data.
        learn_weights: Whether the weights are learned too; else they are 1 / K.

    Attributes:
        pseudo_inputs: u, ``(K, *event_shape of x)``.
        logits: Logarithms of the weights up to a constant, ``(K,)``, where they are learned.

    Raises:
        TypeError: If ``guide`` is not a module with an ``event_shape``, or holds parameters for
            each datum.
        ValueError: If there are no pseudo-inputs, or one holds NaN or infinity.

    Example:
        >>> from pyro_vae import families, guides
        >>> family = families.DiagonalNormal(2)
        >>> guide = guides.AmortizedGuide(family, nn.Linear(3, family.num_params))
        >>> u, z = torch.eye(3)[:1], torch.zeros(2)
        >>> torch.equal(VampPrior(guide, u)().log_prob(z), guide(u).log_prob(z)[0])
        True

    References:
        Tomczak and Welling (2018), VAE with a VampPrior, section 3.
        https://arxiv.org/abs/1705.07120
    """

    logits: Tensor

    def __init__(
        self, guide: nn.Module, pseudo_inputs: Any, *, learn_weights: bool = False
    ) -> None:
        super().__init__()
        reference = _reference(guide)
        start = checked_rows(pseudo_inputs, name="pseudo_inputs").tensor.to(reference)
        self.guide = guide
        self.event_shape = torch.Size(guide.event_shape)  # type: ignore[arg-type]
        self.pseudo_inputs = nn.Parameter(start.clone())
        logits = start.new_zeros(len(start))
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    @classmethod
    def from_data(
        cls,
        guide: nn.Module,
        x: Any,
        *,
        num_components: int = 50,
        seed: int = 0,
        learn_weights: bool = False,
        columns: Sequence[str] | None = None,
        missing: bool = False,
    ) -> Self:
        """A prior whose pseudo-inputs start at random rows of the data, no two of them equal.

        Pseudo-inputs are complete. Of data with missing values they start at rows in which each
        missing value is the mean of the observed ones of its column; 0 where there are none.

        Args:
            guide: Module that maps x to q(z|x).
            x: Data, ``(N, *event_shape)``: tensor, array, DataFrame or
                :class:`~pyro_vae.datasets.Dataset`.
            num_components: Number K of rows.
            seed: Seed of the choice.
            learn_weights: Whether the weights are learned.
            columns: Names of the features in the order in which the guide knows them, as
                ``vae.columns`` has them after a fit; those of a table are matched to them.
            missing: Whether NaN, and what a ``numpy.ma`` array masks, is a missing value.

        Raises:
            ValueError: If x has fewer distinct rows than that, or holds infinity, or missing
                values unless ``missing``.
            TypeError: As for the class, or if x is not numeric.

        Example:
            >>> from pyro_vae import families, guides
            >>> guide = guides.AmortizedGuide(families.DiagonalNormal(2), nn.Linear(1, 4))
            >>> x = torch.tensor([[1.0], [2.0], [1.0]])
            >>> u = VampPrior.from_data(guide, x, num_components=2).pseudo_inputs
            >>> sorted(u.flatten().tolist())
            [1.0, 2.0]
            >>> x = torch.tensor([[1.0], [3.0], [torch.nan]])
            >>> prior = VampPrior.from_data(guide, x, num_components=3, missing=True)
            >>> sorted(prior.pseudo_inputs.flatten().tolist())
            [1.0, 2.0, 3.0]
        """
        num_components = positive_integer(num_components, "num_components")
        dtype = _reference(guide).dtype
        checked = checked_rows(x, dtype=dtype, columns=columns, missing=True)
        rows = _filled(checked.tensor, missing=missing)
        order = torch.randperm(len(rows), generator=generator(seed, "pseudo-inputs"), device="cpu")
        chosen: dict[tuple[float, ...], int] = {}
        for i in order.tolist():
            # Two equal components would have equal gradients, and stay equal.
            chosen.setdefault(tuple(rows[i].flatten().tolist()), i)
            if len(chosen) == num_components:
                break
        else:
            raise ValueError(
                f"num_components must not exceed the number of distinct rows of x, {len(chosen)}; "
                f"got {num_components}. Ask for fewer, or give pseudo-inputs of your own: "
                "VampPrior(guide, pseudo_inputs)."
            )
        return cls(guide, rows[list(chosen.values())], learn_weights=learn_weights)

    def forward(self) -> dist.MixtureSameFamily:
        """Distribution with batch shape ``()`` and the guide's event shape."""
        weights = dist.Categorical(logits=self.logits)
        # A batch of pseudo-inputs has no statistics that BatchNorm should use or learn, and p(z)
        # must not depend on dropout's noise.
        with evaluation_mode(self.guide):
            components = self.guide(self.pseudo_inputs)
        return dist.MixtureSameFamily(weights, components)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"num_components={len(self.pseudo_inputs)}"


def _filled(rows: Tensor, *, missing: bool) -> Tensor:
    """Rows with column means for missing values, if there may be any."""
    gaps = rows.isnan()
    if not bool(gaps.any()):
        return rows
    if not missing:
        raise ValueError(
            f"x must not contain missing values unless missing=True; got {int(gaps.sum())} that "
            "are NaN or masked. With VampPrior.from_data(..., missing=True) each starts at the "
            "mean of its column's observed values."
        )
    return torch.where(gaps, rows.nanmean(0).nan_to_num(nan=0.0), rows)


def _reference(guide: nn.Module) -> Tensor:
    """A tensor of the guide's type and on its device, once it is known to be a guide."""
    if not isinstance(guide, nn.Module) or getattr(guide, "event_shape", None) is None:
        raise TypeError(
            "guide must be a module that declares event_shape and maps x to q(z|x); got "
            f"{guide!r}."
        )
    if hasattr(guide, "num_data"):
        raise TypeError(
            "guide must map any x to q(z|x), as guides.AmortizedGuide does; got "
            f"{type(guide).__name__}, which has parameters for {guide.num_data} data and no "
            "answer to pseudo-inputs."
        )
    tensors = chain(guide.parameters(), guide.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.zeros((), device="cpu"))
