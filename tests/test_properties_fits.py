"""Looking at a fit does not change it, and epochs are whole. For more cases see properties.py."""

import contextlib
import copy
import io
import logging
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from properties import cases, normals, seeds, sizes, vae_of, world
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae import diagnostics, guides
from pyro_vae.batches import GatheredBatches, LoaderBatches, StreamBatches, TensorBatches
from pyro_vae.batches.batch import bounds, epoch_order
from pyro_vae.optim import Processes


def with_layer(vae, layer):
    """The same VAE with a layer in front of its encoder that depends on noise or on its batch."""
    encoder = nn.Sequential(layer, vae.q_z_given_x.encoder)
    return vae.with_guide(guides.AmortizedGuide(vae.q_z_given_x.family, encoder))


LAYERS = {
    "none": nn.Identity,
    "dropout": lambda: nn.Dropout(0.3),
    "batch norm": lambda: nn.BatchNorm1d(4),
}


def draws_numbers(fit):
    torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002


def evaluates(fit):
    diagnostics.elbo_terms(fit.vae, torch.zeros(3, 4), num_samples=2)


def seeds_anew(fit):
    torch.manual_seed(0)


def samples(fit):
    fit.vae.sample(2)
    fit.vae.reconstruct(torch.zeros(2, 4))


def reads(fit):
    assert len(fit.history) > 0


CALLBACKS = [draws_numbers, evaluates, seeds_anew, samples, reads]


@contextlib.contextmanager
def log_level(level):
    logger = logging.getLogger("pyro_vae")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@cases(8)
@given(
    num_rows=sizes(2, 9),
    batch_size=sizes(1, 10),
    epochs=sizes(1, 3),
    layer=st.sampled_from(sorted(LAYERS)),
    family=normals,
    validation=sizes(0, 4),
    callbacks=st.lists(st.sampled_from(CALLBACKS), max_size=2),
    progress=st.booleans(),
    level=st.sampled_from([logging.DEBUG, logging.CRITICAL]),
    has_run=st.booleans(),
    cadence=st.fixed_dictionaries(
        {"checkpoint_epochs": st.none() | sizes(1, 3)},
        optional={"checkpoint_seconds": st.sampled_from([None, 1e-6, 60.0])},
    ),
    seed=sizes(0, 2**31),
)
def test_looking_at_a_fit_does_not_change_it(
    num_rows,
    batch_size,
    epochs,
    layer,
    family,
    validation,
    callbacks,
    progress,
    level,
    has_run,
    cadence,
    seed,
):
    with world(seed), tempfile.TemporaryDirectory() as folder:
        plain = with_layer(vae_of(family=family), LAYERS[layer]())
        watched, x = copy.deepcopy(plain), plain.sample(num_rows)
        # One row cannot be normalized over.
        batch_size = max(2, batch_size) if layer == "batch norm" else batch_size
        options = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        expected = pv.fit(plain, x, progress=False, **options).history
        held_out = plain.sample(validation) if validation else None
        torch.manual_seed(seed + 1)
        before = torch.get_rng_state()
        more = {"run_dir": Path(folder, "run"), **cadence} if has_run else {}
        with log_level(level), contextlib.redirect_stderr(io.StringIO()):
            history = pv.fit(
                watched,
                x,
                validation=held_out,
                progress=progress,
                callbacks=callbacks,
                **more,
                **options,
            ).history
        if not {draws_numbers, seeds_anew, samples} & set(callbacks):
            assert torch.equal(torch.get_rng_state(), before)
        state = watched.state_dict()
        for name, tensor in plain.state_dict().items():
            assert torch.equal(state[name], tensor), name
        for name in expected.columns.drop("seconds"):
            np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


def rows_of(batches, epoch):
    return [batch.x.flatten().tolist() for batch in batches.epoch(epoch)]


@cases(40)
@given(
    num_rows=sizes(1, 40),
    batch_size=sizes(1, 45),
    merge_single=st.booleans(),
    epoch=sizes(0, 1000),
    seed=seeds,
)
@example(num_rows=5, batch_size=2, merge_single=True, epoch=0, seed=0)
def test_an_epoch_is_a_permutation_in_batches(num_rows, batch_size, merge_single, epoch, seed):
    x = torch.arange(float(num_rows)).unsqueeze(1)
    options = {"batch_size": batch_size, "seed": seed, "merge_single": merge_single}
    in_memory = TensorBatches(x, **options)
    gathered = GatheredBatches(x.__getitem__, num_rows, device=x.device, **options)
    found = rows_of(in_memory, epoch)
    assert found == rows_of(gathered, epoch) == rows_of(in_memory, epoch)
    assert len(found) == len(in_memory) == len(gathered)
    assert sorted(sum(found, [])) == list(range(num_rows))
    assert sum(found, []) == epoch_order(num_rows, seed, epoch).tolist()
    sizes_found = [len(rows) for rows in found]
    assert all(size == batch_size for size in sizes_found[:-1])
    assert sizes_found[-1] <= batch_size + merge_single
    if merge_single and batch_size > 1:
        assert min(sizes_found) > 1 or num_rows == 1


@cases(40)
@given(num_rows=sizes(1, 40), batch_size=sizes(1, 45), merge_single=st.booleans())
def test_bounds_cover_all_rows_once(num_rows, batch_size, merge_single):
    found = bounds(num_rows, batch_size, merge_single=merge_single)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(num_rows))
    if merge_single and batch_size > 1 and num_rows > 1:
        assert all(stop - start > 1 for start, stop in found)


@cases(20)
@given(
    blocks=st.lists(sizes(1, 6), min_size=1, max_size=6),
    batch_size=sizes(2, 9),
    merge_single=st.booleans(),
    loader_size=sizes(2, 9),
)
def test_loaders_and_streams_bring_each_row_once(blocks, batch_size, merge_single, loader_size):
    num_rows = sum(blocks)
    x = torch.arange(float(num_rows)).unsqueeze(1)
    options = {"prepare": lambda rows: rows, "merge_single": merge_single}
    stream = StreamBatches(
        x.split(blocks),
        as_rows=lambda rows: rows,
        num_data=num_rows,
        batch_size=batch_size,
        **options,
    )
    loader = LoaderBatches(DataLoader(x, batch_size=loader_size), **options)
    for batches in (stream, loader):
        for epoch in range(2):
            found = rows_of(batches, epoch)
            assert sum(found, []) == list(range(num_rows))
            assert len(found) == len(batches)
            if merge_single and num_rows > 1:
                assert min(map(len, found)) > 1
        batches.close()


@cases(40)
@given(num_rows=sizes(0, 40), size=sizes(1, 12))
def test_processes_part_the_rows(num_rows, size):
    rows = torch.arange(num_rows)
    parts = [Processes(rank, size).part(rows) for rank in range(size)]
    assert torch.equal(torch.cat(parts), rows)
    lengths = [len(part) for part in parts]
    # No part but a single row is too small to normalize over, and the others are even.
    assert 1 not in lengths or num_rows == 1
    some = [length for length in lengths if length]
    assert not some or max(some) - min(some) <= 1
    assert len(some) == min(size, num_rows // 2) or num_rows == 1


@cases(20)
@given(
    num_rows=sizes(1, 30), batch_size=sizes(1, 30), size=sizes(1, 5), epoch=sizes(0, 9), seed=seeds
)
def test_batches_of_processes_together_are_those_of_one(num_rows, batch_size, size, epoch, seed):
    x = torch.arange(float(num_rows)).unsqueeze(1)
    options = {"batch_size": batch_size, "seed": seed}
    whole = list(TensorBatches(x, **options).epoch(epoch))
    parts = [
        list(TensorBatches(x, part=Processes(rank, size).part, **options).epoch(epoch))
        for rank in range(size)
    ]
    for batch, *of_processes in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part.x for part in of_processes]), batch.x)
        assert torch.equal(torch.cat([part.rows for part in of_processes]), batch.rows)
        assert {part.num_global for part in of_processes} == {len(batch.x)}
