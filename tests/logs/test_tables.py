"""Text tables."""

import pytest

from dreamer.logs import tables


def test_columns_are_as_wide_as_their_cells_and_empty_ones_are_left_out():
    rows = [["a", "1,000", "", "up"], ["long name", "2", "", ""]]
    assert tables.render(["run", "n", "interval", "note"], rows, left=(0, 3)).split("\n") == [
        "run            n  note",
        "a          1,000  up",
        "long name      2",
    ]
    assert tables.render(["a", "b"], []) == "a  b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0.0, "0.00"), (-3.14159, "-3.14"), (99.96, "100.0"), (-12345.6, "-12,346")],
)
def test_numbers(value, expected):
    assert tables.number(value) == expected


def test_spans():
    assert tables.span((1.0, 20.0)) == "[1.00, 20.0]"
    assert tables.span(None) == ""
