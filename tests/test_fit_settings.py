"""Settings in words: what differs reads differently, and what is equal reads the same."""

import os
import subprocess
import sys
from types import FunctionType

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_vae import priors
from pyro_vae.batches.loaders import LoaderBatches
from pyro_vae.fit_settings import described, differences, model_in_words
from pyro_vae.objectives import ImportanceWeighted_ELBO
from pyro_vae.optim import adam


def closed_over(value):
    return lambda t: t * value


def default(value):
    return lambda t, rate=value: t * rate


def keyword_default(value):
    def schedule(t, *, rate=value):
        return t * rate

    return schedule


class Callable:
    def __init__(self, rate):
        self._rate = rate

    def __call__(self, t):
        return t * self._rate

    def method(self, t):
        return t * self._rate


def with_global(value):
    return FunctionType(compile("lambda: rate", "", "eval").co_consts[0], {"rate": value})


long = torch.arange(5000.0)

DIFFERENT = {
    "code": (lambda t: 1 - t, lambda t: 0.01),
    "nested code": (lambda t: lambda: t + 1, lambda t: lambda: t + 2),
    "names": (lambda t: t.sin(), lambda t: t.cos()),
    "default": (default(1), default(2)),
    "keyword default": (keyword_default(1), keyword_default(2)),
    "closed-over number": (closed_over(1), closed_over(2)),
    "closed-over tensor": (
        closed_over(long),
        closed_over(long.where(long != 2500, 0)),
    ),
    "closed-over array": (
        closed_over(long.numpy()),
        closed_over(np.where(long.numpy() == 2500, 0, long.numpy())),
    ),
    "global": (with_global(1), with_global(2)),
    "attribute": (Callable(1), Callable(2)),
    "method": (Callable(1).method, Callable(2).method),
    "particles": (Trace_ELBO(num_particles=1), Trace_ELBO(num_particles=8)),
    "importance": (
        ImportanceWeighted_ELBO(num_particles=2),
        ImportanceWeighted_ELBO(num_particles=20),
    ),
    "optimizer": (adam(1e-3), adam(1e-2)),
    "module": (closed_over(nn.Linear(2, 3)), closed_over(nn.Linear(2, 4))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_settings_are_described_otherwise(name):
    one, other = DIFFERENT[name]
    assert described(one) != described(other)
    assert described(one) == described(one)


@pytest.mark.parametrize(
    "value", [1.5, torch.ones(3), {"b", "a"}, {"k": [1, {2}]}, Callable(1), dist.Normal(0.0, 1.0)]
)
def test_functions_made_again_are_described_as_before(value):
    assert described(closed_over(value)) == described(closed_over(value))


CELL = """
import torch
from pyro_vae.fit_settings import described
class Schedule:
    def __init__(self):
        self.names, self.table = {"a", "b", "c", "d", "e"}, torch.ones(3)
        self.path = __import__("pathlib").Path("a")
    def __call__(self, t):
        return 1 if t in {"x", "y", "z", "w"} else 0
s = Schedule()
made = lambda t, k={"p", "q", "r"}: s(t) if t in {"x", "y", "z"} else object
print(described(made), described(s), described(print), described(object()))
"""


def test_words_are_those_of_another_process_and_of_a_cell_run_again_further_down():
    said = [
        subprocess.run(
            [sys.executable, "-c", "\n" * lines + CELL],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for lines, seed in ((0, 1), (7, 2))
    ]
    assert said[0] == said[1]
    assert "0x" not in said[0]


def test_recursive_functions_and_holders_and_unbound_variables_are_described():
    def recursive(n):
        return n and recursive(n - 1)

    def early():
        return late

    words = described(early)
    late = [1]
    late.append(late)
    assert "itself" in described(recursive)
    assert "not yet bound" in words
    assert described(early) != words


def test_max_plate_nesting_and_learned_values_are_left_out():
    objective, net = Trace_ELBO(), nn.Linear(2, 2)
    optimizer = adam(0.1)
    setting = closed_over(net)
    before = described(objective), described(setting), described(optimizer)
    objective.max_plate_nesting = 1
    with torch.no_grad():
        net.weight.add_(1)
    assert (described(objective), described(setting), described(optimizer)) == before


def test_constants_of_the_model_are_in_its_words_and_learned_values_are_not():
    def fixed(scale):
        loc = torch.zeros(3000)
        scales = torch.ones(3000)
        scales[1500] = scale
        return nn.Sequential(priors.Fixed(dist.Normal(loc, scales).to_event(1)))

    def said(model):
        return model_in_words(model, model)

    assert said(fixed(2.0)) == said(fixed(2.0)) != said(fixed(3.0))

    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].temperature, net[0].sizes = 0.5, (1, 2)
    before = said(net)
    net.eval()
    net(torch.ones(2, 2))
    with torch.no_grad():
        net[0].weight.add_(1)
    assert said(net) == before
    net[0].temperature = 0.6
    assert said(net) != before
    net[0].temperature, net[0].sizes = 0.5, (1, 3)
    assert said(net) != before


def test_a_distribution_reads_the_same_once_it_has_computed_what_it_keeps():
    model = nn.Identity()
    model.p = dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.eye(2))
    before = model_in_words(model, model)
    model.p.precision_matrix  # noqa: B018
    assert "precision_matrix" in vars(model.p)
    assert model_in_words(model, model) == before


def test_shown_texts_differ_where_the_texts_do():
    for place in (0, 3, 40, 58, 59, 60, 100, 199):
        one = "a" * 200
        other = f"{one[:place]}b{one[place + 1 :]}"
        (found,) = differences({"s": one}, {"s": other})
        there, here = found.removeprefix("s (").removesuffix(" here)").split(" there, ")
        assert "b" in here
        assert there != here
        assert max(len(there), len(here)) <= 60 + len("......")
    (found,) = differences({"s": "a" * 100}, {"s": "a" * 101})
    there, here = found.removeprefix("s (").removesuffix(" here)").split(" there, ")
    assert there != here


class Rows(Dataset):
    def __init__(self, x, *, draws=False):
        self.x, self.draws = x, draws

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return (self.x[index] + torch.rand(()) if self.draws else self.x[index]), 0


class Unreadable(Rows):
    def __getitem__(self, index):
        raise KeyError(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(4, 2))

    def __len__(self):
        return 4


def loader_digest(dataset, **options):
    return LoaderBatches(DataLoader(dataset, **options), prepare=lambda x: x).digest()


def test_digest_of_a_loader_knows_its_rows_and_how_they_are_put_into_batches():
    x = torch.arange(8.0).reshape(4, 2)
    same = loader_digest(Rows(x), batch_size=2)
    assert loader_digest(Rows(x.clone()), batch_size=2) == same
    assert loader_digest(Rows(x + 1), batch_size=2) != same
    # As many batches each.
    assert loader_digest(Rows(x), batch_size=3) != same
    assert loader_digest(Rows(x), batch_size=2, drop_last=True) != same
    assert loader_digest(Rows(x), batch_size=2, shuffle=True) != same


def test_digest_of_a_loader_leaves_random_states_and_is_the_same_again():
    data = Rows(torch.zeros(4, 2), draws=True)
    generator = torch.Generator()
    states = torch.get_rng_state(), generator.get_state()
    batches = LoaderBatches(
        DataLoader(data, shuffle=True, generator=generator), prepare=lambda x: x
    )
    assert batches.digest() == batches.digest()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])


@pytest.mark.parametrize("dataset", [Unreadable(torch.zeros(4, 2)), Stream()])
def test_digest_of_a_loader_that_cannot_be_indexed_has_no_sum(dataset):
    words = loader_digest(dataset, batch_size=2)
    assert "length 4" in words
    assert "sha256" not in words
