import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from pyro_vae.datasets import as_tensor

GRID = np.arange(6.0).reshape(2, 3)


@pytest.fixture
def float32_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def read_only():
    array = GRID.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("x", "source"),
    [
        pytest.param(GRID, "float64", id="float64"),
        pytest.param(GRID[::-1, ::-1][::-1, ::-1], "float64", id="view"),
        pytest.param(np.asfortranarray(GRID), "float64", id="fortran"),
        pytest.param(GRID[::-1].copy()[::-1], "float64", id="negative-strides"),
        pytest.param(np.repeat(GRID, 2, axis=1)[:, ::2], "float64", id="strided"),
        pytest.param(read_only(), "float64", id="read-only"),
        pytest.param(GRID.astype(">f8"), "float64", id="big-endian"),
        pytest.param(GRID.astype("float16"), "float16", id="float16"),
        pytest.param(GRID.astype("uint8"), "uint8", id="uint8"),
        pytest.param(GRID.astype("uint64"), "uint64", id="uint64"),
        pytest.param(GRID.astype(">i2"), "int16", id="big-endian-int"),
        pytest.param(np.ma.masked_array(GRID), "float64", id="masked-nowhere"),
        pytest.param(GRID.tolist(), "float64", id="list"),
        pytest.param(list(torch.tensor(GRID)), "float64", id="list-of-tensors"),
        pytest.param(torch.tensor(GRID, requires_grad=True), "float64", id="requires-grad"),
        pytest.param(torch.tensor(GRID).to(torch.bfloat16), "bfloat16", id="bfloat16"),
        pytest.param(torch.tensor(GRID.T.copy()).T, "float64", id="transposed-tensor"),
        pytest.param(pd.DataFrame(GRID), "float64", id="frame"),
        pytest.param(pd.DataFrame(GRID).astype("Int64"), "Int64", id="nullable-frame"),
    ],
)
def test_as_tensor_has_the_values_of_any_input_even_under_another_default_device(x, source):
    before = copy.deepcopy(x)
    with torch.device("meta"):
        checked = as_tensor(x, dtype=torch.float64)
    assert checked.tensor.device.type == "cpu"
    assert checked.tensor.tolist() == GRID.tolist()
    assert not checked.tensor.requires_grad
    assert checked.source_dtype == source
    assert np.array_equal(
        *(np.asarray(y.detach().float() if torch.is_tensor(y) else y) for y in (x, before))
    )


def test_as_tensor_of_booleans_counts_them():
    checked = as_tensor(pd.DataFrame({"a": [True, False], "b": [2.5, 1.0]}), dtype=torch.float32)
    assert checked.tensor.tolist() == [[1.0, 2.5], [0.0, 1.0]]
    assert (checked.columns, checked.source_dtype) == (("a", "b"), "bool, float64")


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (GRID.astype("float16"), torch.float16),
        (GRID.astype("float32"), torch.float32),
        (GRID, torch.float64),
        (pd.DataFrame(GRID.astype("float32")), torch.float32),
        (GRID.astype("int32"), torch.float32),
        (torch.ones(2, 3, dtype=torch.bool), torch.float32),
        (GRID.tolist(), torch.float32),
    ],
)
@pytest.mark.usefixtures("float32_default")
def test_as_tensor_keeps_a_floating_type_and_gives_the_rest_the_default(x, dtype):
    assert as_tensor(x).tensor.dtype == dtype


def test_as_tensor_does_not_let_writes_through_to_read_only_memory():
    array = read_only()
    as_tensor(array).tensor.fill_(7.0)
    assert array.tolist() == GRID.tolist()


def test_as_tensor_shares_the_memory_of_a_plain_tensor():
    x = torch.tensor(GRID)
    assert as_tensor(x, dtype=torch.float64).tensor.data_ptr() == x.data_ptr()


def test_as_tensor_matches_table_columns_by_name():
    table = pd.DataFrame({"extra": ["u", "v"], "b": [1, 2], 3: [5, 6]})
    checked = as_tensor(table, columns=("3", "b"), event_shape=(2,))
    assert checked.tensor.tolist() == [[5.0, 1.0], [6.0, 2.0]]
    assert checked.columns == ("3", "b")
    assert as_tensor(table["b"]).columns is None


def test_as_tensor_accepts_finite_values_whose_sum_overflows():
    x = torch.full((4,), 3e38, dtype=torch.float32)
    assert torch.equal(as_tensor(x).tensor, x)


def with_values(shape, index_to_value):
    x = np.zeros(shape)
    for index, value in index_to_value.items():
        x[index] = value
    return x


NAN, INF = float("nan"), float("inf")
ENCODE = "pandas.get_dummies makes indicator columns, pandas.factorize integer codes"
MIXED = pd.DataFrame(
    {
        "n": [1, 2],
        "city": ["Bonn", "Rome"],
        "flag": pd.Categorical([True, False]),
        "day": pd.to_datetime(["2020-01-01", "2020-01-02"]),
    }
)
ERRORS = {
    "object": (lambda: as_tensor(GRID.astype(object)), TypeError, "got dtype object"),
    "string": (lambda: as_tensor([["a"]]), TypeError, r"got dtype <U1.*pandas.factorize"),
    "complex": (lambda: as_tensor(GRID * 1j), TypeError, "got dtype complex128"),
    "complex tensor": (
        lambda: as_tensor(torch.ones(2, dtype=torch.complex64)),
        TypeError,
        "got dtype torch.complex64",
    ),
    "dates": (
        lambda: as_tensor(np.array(["2020-01-01"], dtype="datetime64[D]")),
        TypeError,
        r"got dtype datetime64\[D\]",
    ),
    "long double": (
        lambda: as_tensor(GRID.astype(np.longdouble)),
        TypeError,
        r"Use x.astype\('float64'\)",
    ),
    "none": (lambda: as_tensor(None), TypeError, "nested lists; got NoneType"),
    "frame": (
        lambda: as_tensor(MIXED),
        TypeError,
        rf"got 'city' \(.*\), 'flag' \(category\), 'day' \(datetime64.*{ENCODE}",
    ),
    "wide frame": (
        lambda: as_tensor(pd.DataFrame([["u"] * 12])),
        TypeError,
        r"'9' \(\w+\) and 2 more\.",
    ),
    "series": (lambda: as_tensor(MIXED["city"]), TypeError, "got 'city'"),
    "sparse columns": (
        lambda: as_tensor(pd.DataFrame({"s": pd.arrays.SparseArray([0, 1])})),
        TypeError,
        r"sparse columns 's'. Use x.sparse.to_dense\(\)",
    ),
    "scipy sparse": (
        lambda: as_tensor(scipy.sparse.csr_array(GRID)),
        TypeError,
        r"got a sparse csr_array. Use x.toarray\(\)",
    ),
    "torch sparse": (
        lambda: as_tensor(torch.eye(3).to_sparse()),
        TypeError,
        r"layout torch.sparse_coo. Use x.to_dense\(\)",
    ),
    "masked": (
        lambda: as_tensor(np.ma.masked_array(GRID, GRID > 3)),
        TypeError,
        "got 2 masked entries. Fill them with x.filled",
    ),
    "integer dtype": (
        lambda: as_tensor(GRID, dtype=torch.int64),
        TypeError,
        "dtype must be a floating-point torch.dtype; got torch.int64",
    ),
    "no rows": (
        lambda: as_tensor(np.zeros((0, 64))),
        ValueError,
        r"x must have at least one row; got shape \(0, 64\)\. With no rows",
    ),
    "no rows of a frame": (
        lambda: as_tensor(pd.DataFrame({"a": []}, dtype=object)),
        ValueError,
        r"at least one row; got shape \(0, 1\)",
    ),
    "no features": (lambda: as_tensor(np.zeros((3, 0))), ValueError, "at least one feature"),
    "number": (lambda: as_tensor(3.0), ValueError, r"one row per datum; got shape \(\)"),
    "number tensor": (lambda: as_tensor(torch.tensor(3.0)), ValueError, r"got shape \(\)"),
    "ragged": (lambda: as_tensor([[1], [2, 3]]), ValueError, "must be rectangular"),
    "meta": (lambda: as_tensor(torch.ones(2, device="meta")), ValueError, "must hold values"),
    "width": (
        lambda: as_tensor(np.zeros((10, 785)), event_shape=(784,), name="images"),
        ValueError,
        r"images must have event shape \(784,\); got \(785,\) \(images has shape \(10, 785\)\)",
    ),
    "reshape": (
        lambda: as_tensor(np.zeros((3, 28, 28)), event_shape=(784,)),
        ValueError,
        r"reshape: x.reshape\(-1, 784\)",
    ),
    "single": (
        lambda: as_tensor(torch.zeros(784), event_shape=torch.Size([784])),
        ValueError,
        r"must have event shape \(784,\); got \(\) .*pass x.unsqueeze\(0\)",
    ),
    "nan": (
        lambda: as_tensor(with_values((5, 20), {(3, 17): NAN, (4, 0): NAN, (4, 1): NAN})),
        ValueError,
        "x must not contain NaN; got 3, the first at row 3, column 17. Drop or impute",
    ),
    "nan of a vector": (
        lambda: as_tensor(with_values((5,), {2: NAN})),
        ValueError,
        r"got 1, the first at row 2\.",
    ),
    "nan of an image": (
        lambda: as_tensor(torch.tensor(with_values((2, 3, 4, 4), {(1, 2, 0, 3): NAN}))),
        ValueError,
        r"the first at index \(1, 2, 0, 3\)",
    ),
    "nan of a frame": (
        lambda: as_tensor(pd.DataFrame({"a": [1, 2], "b": pd.array([1, None], dtype="Int64")})),
        ValueError,
        "got 1, the first at row 1, column 'b'",
    ),
    "inf": (
        lambda: as_tensor(with_values((5, 20), {(3, 17): INF, (4, 0): -INF})),
        ValueError,
        "x must not contain infinite values; got 2, the first at row 3, column 17. They often",
    ),
    "overflow": (
        lambda: as_tensor(with_values((2, 2), {(1, 0): 1e300}), dtype=torch.float32),
        ValueError,
        "must fit into float32, .* got 1 that overflow to infinity, the first at row 1, column 0",
    ),
    "integer overflow": (
        lambda: as_tensor(np.array([[100_000]]), dtype=torch.float16),
        ValueError,
        "must fit into float16, whose largest value is 6.55e",
    ),
    "columns": (
        lambda: as_tensor(pd.DataFrame({"a": [1], "z": [2]}), columns=("a", "b", "c")),
        ValueError,
        "got a table without 'b', 'c'. The table also has 'z'",
    ),
    "repeated columns": (
        lambda: as_tensor(pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])),
        ValueError,
        "distinct column names; got 'a' more than once",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=list(ERRORS))
def test_as_tensor_raises(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
