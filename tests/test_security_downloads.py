"""Downloads by a fake: what arrives is what was asked for, or nothing is there."""

import gzip
import hashlib
import io
import re
import struct
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae import datasets
from pyro_vae.datasets import archives, checksums, downloads, faces, images

FAMILIES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "celeba": "celeba",
}


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_files(prefix, num_data):
    gray = np.random.default_rng(num_data).integers(0, 256, (num_data, 28, 28))
    return {
        f"{prefix}-images-idx3-ubyte": idx_bytes(gray),
        f"{prefix}-labels-idx1-ubyte": idx_bytes(np.arange(num_data) % 2),
    }


def write_family(root, family):
    folder = root / family / "raw"
    folder.mkdir(parents=True)
    for name, content in {**idx_files("train", 5), **idx_files("t10k", 3)}.items():
        (folder / name).write_bytes(content)


def photograph(size=(178, 218)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), 80, np.uint8)).save(file, "JPEG")
    return file.getvalue()


PARTITION = b"000001.jpg 0\n000002.jpg 1\n"


def write_celeba(root):
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    (folder / "000001.jpg").write_bytes(photograph())
    (folder / "000002.jpg").write_bytes(photograph())
    (root / "celeba" / "list_eval_partition.txt").write_bytes(PARTITION)


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def served(family):
    """The files of a small stand-in for a data set, by name."""
    if family == "celeba":
        members = {f"img_align_celeba/00000{n}.jpg": photograph() for n in (1, 2)}
        # What an archive may hold besides, and where it would have it.
        members["../../escaped.txt"] = b"out of the folder"
        members["/tmp/escaped-from-celeba.txt"] = b"out of the folder"
        return {"img_align_celeba.zip": zipped(members), "list_eval_partition.txt": PARTITION}
    if family == "EMNIST":
        members = {"gzip/../../escaped.txt": b"out of the folder"}
        for split in images.EMNIST_SPLITS:
            for part, num_data in (("train", 5), ("test", 3)):
                for name, content in idx_files(f"emnist-{split}-{part}", num_data).items():
                    members[f"gzip/{name}.gz"] = gzip.compress(content)
        return {"gzip.zip": zipped(members)}
    plain = {**idx_files("train", 5), **idx_files("t10k", 3)}
    return {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def unreachable(request, *args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


@pytest.fixture
def server(monkeypatch):
    """Serves files in place of the network; their sums are known unless a test changes them."""

    class Server:
        def __init__(self):
            self.files, self.asked, self.refuses = {}, [], lambda url: False

        def serve(self, family):
            self.files = served(family)
            sums = {n: hashlib.sha256(c).hexdigest() for n, c in self.files.items()}
            monkeypatch.setitem(checksums.SHA256, family, sums)

        def get(self, url, root, filename=None, md5=None):
            self.asked.append(url)
            if self.refuses(url):
                raise urllib.error.URLError("refused")
            assert re.fullmatch("[0-9a-f]{32}", md5)
            (Path(root) / filename).write_bytes(self.files[filename])

    made = Server()
    from torchvision.datasets import utils

    monkeypatch.setattr(utils, "download_url", made.get)
    monkeypatch.setattr(utils, "download_file_from_google_drive", made.get)
    return made


def options(name):
    return {"size": 8} if name == "celeba" else {}


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_download_has_just_the_named_files_in_their_places(tmp_path, server, name, family):
    server.serve(family)
    root = tmp_path / "below" / "root"
    with torch.device("meta"):
        data = getattr(datasets, name)(root=root, download=True, **options(name))
    assert len(data) == (1 if name == "celeba" else 5)
    expected = {
        "EMNIST": {f"EMNIST/raw/{n.removeprefix('gzip/').removesuffix('.gz')}" for n in emnist()},
        "celeba": {
            "celeba/list_eval_partition.txt",
            *(f"celeba/img_align_celeba/00000{n}.jpg" for n in (1, 2)),
        },
    }.get(family, {f"{family}/raw/{n.removesuffix('.gz')}" for n in server.files})
    assert {path.relative_to(root).as_posix() for path in files_below(tmp_path)} == expected
    assert list(root.iterdir()) == [root / family]  # no folder of the download is left
    assert not Path("/tmp/escaped-from-celeba.txt").exists()
    asked = list(server.asked)
    getattr(datasets, name)(root=root, download=True, **options(name))
    assert server.asked == asked  # what is there is not asked for again


def emnist():
    with zipfile.ZipFile(io.BytesIO(served("EMNIST")["gzip.zip"])) as archive:
        return [name for name in archive.namelist() if name.endswith(".gz")]


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_content_with_another_sum_is_removed_and_named(tmp_path, server, name, family):
    server.serve(family)
    changed = max(server.files)
    server.files[changed] += b"\0"
    (tmp_path / "root").mkdir()
    with pytest.raises(OSError, match="SHA-256 sum must be [0-9a-f]{64}; got") as caught:
        getattr(datasets, name)(root=tmp_path / "root", download=True, **options(name))
    for part in (changed, "://", str(tmp_path / "root" / family), "datasets.digits()"):
        assert part in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_next_mirror_is_asked_where_one_is_gone_or_wrong(tmp_path, server):
    server.serve("MNIST")
    server.refuses = lambda url: "ossci" in url
    assert len(datasets.mnist(root=tmp_path, download=True)) == 5
    assert [url.split("/")[2] for url in server.asked[:2]] == [
        "ossci-datasets.s3.amazonaws.com",
        "yann.lecun.com",
    ]


def test_download_that_breaks_off_leaves_what_was_there(tmp_path, server):
    server.serve("KMNIST")
    write_family(tmp_path, "KMNIST")
    damaged = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    before = {path: path.read_bytes() for path in files_below(tmp_path)}
    server.refuses = lambda url: "t10k" in url
    with pytest.raises(OSError, match="t10k-images-idx3-ubyte.gz: URLError: <urlopen error refu"):
        datasets.kmnist(root=tmp_path, download=True)
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == before
    server.refuses = lambda url: False
    assert len(datasets.kmnist(root=tmp_path, download=True)) == 5


def test_root_that_cannot_be_written_is_named(tmp_path, server):
    server.serve("MNIST")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=rf"from https://.*into {tmp_path}/file/data: NotADirectory"):
        datasets.mnist(root=tmp_path / "file" / "data", download=True)
    assert server.asked == []


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, server, monkeypatch):
    monkeypatch.setattr(images, "MAX_IDX_BYTES", 3000)  # the training images have 3936 bytes
    server.serve("MNIST")
    with pytest.raises(OSError, match="train-images-idx3-ubyte must unpack to at most 3000 bytes"):
        datasets.mnist(root=tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(faces, "MAX_IMAGE_BYTES", 100)
    server.serve("celeba")
    with pytest.raises(OSError, match="000001.jpg must unpack to at most 100 bytes; got more"):
        datasets.celeba(root=tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_archive_without_a_member_is_refused(tmp_path, server):
    server.serve("celeba")
    server.files["list_eval_partition.txt"] = PARTITION + b"000003.jpg 0\n"
    for name, content in server.files.items():
        checksums.SHA256["celeba"][name] = hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="archive must hold img_align_celeba/000003.jpg; got none"):
        datasets.celeba(root=tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def unzip(folder):
    (folder / "a.zip").write_bytes(zipped({"a": bytes(10_000_000)}))
    with archives.Zip.opened(folder / "a.zip") as archive:
        archive.unpack("a", folder / "a", most=4_000_000)


def gunzip(folder):
    (folder / "a.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    archives.unpack_gzip(folder / "a.gz", folder / "a", most=4_000_000)


@pytest.mark.parametrize("unpack", [unzip, gunzip])
def test_too_much_is_noticed_while_it_comes_out(tmp_path, unpack):
    with pytest.raises(ValueError, match="a must unpack to at most 4000000 bytes; got more"):
        unpack(tmp_path)
    assert not (tmp_path / "a").exists()


def test_every_file_of_a_named_set_has_a_sum():
    from torchvision import datasets as theirs

    for family in ("MNIST", "FashionMNIST", "KMNIST"):
        names = {name for name, _ in getattr(theirs, family).resources}
        assert set(checksums.SHA256[family]) == names
    assert set(checksums.SHA256["EMNIST"]) == {theirs.EMNIST.url.rpartition("/")[2]}
    known = {name for _, _, name in theirs.CelebA.file_list}
    assert set(checksums.SHA256["celeba"]) == {faces.ARCHIVE, faces.PARTITION} < known
    sums = [found for family in checksums.SHA256.values() for found in family.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in sums)
    assert len(set(sums)) == len(sums) == 15


def test_torchvision_is_asked_for_transfers_alone():
    """It would unpack whatever is in an archive, wherever it says."""
    for module in (downloads, images, faces):
        text = Path(module.__file__).read_text("utf-8")
        assert "download=True)" not in text.replace("use download=True", "")
        assert "extract" not in text


@pytest.mark.parametrize("suffix", ["EPS", "TIFF", "GIF", "BMP"])
def test_photographs_of_other_formats_are_not_opened(tmp_path, suffix):
    write_celeba(tmp_path)
    path = tmp_path / "celeba" / "img_align_celeba" / "000001.jpg"
    Image.new("RGB", (178, 218)).save(path, suffix)
    with pytest.raises(ValueError, match="000001.jpg must be a complete image; got cannot ident"):
        datasets.celeba(8, root=tmp_path)


def test_photograph_of_enormous_size_is_refused_before_it_is_unpacked(tmp_path):
    write_celeba(tmp_path)
    path = tmp_path / "celeba" / "img_align_celeba" / "000001.jpg"
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc0") + 5  # height and width in the frame's header
    for size, message in (
        (b"\x20\x00\x20\x00", "got 8192 x 8192"),
        (b"\xff" * 4, "exceeds limit"),
    ):
        content[start : start + 4] = size
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            datasets.celeba(8, root=tmp_path)
