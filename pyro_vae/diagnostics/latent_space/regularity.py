"""How regular a latent space is: continuity and completeness, of a VAE or an autoencoder."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from pandas import DataFrame
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.monte_carlo import mean_and_mcse
from pyro_vae.evaluation import evaluating
from pyro_vae.seeding import generator

from .continuity import Estimate, local_change, random_pairs, segments
from .encoded import MOST_CODES, Encoded, LatentSpace, check_numbers, shuffled, two_parts
from .neighbors import (
    FIGURES,
    Reference,
    coverage_if_equal,
    covered,
    normal_factor,
    radii,
    region,
    whitening,
)

__all__ = ["regularity", "regularity_summary"]

REPETITIONS = 10
"""Independent sets of draws, whose spread is the Monte Carlo error."""

SOURCES = ("prior", "fitted_normal")
REFERENCES = ("data", "reconstructions")
SHARES = ("draws_covered", "codes_covered")


def regularity(
    model: Any,
    x: Any,
    *,
    held_out: Any = None,
    num_pairs: int = 200,
    num_steps: int = 32,
    num_samples: int = 1000,
    num_neighbors: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""Continuity and completeness of a latent space, of a VAE and an autoencoder alike.

    **Continuity**: close points decode to similar things. ``local_change`` is the squared change
    of the decoding for a step of a tenth of the codes' spread, relative to the decodings' spread;
    it is 1 for a linear decoder and large where close points decode to different things. Along
    straight segments between encoded points, in equal steps with speeds :math:`v_t`:
    ``unevenness``, the coefficient of variation of the speed (0 if even); ``path_over_chord``, the
    length of the path over the distance of its ends (1 if straight); ``peak``, the largest speed
    over the mean (1 if even). Segments of a VAE need not be more even than an autoencoder's; on
    digits and Fashion-MNIST it is ``local_change`` that tells the two apart.

    **Completeness**: a draw decodes to something like data. Decoded draws are held against the
    held-out data, and against their reconstructions, by ``precision``, ``recall``, ``density`` and
    ``coverage`` (K nearest neighbors in x; Euclidean distances in the units of x). A decoding is a
    mean of p(x|z), smoother than data: against data precision flatters it, and recall is low even
    for a perfect model. The reconstructions are means themselves, so there the comparison is of
    like with like: is a draw decoded to something that an encoded datum could be decoded to?
    ``*_of_data`` are the figures that the rows of x get in place of the draws: what can be hoped
    for. In the latent space, ``draws_covered`` is the share of draws in the region where the
    encoded data are dense, a region that holds the share ``nominal_draws`` of these, and
    ``codes_covered`` the share of the encoded held-out data in the region where the draws are
    dense; both are ``level`` if the aggregate posterior is what is drawn from, and the first falls
    where draws meet holes, the second where codes lie outside.

    Draws come from two sources. ``prior`` is p(z); for a model without a prior it is N(0, I),
    which its encoder has no reason to match. ``fitted_normal`` is the normal distribution with the
    mean and covariance of the encoded data, which is fair to an autoencoder whose scale is
    arbitrary: continuity and all figures of this source stay the same if the latent space is
    shifted, scaled or mapped linearly. Of a VAE the codes behind draws and regions are draws from
    q(z|x), those of continuity and reconstructions its means. Of more than 40,000 data, and than
    four times ``num_samples``, a random subset of so many is encoded.

    Args:
        model: Has ``encode(x)``, which returns a tensor ``(N, k)`` or a distribution with a mean,
            and ``decode(z)``: a VAE, :class:`~pyro_vae.baselines.Autoencoder` or
            :class:`~pyro_vae.baselines.PCA`. A ``p_z()`` that returns p(z) is the prior.
        x: Data whose codes make the aggregate, ``(N, *event_shape)``, such as the training data.
        held_out: Data that decoded draws are to be like, and whose points the segments join;
            unless given, x is cut at random into two halves.
        num_pairs: Number of segments. Up to half the held-out data none shares a point.
        num_steps: Number of steps on a segment.
        num_samples: Number of draws in each of 10 repetitions, and of data they are compared with;
            less if there are less data. Figures depend on it: compare models at one number only.
        num_neighbors: Number K of neighbors, in x and in z.
        level: Share of the aggregate that the dense region holds.
        seed: Seed of all random numbers; the global random state is left alone.

    Returns:
        ``local_change``, ``unevenness``, ``path_over_chord``, ``peak``; over (source, reference)
        ``precision``, ``recall``, ``density``, ``coverage``, and over (reference) the same with
        ``_of_data``; over (source) ``draws_covered``, ``codes_covered``. Each has ``_mcse``, the
        Monte Carlo error, and ``_se``, the error of a claim about new held-out data (x held
        fixed; by a jackknife, rather too large than too small). For pictures: ``speed`` (pair,
        step), relative to its mean; ``draw_z`` (source, draw, latent), ``draw_is_covered``;
        ``code_z`` (obs_id, latent). Attributes: ``expected_coverage`` if draws and data had one
        distribution (the density's is 1), ``nominal_draws``, ``nominal_codes``.

    Raises:
        TypeError: If the model has no ``encode`` or ``decode``.
        ValueError: If codes are no vectors, there are too few data, or an argument does not fit.

    Example:
        >>> import pyro_vae as pv
        >>> x = torch.randn(90, 3, generator=torch.Generator(device="cpu").manual_seed(0))
        >>> found = regularity(pv.baselines.PCA(2).fit(x), x, num_samples=20)
        >>> round(float(found["unevenness"]), 4), round(float(found["peak"]), 4)  # it is linear
        (0.0, 1.0)

    References:
        Kynkäänniemi et al. (2019), Improved precision and recall metric for assessing generative
        models. https://arxiv.org/abs/1904.06991
        Naeem et al. (2020), Reliable fidelity and diversity metrics for generative models.
        https://arxiv.org/abs/2002.09797
    """
    num_pairs = positive_integer(num_pairs, "num_pairs")
    num_steps = positive_integer(num_steps, "num_steps")
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2; got {num_steps}.")
    num_samples = positive_integer(num_samples, "num_samples")
    num_neighbors = positive_integer(num_neighbors, "num_neighbors")
    level = finite_number(level, "level", "between 0 and 1", above=0)
    if level >= 1:
        raise ValueError(f"level must be between 0 and 1; got {level}.")
    latent = LatentSpace(model, seed, most=max(MOST_CODES, 4 * num_samples))
    codes, held = two_parts(latent, x, held_out, seed)
    check_numbers(len(codes.draws), len(held.draws), num_samples, num_neighbors, level)
    columns: dict[str, Any] = {}
    with evaluating(model, seed, "regularity", device=held.points.device):
        # The order of the rows may mean something: the first so many need not be typical.
        codes = shuffled(codes, seed, "codes")
        held = shuffled(held, seed, "held")
        size = min(num_samples, len(held.draws), len(codes.draws))
        _continuity(columns, latent, held, num_pairs, num_steps, size, seed)
        _in_x(columns, latent, codes, held, size, num_neighbors)
        nominal = _in_z(columns, latent, codes, held, size, num_neighbors, level)
    dataset = xr.Dataset(columns)
    coordinates: dict[str, Any] = {str(d): np.arange(n) for d, n in dataset.sizes.items()}
    coordinates |= {"source": list(SOURCES), "reference": list(REFERENCES)}
    return dataset.assign_coords(coordinates).assign_attrs(
        units="ratios and shares",
        prior="p(z)" if latent.has_prior else "N(0, I)",
        num_pairs=num_pairs,
        num_moving_pairs=int(np.isfinite(dataset["speed"].to_numpy()).all(1).sum()),
        num_steps=num_steps,
        num_samples=size,
        num_repetitions=REPETITIONS,
        num_neighbors=num_neighbors,
        level=level,
        nominal_draws=nominal[0],
        nominal_codes=nominal[1],
        expected_coverage=coverage_if_equal(size, size, num_neighbors),
        seed=seed,
    )


def regularity_summary(found: xr.Dataset) -> DataFrame:
    """The figures of a latent space as a table.

    Args:
        found: What :func:`regularity` returned.

    Returns:
        Indexed by ``figure``, ``source`` and ``reference`` (empty where there is none): ``value``,
        ``mcse``, ``se``, and ``ideal``: what a linear decoder, or draws that are distributed as
        the data, would have. Of precision and recall that is what the rows of x have.

    Example:
        >>> import pyro_vae as pv
        >>> x = torch.randn(90, 3, generator=torch.Generator(device="cpu").manual_seed(0))
        >>> table = regularity_summary(regularity(pv.baselines.PCA(2).fit(x), x, num_samples=20))
        >>> float(table["ideal"].loc["draws_covered", "prior", ""].round(2))
        0.96
    """
    attrs = found.attrs
    fixed = {
        "local_change": 1.0,
        "unevenness": 0.0,
        "path_over_chord": 1.0,
        "peak": 1.0,
        "draws_covered": attrs["nominal_draws"],
        "codes_covered": attrs["nominal_codes"],
        "density": 1.0,
        "coverage": attrs["expected_coverage"],
    }
    rows = []
    for figure in (*list(fixed)[:4], *SHARES, *FIGURES):
        for source in found["source"].values if "source" in found[figure].dims else [""]:
            for of in found["reference"].values if "reference" in found[figure].dims else [""]:
                at = {"source": source, "reference": of}
                at = {dim: value for dim, value in at.items() if value}
                value, mcse, se = (
                    float(found[name].sel(at))
                    for name in (figure, f"{figure}_mcse", f"{figure}_se")
                )
                ideal = fixed.get(figure)
                if ideal is None:
                    ideal = float(found[f"{figure}_of_data"].sel(reference=of))
                rows.append((figure, source, of, value, mcse, se, ideal))
    names = ["figure", "source", "reference", "value", "mcse", "se", "ideal"]
    return DataFrame(rows, columns=names).set_index(names[:3])


def _continuity(
    columns: dict[str, Any],
    latent: LatentSpace,
    held: Encoded,
    num_pairs: int,
    num_steps: int,
    size: int,
    seed: int,
) -> None:
    pairs = random_pairs(len(held.points), num_pairs, generator(seed, "regularity", "pairs"))
    ends = held.points[pairs]
    along = segments(latent.decoded, ends[:, 0], ends[:, 1], num_steps)
    change = local_change(latent.decoded, held.points[:size])
    for name, estimate in (
        ("local_change", change),
        ("unevenness", along.unevenness),
        ("path_over_chord", along.path_over_chord),
        ("peak", along.peak),
    ):
        _put(columns, name, (), estimate)
    columns["speed"] = (("pair", "step"), along.speed.numpy())


def _sources(latent: LatentSpace, codes: Encoded) -> list[Callable[[int], Tensor]]:
    mean, factor = codes.draws.mean(0), normal_factor(codes.draws)

    def fitted(num_draws: int) -> Tensor:
        noise = torch.randn(num_draws, len(mean), dtype=mean.dtype, device=mean.device)
        return mean + noise @ factor

    return [latent.prior_draws, fitted]


def _in_x(
    columns: dict[str, Any],
    latent: LatentSpace,
    codes: Encoded,
    held: Encoded,
    size: int,
    num_neighbors: int,
) -> None:
    references = [
        Reference(sample, num_neighbors=num_neighbors)
        for sample in (held.first_rows(size), latent.decoded(held.points[:size]))
    ]
    table = held.points.new_zeros(3, len(SOURCES), len(references), len(FIGURES))
    for s, draw in enumerate(_sources(latent, codes)):
        values: list[Tensor] = []
        for repetition in range(REPETITIONS):
            y = latent.decoded(draw(size))
            radius = radii(y, num_neighbors)
            values.append(torch.stack([r.figures(y, radius) for r in references]))
            if repetition == 0:
                table[2, s] = torch.stack([r.jackknife(y, radius) for r in references])
        table[0, s], table[1, s] = mean_and_mcse(torch.stack(values))
    table[2] = (table[2].square() + table[1].square()).sqrt()
    real = (codes.first_rows(size), latent.decoded(codes.points[:size]))
    for f, figure in enumerate(FIGURES):
        for kind, suffix in enumerate(("", "_mcse", "_se")):
            columns[figure + suffix] = (("source", "reference"), table[kind, ..., f].numpy())
    of_data = torch.stack([r.figures(y) for r, y in zip(references, real, strict=True)])
    errors = torch.stack([r.jackknife(y) for r, y in zip(references, real, strict=True)])
    for f, figure in enumerate(FIGURES):
        columns[f"{figure}_of_data"] = ("reference", of_data[:, f].numpy())
        columns[f"{figure}_of_data_se"] = ("reference", errors[:, f].numpy())


def _in_z(
    columns: dict[str, Any],
    latent: LatentSpace,
    codes: Encoded,
    held: Encoded,
    size: int,
    num_neighbors: int,
    level: float,
) -> tuple[float, float]:
    to_white = whitening(codes.draws)
    white_codes, white_held = codes.draws @ to_white, held.draws @ to_white
    dense = region(white_codes[:size], white_held, num_neighbors=num_neighbors, level=level)
    table = np.zeros((len(SHARES), 3, len(SOURCES)))
    shown, flags = [], []
    nominal = math.nan
    for s, draw in enumerate(_sources(latent, codes)):
        shares, errors = [], []
        for repetition in range(REPETITIONS):
            draws, more = draw(size), draw(size)
            inside, error = covered(draws @ to_white, dense)
            drawn = region(
                draws @ to_white, more @ to_white, num_neighbors=num_neighbors, level=level
            )
            nominal = drawn.nominal
            share = covered(white_held, drawn)[0].double().mean().item()
            shares.append((inside.double().mean().item(), share))
            errors.append((error, math.sqrt(share * (1 - share) / len(white_held))))
            if repetition == 0:
                shown.append(draws)
                flags.append(inside)
        table[:, 0, s], table[:, 1, s] = mean_and_mcse(torch.tensor(shares, device="cpu"))
        table[:, 2, s] = np.hypot(table[:, 1, s], np.mean(errors, axis=0))
    for name, values in zip(SHARES, table, strict=True):
        for suffix, row in zip(("", "_mcse", "_se"), values, strict=True):
            columns[name + suffix] = ("source", row)
    columns["draw_z"] = (("source", "draw", "latent"), torch.stack(shown).numpy())
    columns["draw_is_covered"] = (("source", "draw"), torch.stack(flags).numpy())
    columns["code_z"] = (("obs_id", "latent"), held.draws[:size].numpy())
    return dense.nominal, nominal


def _put(columns: dict[str, Any], name: str, dims: tuple[str, ...], estimate: Estimate) -> None:
    for suffix, value in zip(("", "_mcse", "_se"), estimate, strict=True):
        columns[name + suffix] = (dims, value)
