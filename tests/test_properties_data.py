"""Data, scalings and draws are read back as they were. For more cases see properties.py."""

import string
import tempfile
import tomllib
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from properties import cases, dtypes, normals, same, seeds, sizes, vae_of, world
from test_toml import typed

import pyro_vae as pv
from pyro_vae import toml
from pyro_vae.datasets import Scaling, from_file


@cases(2, costly=True)
@given(
    features=st.sampled_from([(3,), (2, 2), (1, 2, 3)]),
    num_rows=sizes(1, 4),
    num_samples=sizes(1, 12),
    family=normals,
    dtype=dtypes,
    labels=st.booleans(),
    seed=seeds,
)
def test_arviz_container_is_what_netcdf_gives_back(
    features, num_rows, num_samples, family, dtype, labels, seed
):
    with world(seed), tempfile.TemporaryDirectory() as folder:
        vae = vae_of(features=features, family=family).to(dtype)
        x = vae.sample(num_rows)
        made = pv.to_arviz(
            vae,
            x,
            num_samples=num_samples,
            labels=[f"é{i}" for i in range(num_rows)] if labels else None,
            columns=["a b", "ü", "c/d"] if len(features) == 1 else None,
        )
        made.to_netcdf(Path(folder, "fit.nc"))
        back = az.from_netcdf(Path(folder, "fit.nc"))
        assert back.attrs == made.attrs
        assert list(back.groups()) == list(made.groups())
        for name in made.groups():
            found, expected = back[name], made[name]
            assert found.identical(expected), name
            for variable in expected.variables:
                assert found[variable].dtype.kind == expected[variable].dtype.kind
        back.close()


@st.composite
def scalings(draw):
    """A scaling of 3 features, by numbers or per feature."""
    shifts = st.floats(-1e6, 1e6)
    scales = st.floats(1e-3, 1e3)
    shift, scale = (
        draw(part | st.lists(part, min_size=3, max_size=3)) for part in (shifts, scales)
    )
    return Scaling(shift, scale)


@cases(60)
@given(scaling=scalings(), num_rows=sizes(1, 4), seed=seeds)
def test_scaling_comes_back_and_is_undone(scaling, num_rows, seed):
    with world(seed):
        assert Scaling.from_dict(scaling.to_dict()) == scaling
        written = tomllib.loads(toml.dumps({"scaling": scaling.to_dict()}))["scaling"]
        assert typed(Scaling.from_dict(written).to_dict()) == typed(scaling.to_dict())
        raw = 100 * torch.randn(num_rows, 3)
        kept = raw.clone()
        x = scaling.apply(raw)
        shift = torch.as_tensor(scaling.shift)
        # The rounding is that of raw - shift, whose size is that of the larger of the two.
        tolerance = 4 * torch.finfo(raw.dtype).eps * (raw.abs() + shift.abs())
        assert ((scaling.invert(x) - raw).abs() <= tolerance).all()
        assert torch.equal(raw, kept)
        half = scaling.reshape(3, 1)
        torch.testing.assert_close(half.apply(raw.unsqueeze(-1)).squeeze(-1), x, rtol=0, atol=0)


finite = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
tables = npst.arrays(np.float64, st.tuples(sizes(1, 5), sizes(1, 4)), elements=finite)
column_names = st.text(string.ascii_letters + " éß_.-", min_size=1, max_size=5).filter(
    lambda name: name.strip() == name and not name.startswith("Unnamed: ")
)


@cases(40)
@given(values=tables, suffix=st.sampled_from([".npy", ".npz"]), order=st.sampled_from("CF"))
def test_numpy_file_comes_back_bit_by_bit(values, suffix, order):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"data{suffix}")
        array = np.asarray(values, order=order)
        if suffix == ".npy":
            np.save(path, array)
        else:
            np.savez(path, x=array, y=np.arange(len(array)))
        data = from_file(path, labels="y" if suffix == ".npz" else None)
        same(data.x, torch.from_numpy(values))
        if suffix == ".npz":
            assert data.labels.tolist() == list(range(len(values)))


@cases(40)
@given(values=tables, data=st.data())
def test_table_comes_back_with_its_columns(values, data):
    names = data.draw(
        st.lists(column_names, min_size=values.shape[1], max_size=values.shape[1], unique=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.csv")
        pd.DataFrame(values, columns=names).to_csv(path, index=False)
        found = from_file(path)
    assert found.columns == tuple(names)
    assert found.x.tolist() == values.tolist()
