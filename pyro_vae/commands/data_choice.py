"""Which data: words of the command line, or a configuration, to training and held-out data."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vae import datasets
from pyro_vae.arguments import did_you_mean
from pyro_vae.config_file import check_settings, check_sizes
from pyro_vae.datasets import Dataset, MappedDataset, Scaling

__all__ = [
    "DTYPES",
    "Data",
    "as_images",
    "data_settings",
    "has_test_set",
    "load",
    "load_or_map",
    "picture_settings",
    "some_in_memory",
    "split_seed",
]

Data = Dataset | MappedDataset


MAPPED_ABOVE_BYTES = 2**30
"""A larger .npy file is mapped and read row by row, not loaded."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""By the names that a configuration may hold: a table, and nothing that a name could look up."""

IMAGE_SETS: dict[str, Callable[..., Dataset]] = {
    "mnist": datasets.mnist,
    "fashion_mnist": datasets.fashion_mnist,
    "kmnist": datasets.kmnist,
    "emnist": datasets.emnist,
    "celeba": datasets.celeba,
}


def data_settings(options: Namespace) -> dict[str, Any]:
    """What the command line says of the data, as the configuration keeps it."""
    return {
        "source": options.data,
        "root": options.root,
        "download": options.download,
        "labels": options.labels,
        "key": options.key,
        "missing": getattr(options, "missing", False) or None,  # an option of fit alone
        "divide": options.divide,
        "raw": options.raw,
        "standardize": options.standardize,
        "held_out": options.held_out,
        "split_seed": options.seed if options.split_seed is None else options.split_seed,
    }


def has_test_set(source: str) -> bool:
    """Whether the data come with a test set, so that no split decides what is held out."""
    return source in IMAGE_SETS


def split_seed(settings: Mapping[str, Any]) -> int:
    """Seed of the split into training and held-out rows: that of the fit in older runs."""
    seed: int = settings["data"].get("split_seed", settings["fit"]["seed"])
    return seed


def load(settings: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    """Training and held-out data, scaled; a known scaling is used, else found on training rows."""
    train, held_out = _load(settings, maps=False)
    return train.in_memory(), held_out.in_memory()


def load_or_map(settings: Mapping[str, Any]) -> tuple[Data, Data]:
    """As :func:`load`, but those of a .npy file above ``MAPPED_ABOVE_BYTES`` stay in the file."""
    return _load(settings, maps=True)


def _load(settings: Mapping[str, Any], *, maps: bool) -> tuple[Data, Data]:
    train: Data
    held_out: Data
    wanted = settings["data"]
    check_settings(settings, sections=("data", "fit"))
    source = wanted["source"]
    dtype = _dtype(settings)
    missing = bool(wanted.get("missing"))
    if missing and (source == "digits" or has_test_set(source)):
        raise ValueError(
            f"missing must go with a .npy, .npz or .csv file; got {source}, which is complete."
        )
    if has_test_set(source):
        load = IMAGE_SETS[source]
        train, held_out = (
            load(
                root=wanted.get("root"),
                train=part,
                download=wanted.get("download", False),
                dtype=dtype,
            )
            for part in (True, False)
        )
    else:
        data: Data
        if source == "digits":
            data = datasets.digits(dtype=dtype)
        else:
            _check_source(source)
            scaling = Scaling.divide(wanted["divide"]) if wanted.get("divide") else None
            labels, key = wanted.get("labels"), wanted.get("key")
            if maps and not missing and labels is None and key is None and _is_large(source):
                data = datasets.memory_mapped(source, scaling=scaling, dtype=dtype)
            else:
                data = datasets.from_file(
                    source, scaling=scaling, labels=labels, key=key, dtype=dtype, missing=missing
                )
        train, held_out = data.split(held_out=wanted["held_out"], seed=split_seed(settings))
    if "latent_dim" in settings.get("model", {}):
        check_sizes(settings["model"], train.event_shape)
    if wanted.get("scaling") is not None:
        # Written for the shape that the networks took, read before the data are given it.
        scaling = Scaling.from_dict(wanted["scaling"]).reshape(*train.event_shape)
    elif wanted.get("raw"):
        scaling = Scaling.identity()
    elif wanted.get("standardize"):
        scaling = Scaling.standardize(train.raw, missing=missing)
    else:
        scaling = train.scaling
    if scaling == train.scaling:  # to raw units and back would round
        return train, held_out
    return train.rescale(scaling), held_out.rescale(scaling)


def some_in_memory(data: Data, *, most: int | None = None) -> Dataset:
    """The first rows of data in memory; of data in a file that were split they are random ones.

    Args:
        data: Any.
        most: Largest number of rows; by default all that are in memory already, and of a file as
            many as ``MAPPED_ABOVE_BYTES`` hold in double precision.
    """
    if most is None and isinstance(data, MappedDataset):
        most = max(1, MAPPED_ABOVE_BYTES // (8 * data.num_features))
    if most is None or most >= len(data):
        return data.in_memory()
    return data.subset(slice(0, most)).in_memory()


def as_images(data: Data) -> Data:
    """The same data with event shape (channels, rows, columns), as convolutions take them."""
    shape: tuple[int, ...] | None = data.image_shape
    if shape is None:
        raise ValueError(f"networks must be mlp for data that are no images; got conv for {data}.")
    has_channels = len(shape) == 3
    return data.reshape(*shape) if has_channels else data.reshape(1, *shape)


def picture_settings(
    config: Mapping[str, Any],
) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Image shape and column names of a run's data, where they have any."""
    shape, columns = config["data"].get("image_shape"), config["data"].get("columns")
    return None if shape is None else tuple(shape), None if columns is None else tuple(columns)


def _dtype(settings: Mapping[str, Any]) -> torch.dtype:
    name = settings.get("model", {}).get("dtype", "float32")
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


def _is_large(source: str) -> bool:
    path = Path(source).expanduser()
    is_npy = path.suffix.lower() == ".npy" and path.is_file()
    return is_npy and path.stat().st_size > MAPPED_ABOVE_BYTES


def _check_source(source: str) -> None:
    if Path(source).suffix or Path(source).exists():
        return
    names = ["digits", *IMAGE_SETS]
    hint = did_you_mean(source, names)
    raise ValueError(
        f"data must be one of {', '.join(names)}, or a .npy, .npz or .csv file; got "
        f"{source!r}.{hint}"
    )
