"""Weights and states to disk and back: bitwise, or a CheckpointError and nothing changed."""

import hashlib
import io
import json
import math
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pyro_vae.checkpoint import (
    CheckpointError,
    StateFiles,
    TrainingState,
    copied_into,
    load_weights,
    named_tensors,
    save_weights,
)
from pyro_vae.checkpoint.state_file import digest_file, read_state, write_state


def make(dtype=torch.float64):
    """A module with parameters, float buffers and an integer buffer."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    net(torch.randn(8, 3, dtype=dtype))  # moves the running statistics
    return net


def state(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and a[n].numpy().tobytes() == b[n].numpy().tobytes()
        for n in a
    )


@pytest.fixture
def weights(tmp_path):
    """A file of weights and the state that it holds."""
    net = make()
    save_weights(net, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", state(net)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_round_trip_is_bitwise_with_buffers(tmp_path, dtype):
    saved, loaded = make(dtype), make(dtype)
    with torch.no_grad():  # values that a lossy format would change
        saved[0].weight[0] = torch.tensor([-0.0, 5e-324, 1 / 3], dtype=dtype)
    save_weights(saved, tmp_path / "weights.safetensors")
    assert not same_bits(state(loaded), state(saved))
    load_weights(loaded, str(tmp_path / "weights.safetensors"))
    assert same_bits(state(loaded), state(saved))
    assert loaded[1].num_batches_tracked.item() == 1


def test_load_weights_keeps_the_identity_of_every_tensor(weights):
    path, _ = weights
    net = make()
    before = {n: (id(t), t.data_ptr()) for n, t in net.state_dict(keep_vars=True).items()}
    load_weights(net, path)
    after = {n: (id(t), t.data_ptr()) for n, t in net.state_dict(keep_vars=True).items()}
    assert after == before
    assert all(p.requires_grad for p in net.parameters())


def test_load_weights_of_float32_into_float64_is_exact_and_keeps_the_type(tmp_path):
    saved, loaded = make(torch.float32), make(torch.float64)
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    expected = {n: t.to(loaded.state_dict()[n].dtype) for n, t in state(saved).items()}
    assert same_bits(state(loaded), expected)


def test_saved_weights_load_with_safetensors_alone(weights):
    path, saved = weights
    assert same_bits(safetensors.torch.load_file(path), saved)


def test_saved_weights_are_of_the_module_as_it_is_and_leave_it_so(tmp_path):
    net = make()
    before = state(net)
    save_weights(net, tmp_path / "weights.safetensors")
    assert same_bits(state(net), before)
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_equal_weights_make_equal_files(tmp_path):
    net = make()
    for name in ("first", "second"):
        save_weights(net, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_shared_transposed_and_scalar_tensors_come_back(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("turned", torch.randn(4, 2).T)
            self.register_buffer("number", torch.tensor(math.pi))
            self.register_buffer("nothing", torch.zeros(0, 3))
            self.register_buffer("mask", torch.tensor([True, False]))

    saved, loaded = Odd(), Odd()
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert same_bits(state(loaded), state(saved))
    assert loaded.second.weight is loaded.first.weight


def refused(path, match):
    """Loading fails with this message and leaves the module as it was."""
    net = make()
    before = state(net)
    with pytest.raises(CheckpointError, match=match):
        load_weights(net, path)
    assert same_bits(state(net), before)


DAMAGED = r"path must be a file of weights; .*weights\.safetensors is damaged, or not one: \S+"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_raise(weights, share):
    path, _ = weights
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, DAMAGED)


def test_flipped_bit_in_the_numbers_raises(weights):
    # safetensors itself reads such a file without a word: it keeps no checksum.
    path, saved = weights
    content = bytearray(path.read_bytes())
    start = content.find(saved["0.weight"].numpy().tobytes())
    assert start > 0
    content[start + 3] ^= 1
    path.write_bytes(content)
    assert not same_bits(safetensors.torch.load_file(path), saved)
    refused(path, r"is damaged, or not one: its content differs from its sha256")


def flips(content, step=11):
    """A file with one bit changed, for every step-th byte: coprime to 8, so each bit is met."""
    for position in range(0, len(content), step):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        yield bytes(flipped)


def test_no_flipped_bit_is_ever_loaded_silently(weights):
    path, saved = weights
    net, num_refused = make(), 0
    before = state(net)
    for flipped in flips(path.read_bytes()):
        path.write_bytes(flipped)
        try:
            load_weights(net, path)
        except CheckpointError:
            num_refused += 1
            assert same_bits(state(net), before)
        else:  # the flip met padding
            assert same_bits(state(net), saved)
            net.load_state_dict(before)
    assert num_refused > 80


@pytest.mark.parametrize(
    "known", [None, {}, {"sha256": ""}, {"sha256": "0" * 64}, {"format": "pt"}]
)
def test_weights_with_no_or_another_sha256_raise(tmp_path, known):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(state(make()), metadata=known))
    refused(path, DAMAGED)


def header(table, *, size=None, numbers=b""):
    text = json.dumps(table).encode() if not isinstance(table, bytes) else table
    return (len(text) if size is None else size).to_bytes(8, "little") + text + numbers


F64 = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        header({}, size=2**63),
        header({}, size=200_000_000),
        header(b"[" * 100_000),
        header({"x": {**F64, "shape": [2**40]}}, numbers=bytes(16)),
        header({"x": {**F64, "shape": [2**32, 2**32]}}, numbers=bytes(16)),
        header({"x": {**F64, "data_offsets": [0, 2**60]}}, numbers=bytes(16)),
        header({"x": {**F64, "data_offsets": [-8, 8]}}, numbers=bytes(16)),
        header({"x": {**F64, "dtype": "PICKLE"}}, numbers=bytes(16)),
        header({"x": F64, "y": F64}, numbers=bytes(16)),
        header({"x": F64}, numbers=bytes(17)),
    ],
    ids=["huge header", "long header", "deep", "huge shape", "overflow", "far", "before",
         "unknown type", "overlap", "rest"],
)  # fmt: skip
def test_headers_that_lie_raise_and_take_no_memory(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    refused(path, DAMAGED)


class Bomb:
    """Makes a file when it is unpickled, as code of a stranger might."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value))


def zipped(value, path):
    torch.save(value, path)


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


BOMBS = pytest.mark.parametrize("write", [pickled, zipped, legacy])


@pytest.mark.parametrize("hidden_as", ["alone", "among weights"])
@BOMBS
def test_pickle_bomb_raises_and_does_not_go_off(tmp_path, write, hidden_as):
    marker, path = tmp_path / "marker", tmp_path / "weights.safetensors"
    bomb = Bomb(marker)
    write(bomb if hidden_as == "alone" else {**state(make()), "extra": bomb}, path)
    refused(path, DAMAGED)
    assert not marker.exists()
    explode(path, write)
    assert marker.exists()  # so it was a bomb


def explode(path, write):
    if write is pickled:
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)


def npz():
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    return file.getvalue()


def torch_file():
    file = io.BytesIO()
    torch.save(state(make()), file)
    return file.getvalue()


FOREIGN = {
    "empty": b"",
    "two bytes": b"PK",
    "text": b"these are no weights\n",
    "zeros": bytes(1000),
    "npy": b"\x93NUMPY\x01\x00",
    "npz": npz(),
    "pickle": pickle.dumps({"0.weight": [1.0]}),
    "empty pickle": b"\x80\x02.",
    "weights by torch": torch_file(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_raise(tmp_path, name):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(FOREIGN[name])
    refused(path, DAMAGED)


def test_missing_file_raises(tmp_path):
    refused(tmp_path / "none", r"path must be a file of weights; got .*none, which is not there")
    refused(tmp_path, r"path must be a file of weights; got .*, which is not there")


def test_weights_with_other_names_raise_and_name_them(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2, bias=False)), path)
    names = "['1.bias', '1.num_batches_tracked', '1.running_mean', '1.running_var', '1.weight', "
    refused(path, re.escape(f"lacks {names}'2.bias'] and has [] besides"))
    save_weights(nn.Sequential(*make(), nn.Linear(2, 2)), path)
    refused(path, re.escape("lacks [] and has ['3.bias', '3.weight'] besides"))
    save_weights(nn.Identity(), path)
    refused(path, "path must hold this module's weights; .* lacks")


def test_weights_of_other_shapes_raise_and_name_both(tmp_path):
    path = tmp_path / "weights.safetensors"
    other = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    save_weights(other, path)
    refused(path, re.escape("this module's shapes; got ['0.weight: (4, 5), not (4, 3)']"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool], ids=str)
def test_weights_of_another_kind_raise(tmp_path, dtype):
    path, net = tmp_path / "weights.safetensors", make()
    # Behind others, which must not change.
    net[2].weight = nn.Parameter(net[2].weight.detach().to(dtype), requires_grad=False)
    save_weights(net, path)
    refused(path, r"path must hold dense numbers of this module's kind; got \['2.weight: torch")


@pytest.mark.parametrize(
    "change",
    [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.to(torch.complex64)],
    ids=["meta", "sparse", "complex"],
)
def test_tensors_that_are_no_plain_numbers_are_not_copied(change):
    net, other = make(), state(make())
    before = state(net)
    other["2.weight"] = change(other["2.weight"])
    with pytest.raises(CheckpointError, match=r"dense numbers .*; got \['2.weight: torch"):
        copied_into(named_tensors(net), other, "the state")
    assert same_bits(state(net), before)


# States.


def content():
    """A state of a fit, as plain data."""
    made = TrainingState(
        tensors=state(make()),
        epoch=3,
        rows=[{"epoch": 1, "elbo": -1 / 3, "kl": math.nan}],
        random={"cpu": torch.get_rng_state()[None]},
        best=state(make()),
        optimizer={"kind": "Adam", "of_each": {"0.weight": {"step": torch.tensor(3.0)}}},
        settings={"x": "ü"},
    )
    return made.to_dict()


def same(a, b):
    """Whether plain data are equal, types and bits of tensors too."""
    if isinstance(a, torch.Tensor):
        return same_bits({"": a}, {"": b})
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.fixture
def saved(tmp_path):
    """A file with a state, and what it holds."""
    held = content()
    write_state(held, tmp_path / "state-last.pt", before=None)
    return tmp_path / "state-last.pt", held


def test_state_reads_back_with_its_digest_which_sha256sum_checks_too(saved):
    path, held = saved
    found, digest = read_state(path)
    assert found.pop("format") == 1
    assert same(found, held)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest_file(path).read_text() == f"{digest}  state-last.pt\n"
    assert TrainingState.from_dict(found, "it").rows[0]["epoch"] == 1


def test_equal_states_make_equal_files(tmp_path):
    held = content()
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_state(held, tmp_path / folder / "state.pt", before=None)
    first, second = ((tmp_path / f / "state.pt").read_bytes() for f in ("first", "second"))
    assert first == second


BROKEN = "resume must find a whole state; .*state-last.pt is damaged, or not one: "


def test_every_truncation_of_a_state_raises(saved):
    path, _ = saved
    whole = path.read_bytes()
    for length in [*range(0, 200), *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=BROKEN):
            read_state(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="state-last.pt (differs from|is damaged)"):
        read_state(path)


def test_every_flipped_bit_of_a_state_raises(saved):
    path, _ = saved
    for flipped in flips(path.read_bytes(), step=37):
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch may tell of an unknown protocol first
            with pytest.raises(CheckpointError, match="state-last.pt (differs|is damaged|h)"):
                read_state(path)


def test_every_flipped_bit_of_a_digest_raises_or_leaves_the_state_whole(saved):
    path, held = saved
    num_refused = 0
    for flipped in flips(digest_file(path).read_bytes()):
        digest_file(path).write_bytes(flipped)
        try:
            found, _ = read_state(path)
        except CheckpointError:
            num_refused += 1
        else:  # in the name of the file, which nobody needs
            assert same({**found}, {"format": 1, **held})
    assert num_refused >= 5


def test_states_damaged_to_the_same_length_in_their_numbers_raise(saved):
    # torch.load alone returns other numbers: it does not compare checksums.
    path, held = saved
    damaged = bytearray(path.read_bytes())
    start = damaged.find(held["tensors"]["0.weight"].numpy().tobytes())
    damaged[start + 2] ^= 4
    path.write_bytes(damaged)
    found = torch.load(path, weights_only=True)["tensors"]
    assert not torch.equal(found["0.weight"], held["tensors"]["0.weight"])
    with pytest.raises(CheckpointError, match="entry .* differs from its checksum"):
        read_state(path)


def test_entry_that_is_marked_as_a_folder_raises(saved):
    # One bit of its directory entry, under no checksum; torch.load then returns other numbers.
    path, _ = saved
    damaged = bytearray(path.read_bytes())
    entry = damaged.rfind(b"archive/data/0")
    damaged[entry - 8] ^= 0x10
    path.write_bytes(damaged)
    assert zipfile.ZipFile(path).testzip() is None
    with pytest.raises(CheckpointError, match="entry archive/data/0 differs from its checksum"):
        read_state(path)


def signed(path):
    """Give a file the digest that it has: damage that only the content tells."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    digest_file(path).write_text(f"{digest}  {path.name}\n")


def test_compressed_entries_raise_before_they_are_unpacked(tmp_path):
    path = tmp_path / "state-last.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    assert path.stat().st_size < 200_000
    signed(path)
    with pytest.raises(CheckpointError, match=f"{BROKEN}it has compressed entries"):
        read_state(path)


@pytest.mark.parametrize("hidden_as", ["alone", "in a state"])
@BOMBS
def test_bomb_in_a_state_raises_and_does_not_go_off(tmp_path, write, hidden_as):
    marker, path = tmp_path / "marker", tmp_path / "state-last.pt"
    bomb = Bomb(marker)
    write(bomb if hidden_as == "alone" else {**content(), "format": 1, "extra": bomb}, path)
    signed(path)
    with pytest.raises(CheckpointError, match=BROKEN):
        read_state(path)
    assert not marker.exists()
    explode(path, write)
    assert marker.exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_no_states(tmp_path, name):
    path = tmp_path / "state-last.pt"
    path.write_bytes(FOREIGN[name])
    signed(path)
    with pytest.raises(CheckpointError, match=r"resume must find a (whole )?state"):
        read_state(path)


def foreign_archive(path, data):
    """An archive with torch's layout and right checksums around a pickle that is not torch's."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02K\x01R.", b"\x80\x02U\x02\xff\xfe."],
    ids=["nothing", "empty stack", "unknown memo", "call of a number", "no unicode"],
)
def test_archive_with_a_damaged_pickle_raises(tmp_path, data):
    path = tmp_path / "state-last.pt"
    foreign_archive(path, data)
    signed(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch may tell of an unknown pickle protocol first
        with pytest.raises(CheckpointError, match=BROKEN):
            read_state(path)


@pytest.mark.parametrize(
    "held",
    [[torch.zeros(3)], {"0.weight": 1.0}, torch.zeros(3), None, {}, {"format": "1"}],
    ids=["list", "numbers", "tensor", "None", "empty", "format in words"],
)
def test_archives_of_something_else_raise(tmp_path, held):
    path = tmp_path / "state-last.pt"
    torch.save(held, path)
    signed(path)
    with pytest.raises(CheckpointError, match="must find a state of a fit; .* holds something el"):
        read_state(path)


def test_newer_format_raises_and_says_what_to_do(tmp_path):
    path = tmp_path / "state-last.pt"
    torch.save({**content(), "format": 2}, path)
    signed(path)
    with pytest.raises(CheckpointError, match="has format 2. Resume with the version of pyro_vae"):
        read_state(path)


def test_state_without_a_digest_raises(saved):
    path, _ = saved
    for change in (lambda: digest_file(path).write_bytes(b"\xff"), digest_file(path).unlink):
        change()
        with pytest.raises(
            CheckpointError, match=r"state's digest beside it; .*pt\.sha256 cannot"
        ):
            read_state(path)


NAMES = sorted(content())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["nothing", "other"])
def test_state_with_a_field_that_is_not_as_it_should_be_raises(name, value):
    held = content()
    if value == "nothing":
        del held[name]
    else:
        held[name] = {"a": 1.5} if name in {"tensors", "best", "start", "random"} else b"bytes"
    with pytest.raises(CheckpointError, match=f"state.pt has .* as its {name}"):
        TrainingState.from_dict(held, "state.pt")


# The last state and the one before it.


def test_a_state_of_two_is_there_whatever_operation_a_crash_comes_before(tmp_path, monkeypatch):
    """From its turn on every call that changes files raises, as if the process had ended there."""

    class Ended(Exception):
        pass

    calls = {"left": None}

    def mortal(function):
        def call(*args, **kwargs):
            if calls["left"] is not None:
                if calls["left"] == 0:
                    raise Ended
                calls["left"] -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "fsync", "link", "unlink", "chmod", "open", "close"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        patch.setattr(io, "open", mortal(io.open))
        patch.setattr("tempfile.mkstemp", mortal(__import__("tempfile").mkstemp))
        num, is_over = 0, False
        found = []
        while not is_over:
            folder = tmp_path / str(num)
            folder.mkdir()
            files = StateFiles(folder)
            for epoch in (1, 2, 3):
                files.save({"epoch": epoch})
            calls["left"] = num
            try:
                files.save({"epoch": 4})
                is_over = True
            except Ended:
                pass
            calls["left"] = None
            # No warning: the last state is whole at every moment.
            found.append(StateFiles(folder).load()["epoch"])
            previous, _ = read_state(folder / "state-previous.pt")
            assert previous["epoch"] in {found[-1] - 1, found[-1]}
            after = StateFiles(folder)
            after.load()
            after.save({"epoch": 5})
            assert read_state(folder / "state-previous.pt")[0]["epoch"] == found[-1]
            assert StateFiles(folder).load()["epoch"] == 5
            num += 1
    assert set(found) == {3, 4}
    assert found == sorted(found)
    assert num > 15


def test_best_is_whole_whatever_operation_a_crash_comes_before(tmp_path, monkeypatch):
    files = StateFiles(tmp_path)
    files.save_best({"epoch": 1})
    for name in ("replace", "fsync", "chmod"):
        with monkeypatch.context() as patch:

            def fail(*args, **kwargs):
                raise OSError(5, "Input/output error")

            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="Input/output error"):
                files.save_best({"epoch": 2})
        assert read_state(tmp_path / "state-best.pt")[0]["epoch"] == 1
    files.save_best({"epoch": 2})
    assert read_state(tmp_path / "state-best.pt")[0]["epoch"] == 2
    assert sorted(os.listdir(tmp_path)) == ["state-best.pt", "state-best.pt.sha256"]


def test_without_links_the_previous_state_is_a_copy(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    files = StateFiles(tmp_path)
    for epoch in (1, 2, 3):
        files.save({"epoch": epoch})
    assert read_state(tmp_path / "state-previous.pt")[0]["epoch"] == 2
    assert files.load()["epoch"] == 3


def test_damaged_last_state_is_told_and_the_previous_one_taken(tmp_path):
    files = StateFiles(tmp_path)
    for epoch in (1, 2):
        files.save({"epoch": epoch})
    (tmp_path / "state-last.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{BROKEN}.*goes on from the state before it") as told:
        found = StateFiles(tmp_path).load()
    assert found["epoch"] == 1
    assert len(told) == 1


def test_two_damaged_states_raise_and_both_are_named(tmp_path):
    files = StateFiles(tmp_path)
    for epoch in (1, 2):
        files.save({"epoch": epoch})
    for name in ("state-last.pt", "state-previous.pt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="state-last.pt is .*Nor is .*state-previous.pt is"):
        StateFiles(tmp_path).load()


def test_fit_that_goes_on_from_the_previous_state_keeps_it_until_it_has_another(tmp_path):
    files = StateFiles(tmp_path)
    for epoch in (1, 2):
        files.save({"epoch": epoch})
    (tmp_path / "state-last.pt").write_bytes(b"damaged")
    files = StateFiles(tmp_path)
    with pytest.warns(UserWarning, match="goes on from the state before it"):
        files.load()
    files.save({"epoch": 22})
    # What was damaged has not become the previous state.
    assert read_state(tmp_path / "state-previous.pt")[0]["epoch"] == 1
    assert files.load()["epoch"] == 22
    files.save({"epoch": 23})
    assert read_state(tmp_path / "state-previous.pt")[0]["epoch"] == 22


def test_removed_states_are_gone(tmp_path):
    files = StateFiles(tmp_path)
    for epoch in (1, 2):
        files.save({"epoch": epoch})
    files.save_best({"epoch": 1})
    assert files.exist
    files.remove()
    assert not files.exist
    assert os.listdir(tmp_path) == []
