"""A worker of ``epoch.py`` and ``quality.py``, run by an interpreter that has pythae: its trainer.

pythae's VAE gets the networks of all peers. Its squared error is that of a Gaussian with c = 1
without the constant; the second half of the encoder's outputs is the log of the variance.
"""

import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from workers import Channel, serve

from peers.problem import Size, weights

__all__: list[str] = []

FOREVER = 1_000_000


class Ended(Exception):
    """No turns are left; pythae's trainer has no other way to stop."""


def main(channel: Channel, options: dict[str, Any]) -> None:
    """Train an epoch in each turn; write the weights afterwards if asked to."""
    try:
        import torch
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import TrainingCallback
    except ImportError as error:
        channel.skip(f"{error}; name an interpreter that has it by --pythae-python")
        return
    from pythae.data.datasets import BaseDataset
    from torch import nn

    n, hidden, k = size = Size(*options["size"])

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, 2 * k))

        def forward(self, x: Any) -> Any:
            mean, log_variance = self.layers(x.reshape(len(x), -1)).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(k, hidden), nn.ReLU(), nn.Linear(hidden, n))

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    torch.manual_seed(0)
    x = torch.from_numpy(np.load(options["array"]))
    config = VAEConfig(input_dim=(n,), latent_dim=k, reconstruction_loss="mse")
    vae = VAE(config, Encoder(), Decoder())
    layers = [vae.encoder.layers[0], vae.encoder.layers[2]]
    layers += [vae.decoder.layers[0], vae.decoder.layers[2]]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, weights(size), strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))

    started = 0.0

    class Turns(TrainingCallback):
        """Waits between epochs."""

        def on_log(self, training_config: Any, logs: Any, **_: Any) -> None:
            seconds = time.perf_counter() - started
            if options.get("weights"):
                arrays = [t.detach().numpy() for p in layers for t in (p.weight, p.bias)]
                with Path(options["weights"]).open("wb") as file:
                    np.savez(file, *arrays)
            channel.report(seconds=seconds)
            wait()

    def wait() -> None:
        nonlocal started
        if not channel.wait():
            raise Ended
        started = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        # It logs and draws progress bars as it is wont to; only its files go to another place.
        settings = BaseTrainerConfig(
            output_dir=os.path.join(folder, "pythae"),
            num_epochs=FOREVER,
            learning_rate=options["rate"],
            per_device_train_batch_size=options["batch"],
        )
        rows = BaseDataset(x, torch.zeros(len(x)))
        trainer = BaseTrainer(vae, rows, training_config=settings, callbacks=[Turns()])
        channel.ready(f"pythae {version('pythae')}")
        try:
            wait()
            trainer.train()
        except Ended:
            return


if __name__ == "__main__":
    serve(main)
