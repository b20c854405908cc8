"""How much of a step's gradient is signal and how much is noise."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.seeding import generator
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs
from pyro_vae.traces.runs import store_untouched

__all__ = ["gradient_signal_to_noise"]

NUM_GROUPS = 10
"""Groups of draws, each of which is left out once for the standard errors."""


def gradient_signal_to_noise(
    vae: Programs,
    x: Any,
    *,
    num_draws: int = 100,
    batch_size: int = 128,
    elbo: ELBO | None = None,
    seed: int = 0,
) -> xr.Dataset:
    r"""The mean gradient of each parameter tensor against the spread of a single step's.

    .. math:: \text{signal} = \|\mathbb E g\|, \qquad
              \text{noise} = \sqrt{\operatorname{tr} \operatorname{Cov} g}, \qquad
              \text{snr} = \text{signal} / \text{noise}

    with g the gradient of the ELBO in nats per datum as one step of SVI has it, from a batch of
    rows and a draw of z for each, at the parameters as they are. Both the choice of the rows and
    the draws make noise. The mean's square is estimated without bias, less its own variance. Far
    from an optimum the ratio is near 1 or above; below about 0.1 a tensor goes where the noise
    goes, and only a smaller learning rate, larger batches or more particles bring it on. Then SVI
    has converged as far as such steps can, or the tensor has no influence.

    Parameters, their ``.grad``, Pyro's store and the random state are left as they were. The
    programs run in evaluation mode. Parameters that do not require a gradient have no entry.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data" and with
            registered parameters.
        x: Data, ``(N, *event_shape)``.
        num_draws: Number R of gradients, at least 20.
        batch_size: Rows in a step, drawn without replacement; all N if there are fewer.
        elbo: The Pyro objective of the fit; ``Trace_ELBO()`` unless given.
        seed: Seed of batches and draws.

    Returns:
        Over ``parameter``: ``signal``, ``noise`` and ``snr`` with their jackknife errors
        (``_mcse``); ``snr_squared``, which may be below 0 where there is no signal, with its error
        ``snr_squared_mcse``, which is then too large by a factor of about 1.4; ``size``, the
        number of elements; and the coordinate ``program``, "model" or "guide".

    Raises:
        ValueError: If ``num_draws`` is below 20 or no parameter is registered.
        TypeError: If the objective has no differentiable loss.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> found = gradient_signal_to_noise(vae, torch.randn(50, 3), num_draws=20)
        >>> found["size"].groupby("program").sum().values.tolist()  # g and h: 16; f: 9, c: 1
        [16, 10]

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better, section 3.
        https://arxiv.org/abs/1802.04537
    """
    num_draws = positive_integer(num_draws, "num_draws")
    if num_draws < 2 * NUM_GROUPS:
        raise ValueError(f"num_draws must be at least {2 * NUM_GROUPS}; got {num_draws}.")
    objective: Any = Trace_ELBO() if elbo is None else elbo
    if not hasattr(objective, "differentiable_loss"):
        raise TypeError(
            f"elbo must have a differentiable_loss; got {type(objective).__name__}. Use "
            "Trace_ELBO, TraceMeanField_ELBO or TraceEnum_ELBO."
        )
    rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name="x")
    batch_size = min(positive_integer(batch_size, "batch_size"), len(rows))
    params = _parameters(vae, rows, batch_size, seed)
    sums = [[torch.zeros_like(p, dtype=torch.float64) for p, _ in params.values()] for _ in GROUPS]
    squares = np.zeros((NUM_GROUPS, len(params)))
    counts = np.zeros(NUM_GROUPS)
    for draw, gradient in enumerate(
        _gradients(vae, rows, objective, list(params.values()), num_draws, batch_size, seed)
    ):
        group = draw % NUM_GROUPS
        counts[group] += 1
        for place, g in enumerate(gradient):
            sums[group][place] += g
            squares[group, place] += g.double().square().sum().item()
    estimates = [
        _signal_and_noise([group[place] for group in sums], squares[:, place], counts)
        for place in range(len(params))
    ]
    columns = {key: ("parameter", [e[key] for e in estimates]) for key in estimates[0]}
    return xr.Dataset(
        {**columns, "size": ("parameter", [p.numel() for p, _ in params.values()])},
        coords={
            "parameter": list(params),
            "program": ("parameter", [program for _, program in params.values()]),
        },
        attrs={
            "units": "nats per datum per unit of the parameter; ratios have none",
            "num_samples": num_draws,
            "batch_size": batch_size,
            "objective": type(objective).__name__,
            "seed": seed,
        },
    )


GROUPS = range(NUM_GROUPS)


def _parameters(
    vae: Programs, x: Tensor, batch_size: int, seed: int
) -> dict[str, tuple[Tensor, str]]:
    """Unconstrained parameters that the programs register, by name, each with its program."""
    named = vae.named_parameters() if isinstance(vae, nn.Module) else ()
    owned = {id(param): name for name, param in named}
    parts = per_datum_parts(vae)
    found: dict[str, tuple[Tensor, str]] = {}
    seen: set[int] = set()
    piece, index = next(pieces(parts, x, batch_size))
    with evaluating(vae, seed, "parameters", device=x.device), at_rows(parts, index):
        for program in ("model", "guide"):
            for name, param in _registered(getattr(vae, program), piece).items():
                if param.requires_grad and id(param) not in seen:
                    seen.add(id(param))
                    found[owned.get(id(param), name)] = param, program
    if not found:
        raise ValueError(
            "vae must register parameters that require a gradient; got none. Write "
            "pyro.module('name', self) in model and guide."
        )
    return found


def _registered(program: Any, x: Tensor) -> dict[str, Tensor]:
    with store_untouched():
        trace = poutine.trace(program, param_only=True).get_trace(x)
    sites: dict[str, Any] = dict(trace.nodes)
    return {
        name: getattr(site["value"], "unconstrained", lambda value=site["value"]: value)()
        for name, site in sites.items()
        if site["type"] == "param"
    }


def _gradients(
    vae: Programs,
    x: Tensor,
    objective: Any,
    params: list[tuple[Tensor, str]],
    num_draws: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of the ELBO in nats per datum, each from a batch of its own."""
    parts = per_datum_parts(vae)
    tensors = [param for param, _ in params]
    order = generator(seed, "gradient batches")
    for draw in range(num_draws):
        chosen = torch.randperm(len(x), generator=order, device="cpu")[:batch_size].to(x.device)
        with (
            evaluating(vae, seed, "gradient", draw, device=x.device),
            at_rows(parts, chosen),
            torch.enable_grad(),
            store_untouched(),
        ):
            loss = objective.differentiable_loss(vae.model, vae.guide, x[chosen]) / batch_size
            found = torch.autograd.grad(-loss, tensors, allow_unused=True)
        yield tuple(
            torch.zeros_like(param) if gradient is None else gradient
            for param, gradient in zip(tensors, found, strict=True)
        )


def _signal_and_noise(
    sums: list[Tensor], squares: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
    """Signal, noise and their ratio of one tensor, with jackknife errors over groups of draws."""
    total = sum(sums[1:], start=sums[0])
    whole = _moments(total, squares.sum(), counts.sum())
    without = np.array(
        [
            _moments(total - sums[g], squares.sum() - squares[g], counts.sum() - counts[g])
            for g in GROUPS
        ]
    )
    without = np.where(np.isfinite(without), without, math.nan)  # a ratio to no noise at all
    factor = (NUM_GROUPS - 1) / NUM_GROUPS
    errors = np.sqrt(factor * np.square(without - without.mean(0)).sum(0))
    signal2, noise2, ratio = (float(value) for value in whole)
    estimates = {"snr_squared": ratio, "snr_squared_mcse": float(errors[2])}
    for name, square, error in (
        ("signal", signal2, errors[0]),
        ("noise", noise2, errors[1]),
        ("snr", ratio, errors[2]),
    ):
        root = math.sqrt(max(0.0, square))
        # The error of a root, and near 0, where that has no bound, the root of the error.
        scale = 2 * max(root, math.sqrt(error) / 2)
        estimates |= {name: root, f"{name}_mcse": float(error / scale) if scale else 0.0}
    return estimates


def _moments(total: Tensor, squares: float, count: float) -> tuple[float, float, float]:
    """Squared norm of the mean, trace of the covariance, and their ratio; the two are unbiased."""
    mean2 = total.square().sum().item() / count**2
    noise2 = max(0.0, (squares / count - mean2) * count / (count - 1))
    signal2 = mean2 - noise2 / count
    ratio = signal2 / noise2 if noise2 > 0 else (math.inf if signal2 > 0 else 0.0)
    return signal2, noise2, ratio
