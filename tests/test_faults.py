"""Faults: what a user may do to the package, and what it does back. One row of FAULTS.md each.

The numbers in the names are those of the table. After every case x is as it was, the world too
(Pyro's store, random states, filters of warnings, signal handlers), and so are the parameters of
a model unless it was trained: ``fault_table.run_case`` sees to that.
"""

import copy
import datetime
import hashlib
import io
import math
import multiprocessing
import os
import pickle
import signal
import struct
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pyro
import pytest
import scipy.sparse
import torch
from fault_table import (
    QUICK,
    Fault,
    Refused,
    Scene,
    command,
    encode,
    evidence,
    fit,
    forms,
    gaussian,
    normal,
    put,
    reconstruct,
    run_case,
    table,
    tensors,
    terms,
    validate,
)
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from sklearn.exceptions import NotFittedError
from torch import nn

import pyro_vae as pv
from pyro_vae import (
    baselines,
    datasets,
    diagnostics,
    families,
    guides,
    kept_fit,
    likelihoods,
    priors,
)
from pyro_vae.checkpoint import CheckpointError, load_weights
from pyro_vae.report import concerns

NAN, INF = math.nan, math.inf


def of(kind, features=3):
    return lambda: pv.make_vae(features=features, latent_dim=2, hidden=(4,), likelihood=kind)


bernoulli = of(likelihoods.Bernoulli)
poisson = of(likelihoods.Poisson)


def vae_of(encoder, *, features=3, family=None):
    """A VAE with an encoder of one's own."""
    return pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(nn.Linear(2, features), event_shape=(features,)),
        guide=guides.AmortizedGuide(family or families.DiagonalNormal(2), encoder),
    )


def normalized():
    return vae_of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)))


def holding(value, *, at=((3, 1), (5, 2))):
    """Data with a value at two places."""

    def make():
        x = normal()
        for row, column in at:
            x[row, column] = value
        return x

    return make


def pca(s):
    return baselines.PCA(1).fit(s.x)


def everything(s):
    """All that reads data."""
    before = tensors(s.vae)
    for read in (encode, reconstruct, terms, evidence):
        read(s)
    assert all(torch.equal(before[name], now) for name, now in tensors(s.vae).items())
    return s.fit()


WAYS = {
    "fit": fit(),
    "validation": validate,
    "encode": encode,
    "reconstruct": reconstruct,
    "elbo-terms": terms,
    "pca": pca,
}
FIT = "fit --epochs 1 --hidden 4 --latent-dim 1 --quiet --data "


def refused(row, name, error, says, *, x, vae=gaussian, ways=("fit", "encode", "elbo-terms")):
    """The same fault by several ways."""
    return [Fault(row, f"{name}-{way}", WAYS[way], says, error, vae=vae, x=x) for way in ways]


def in_all_forms(row, name, error, says, *, x, vae=gaussian):
    """The same fault as a tensor, an array, a list and a table."""
    return [
        Fault(
            row,
            f"{name}-{form}",
            fit(),
            says.replace("COLUMN", "'b'" if form == "table" else "1"),
            error,
            vae=vae,
            x=make,
        )
        for form, make in forms(x).items()
    ]


# --- rows 1 and 2: NaN and infinity --------------------------------------------------------------

NOT_NAN = r"must not contain NaN; got 2, the first at row 3, column COLUMN.*mask=.*nothing is drop"
NOT_INF = r"must not contain infinite values; got 2, the first at row 3, column COLUMN.*logarithm"

ROWS_1_AND_2 = [
    *in_all_forms(1, "nan", ValueError, NOT_NAN, x=holding(NAN)),
    *refused(1, "nan", ValueError, NOT_NAN.replace("COLUMN", "1"), x=holding(NAN), ways=WAYS),
    Fault(
        1,
        "nan-command",
        command(FIT + "data.csv"),
        "must not contain NaN; got 2, the first at row 3, column 'b'.*--missing",
        Refused,
        x=lambda: table(holding(NAN)()),
    ),
    *in_all_forms(2, "inf", ValueError, NOT_INF, x=holding(INF)),
    *refused(2, "minus-inf", ValueError, NOT_INF.replace("COLUMN", "1"), x=holding(-INF)),
    Fault(
        2,
        "inf-command",
        command(FIT + "data.csv"),
        NOT_INF.replace("COLUMN", "'b'"),
        Refused,
        x=lambda: table(holding(INF)()),
    ),
]

# --- rows 3 to 5: what a likelihood cannot describe ----------------------------------------------


def gray(levels):
    """Every level between 0 and the highest one, in a table's order."""
    return lambda: torch.arange(0.0, 3 * 90).reshape(-1, 3) % (levels + 1)


def bytes_of(levels):
    return lambda: gray(levels)().to(torch.uint8)


def constant(column):
    """Data in which one column has one value."""

    def make():
        x = normal(40)
        x[:, column] = 2.0
        return x

    return make


def elbo_is_finite(s):
    assert s.result.history["elbo"].map(math.isfinite).all()


TWO_FIXES = r"Rescale x \(x / {0}\), or use likelihoods.Poisson"
MANY = {"epochs": 60, "batch_size": 20, "learning_rate": 0.05}

ROWS_3_TO_5 = [
    *refused(
        3,
        "255",
        ValueError,
        r"in \[0, 255\].*" + TWO_FIXES.format(255),
        x=gray(255),
        vae=bernoulli,
    ),
    *refused(
        3, "16", ValueError, r"in \[0, 16\].*" + TWO_FIXES.format(16), x=gray(16), vae=bernoulli
    ),
    Fault(
        3,
        "bytes",
        fit(),
        r"in \[0, 255\].*" + TWO_FIXES.format(255),
        ValueError,
        vae=bernoulli,
        x=bytes_of(255),
    ),
    *refused(
        3,
        "negative-counts",
        ValueError,
        r"counts 0, 1, 2.*in \[-\d, \d\].*Undo .* standardization, or use likelihoods.Gaussian",
        x=lambda: (2 * normal()).round(),
        vae=poisson,
    ),
    Fault(
        3,
        "command",
        command(FIT + "data.npy --likelihood bernoulli"),
        r"in \[0, 16\].*" + TWO_FIXES.format(16),
        Refused,
        x=gray(16),
    ),
    Fault(
        4,
        "gray",
        lambda s: s.fit(epochs=3, validation=s.x),
        "not a normalized density: the ELBO is comparable with no other.*ContinuousBernoulli"
        ".*Beta.*binarize",
        vae=bernoulli,
        x=lambda: gray(16)() / 16,
        trains=True,
        then=elbo_is_finite,
    ),
    Fault(4, "binary", fit(), vae=bernoulli, x=lambda: (normal() > 0).double(), trains=True),
    Fault(
        5,
        "constant-table",
        fit(**MANY),
        r"1 feature\(s\) are constant \(b\): their learned variance falls to variance_floor",
        vae=lambda: gaussian(variance=torch.ones(3)),
        x=lambda: table(constant(1)()),
        trains=True,
        then=elbo_is_finite,
    ),
    Fault(
        5,
        "constant-tensor",
        fit(**MANY),
        r"are constant \(0\)",
        vae=lambda: gaussian(variance=torch.ones(3)),
        x=constant(0),
        trains=True,
        then=elbo_is_finite,
    ),
    Fault(
        5,
        "all-constant",
        fit(**MANY),
        r"3 feature\(s\) are constant \(0, 1, 2\).*variance_floor",
        x=lambda: torch.ones(40, 3),
        trains=True,
        then=elbo_is_finite,
    ),
    # One variance for all features does not fall with one of them, and a fixed one not at all.
    Fault(5, "shared-variance", fit(**MANY), x=constant(1), trains=True, then=elbo_is_finite),
    Fault(
        5,
        "fixed-variance",
        fit(**MANY),
        vae=lambda: gaussian(variance=torch.ones(3), learn_variance=False),
        x=constant(1),
        trains=True,
        then=elbo_is_finite,
    ),
]

# --- rows 6 to 8: shapes -------------------------------------------------------------------------


def loss_is_that_of_one_batch(s):
    """Nothing is drawn and nothing moves: the epoch's mean loss is that over all rows."""
    still = {"optimizer": lambda params: torch.optim.SGD(params, lr=1e-300)}
    losses = [s.fit(batch_size=size, **still).history["loss"][0] for size in (4, 9, 100)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-12)
    return s.fit()


def two_epochs_of_two_batches(s):
    (norm,) = (m for m in s.vae.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 2
    assert s.vae.encode(s.x[:1]).mean.isfinite().all()  # one row by itself, once it is fitted


def shuffled_columns_are_matched(s):
    q = s.vae.encode(s.x).mean
    for other in (s.x[["c", "a", "b"]], s.x.assign(d=9.0)):
        assert torch.equal(s.vae.encode(other).mean, q)
        assert torch.equal(s.vae.reconstruct(other), s.vae.reconstruct(s.x))
    found = baselines.PCA(1).fit(s.x)
    assert torch.equal(found.encode(s.x[["c", "a", "b"]]), found.encode(s.x))
    assert torch.equal(found.log_prob(s.x[["b", "c", "a"]]), found.log_prob(s.x))


def without_a_column(read):
    """Predict from a table that lacks a column, after a fit to one that has it."""

    def does(s):
        s.fit()
        s.kept["fitted"] = tensors(s.vae)
        return read(Scene(s.vae, s.x[["a", "c"]], s.folder, s.patch))

    return does


def still_as_fitted(s):
    assert all(torch.equal(s.kept["fitted"][n], t) for n, t in tensors(s.vae).items())


NO_ROWS = r"must have at least one row.*no rows"

ROWS_6_TO_8 = [
    *[
        Fault(6, f"empty-{form}", fit(), NO_ROWS, ValueError, x=make)
        for form, make in forms(lambda: torch.zeros(0, 3)).items()
    ],
    *refused(6, "empty", ValueError, NO_ROWS, x=lambda: torch.zeros(0, 3), ways=WAYS),
    Fault(
        6,
        "empty-command",
        command(FIT + "data.csv"),
        NO_ROWS,
        Refused,
        x=lambda: table(torch.zeros(0, 3)),
    ),
    Fault(7, "fewer-than-a-batch", fit(batch_size=128), trains=True),
    Fault(7, "one-row", fit(), x=lambda: normal(1), trains=True),
    Fault(
        7,
        "last-batch-of-one",
        loss_is_that_of_one_batch,
        vae=lambda: baselines.autoencoder(features=3, latent_dim=2, hidden=(4,)),
        x=lambda: normal(9),
        trains=True,
    ),
    Fault(
        7,
        "batchnorm-last-batch-of-one",
        fit(),
        vae=normalized,
        x=lambda: normal(9),
        trains=True,
        then=two_epochs_of_two_batches,
    ),
    Fault(
        7,
        "batchnorm-one-row",
        fit(),
        "at least two rows where a network normalizes over the batch; got 1.*BatchNorm",
        ValueError,
        vae=normalized,
        x=lambda: normal(1),
    ),
    Fault(
        7,
        "batchnorm-batches-of-one",
        fit(batch_size=1),
        "batch_size must be at least 2 where a network normalizes over the batch; got 1",
        ValueError,
        vae=normalized,
    ),
    *[
        Fault(
            8,
            f"wide-{name}",
            read,
            r"event shape \(784,\); got \(785,\)",
            ValueError,
            vae=lambda: gaussian(features=784),
            x=lambda: torch.zeros(2, 785),
        )
        for name, read in {
            "fit": fit(),
            "encode": encode,
            "reconstruct": reconstruct,
            "elbo-terms": terms,
            "log-evidence": evidence,
        }.items()
    ],
    Fault(
        8,
        "wide-decode",
        lambda s: s.vae.decode(s.x),
        r"must end in shape \(2,\); got \(5, 3\)",
        ValueError,
        x=lambda: torch.zeros(5, 3),
    ),
    Fault(
        8,
        "single-datum",
        encode,
        r"event shape \(3,\); got \(\).*x\.unsqueeze\(0\)",
        ValueError,
        x=lambda: torch.zeros(3),
    ),
    Fault(
        8,
        "columns-by-name",
        fit(),
        x=lambda: table(normal()),
        trains=True,
        then=shuffled_columns_are_matched,
    ),
    *[
        Fault(
            8,
            f"missing-column-{name}",
            without_a_column(read),
            "columns that the model was fitted on; got a table without 'b'",
            ValueError,
            x=lambda: table(normal()),
            trains=True,
            then=still_as_fitted,
        )
        for name, read in {"encode": encode, "reconstruct": reconstruct, "terms": terms}.items()
    ],
    Fault(
        8,
        "pca-missing-column",
        lambda s: baselines.PCA(1).fit(s.x).encode(s.x[["a", "c"]]),
        "got a table without 'b'",
        ValueError,
        x=lambda: table(normal()),
    ),
    Fault(
        8,
        "pca-wide",
        lambda s: baselines.PCA(1).fit(s.x).decode(torch.zeros(2, 5)),
        r"z must end in shape \(1,\); got \(2, 5\)",
        ValueError,
    ),
]

# --- rows 9 to 11: kinds of data -----------------------------------------------------------------


def whole():
    return (3 * normal()).round().abs()


def as_if_it_had_been(kind):
    """The fit is that to the same numbers in the model's own type, bit by bit."""

    def does(s):
        twin = copy.deepcopy(s.vae)
        s.fit(epochs=2, validation=s.x)
        pv.fit(twin, kind(s.x), epochs=2, batch_size=4, progress=False)
        assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(twin).items())
        assert s.vae.dtype == torch.float64

    return does


TORCH_TYPES = ("int64", "int32", "int8", "uint8", "bool", "float16", "bfloat16", "float32")
NUMPY_TYPES = ("int64", "uint8", "bool", "float16", "float32")
WITH_TEXT = {
    "object": (lambda: table(normal()).astype({"b": object}), r"'b' \(object\)"),
    "strings": (lambda: table(normal()).assign(b="text"), r"got 'b' \((str|object|string)\)"),
    "array-of-objects": (lambda: normal().numpy().astype(object), "dtype object.*astype"),
    "array-of-strings": (lambda: np.array([["1", "2", "3"]]), "dtype <U1"),
    "list-with-text": (lambda: [[1, 2, "3"]], "dtype <U"),
    "path": (lambda: "data.csv", "dtype <U8"),
    "nothing": (lambda: None, "got NoneType"),
}


def dated():
    """A table of which no column but c is one of numbers."""
    when = pd.date_range(datetime.date(2020, 1, 1), periods=8)
    kinds = pd.Categorical(list("uvuvuvuv"))
    return table(normal()).assign(a=when, b=kinds, d=when - when[0])


def with_na(dtype):
    def make():
        x = table(whole()).astype(dtype)
        x.iloc[3, 1] = pd.NA
        return x

    return make


SPARSE = {
    "scipy-matrix": (lambda: scipy.sparse.csr_matrix(normal().numpy()), r"x\.toarray\(\)"),
    "scipy-array": (lambda: scipy.sparse.csr_array(normal().numpy()), r"x\.toarray\(\)"),
    "torch-coo": (lambda: normal().to_sparse(), r"x\.to_dense\(\)"),
    "table": (lambda: table(normal()).astype(pd.SparseDtype(float)), r"x\.sparse\.to_dense\(\)"),
}


def read_only():
    x = normal().numpy().copy()
    x.flags.writeable = False
    return x


ODD = {
    "transposed": lambda: normal(3, 8).T,
    "strided": lambda: normal(16, 6)[::2, ::2],
    "expanded": lambda: normal(8, 1).expand(8, 3),
    "requires-grad": lambda: normal().requires_grad_(),
    "with-graph": lambda: 2 * normal().requires_grad_(),
    "parameter": lambda: nn.Parameter(normal()),
    "negative-strides": lambda: normal().numpy()[::-1, ::-1],
    "fortran-order": lambda: np.asfortranarray(normal().numpy()),
    "big-endian": lambda: normal().numpy().astype(">f8"),
    "read-only": read_only,
    "nothing-masked": lambda: np.ma.masked_array(normal().numpy()),
}


def masked():
    """A numpy.ma array with garbage under its mask."""
    x = normal().numpy().copy()
    x[3, 1], x[5, 2] = 1e300, NAN
    return np.ma.masked_array(x, mask=(np.abs(x) > 1e9) | np.isnan(x))


ROWS_9_TO_11 = [
    *[
        Fault(
            9,
            f"torch-{name}",
            as_if_it_had_been(lambda x: x.double()),
            f"x was cast from {name} to float64",
            by="log",
            x=lambda name=name: (whole() > 0).to(getattr(torch, name)),
            trains=True,
        )
        for name in TORCH_TYPES
    ],
    *[
        Fault(
            9,
            f"numpy-{name}",
            as_if_it_had_been(lambda x: x.astype("float64")),
            f"x was cast from {name} to float64",
            by="log",
            x=lambda name=name: (whole() > 0).numpy().astype(name),
            trains=True,
        )
        for name in NUMPY_TYPES
    ],
    Fault(
        9,
        "float64-to-float32",
        fit(),
        "x was cast from float64 to float32",
        by="log",
        vae=lambda: gaussian().float(),
        trains=True,
    ),
    Fault(9, "own-type", fit(), trains=True),
    *[
        Fault(9, f"{name}-{way}", WAYS[way], says, TypeError, x=make)
        for name, (make, says) in WITH_TEXT.items()
        for way in ("fit", "encode")
    ],
    *refused(
        10,
        "dates-and-categories",
        TypeError,
        r"got 'a' \(datetime64.*'b' \(category\).*'d' \(timedelta64.*pandas.get_dummies"
        ".*pandas.factorize.*number of days",
        x=dated,
        ways=WAYS,
    ),
    Fault(
        10,
        "command",
        command(FIT + "data.csv"),
        r"got 'a' .*'b' .*pandas.get_dummies",
        Refused,
        x=dated,
    ),
    *[
        Fault(
            10,
            f"na-{dtype}",
            fit(),
            "got 1, the first at row 3, column 'b'.*mask=",
            ValueError,
            x=with_na(dtype),
        )
        for dtype in ("Int64", "Float64")
    ],
    Fault(10, "na-object", fit(), r"got .*'b' \(object\)", TypeError, x=with_na(object)),
    *[
        Fault(11, f"sparse-{name}-{way}", WAYS[way], rf"must be dense.*{says}", TypeError, **given)
        for name, (make, says) in SPARSE.items()
        for given in [{"x": make}]
        for way in ("fit", "encode", "elbo-terms", "pca")
    ],
    *[
        Fault(11, name, everything, x=make, trains=True, noise="pareto_khat")
        for name, make in ODD.items()
    ],
]

# --- rows 12 to 14: arguments, order of calls ----------------------------------------------------


def call(function, **options):
    return lambda s: function(**options)


SIZED = {
    "gaussian_vae": gaussian,
    "bernoulli_vae": lambda **o: pv.bernoulli_vae(features=3, **o),
    "autoencoder": lambda **o: baselines.autoencoder(features=3, **o),
    "linear": lambda **o: baselines.LinearAutoencoder(3, **o),
}
NO_SIZES = {"0": 0, "negative": -1, "fraction": 2.5, "text": "2", "none": None, "true": True}

BAD_OPTIONS = {
    "zero-rate": ({"learning_rate": 0}, "learning_rate must be positive and finite; got 0"),
    "negative-rate": ({"learning_rate": -1e-3}, "learning_rate must be positive"),
    "text-rate": ({"learning_rate": "1e-3"}, "learning_rate must be positive.*got '1e-3'"),
    "negative-beta": ({"kl_weight": -1.0}, "kl_weight must be finite and not negative; got -1"),
    "nan-beta": ({"kl_weight": NAN}, "kl_weight must be finite and not negative; got nan"),
    "no-epochs": ({"epochs": 0}, "epochs must be a positive integer; got 0"),
    "no-batch": ({"batch_size": 0}, "batch_size must be a positive integer; got 0"),
    "train": ({"train": "decoder"}, "train must be 'all' or 'guide'; got 'decoder'"),
    "compile": ({"compile": "requird"}, "compile must be True, False or 'required'"),
}
UNKNOWN = {
    "latentdim": (call(gaussian, latentdim=2), "'latentdim'.*Did you mean 'latent_dim'"),
    "hiden": (call(pv.bernoulli_vae, hiden=(3,)), "'hiden'.*Did you mean 'hidden'"),
    "famly": (call(pv.make_vae, famly=1), "'famly'.*Did you mean 'family'"),
    "learning_rat": (fit(learning_rat=0.1), "'learning_rat'.*Did you mean 'learning_rate'"),
    "lr": (fit(lr=0.1), "'lr'.*Did you mean 'learning_rate'"),
    "beta": (fit(beta=2.0), "'beta'.*Did you mean 'kl_weight'"),
    "autoencoder": (
        call(baselines.autoencoder, latent_dims=2),
        "'latent_dims'.*Did you mean 'latent_dim'",
    ),
}
COMMANDS = {
    "latent-dim": ("--latent-dim 0", "--latent-dim: must be a positive integer; got '0'"),
    "rate": ("--learning-rate 0", "--learning-rate: must be a positive number; got '0'"),
    "beta": ("--kl-weight -1", "--kl-weight: must be 0 or a positive number; got '-1'"),
    "family": ("--family ful", "one of isotropic.*got 'ful'. Did you mean 'full'"),
    "unknown": ("--latent-dm 2", "--latent-dm.*mean.*--latent-dim"),
    "too-many": ("--latent-dim 9", "latent.dim must not exceed the number of features, 3; got 9"),
}


def second_model(s):
    """Another of the same make, from the same cell: each trains, and neither moves the other."""
    first = tensors(s.vae)
    with torch.random.fork_rng():
        other = gaussian()
    alone = copy.deepcopy(other)
    for vae in (alone, s.vae, other):
        pv.fit(vae, s.x, epochs=2, batch_size=4, progress=False)
    assert all(not torch.equal(first[name], t) for name, t in s.vae.named_parameters())
    assert all(torch.equal(t, tensors(other)[name]) for name, t in tensors(alone).items())


def own_svi_beside(s):
    """A user's own SVI in the same store, with no clear_param_store, and then a fit."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        for vae in (s.vae, gaussian()):
            before = tensors(vae)
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            svi.step(s.x)
            assert all(not torch.equal(before[n], p) for n, p in vae.named_parameters())
            vae.zero_grad()
    return s.fit()


def is_a_warm_start(s):
    """fit() twice goes on from the parameters as they are."""
    kept = tensors(s.vae)
    s.fit(optimizer=lambda params: torch.optim.SGD(params, lr=1e-300))
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in kept.items())


ROWS_12_TO_14 = [
    *[
        Fault(
            12,
            f"{made}-latent-dim-{name}",
            call(make, latent_dim=size),
            "latent_dim must be a positive integer; got",
            ValueError,
        )
        for made, make in SIZED.items()
        for name, size in NO_SIZES.items()
    ],
    *[
        Fault(
            12,
            f"{made}-latent-dim-above-n",
            call(make, latent_dim=4),
            "latent_dim must not exceed the number of features, 3; got 4",
            ValueError,
        )
        for made, make in SIZED.items()
    ],
    Fault(
        12,
        "pca-latent-dim-above-n",
        lambda s: baselines.PCA(3).fit(s.x),
        "latent_dim must be less than the number of rows and of features; got 3",
        ValueError,
    ),
    *[
        Fault(12, name, fit(**options), says, ValueError)
        for name, (options, says) in BAD_OPTIONS.items()
    ],
    *[
        Fault(12, f"unknown-{name}", does, says, TypeError)
        for name, (does, says) in UNKNOWN.items()
    ],
    *[
        Fault(
            12,
            f"command-{name}",
            command(f"{FIT}data.csv {words}"),
            says,
            Refused,
            x=lambda: table(normal(20)),
        )
        for name, (words, says) in COMMANDS.items()
    ],
    *[
        Fault(
            13,
            f"pca-{name}",
            use,
            r"PCA must be fitted before it is used. Call fit\(x\)",
            NotFittedError,
        )
        for name, use in {
            "encode": lambda s: baselines.PCA(1).encode(s.x),
            "decode": lambda s: baselines.PCA(1).decode(torch.zeros(2, 1)),
            "reconstruct": lambda s: baselines.PCA(1).reconstruct(s.x),
            "log-prob": lambda s: baselines.PCA(1).log_prob(s.x),
            "components": lambda s: baselines.PCA(1).components,
        }.items()
    ],
    # A network has weights from the start, which may have been loaded, or trained by a user's own
    # SVI: it is not for the module to say whether they are good.
    *[
        Fault(13, f"{name}-has-weights", use, vae=make)
        for name, make, use in (
            ("vae", gaussian, encode),
            ("vae-terms", gaussian, terms),
            ("autoencoder", lambda: baselines.LinearAutoencoder(3, 2), reconstruct),
        )
    ],
    Fault(
        13,
        "command-no-run",
        command("sample nowhere"),
        "run must be a directory that 'pyro-vae fit' wrote; nowhere has no",
        Refused,
    ),
    Fault(14, "second-model", second_model, trains=True),
    Fault(14, "own-svi", own_svi_beside, trains=True),
    Fault(14, "fit-twice", fit(), trains=True, then=is_a_warm_start),
]

# --- rows 15 to 17: numbers that go wrong --------------------------------------------------------


class Breaking(nn.Module):
    """An encoder that goes wrong in some of its calls in training."""

    def __init__(self, breaks, calls):
        super().__init__()
        self.net, self.breaks, self.calls, self.count = nn.Linear(3, 4), breaks, calls, 0

    def forward(self, x):
        if self.training:
            self.count += 1
            if self.count in self.calls:
                return self.breaks(self.net(x))
        return self.net(x)


def breaking(breaks, first, last):
    return lambda: vae_of(Breaking(breaks, range(first, last + 1)))


def nan_from(first, last=10**6):
    return breaking(lambda y: y * NAN, first, last)


def one_is_skipped(s):
    assert s.result.num_skipped == 1
    elbo_is_finite(s)


def best_is_kept(s):
    """The parameters after the last epoch before the break are put back."""
    assert not s.vae.training
    twin = put(vae_of(Breaking(None, ())), s.kept["start"])
    pv.fit(twin, s.x, epochs=20, batch_size=4, progress=False, callbacks=[lambda fit: True])
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(twin).items())


def remembering(does):
    """Keep the parameters from which a fit starts."""

    def call(s):
        s.kept["start"] = tensors(s.vae)
        return does(s)

    return call


def report_is_there(s):
    text = (s.folder / "run" / "report.txt").read_text()
    assert "gradient must be finite; got 10 steps in a row" in text
    assert "elbo" in text
    twin = vae_of(Breaking(None, ()))
    load_weights(twin, s.folder / "run" / "weights.safetensors")
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(twin).items())


TEN_IN_A_ROW = "gradient must be finite; got 10 steps in a row.*lower learning_rate"
PYROS = "Encountered NaN: loss"


def idle():
    """A VAE whose second unit knows nothing of x, and whose q is far too narrow."""
    encoder = nn.Linear(3, 4)
    vae = vae_of(encoder)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[0, 0] = 1.0
        encoder.bias.copy_(torch.tensor([0.0, 0.0, -12.0, 0.0]))
    return vae


def is_warned_of(s):
    units, khat = diagnostics.active_units(s.vae, s.x), s.result
    lines = "\n".join(concerns(units, khat))
    assert "warning: 1 of 2 latent units inactive (2): the variance of their means" in lines
    count = int((khat["pareto_khat"] > 0.67).sum())
    assert count > 0
    assert f"warning: k-hat above 0.67 for {count} of 40 rows" in lines


def collapsed(s):
    report = diagnostics.collapse_report(s.vae, s.x)
    assert report.attrs["num_active"] == 1
    return diagnostics.log_evidence(s.vae, s.x, num_samples=1000)


def report_says_so(s):
    (text,) = (path.read_text() for path in s.folder.rglob("report.txt"))
    assert "latent units inactive" in text
    assert text in s.result.out or text.strip() in s.result.out


def broken_matrix(**matrix):
    """A prior that torch does not check, as where validation is off."""
    return lambda s: priors.Fixed(
        dist.MultivariateNormal(torch.zeros(2), validate_args=False, **matrix)
    )


@torch.random.fork_rng()
def any_covariance(s):
    """Outputs of an encoder have no bounds; the covariance made of them is positive definite."""
    for family in (
        families.FullCovarianceNormal(3),
        families.LowRankNormal(3, 1),
        families.DiagonalNormal(3),
    ):
        for size in (0.0, 30.0, -30.0, 1e4, -1e4):
            q = family(size * torch.ones(2, family.num_params))
            covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance
            assert covariance.isfinite().all()
            assert q.log_prob(q.sample()).isfinite().all()


ROWS_15_TO_17 = [
    Fault(
        15,
        "one-nan",
        fit(epochs=2),
        vae=nan_from(3, 3),
        trains=True,
        noise=PYROS,
        then=one_is_skipped,
    ),
    Fault(
        15,
        "nan-from-then-on",
        remembering(fit(epochs=20)),
        TEN_IN_A_ROW,
        FloatingPointError,
        vae=nan_from(3),
        trains=True,
        noise=PYROS,
        then=best_is_kept,
    ),
    Fault(
        15,
        "exploding",
        fit(epochs=30, learning_rate=1e10),
        TEN_IN_A_ROW,
        FloatingPointError,
        trains=True,
        noise=PYROS,
    ),
    Fault(
        15,
        "report",
        lambda s: s.fit(epochs=20, run_dir=s.folder / "run"),
        TEN_IN_A_ROW,
        FloatingPointError,
        vae=nan_from(3),
        trains=True,
        noise=PYROS,
        then=report_is_there,
    ),
    Fault(
        16,
        "numbers",
        collapsed,
        "pareto_khat is above 0.67 for .* of 40 data",
        by="log",
        vae=idle,
        x=lambda: normal(40),
        then=is_warned_of,
    ),
    Fault(
        16,
        "report-of-a-command",
        command(
            "fit --data data.csv --epochs 2 --hidden 4 --latent-dim 2 --quiet --kl-weight 1000"
            " --learning-rate 0.05",
            may_warn=True,
        ),
        x=lambda: table(normal(40)),
        then=report_says_so,
    ),
    Fault(17, "by-construction", any_covariance),
    Fault(
        17,
        "covariance",
        broken_matrix(covariance_matrix=torch.tensor([[1.0, 0.5], [0.1, 1.0]])),
        r"covariance_matrix, symmetric and positive definite.*smallest eigenvalue 0\.7\b",
        ValueError,
    ),
    Fault(
        17,
        "singular-factor",
        broken_matrix(scale_tril=torch.tensor([[1.0, 0.0], [2.0, 0.0]])),
        r"scale_tril.*diagonal entry 0 and the smallest eigenvalue",
        ValueError,
    ),
    Fault(
        17,
        "plot",
        lambda s: pv.plots.latent(
            torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]).expand(2, 2, 2)
        ),
        "positive semidefinite; got the eigenvalue -1 at row 0",
        ValueError,
    ),
]

# --- rows 18 to 22: fits that stop, and what they left -------------------------------------------

FOUR = {"epochs": 4, "checkpoint_epochs": 1}


def at_epoch(number, act):
    """A callback that acts after one epoch."""
    return [lambda fit: act() if len(fit.rows) == number else None]


def stopped(act, **options):
    """A fit of four epochs, kept in a directory, in which something happens after the second."""

    def does(s):
        s.kept["start"] = tensors(s.vae)
        callbacks = at_epoch(2, act)
        return s.fit(run_dir=s.folder / "run", callbacks=callbacks, **FOUR | options)

    return does


def press(times):
    def act():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    return act


def from_the_start(s):
    """A model as it was before anything happened."""
    return put(gaussian(), s.kept["start"])


def goes_on_bitwise(s):
    """The fit that is resumed ends as the one that never stopped, to the last bit."""
    whole, resumed = from_the_start(s), from_the_start(s)
    pv.fit(whole, s.x, batch_size=4, progress=False, **FOUR)
    pv.fit(
        resumed, s.x, batch_size=4, progress=False, run_dir=s.folder / "run", resume=True, **FOUR
    )
    assert all(torch.equal(t, tensors(resumed)[name]) for name, t in tensors(whole).items())
    assert not any(path.name.startswith(".") for path in (s.folder / "run").iterdir())


def is_usable_and_goes_on(s):
    assert s.result.interrupted
    assert len(s.result.history) == 2
    assert not s.vae.training
    assert s.vae.encode(s.x).mean.isfinite().all()
    goes_on_bitwise(s)


def killed(s):
    """A process that gets SIGKILL in the middle of a fit; its parent goes on with its files."""
    s.kept["start"] = tensors(s.vae)
    # A new process, not a fork: threads of autograd, which an earlier test may have started, do
    # not live on in one, and its first backward pass then raises.
    child = multiprocessing.get_context("spawn").Process(
        # Copies: tensors are handed over in shared memory.
        target=kill_itself,
        args=(copy.deepcopy(s.vae), s.x.clone(), s.folder / "run"),
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def kill_itself(vae, x, path):
    """The fit of that process."""
    torch.set_num_threads(1)
    kill = at_epoch(2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    pv.fit(vae, x, run_dir=path, callbacks=kill, **QUICK | FOUR)


def on_a_full_disk(s):
    """No file may grow any more after the second epoch."""
    resource = pytest.importorskip("resource", reason="limits of files are Unix's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return stopped(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1])))(s)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_the_way(s):
    (s.folder / "file").write_text("mine")
    return s.fit(run_dir=s.folder / "file" / "run")


def file_is_left(s):
    assert (s.folder / "file").read_text() == "mine"


def directory_in_use(s):
    (s.folder / "run").mkdir()
    (s.folder / "run" / "notes.txt").write_text("mine")
    return s.fit(run_dir=s.folder / "run")


def nothing_is_added(s):
    assert [path.name for path in (s.folder / "run").iterdir()] == ["notes.txt"]


class Bomb:
    """What a stranger may put in a file for pickle to run."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "truncated": (lambda data: data[: len(data) // 2], "damaged, or not one"),
    "empty": (lambda data: b"", "damaged, or not one"),
    "bit-flipped": (flipped, "differs from its checksum|differs from its sha256"),
    "foreign": (lambda data: b"PNG, say", "damaged, or not one: File is not a zip file"),
    "other-content": (lambda data: saved([1, 2]), "holds something else"),
    "pickle": (lambda data: pickle.dumps(Bomb()), "damaged, or not one"),
    "malicious": (lambda data: saved({"format": 1, "x": Bomb()}), "damaged, or not one"),
    "newer": (lambda data: saved({"format": 99}), "has format 99. Resume with the version"),
}


def begun(s):
    """A fit of two epochs of four by a twin, and its states."""
    s.patch.chdir(s.folder)
    s.kept["start"] = tensors(s.vae)
    stopped(press(1))(Scene(copy.deepcopy(s.vae), s.x, s.folder, s.patch))
    return s.folder / "run"


def resumed(**options):
    def does(s):
        begun(s)
        return s.fit(run_dir=s.folder / "run", **FOUR | {"resume": True} | options)

    return does


def resumed_after(damage, *names):
    """Resume once files of states are damaged, each with the digest that belongs to it."""

    def does(s):
        run = begun(s)
        for name in names:
            data = damage((run / name).read_bytes())
            (run / name).write_bytes(data)
            if damage is not flipped:
                digest = hashlib.sha256(data).hexdigest()
                (run / f"{name}.sha256").write_text(f"{digest}  {name}\n")
        s.kept["files"] = {path.name: path.read_bytes() for path in run.iterdir()}
        return s.fit(run_dir=run, resume=True, **FOUR)

    return does


def nothing_has_run(s):
    assert not (s.folder / "exploded").exists()
    files = {path.name: path.read_bytes() for path in (s.folder / "run").iterdir()}
    assert files == s.kept["files"]


def goes_on_from_the_previous(s):
    whole = from_the_start(s)
    pv.fit(whole, s.x, batch_size=4, progress=False, **FOUR)
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(whole).items())


def in_another_environment(s):
    begun(s)
    here = kept_fit.environment()
    there = {**here, "packages": {**here["packages"], "torch": "2.99.0"}}
    s.patch.setattr(kept_fit, "environment", lambda: there)
    return s.fit(run_dir=s.folder / "run", resume=True, **FOUR)


BOTH = ("state-last.pt", "state-previous.pt")

ROWS_18_TO_22 = [
    Fault(18, "once", stopped(press(1)), trains=True, then=is_usable_and_goes_on),
    Fault(
        18, "twice", stopped(press(2)), "", KeyboardInterrupt, trains=True, then=goes_on_bitwise
    ),
    Fault(
        19,
        "sigterm",
        stopped(lambda: signal.raise_signal(signal.SIGTERM)),
        "143",
        SystemExit,
        trains=True,
        then=goes_on_bitwise,
    ),
    Fault(19, "kill-9", killed, then=goes_on_bitwise),
    Fault(
        20,
        "full-disk",
        on_a_full_disk,
        r"\d+ bytes must fit.*File too large.*intact.*/run/state-",
        OSError,
        trains=True,
        then=goes_on_bitwise,
    ),
    Fault(20, "no-directory", in_the_way, "/file/run", OSError, then=file_is_left),
    Fault(
        20,
        "directory-in-use",
        directory_in_use,
        "run_dir must be new or empty.*got .*/run",
        FileExistsError,
        then=nothing_is_added,
    ),
    *[
        Fault(
            21,
            name,
            resumed_after(damage, *BOTH),
            rf"state-last.pt.*({says}).*Nor is there a previous state",
            CheckpointError,
            then=nothing_has_run,
        )
        for name, (damage, says) in DAMAGES.items()
    ],
    *[
        Fault(
            21,
            f"{name}-with-a-previous",
            resumed_after(damage, "state-last.pt"),
            rf"state-last.pt.*({says}).*goes on from the state before it, state-previous.pt",
            trains=True,
            then=goes_on_from_the_previous,
        )
        for name, (damage, says) in DAMAGES.items()
    ],
    *[
        Fault(
            22,
            name,
            resumed(**options),
            rf"same data and settings; got others: {says}.*resume='override'",
            ValueError,
        )
        for name, options, says in (
            ("other-data", {"x": normal() + 1e-9}, r"x \("),
            ("other-batch-size", {"batch_size": 2}, r"batch_size \(4 there, 2 here\)"),
            ("other-rate", {"learning_rate": 0.5}, r"learning_rate \(0.001 there, 0.5 here\)"),
            ("other-seed", {"seed": 8}, r"seed \(0 there, 8 here\)"),
            (
                "several",
                {"batch_size": 2, "epochs": 5},
                r"epochs \(4 there, 5 here\); batch_size \(4 there, 2 here\)",
            ),
        )
    ],
    Fault(
        22,
        "override",
        resumed(batch_size=2, resume="override"),
        r"goes on with other data or settings: batch_size \(4 there, 2 here\)",
        by="log",
        trains=True,
        then=lambda s: elbo_is_finite(s),
    ),
    Fault(
        22,
        "other-torch",
        in_another_environment,
        r"not bitwise.*torch \(.* there, 2.99.0 here\)",
        trains=True,
        then=goes_on_from_the_previous,
    ),
]

# --- rows 23 to 25: devices, downloads, missing values -------------------------------------------


def without_a_gpu(device):
    def does(s):
        s.patch.setattr(torch.cuda, "is_available", lambda: False)
        return s.fit(device=device, run_dir=s.folder / "run")

    return does


def no_run_is_left(s):
    assert not (s.folder / "run").exists()


def raises(error):
    def break_(y):
        raise error

    return break_


def is_consistent(s):
    """The parameters are those after two whole steps, and a smaller batch trains on."""
    assert not s.vae.training
    twin = put(vae_of(Breaking(raises(KeyboardInterrupt), [3])), s.kept["start"])
    with pytest.raises(KeyboardInterrupt):
        pv.fit(twin, s.x, epochs=2, batch_size=4, progress=False)
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(twin).items())
    s.fit(batch_size=2)


OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 b."),
    "numpy": MemoryError("Unable to allocate 9 GiB for an array"),
}


class Answer(io.BytesIO):
    """A server's answer that breaks off."""

    def __init__(self, url):
        super().__init__(b"half of a file")
        self.url, self.length, self.headers = url, 10**6, {"Content-Length": "1000000"}


def download(answer, *, into="data"):
    """Ask for MNIST where the network, or what comes over it, is not what it should be."""

    def does(s):
        (s.folder / "file").write_text("mine")
        s.patch.setattr(urllib.request, "urlopen", answer)
        return datasets.mnist(root=s.folder / into, download=True)

    return does


def unreachable(request, *args, **kwargs):
    raise urllib.error.URLError("no network in tests")


def half_a_file(request, *args, **kwargs):
    return Answer(getattr(request, "full_url", request))


def no_file_is_left(s):
    assert [path.name for path in s.folder.rglob("*") if path.is_file()] == ["file"]
    with pytest.raises(FileNotFoundError, match=r"download=True, or use datasets\.digits"):
        datasets.mnist(root=s.folder / "data")
    assert len(datasets.digits()) > 1000


def partly(share=0.7):
    """A mask: True where observed, every row and column somewhere."""
    draws = torch.rand(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = draws < share
    mask[3, 1] = mask[5, 2] = False
    mask[:, 0] = True
    return mask


def same_whatever_is_under(s):
    """Parameters are those of a fit to other garbage under the mask, and all is finite."""
    twin, mask = from_the_start(s), partly()
    pv.fit(twin, torch.where(mask, s.x, -7.0), mask=mask, epochs=2, batch_size=4, progress=False)
    assert all(torch.equal(t, tensors(s.vae)[name]) for name, t in tensors(twin).items())
    assert s.vae.missing
    elbo_is_finite(s)


def garbage(value):
    return lambda: torch.where(partly(), normal(), value)


def gradients_are_finite(s):
    loss = Trace_ELBO().differentiable_loss(s.vae.model, s.vae.guide, s.x)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in s.vae.parameters())
    s.vae.zero_grad()


def nothing_observed_in_a_row(s):
    """q = p(z), and neither loss nor gradient."""
    found = terms(s)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        loss = Trace_ELBO().differentiable_loss(s.vae.model, s.vae.guide, s.x[3:4])
    for name in ("elbo", "expected_log_likelihood", "kl"):
        assert found[name][3] == 0
        assert np.isfinite(found[name]).all()
    q = s.vae.encode(s.x)
    assert torch.equal(q.mean[3], torch.zeros(2))
    assert torch.equal(q.variance[3], torch.ones(2))
    assert loss == 0
    grads = torch.autograd.grad(loss, list(s.vae.parameters()), allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads)
    return found


def unobserved_row():
    x = normal()
    x[3] = NAN
    return x


ZEROS_TOLD = "zero"  # a guide that takes no NaN is shown zeros, which is said once

ROWS_23_TO_25 = [
    *[
        Fault(
            23,
            f"no-gpu-{device.replace(':', '-')}",
            without_a_gpu(device),
            "device must be available; got .cuda.*Pass device='cpu'",
            RuntimeError,
            then=no_run_is_left,
        )
        for device in ("cuda", "cuda:1")
    ],
    Fault(
        23,
        "no-gpu-command",
        command(FIT + "digits --device cuda"),
        "device must be available; got 'cuda'.*device='cpu'",
        Refused,
    ),
    *[
        Fault(
            23,
            f"out-of-memory-{name}",
            remembering(fit(epochs=2)),
            "batch_size must be small enough.*got 4. Try batch_size=2.*"
            + error.args[0][:20].replace("(", "."),
            torch.OutOfMemoryError,
            vae=breaking(raises(error), 3, 3),
            trains=True,
            then=is_consistent,
        )
        for name, error in OUT_OF_MEMORY.items()
    ],
    Fault(
        24,
        "no-network",
        download(unreachable),
        r"MNIST could not be downloaded from https://.*into .*/data/.*images-idx3-ubyte.gz.*"
        r"no network.*datasets\.digits",
        OSError,
        then=no_file_is_left,
    ),
    Fault(
        24,
        "half-a-file",
        download(half_a_file),
        r"downloaded from https://.*into .*/data/.*images-idx3-ubyte.gz.*No partial file was left"
        r".*datasets\.digits",
        OSError,
        then=no_file_is_left,
    ),
    Fault(
        24,
        "no-root",
        download(half_a_file, into="file/data"),
        r"into .*/file/data.*permissions.*datasets\.digits",
        OSError,
        then=no_file_is_left,
    ),
    Fault(
        24,
        "half-a-file-of-before",
        lambda s: datasets.mnist(root=half_of_mnist(s.folder)),
        "images-idx3-ubyte must be complete; got 100 bytes",
        ValueError,
    ),
    Fault(
        25,
        "mask-of-another-shape",
        fit(mask=torch.ones(8, 2, dtype=torch.bool)),
        r"mask must have the shape of x, \(8, 3\).*got \(8, 2\)",
        ValueError,
        noise=ZEROS_TOLD,
    ),
    Fault(
        25,
        "mask-of-no-booleans",
        fit(mask=normal()),
        r"mask must hold True \(or 1\) where x was observed",
        ValueError,
        noise=ZEROS_TOLD,
    ),
    Fault(25, "mask-of-a-word", fit(mask="na"), "or 'nan'; got 'na'", ValueError),
    Fault(
        25,
        "nan-where-observed",
        fit(mask=torch.ones(8, 3, dtype=torch.bool)),
        "mask must be True only where x was observed; got True at 2 NaN.*Pass ~mask",
        ValueError,
        noise=ZEROS_TOLD,
        x=holding(NAN),
    ),
    *[
        Fault(
            25,
            f"{name}-under-the-mask",
            remembering(fit(mask=partly(), epochs=2)),
            ZEROS_TOLD,
            by="log",
            x=garbage(value),
            trains=True,
            then=same_whatever_is_under,
        )
        for name, value in {"nan": NAN, "inf": INF, "huge": 1e300}.items()
    ],
    Fault(
        25,
        "nan-and-gradients",
        terms,
        vae=lambda: gaussian(missing=True),
        x=holding(NAN),
        then=gradients_are_finite,
    ),
    Fault(
        25,
        "row-without-a-value",
        nothing_observed_in_a_row,
        vae=lambda: gaussian(missing=True),
        x=unobserved_row,
    ),
    Fault(
        25,
        "row-without-a-value-trains",
        fit(),
        vae=lambda: gaussian(missing=True),
        x=unobserved_row,
        trains=True,
        then=elbo_is_finite,
    ),
    Fault(11, "masked", fit(), ZEROS_TOLD, by="log", x=masked, trains=True, then=elbo_is_finite),
    Fault(
        11,
        "masked-encode",
        encode,
        "must not be masked where no value may be missing; got 2",
        TypeError,
        x=masked,
    ),
]


def half_of_mnist(folder):
    """Files of the right names, the first of which a transfer did not finish."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 28, 28)
    (raw / "train-images-idx3-ubyte").write_bytes(header + bytes(84))
    (raw / "train-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(5)
    )
    return folder


# --- the table -----------------------------------------------------------------------------------

FAULTS = [
    *ROWS_1_AND_2,
    *ROWS_3_TO_5,
    *ROWS_6_TO_8,
    *ROWS_9_TO_11,
    *ROWS_12_TO_14,
    *ROWS_15_TO_17,
    *ROWS_18_TO_22,
    *ROWS_23_TO_25,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_fault(fault, tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING")
    run_case(fault, Scene(fault.vae(), fault.x(), tmp_path, monkeypatch), caplog)


def test_every_row_of_the_table_has_cases():
    assert {fault.row for fault in FAULTS} == set(range(1, 26))
    names = [fault.id for fault in FAULTS]
    assert len(names) == len(set(names))
