"""What is written is what is read back. How to run more cases: properties.py."""

import string
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from properties import cases, same, sizes
from test_toml import typed
from torch import nn

from pyro_vae import checkpoint, cli, toml
from pyro_vae.checkpoint import StateFiles
from pyro_vae.commands import fitting
from pyro_vae.config_file import config_words
from pyro_vae.kinds import FAMILIES, LIKELIHOODS, OBJECTIVES, PRIORS

# A lone surrogate has no UTF-8.
texts = st.text(st.characters(codec="utf-8"), max_size=6)
# TOML promises 64 bits.
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
plain = st.booleans() | numbers | texts
lists = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
configs = st.recursive(
    st.dictionaries(texts, lists, max_size=4),
    lambda inner: st.dictionaries(texts, lists | inner, max_size=4),
    max_leaves=6,
)


@cases(60)
@given(config=configs)
def test_configuration_is_what_pythons_reader_reads(config):
    assert typed(tomllib.loads(toml.dumps(config))) == typed(config)


@cases(30)
@given(
    path=texts,
    number=st.integers(-(2**40), 2**40),
    fraction=st.floats(allow_nan=False, allow_infinity=False),
    widths=st.lists(sizes(1, 999), max_size=3),
    switch=st.booleans(),
)
@example(path="-x", number=-1, fraction=-0.5, widths=[], switch=True)
def test_configuration_gives_the_words_of_its_values(path, number, fraction, widths, switch):
    model = {"path": path, "number": number, "fraction": fraction, "widths": widths, "on": switch}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.toml").write_text(toml.dumps({"model": model}), encoding="utf-8")
        words = config_words(folder, list(model))
    found = {}
    for first, *rest in words:
        # By itself a word with a dash in front would be an option.
        assert not any(word.startswith("-") for word in rest)
        name, equals, value = first.removeprefix("--").partition("=")
        found[name] = [value] if equals else rest
    assert found.pop("on", None) == ([] if switch else None)
    assert found == {
        "path": [path],
        "number": [str(number)],
        "fraction": [repr(fraction)],
        "widths": [str(width) for width in widths],
    }


def kinds_of(kinds):
    """Names of kinds, with and without a number."""
    whole = [name for name, default in kinds.items() if isinstance(default, int)]
    return st.sampled_from(sorted(kinds)) | st.builds(
        "{}:{}".format, st.sampled_from(whole), sizes(2, 40)
    )


positive = st.floats(1e-300, 1e300)
words_of = st.fixed_dictionaries(
    {},
    optional={
        "--data": st.text(string.ascii_letters + " é-=#\"'", min_size=1, max_size=8).map(
            lambda name: name + ".csv"
        ),
        "--labels": st.text(min_size=1, max_size=4).filter(lambda s: "\r" not in s),
        "--divide": positive,
        "--held-out": st.floats(1e-9, 1 - 1e-9),
        "--latent-dim": sizes(1, 99),
        "--hidden": st.lists(sizes(1, 999), max_size=3),
        "--prior": kinds_of(PRIORS),
        "--likelihood": kinds_of(LIKELIHOODS),
        "--family": kinds_of(FAMILIES),
        "--objective": kinds_of(OBJECTIVES),
        "--variance": positive,
        "--fixed-variance": st.just([]),
        "--dtype": st.sampled_from(["float32", "float64"]),
        "--epochs": sizes(1, 10**9),
        "--learning-rate": positive,
        "--kl-weight": st.just(0.0) | positive,
        "--clip-norm": positive,
        "--patience": sizes(1, 99),
        "--compile": st.just([]),
        "--seed": st.integers(0, 2**40),
        "--split-seed": st.integers(0, 2**40),
    },
)


@cases(40)
@given(chosen=words_of)
def test_a_fit_from_its_own_configuration_has_its_settings(chosen):
    words = ["fit"]
    for name, value in chosen.items():
        if isinstance(value, list):
            words += [name, *map(str, value)]
        else:
            words.append(f"{name}={value}")
    parser = cli._parser()
    settings = fitting._settings(parser.parse_args(words))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.toml").write_text(toml.dumps(settings), encoding="utf-8")
        again = parser.parse_args(cli._with_config(["fit"], folder, parser))
    assert typed(fitting._settings(again)) == typed(settings)


BITS = {
    torch.float16: "int16",
    torch.bfloat16: "int16",
    torch.float32: "int32",
    torch.float64: "int64",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
}


@st.composite
def tensors(draw):
    """Any bits of any type, NaNs with a payload among them; empty, 0-dim, strided ones too."""
    shape = draw(st.lists(sizes(0, 3), max_size=3).map(tuple))
    dtype = draw(st.sampled_from([torch.bool, *BITS]))
    if dtype == torch.bool:
        return torch.from_numpy(np.array(draw(npst.arrays(bool, shape))))
    bits = torch.from_numpy(np.array(draw(npst.arrays(BITS[dtype], shape))))
    tensor = bits.view(dtype)
    kind = draw(st.sampled_from(["as it is", "transposed", "every other"]))
    if kind == "transposed" and tensor.dim() > 1:
        return tensor.mT
    if kind == "every other" and tensor.dim() > 0:
        return tensor[::2]
    return tensor


class Holder(nn.Module):
    """Buffers of any name."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


names = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=5)
held = st.dictionaries(
    names.filter(lambda name: not hasattr(nn.Module(), name)), tensors(), max_size=4
)


@cases(40)
@given(content=held)
# A single number may have any stride.
@example(content={"column": torch.zeros(4, 3, dtype=torch.float32)[:1, 0]})
def test_weights_come_back_bit_by_bit(content):
    saved = Holder(content)
    loaded = Holder({name: torch.zeros_like(tensor) for name, tensor in content.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        checkpoint.save_weights(saved, path)
        checkpoint.load_weights(loaded, path)
    same(dict(loaded.state_dict()), dict(saved.state_dict()))


leaves = tensors() | st.none() | st.booleans() | st.integers() | st.floats() | texts
states = st.dictionaries(
    texts.filter(lambda key: key != "format"),
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(texts | sizes(-9, 9), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@cases(30)
@given(first=states, second=states)
def test_states_come_back_bit_by_bit_the_last_one_and_the_one_before(first, second):
    with tempfile.TemporaryDirectory() as folder:
        files = StateFiles(folder)
        files.save(first)
        files.save(second)
        found = StateFiles(folder).load()
        found.pop("format")
        same(found, second)
        files.save_best(second)
        Path(folder, "state-last.pt").replace(Path(folder, "state-best.pt"))
        Path(folder, "state-previous.pt").replace(Path(folder, "state-last.pt"))
        Path(folder, "state-previous.pt.sha256").replace(Path(folder, "state-last.pt.sha256"))
        found = StateFiles(folder).load()
        found.pop("format")
        same(found, first)
