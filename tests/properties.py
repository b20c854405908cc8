"""What the property tests draw their cases from.

Each property runs a few cases, the same ones at every run. More, and other ones each time:

    PYRO_VAE_EXAMPLES=1000 pytest tests/test_properties*.py

which takes about half an hour. A property whose case takes a second gets a tenth of them. A case
that fails is shrunk, printed, and shown with the decorator that repeats it. Nothing is stored.
"""

import contextlib
import os

import pyro
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors

WANTED = int(os.environ.get("PYRO_VAE_EXAMPLES", "0"))


def cases(everyday, *, costly=False):
    """How often a property is tried: ``everyday`` times unless the environment asks for more."""
    wanted = max(1, WANTED // 10) if WANTED and costly else WANTED
    return settings(
        max_examples=wanted or everyday,
        derandomize=not WANTED,
        print_blob=bool(WANTED),
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@contextlib.contextmanager
def world(seed):
    """Torch's noise from a seed, and a parameter store of one case's own."""
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        yield


def sizes(lowest, highest):
    return st.integers(lowest, highest)


seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])
# None without rows: torch's own check of a sample's support cannot reshape it.
batch_shapes = st.lists(sizes(1, 3), max_size=3).map(tuple)
event_shapes = st.lists(sizes(1, 3), min_size=1, max_size=3).map(tuple)
image_shapes = st.tuples(sizes(1, 3), sizes(2, 7), sizes(2, 7))

NORMALS = {
    "isotropic": families.IsotropicNormal,
    "diagonal": families.DiagonalNormal,
    "low rank": lambda k: families.LowRankNormal(k, min(2, k)),
    "full": families.FullCovarianceNormal,
}
normals = st.sampled_from(sorted(NORMALS))

PRIORS = {
    "standard normal": priors.StandardNormal,
    "normal": priors.Normal,
    "mixture": lambda k: priors.GaussianMixture(k, 3),
    "flow": lambda k: priors.FlowPrior(k, hidden=(4,)),
    "Student": priors.StudentT,
    "Laplace": priors.Laplace,
}
prior_names = st.sampled_from(sorted(PRIORS))


def vae_of(
    *,
    features=(4,),
    latent_dim=2,
    family="diagonal",
    prior="standard normal",
    likelihood=likelihoods.Gaussian,
    convolutions=False,
    activation=nn.Tanh,
):
    """A VAE with random networks, which are smooth so that figures may be compared closely."""
    made = NORMALS[family](latent_dim)
    outputs = (likelihoods.outputs_per_feature(likelihood) * features[0], *features[1:])
    if convolutions:
        options = {"channels": (2,), "hidden": 3, "activation": activation}
        encoder = networks.ConvEncoder(features, made.num_params, **options)
        decoder = networks.ConvDecoder(latent_dim, outputs, **options)
    else:
        encoder = networks.MLP(features, (5,), made.num_params, activation=activation)
        decoder = networks.MLP(latent_dim, (5,), outputs, activation=activation)
    vae = pv.VAE(
        prior=PRIORS[prior](latent_dim),
        likelihood=likelihood(decoder, event_shape=features),
        guide=guides.AmortizedGuide(made, encoder),
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def permutation(num_rows, seed):
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))


@st.composite
def cuts(draw, lowest=1, highest=7):
    """A number of rows, and the sizes of the parts that it is cut into."""
    parts = draw(st.lists(sizes(1, 4), min_size=1, max_size=4))
    num_rows = sum(parts)
    return (num_rows, parts) if lowest <= num_rows <= highest else (parts[0], parts[:1])


def bits_of(tensor):
    # A copy, because a single number may have any stride and then no bytes.
    values = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1)
    return (values.view(torch.uint8) if values.numel() else values).tolist()


def same(a, b):
    """Equal in type, shape and every bit, whatever is nested in what."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert bits_of(a) == bits_of(b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert repr(a) == repr(b)
