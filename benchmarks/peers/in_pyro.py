"""The VAE as Pyro has it: a model and a guide for SVI, this package's and those of an example."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from peers.by_hand import Networks, copy_weights, linear_layers
from peers.problem import Size, weights
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.objectives import CompiledTrace_ELBO
from pyro_vae.optim import OneTorchOptim, adam

__all__ = ["compiled_step", "eager_step", "stock_svi", "vae_of"]


def vae_of(size: Size, *, variance: float = 0.1, learn_variance: bool = True) -> pv.VAE:
    """This package's VAE with the weights that all peers start from."""
    vae = pv.gaussian_vae(
        features=size.features,
        latent_dim=size.latent_dim,
        hidden=(size.hidden,),
        variance=variance,
        learn_variance=learn_variance,
    )
    copy_weights(linear_layers(vae.q_z_given_x, vae.p_x_given_z), weights(size))
    return vae


def eager_step(size: Size, rate: float) -> Callable[[Tensor], float]:
    """A literal SVI step as ``pv.fit`` takes it: one fused Adam, no checks of arguments."""
    vae = vae_of(size)
    optim = OneTorchOptim(adam(rate))
    svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())

    def step(x: Tensor) -> float:
        optim.num_data = len(x)
        return float(svi.step(x))

    return step


def compiled_step(size: Size, rate: float) -> Callable[[Tensor], float]:
    """The same step as one graph."""
    vae = vae_of(size)
    optim = OneTorchOptim(adam(rate))
    svi = CompiledSVI(vae.model, vae.guide, optim, CompiledTrace_ELBO(required=True))

    def step(x: Tensor) -> float:
        optim.num_data = len(x)
        return float(svi.step(x))

    return step


def stock_svi(nets: Networks, rate: float) -> SVI:
    """SVI as Pyro's own VAE example has it."""

    def model(x: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("data", len(x)):
            shape = len(x), nets.latent_dim
            prior = dist.Normal(x.new_zeros(shape), x.new_ones(shape))
            z = pyro.sample("latent", prior.to_event(1))
            scale = (0.5 * nets.log_variance).exp()
            pyro.sample("obs", dist.Normal(nets.decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Normal(*nets.encode(x)).to_event(1))

    optim = pyro.optim.Adam({"lr": rate})  # type: ignore[attr-defined]
    return SVI(model, guide, optim, Trace_ELBO())
