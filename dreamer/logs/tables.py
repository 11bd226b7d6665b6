"""Text tables for terminals."""

from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows under a head, in columns as wide as their widest cell, aligned to the right.

    Args:
        head: names of the columns; a column in which all rows are empty is left out.
        rows: cells of each row.
        left: columns that are aligned to the left.
    """
    full = [column for column in range(len(head)) if not rows or any(row[column] for row in rows)]
    lines = [[line[column] for column in full] for line in (head, *rows)]
    words = {full.index(column) for column in left if column in full}
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        )
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join(line.rstrip() for line in aligned)


def number(value: float | None) -> str:
    """A number without an exponent, in about four digits; ``-`` for None."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def span(interval: Sequence[float] | None) -> str:
    """``[low, high]``; empty for None."""
    return f"[{number(interval[0])}, {number(interval[1])}]" if interval else ""


__all__ = ["number", "render", "span"]
