"""A worker of ``step.py``, run by an interpreter that has NumPyro: its scanned step."""

import math
import time
from typing import Any

from workers import Channel, serve

from peers.problem import Size, data, weights

__all__: list[str] = []


def main(channel: Channel, options: dict[str, Any]) -> None:
    """Take turns of ``steps`` steps each, all in one compiled scan."""
    try:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from jax import lax, random
        from numpyro.infer import SVI, Trace_ELBO
    except ImportError as error:
        channel.skip(f"{error}; name an interpreter that has it by --numpyro-python")
        return
    size, batch, steps = Size(*options["size"]), options["batch"], options["steps"]
    first = [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in weights(size)]

    def network(values: list[Any]) -> tuple[Any, Any]:
        """Initial values and application of affine, ReLU, affine, as stax has them."""

        def apply(params: Any, x: Any, **_: Any) -> Any:
            (w, b), (v, c) = params
            return jax.nn.relu(x @ w + b) @ v + c

        return (lambda _, shape: (shape, values)), apply

    def model(x: Any) -> None:
        decoder = numpyro.module("decoder", network(first[2:]), (batch, size.latent_dim))
        log_variance = numpyro.param("log_variance", math.log(0.1))
        with numpyro.plate("data", x.shape[0]):
            prior = dist.Normal(0, 1).expand([size.latent_dim]).to_event(1)
            z = numpyro.sample("z", prior)
            scale = jnp.exp(0.5 * log_variance)
            numpyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.module("encoder", network(first[:2]), (batch, size.features))
        mean, raw = jnp.split(encoder(x), 2, -1)
        with numpyro.plate("data", x.shape[0]):
            scale = jax.nn.softplus(raw) + 1e-4
            numpyro.sample("z", dist.Normal(mean, scale).to_event(1))

    # Pyro's gradient is divided by the batch size; Adam does not mind the factor.
    svi = SVI(model, guide, numpyro.optim.Adam(options["rate"]), Trace_ELBO())
    x = jnp.asarray(data(steps * batch, size.features)).reshape(steps, batch, -1)
    state = svi.init(random.PRNGKey(1), x[0])

    @jax.jit
    def scanned(state: Any, x: Any) -> Any:
        return lax.scan(lambda carry, rows: svi.update(carry, rows), state, x)

    def turn() -> dict[str, float]:
        nonlocal state
        started = time.perf_counter()
        state, losses = scanned(state, x)
        losses.block_until_ready()
        seconds = time.perf_counter() - started
        return {"seconds": seconds / steps, "loss": float(losses.mean()) / batch}

    channel.repeat(turn, f"NumPyro {numpyro.__version__}, JAX {jax.__version__}")


if __name__ == "__main__":
    serve(main)
