import os
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae import datasets

FAMILIES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


@pytest.fixture(autouse=True)
def no_network_and_no_data_of_the_user(monkeypatch):
    def unreachable(request, *args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def pictures(num_data):
    return np.random.default_rng(num_data).integers(0, 256, (num_data, 28, 28), dtype=np.uint8)


def write_family(root, family, prefixes=(("train", 5), ("t10k", 3))):
    for prefix, num_data in prefixes:
        raw = root / family / "raw"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", pictures(num_data))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(num_data) % 2)


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
@pytest.mark.parametrize(("train", "num_data"), [(True, 5), (False, 3)])
def test_mnist_family_is_read_from_torchvisions_layout(tmp_path, name, family, train, num_data):
    write_family(tmp_path, family)
    with torch.device("meta"):
        data = getattr(datasets, name)(root=tmp_path, train=train, dtype=torch.float64)
    expected = pictures(num_data).reshape(num_data, 784) / 255
    assert np.array_equal(data.x.numpy(), expected)
    assert data.labels.tolist() == (np.arange(num_data) % 2).tolist()
    assert data.image_shape == (28, 28)
    part = "train" if train else "test"
    assert (
        str(data) == f"{name} {part}: {num_data} rows of (784,), x = raw / 255, labels 2 classes"
    )


def test_torchvision_reads_the_same_images(tmp_path):
    from torchvision.datasets import FashionMNIST

    write_family(tmp_path, "FashionMNIST")
    theirs = FashionMNIST(tmp_path, train=True)
    ours = datasets.fashion_mnist(root=tmp_path, dtype=torch.float64)
    assert torch.equal(ours.x, theirs.data.flatten(1).double() / 255)
    assert torch.equal(ours.labels, theirs.targets)


def test_emnist_images_are_turned_upright(tmp_path):
    upright = pictures(4)
    raw = tmp_path / "EMNIST" / "raw"
    write_idx(raw / "emnist-letters-test-images-idx3-ubyte", upright.swapaxes(1, 2))
    write_idx(raw / "emnist-letters-test-labels-idx1-ubyte", np.array([1, 2, 26, 2]))
    data = datasets.emnist("letters", root=tmp_path, train=False, dtype=torch.float64)
    assert np.array_equal(data.x.numpy().reshape(4, 28, 28), upright / 255)
    assert data.labels.tolist() == [1, 2, 26, 2]


def test_root_comes_from_the_environment_unless_given(tmp_path, monkeypatch):
    write_family(tmp_path / "there", "MNIST")
    write_family(tmp_path / "here", "MNIST", prefixes=[("train", 2)])
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "there"))
    assert len(datasets.mnist()) == 5
    assert len(datasets.mnist(root=str(tmp_path / "here"))) == 2


def write_celeba(root, *, size=(178, 218)):
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    # Left half red, right half blue, with a white frame outside the central 148 x 148 square.
    pixels = np.full((218, 178, 3), 255, dtype=np.uint8)
    pixels[35:183, 15:89] = (255, 0, 0)
    pixels[35:183, 89:163] = (0, 0, 255)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    for number in range(1, 6):
        image.save(folder / f"{number:06d}.jpg", quality=100, subsampling=0)
    lines = [f"{number:06d}.jpg {part}" for number, part in enumerate([0, 0, 0, 1, 2], start=1)]
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def test_celeba_is_cropped_resized_and_put_channels_first(tmp_path):
    write_celeba(tmp_path)
    with torch.device("meta"):
        data = datasets.celeba(8, root=tmp_path, dtype=torch.float64)
    assert data.x.shape == (3, 3, 8, 8)
    assert data.image_shape == (3, 8, 8)
    assert str(data) == "celeba train: 3 rows of (3, 8, 8), x = raw / 255"
    red, green, blue = data.x[0]
    # JPEG is not exact: two gray levels of 255. The filter mixes the two middle columns.
    assert (red[:, :3] - 1).abs().max() < 3 / 255
    assert (blue[:, 5:] - 1).abs().max() < 3 / 255
    for dark in (red[:, 5:], green, blue[:, :3]):
        assert dark.abs().max() < 3 / 255


@pytest.mark.parametrize(
    ("options", "num_data"),
    [({"split": "valid"}, 1), ({"split": "all"}, 5), ({"limit": 2}, 2), ({"limit": 99}, 3)],
)
def test_celeba_split_and_limit(tmp_path, options, num_data):
    write_celeba(tmp_path)
    assert len(datasets.celeba(size=4, root=tmp_path, **options)) == num_data


def without_photographs(root):
    (root / "celeba").mkdir()
    lines = [f"{number:06d}.jpg 0" for number in range(1, 7)]
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    return root


def truncate(path, size):
    os.truncate(path, size)
    return path


def broken(tmp_path, how):
    """A folder in which the training part of MNIST is damaged in one way."""
    write_family(tmp_path, "MNIST")
    raw = tmp_path / "MNIST" / "raw"
    images, labels = (raw / f"train-{part}-ubyte" for part in ("images-idx3", "labels-idx1"))
    if how == "truncated":
        truncate(images, 1000)
    elif how == "header":
        truncate(images, 7)
    elif how == "empty":
        truncate(labels, 0)
    elif how == "longer":
        images.write_bytes(images.read_bytes() + b"\0")
    elif how == "forged":  # would be 3.4 TB
        images.write_bytes(bytes([0, 0, 8, 3]) + b"\xff\xff\xff\xff" + images.read_bytes()[8:])
    elif how == "gzip":
        images.write_bytes(b"\x1f\x8b\x08\x00" + images.read_bytes())
    elif how == "labels":
        write_idx(labels, np.arange(4))
    elif how == "gone":
        labels.unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (
            "truncated",
            ValueError,
            r"images-idx3-ubyte must be complete; got 1000 bytes where its header promises 3936 "
            r"for shape \(5, 28, 28\)",
        ),
        ("header", ValueError, "IDX file of unsigned bytes with 3 dimensions; got 7 bytes"),
        ("empty", ValueError, "with 1 dimensions; got 0 bytes that start with nothing"),
        ("longer", ValueError, "got 3937 bytes where its header promises 3936"),
        ("forged", ValueError, "got 3936 bytes where its header promises 33672"),
        ("gzip", ValueError, "bytes that start with 1f 8b 08 00, not 00 00 08 03"),
        ("labels", ValueError, "one label per image; got 4 labels"),
        ("gone", FileNotFoundError, r"MNIST must be in .*raw; got no train-labels-idx1-ubyte"),
    ],
)
def test_damaged_idx_files_raise(tmp_path, how, kind, message):
    with pytest.raises(kind, match=message):
        datasets.mnist(root=broken(tmp_path, how))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda root: datasets.mnist(),
            FileNotFoundError,
            "Pass root=..., or set the environment variable PYRO_VAE_DATA",
        ),
        (
            lambda root: datasets.fashion_mnist(root=root),
            FileNotFoundError,
            r"FashionMNIST must be in .*FashionMNIST/raw; got no train-images-idx3-ubyte, "
            r"train-labels-idx1-ubyte there. Pass root=... or set PYRO_VAE_DATA .*pass "
            r"download=True, or use datasets.digits\(\)",
        ),
        (
            lambda root: datasets.emnist(root=root),
            FileNotFoundError,
            "got no emnist-balanced-train-images-idx3-ubyte",
        ),
        (lambda root: datasets.emnist("all", root=root), ValueError, "split must be one of"),
        (
            lambda root: datasets.celeba(root=root),
            FileNotFoundError,
            "celeba must be in .*celeba; got no list_eval_partition.txt, img_align_celeba there",
        ),
        (
            lambda root: datasets.celeba(root=without_photographs(root)),
            FileNotFoundError,
            "got no .*/000001.jpg, .*/000004.jpg and 2 more there",
        ),
        (lambda root: datasets.celeba(0, root=root), ValueError, "size must be at least 1"),
        (lambda root: datasets.celeba(root=root, limit=0), ValueError, "limit must be at least 1"),
        (lambda root: datasets.celeba(root=root, split="x"), ValueError, "split must be one of"),
        (
            lambda root: datasets.mnist(root=broken(root, ""), dtype=torch.int64),
            TypeError,
            "dtype must be a floating-point",
        ),
    ],
)
def test_image_sets_raise(tmp_path, call, kind, message):
    with pytest.raises(kind, match=message):
        call(tmp_path)


def test_damaged_celeba_raises(tmp_path):
    write_celeba(tmp_path)
    folder = tmp_path / "celeba" / "img_align_celeba"
    truncate(folder / "000002.jpg", 900)
    with pytest.raises(ValueError, match=r"000002.jpg must be a complete image"):
        datasets.celeba(root=tmp_path)
    (folder / "000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"got no img_align_celeba/000002.jpg there"):
        datasets.celeba(root=tmp_path)
    assert len(datasets.celeba(root=tmp_path, limit=1)) == 1
    partition = tmp_path / "celeba" / "list_eval_partition.txt"
    partition.write_text("000001.jpg 0\n../../secret.jpg 0\n")
    with pytest.raises(ValueError, match=r"got '../../secret.jpg 0' on line 2"):
        datasets.celeba(root=tmp_path)


def test_celeba_of_another_size_raises(tmp_path):
    write_celeba(tmp_path, size=(100, 100))
    with pytest.raises(ValueError, match="178 x 218 pixels; got 100 x 100"):
        datasets.celeba(root=tmp_path)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mnist", "MNIST could not be downloaded from https://ossci-datasets.* no network"),
        ("fashion_mnist", "http://fashion-mnist.s3.*train-images-idx3-ubyte.gz.*no network"),
        ("kmnist", "http://codh.rois.ac.jp.* no network"),
        ("emnist", "https://biometrics.nist.gov.* no network"),
        ("celeba", "Google Drive"),
    ],
)
def test_download_without_a_network_raises_and_leaves_no_file(tmp_path, name, source):
    with pytest.raises(OSError, match=rf"(?s){source}.*datasets.digits") as caught:
        getattr(datasets, name)(root=tmp_path / "new", download=True)
    assert f"into {tmp_path / 'new'}" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "new").iterdir()) == []


def test_download_into_a_root_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"KMNIST could not .* into .*/file/data: NotADirectory"):
        datasets.kmnist(root=tmp_path / "file" / "data", download=True)


def test_download_leaves_complete_data_alone(tmp_path):
    write_family(tmp_path, "MNIST")
    assert len(datasets.mnist(root=tmp_path, download=True)) == 5


# Read at import, before the fixture above takes the variable away.
DATA = os.environ.get("PYRO_VAE_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="PYRO_VAE_DATA does not name the folder of Fashion-MNIST")
def test_fashion_mnist_reproduces_its_linear_anchor():
    train = datasets.fashion_mnist(root=DATA)
    test = datasets.fashion_mnist(root=DATA, train=False)
    model = datasets.LinearGaussian.maximum_likelihood(train.x, 10)
    assert (train.x.shape, test.x.shape) == ((60000, 784), (10000, 784))
    assert train.labels.bincount().tolist() == [6000] * 10
    assert abs(model.variance - 0.0246858) < 5e-8
    assert abs(model.log_prob(train.x).double().mean().item() - 314.8061) < 1e-3
    assert abs(model.log_prob(test.x).double().mean().item() - 315.1629) < 1e-3
