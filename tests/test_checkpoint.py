"""Weights to disk and back: bitwise, or a CheckpointError and a module that is unchanged."""

import io
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae.checkpoint import CheckpointError, load_weights, save_weights


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
    save_weights(net, tmp_path / "weights.pt")
    return tmp_path / "weights.pt", state(net)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_round_trip_is_bitwise_with_buffers(tmp_path, dtype):
    saved, loaded = make(dtype), make(dtype)
    with torch.no_grad():  # values that a lossy format would change
        saved[0].weight[0] = torch.tensor([-0.0, 5e-324, 1 / 3], dtype=dtype)
    save_weights(saved, tmp_path / "weights.pt")
    assert not same_bits(state(loaded), state(saved))
    load_weights(loaded, str(tmp_path / "weights.pt"))
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
    save_weights(saved, tmp_path / "weights.pt")
    load_weights(loaded, tmp_path / "weights.pt")
    expected = {n: t.to(loaded.state_dict()[n].dtype) for n, t in state(saved).items()}
    assert same_bits(state(loaded), expected)


def test_saved_weights_load_with_torch_alone(weights):
    path, saved = weights
    assert same_bits(torch.load(path, weights_only=True), saved)


def test_saved_weights_are_of_the_module_as_it_is_and_leave_it_so(tmp_path):
    net = make()
    before = state(net)
    save_weights(net, tmp_path / "weights.pt")
    assert same_bits(state(net), before)
    assert os.listdir(tmp_path) == ["weights.pt"]


def test_equal_weights_make_equal_files(tmp_path):
    net = make()
    for name in ("first.pt", "second.pt"):
        save_weights(net, tmp_path / name)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


def refused(path, match):
    """Loading fails with this message and leaves the module as it was."""
    net = make()
    before = state(net)
    with pytest.raises(CheckpointError, match=match):
        load_weights(net, path)
    assert same_bits(state(net), before)


DAMAGED = r"path must be a file of weights; .*weights\.pt is damaged, or not one: \S+"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_raise(weights, share):
    path, _ = weights
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, DAMAGED)


def test_flipped_bit_in_the_numbers_raises(weights):
    # torch.load itself reads such a file without a word: it does not compare checksums.
    path, saved = weights
    content = bytearray(path.read_bytes())
    start = content.find(saved["0.weight"].numpy().tobytes())
    assert start > 0
    content[start + 3] ^= 1
    path.write_bytes(content)
    assert not same_bits(torch.load(path, weights_only=True), saved)
    refused(path, r"is damaged, or not one: entry archive/data/0 differs from its checksum")


def test_no_flipped_bit_is_ever_loaded_silently(weights):
    path, saved = weights
    content, net = path.read_bytes(), make()
    before = state(net)
    num_refused = 0
    for position in range(0, len(content), 11):  # coprime to 8, so every bit of a byte is met
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            load_weights(net, path)
        except CheckpointError:
            num_refused += 1
            assert same_bits(state(net), before)
        else:  # the flip met padding, a date or the like
            assert same_bits(state(net), saved)
            net.load_state_dict(before)
    assert num_refused > 100


def test_entry_that_is_marked_as_a_folder_raises(weights):
    # One bit of its directory entry, under no checksum; torch.load then returns other numbers.
    path, saved = weights
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"archive/data/0")
    content[entry - 8] ^= 0x10
    path.write_bytes(content)
    assert zipfile.ZipFile(path).testzip() is None
    refused(path, "entry archive/data/0 differs from its checksum")


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


@pytest.mark.parametrize("hidden_as", ["alone", "among weights"])
@pytest.mark.parametrize("write", [pickled, zipped, legacy])
def test_pickle_bomb_raises_and_does_not_go_off(tmp_path, write, hidden_as):
    marker, path = tmp_path / "marker", tmp_path / "weights.pt"
    bomb = Bomb(marker)
    write(bomb if hidden_as == "alone" else {**state(make()), "extra": bomb}, path)
    refused(path, DAMAGED)
    assert not marker.exists()
    torch.load(path, weights_only=False) if write is not pickled else pickle.loads(
        path.read_bytes()
    )
    assert marker.exists()  # so it was a bomb


def npz():
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"these are no weights\n",
        bytes(1000),
        b"\x93NUMPY\x01\x00",
        npz(),
        pickle.dumps({"0.weight": [1.0]}),
        b"\x80\x02.",
    ],
    ids=["empty", "two bytes", "text", "zeros", "npy", "npz", "pickle", "empty pickle"],
)
def test_foreign_files_raise(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused(path, DAMAGED)


def foreign_archive(path, data):
    """An archive with torch's layout and right checksums around a pickle that is not torch's."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", data)
        archive.writestr("weights/version", "3\n")
        archive.writestr("weights/byteorder", "little")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02K\x01R.", b"\x80\x02U\x02\xff\xfe."],
    ids=["nothing", "empty stack", "unknown memo", "call of a number", "no unicode"],
)
def test_archive_with_a_damaged_pickle_raises(tmp_path, data):
    path = tmp_path / "weights.pt"
    foreign_archive(path, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch may tell of an unknown pickle protocol first
        refused(path, DAMAGED)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(3)], {"0.weight": 1.0}, torch.zeros(3), None, {}],
    ids=["list", "numbers", "tensor", "None", "empty"],
)
def test_archives_of_something_else_raise(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    refused(path, r"path must hold (a module's weights; .* holds something|this module's weights)")


def test_missing_file_raises(tmp_path):
    refused(tmp_path / "none.pt", r"path must be a file of weights; got .*none\.pt, which is not")
    refused(tmp_path, r"path must be a file of weights; got .*, which is not there")


def test_weights_with_other_names_raise_and_name_them(tmp_path):
    path = tmp_path / "weights.pt"
    save_weights(nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2, bias=False)), path)
    names = "['1.bias', '1.num_batches_tracked', '1.running_mean', '1.running_var', '1.weight', "
    refused(path, re.escape(f"lacks {names}'2.bias'] and has [] besides"))
    save_weights(nn.Sequential(*make(), nn.Linear(2, 2)), path)
    refused(path, re.escape("lacks [] and has ['3.bias', '3.weight'] besides"))


def test_weights_of_other_shapes_raise_and_name_both(tmp_path):
    path = tmp_path / "weights.pt"
    other = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    save_weights(other, path)
    refused(path, re.escape("this module's shapes; got ['0.weight: (4, 5), not (4, 3)']"))


@pytest.mark.parametrize(
    "change",
    [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.to(torch.complex64)],
    ids=["meta", "sparse", "complex"],
)
def test_tensors_that_are_no_plain_numbers_raise(tmp_path, change):
    path, content = tmp_path / "weights.pt", state(make())
    content["2.weight"] = change(content["2.weight"])  # behind others, which must not change
    torch.save(content, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(
            path, r"path must hold dense numbers of this module's kind; got \['2.weight: torch"
        )
