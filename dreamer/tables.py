"""Tables of text for terminals."""

from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head in columns as wide as their widest cell: the first to the left, all others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join(line.rstrip() for line in aligned)


def number(value: float | None) -> str:
    """Four significant digits at most, without an exponent; ``-`` for nothing."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def span(interval: Sequence[float] | None) -> str:
    """``[low, high]``, or nothing if there is none."""
    return f"[{number(interval[0])}, {number(interval[1])}]" if interval else ""


__all__ = ["number", "render", "span"]
