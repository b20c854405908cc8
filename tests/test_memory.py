"""How much memory a fit takes does not grow with the data: peaks of processes of their own."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from pyro_vae.commands import data_choice

FIT = """
import json, resource, sys
import numpy as np, torch
import pyro_vae as pv
from pyro_vae import datasets, likelihoods, priors, families, guides
from pyro_vae.datasets import pages

kind, path, num_data = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
pages.MAX_RESIDENT_BYTES = 2**25
vae = pv.gaussian_vae(features=784, latent_dim=2, hidden=(), family=families.DiagonalNormal)
if kind == "bernoulli":
    vae = pv.make_vae(features=784, latent_dim=2, hidden=(), likelihood=likelihoods.Bernoulli)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def fit(x):
    pv.fit(vae, x, epochs=1, batch_size=500, progress=False)

fit(torch.rand(3000, 784).round())  # what is used once is loaded
if kind == "file":
    x = np.load(path, mmap_mode="r")
elif kind == "data":
    x = datasets.memory_mapped(path)
else:
    x = torch.zeros(num_data, 784)
    for start in range(0, num_data, 5000):
        x[start : start + 5000].random_(0, 2)
    x = x.numpy() if kind == "array" else x
before = peak()
fit(x)
print(json.dumps({"growth": peak() - before, "data": x.nbytes if kind != "data" else 0}))
"""


def grown(kind, path, num_data):
    """Bytes by which the peak of a process rises in a fit, and the size of the data."""
    run = subprocess.run(
        [sys.executable, "-c", FIT, kind, str(path), str(num_data)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow  # half a minute: five processes, each a fit to 300 MB
@pytest.mark.parametrize("kind", ["file", "data"])
def test_fit_to_a_file_takes_memory_of_constant_size(tmp_path, kind):
    peaks = []
    for num_data in (10_000, 100_000):  # 31 and 314 MB
        path = tmp_path / "x.npy"
        x = np.lib.format.open_memmap(path, "w+", np.float32, (num_data, 784))
        for start in range(0, num_data, 5000):
            x[start : start + 5000] = np.random.default_rng(start).random((5000, 784))
        x.flush()
        del x
        peaks.append(grown(kind, path, num_data)["growth"])
    assert peaks[1] < peaks[0] + 60e6  # 8 bytes a row, the pages, the chunk; not 280 MB more
    assert peaks[1] < 150e6


@pytest.mark.slow  # half a minute: processes with up to 630 MB of data
@pytest.mark.parametrize("kind", ["tensor", "array", "bernoulli"])
def test_fit_to_data_in_memory_takes_no_copy_of_them(kind):
    small, large = (grown(kind, "none", num_data) for num_data in (20_000, 200_000))
    assert large["growth"] - small["growth"] < 0.1 * (large["data"] - small["data"])


def test_command_line_maps_large_files_alone(tmp_path, monkeypatch):
    x = np.random.default_rng(0).random((50, 4))
    np.save(tmp_path / "x.npy", x)
    settings = {
        "data": {"source": str(tmp_path / "x.npy"), "held_out": 0.2, "divide": 2.0},
        "model": {"dtype": "float64"},
        "fit": {"seed": 1},
    }
    expected = data_choice.load(settings)
    for limit, is_mapped in ((2**30, False), (1000, True)):
        monkeypatch.setattr(data_choice, "MAPPED_ABOVE_BYTES", limit)
        found = data_choice.load_or_map(settings)
        for part, whole in zip(found, expected, strict=True):
            assert isinstance(part, data_choice.MappedDataset) is is_mapped
            assert torch.equal(part.in_memory().x, whole.x)
            assert torch.equal(data_choice.load(settings)[0].x, expected[0].x)
            assert part.scaling == whole.scaling
            some = partial(data_choice.some_in_memory, part)
            assert torch.equal(some(most=3).x, whole.x[:3])
            assert len(some()) == (min(len(whole), 1000 // 32) if is_mapped else len(whole))
    standard = {**settings, "data": {**settings["data"], "standardize": True}}
    for part, whole in zip(
        data_choice.load_or_map(standard), data_choice.load(standard), strict=True
    ):
        torch.testing.assert_close(part.in_memory().x, whole.x, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="networks must be mlp for data that are no images"):
        data_choice.as_images(found[0])
