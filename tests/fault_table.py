"""What a row of the table of faults is, and what is asked of the world after each."""

import copy
import random
import re
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.distributions.util import is_validation_enabled as dist_validates
from pyro.infer.util import is_validation_enabled as infer_validates
from torch import nn

import pyro_vae as pv

QUICK = {"epochs": 1, "batch_size": 4, "progress": False}


def normal(rows=8, features=3):
    return torch.randn(
        rows, features, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )


def gaussian(**options):
    return pv.gaussian_vae(**{"features": 3, "latent_dim": 2, "hidden": (4,), **options})


class Refused(Exception):
    """What the command line says where it ends with status 2."""


@dataclass
class Scene:
    """What a case acts on, and what came of it."""

    vae: Any
    x: Any
    folder: Path
    patch: pytest.MonkeyPatch
    result: Any = None
    error: BaseException | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def fit(self, **options):
        return pv.fit(self.vae, options.pop("x", self.x), **QUICK | options)


@dataclass(frozen=True)
class Fault:
    """One case of a row: what a user does, what is said, and what must hold afterwards.

    Args:
        row: Number of the row in FAULTS.md.
        name: What is different from the other cases of the row.
        does: The user's call.
        says: A pattern of all that has to be said, by the exception ``error``, or, without one, by
            the one warning or log record; "" where nothing is said at all.
        by: "warning" or "log", where there is no error.
        vae, x: Make what the call acts on.
        trains: Whether parameters may change; they are finite then, and unchanged otherwise.
        then: More that must hold afterwards.
        noise: A pattern of what else may be said.
    """

    row: int
    name: str
    does: Callable[[Scene], Any]
    says: str = ""
    error: type[BaseException] | None = None
    by: str = "warning"
    vae: Callable[[], Any] = gaussian
    x: Callable[[], Any] = normal
    trains: bool = False
    then: Callable[[Scene], None] = lambda s: None
    noise: str | None = None

    @property
    def id(self):
        return f"row{self.row:02d}-{self.name}"


def fit(**options):
    return lambda s: s.fit(**options)


def validate(s):
    return s.fit(x=torch.zeros(8, 3), validation=s.x)


def encode(s):
    return s.vae.encode(s.x)


def reconstruct(s):
    return s.vae.reconstruct(s.x)


def terms(s):
    return pv.diagnostics.elbo_terms(s.vae, s.x, num_samples=2)


def evidence(s):
    return pv.diagnostics.log_evidence(s.vae, s.x, num_samples=2)


def command(words, *, may_warn=False):
    """A call of the command line in the test's folder, with x, if there is one, in data.csv."""

    def does(s):
        s.patch.chdir(s.folder)
        if isinstance(s.x, pd.DataFrame):
            s.x.to_csv("data.csv", index=False)
        elif s.x is not None:
            np.save("data.npy", np.asarray(s.x))
        before = set(s.folder.rglob("*"))
        answer = command_line.run(*words.split())
        if answer.status == 2:
            assert answer.out == ""
            assert "Traceback" not in answer.err
            assert set(s.folder.rglob("*")) == before
            raise Refused(answer.err.splitlines()[-1])
        assert answer.status == 0, answer.err
        assert may_warn or answer.err == ""
        return answer

    return does


def table(x):
    return pd.DataFrame(np.asarray(x), columns=list("abcdefghij")[: np.shape(x)[1]])


def forms(make):
    """The same data as a user may have them."""
    return {
        "tensor": make,
        "array": lambda: make().numpy(),
        "list": lambda: make().tolist(),
        "table": lambda: table(make()),
    }


def copied(x):
    """All that can be seen of data, to compare it with later."""
    if isinstance(x, torch.Tensor):
        dense = x.detach().clone()
        grad = x.grad if x.is_leaf else None
        return "tensor", x.dtype, x.shape, x.layout, x.requires_grad, grad, dense
    if np.ma.isMaskedArray(x):
        return "masked", x.data.tobytes(), x.mask.copy()
    if isinstance(x, np.ndarray):
        return "array", x.dtype, x.strides, x.flags.writeable, x.copy()
    return "other", copy.deepcopy(x)


def assert_same(before, x):
    now = copied(x)
    assert now[:-1] == before[:-1]
    one, other = before[-1], now[-1]
    if isinstance(one, torch.Tensor):
        one, other = (t if t.layout == torch.strided else t.to_dense() for t in (one, other))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, pd.DataFrame | pd.Series):
        assert one.equals(other)
        assert list(one.dtypes) == list(other.dtypes)
    elif hasattr(one, "toarray"):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    else:
        assert repr(one) == repr(other)


def world():
    """What no call may leave otherwise than it found it."""
    store = pyro.get_param_store()
    return {
        "store": {name: store[name].tolist() for name in store},
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "filters": list(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro validation": (dist_validates(), infer_validates()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    }


def tensors(vae):
    """Parameters and buffers of a module; nothing of anything else."""
    if not isinstance(vae, nn.Module):
        return {}
    named = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def put(vae, kept):
    """The module with parameters and buffers of another of the same make."""
    named = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    with torch.no_grad():
        for name, tensor in kept.items():
            named[name].copy_(tensor)
    return vae


def run_case(fault, scene, caplog):
    """Act, and hold all of it against the table."""
    pyro.param("mine", torch.tensor([1.5, 2.5]))
    x_before, tensors_before = copied(scene.x), tensors(scene.vae)
    known = {name: getattr(scene.vae, name, None) for name in ("columns", "missing")}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        before = world()
        try:
            scene.result = fault.does(scene)
        except BaseException as error:
            # KeyboardInterrupt of the user, and what is not foreseen, must not be swallowed.
            if fault.error is None or not isinstance(error, fault.error):
                raise
            scene.error = error
        now = world()
        changed = [name for name in before if before[name] != now[name]]
        assert not changed, changed
    said = [str(w.message) for w in warned]
    logged = [r.getMessage() for r in caplog.records if r.name.startswith("pyro_vae")]
    said, logged = (
        [text for text in texts if fault.noise is None or not re.search(fault.noise, text)]
        for texts in (said, logged)
    )
    if fault.error is not None:
        assert scene.error is not None, f"no {fault.error.__name__}; returned {scene.result!r}"
        assert re.search(fault.says, str(scene.error), re.DOTALL), str(scene.error)
    one, other = (said, logged) if fault.by == "warning" else (logged, said)
    if fault.error is None and fault.says:
        assert len(one) == 1, one
        assert re.search(fault.says, one[0], re.DOTALL), one[0]
    elif fault.error is None:
        assert not one, one
    assert not other, other
    assert_same(x_before, scene.x)
    tensors_now = tensors(scene.vae)
    assert tensors_now.keys() == tensors_before.keys()
    if not fault.trains:
        assert known == {name: getattr(scene.vae, name, None) for name in known}
        for name, tensor in tensors_before.items():
            assert torch.equal(tensor, tensors_now[name]), name
    if isinstance(scene.vae, nn.Module):
        assert all(tensor.isfinite().all() for tensor in tensors_now.values())
        assert all(p.grad is None and p.requires_grad for p in scene.vae.parameters())
    fault.then(scene)
