"""States survive being stored: every type, every bit, and a refusal of all that is not plain data."""

import json
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dreamer.envs.errors import NotRestorable
from dreamer.envs.restore.states import pack, unpack

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**100, 2**130), st.floats(), st.text(), st.binary()
)
DTYPES = st.one_of(npst.boolean_dtypes(), npst.integer_dtypes(), npst.unsigned_integer_dtypes(), npst.floating_dtypes())
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
ARRAYS = DTYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES))
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()))
STATES = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def round_trip(state: Any) -> Any:
    structure, data = pack(state)
    return unpack(json.loads(json.dumps(structure)), data)


def assert_same(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if isinstance(one, Mapping):
        assert_same(list(one), list(two))
        assert_same(list(one.values()), list(two.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray | np.generic):
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    elif isinstance(one, float):
        assert np.float64(one).tobytes() == np.float64(two).tobytes()
    else:
        assert one == two


@settings(deadline=None, max_examples=40, derandomize=True)
@given(STATES)
def test_states_survive_a_round_trip(state):
    assert_same(round_trip(state), state)


@pytest.mark.parametrize(
    "state",
    [
        {"b": 1, "a": [], "": {}, 3: (), (1, "x"): None},
        [0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1, True, "nan"],
        {"tuple": [1], "array": {"float": 2}},  # names that the stored form uses itself
        np.random.default_rng(3).bit_generator.state,
        np.random.RandomState(3).get_state(legacy=False),
        [np.float64(0.1), np.int8(-3), np.bool_(True), np.datetime64("2020-01-01")],
        [np.array(b"abc"), np.array(["a", "bcd"])],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12)[::2].reshape(2, 3).T,
    ],
    ids=range(9),
)
def test_examples_survive_a_round_trip(state):
    assert_same(round_trip(state), state)


def test_the_memory_order_of_arrays_survives_a_round_trip():
    array = round_trip(np.asfortranarray(np.ones((2, 3))))
    assert array.flags.f_contiguous and not array.flags.c_contiguous


def test_arrays_can_be_written_and_are_new():
    state = [np.zeros(3)]
    again = round_trip(state)
    again[0][0] = 1
    assert state[0][0] == 0


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, object()]}, r"state\['a'\]\[1\] is a builtins\.object, expected plain data"),
        (({1},), r"state\[0\] is a builtins\.set"),
        (Number.ONE, "Number"),
        (np.array([object()]), "numpy.ndarray of dtype object"),
        (lambda: None, "builtins.function"),
    ],
)
def test_data_that_is_not_plain_is_refused(state, message):
    with pytest.raises(NotRestorable, match=message):
        pack(state)


@pytest.mark.parametrize(
    "structure", [{"array": [0, 80, "<f8", [10], "C"]}, {"shape": 1}, {"bytes": [-1, 1]}, {"a": 1, "b": 2}]
)
def test_parts_that_do_not_belong_together_are_refused(structure):
    with pytest.raises(NotRestorable, match="damaged"):
        unpack(structure, np.zeros(8, np.uint8))
