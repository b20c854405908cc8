"""What is written as TOML is what Python's own reader gives back."""

import copy
import math
import tomllib

import numpy as np
import pytest

from pyro_vae.toml import dumps


def typed(value):
    """The value with the type and repr of each part: 1, 1.0 and True differ, as 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    return type(value).__name__, repr(value)


def round_trip(config):
    before = copy.deepcopy(config)
    text = dumps(config)
    assert typed(config) == typed(before)
    return tomllib.loads(text)


CONFIG = {
    "format": 1,
    "name": "digits",
    "data": {
        "source": "C:\\data\\ü\\x.csv",
        "download": False,
        "shape": [1, 28, 28],
        "scaling": {"shift": [0.5, -1.0], "scale": 16.0},
        "empty": {},
    },
    "model": {"hidden": [], "layers": [[400, 200], [], [True, "a"]], "variance": 0.1},
}


def test_nested_config_round_trips():
    assert typed(round_trip(CONFIG)) == typed(CONFIG)


def test_empty_config_round_trips():
    assert round_trip({}) == {}


def test_order_of_sections_is_kept():
    assert list(round_trip(CONFIG)) == list(CONFIG)
    assert list(round_trip(CONFIG)["data"]) == list(CONFIG["data"])


@pytest.mark.parametrize(
    "value",
    [
        "",
        'say "yes"',
        "it's",
        "'''",
        '"""',
        "back\\slash \\n \\u0041 \\",
        "two\nlines",
        "tab\tand\rreturn\r\n",
        "".join(map(chr, range(0x20))),
        "\x7f \x80 \x9f \xa0",
        "Æ œ ß ≤ 数据 \u202e \u2028 🙂",
        "# no comment = [not] {a} table",
        " edges ",
        True,
        False,
        0,
        -1,
        2**63,
        0.1,
        -0.0,
        0.0,
        1.0,
        1e-300,
        5e-324,
        1.7976931348623157e308,
        1e16,
        1e22,
        123456789.123456789,
        math.inf,
        -math.inf,
        [],
        [[]],
        [[1.5, 2.0], [3.0]],
        [True, False],
        ["a", 'b"', "c\\"],
        [1, "mixed", 2.0, [True]],
    ],
    ids=repr,
)
def test_value_round_trips(value):
    expected = {"first": value, "section": {"value": value, "list": [value]}}
    assert typed(round_trip(expected)) == typed(expected)


def test_nan_round_trips():
    again = round_trip({"x": math.nan, "list": [math.nan]})
    assert math.isnan(again["x"])
    assert math.isnan(again["list"][0])


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "A-b_1",
        "1",
        "-",
        "_",
        "",
        " ",
        "a.b",
        'a"b',
        "a\\b",
        "a\nb",
        "a=b",
        "[a]",
        "ü",
        "²",
        "#",
    ],
    ids=repr,
)
def test_key_round_trips_as_value_section_and_subsection(key):
    config = {key: 1, "section": {key: {key: "deep"}, "x": 2}}
    assert round_trip(config) == config
    assert round_trip({key: {"x": 1}}) == {key: {"x": 1}}


def test_tuples_become_lists_and_none_is_left_out():
    config = {"shape": (1, (2, 3)), "root": None, "section": {"key": None, "x": 1}}
    assert round_trip(config) == {"shape": [1, [2, 3]], "section": {"x": 1}}


def test_numpy_floats_are_written_as_numbers():
    # np.float64 is a float whose repr is "np.float64(0.5)".
    config = {"x": np.float64(0.5), "list": [np.float64(-0.0)]}
    assert typed(tomllib.loads(dumps(config))) == typed({"x": 0.5, "list": [-0.0]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"x": 1j}, "config must hold strings, numbers, booleans and lists; got 1j"),
        ({"x": b"bytes"}, "config must hold strings, .* got b'bytes'"),
        ({"x": [1, None]}, "config must hold strings, .* got None"),
        ({"x": [{"a": 1}]}, "config must hold strings, .* got {'a': 1}"),
        ({"x": {"y": {1, 2}}}, "config must hold strings, .* got {1, 2}"),
        ({1: 2}, "config must have strings as keys; got 1"),
        ({"x": {None: 2}}, "config must have strings as keys; got None"),
        ({"x": {(1,): {"y": 2}}}, r"config must have strings as keys; got \(1,\)"),
    ],
)
def test_what_toml_cannot_hold_raises(config, message):
    with pytest.raises(TypeError, match=message):
        dumps(config)
