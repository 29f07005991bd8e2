"""The lines that `make crash` prints: what was tried, what came of it, what the goal is."""

from collections.abc import Iterable
from typing import NamedTuple


class Figure(NamedTuple):
    """One line: `goal` in words, and whether what was measured reaches it."""

    what: str
    measured: str
    goal: str
    is_reached: bool
    seconds: float = 0.0


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| | measured | goal | reached | s |", "|---|---|---|---|---:|"]
    for each in figures:
        reached = "yes" if each.is_reached else "**no**"
        lines.append(
            f"| {each.what} | {each.measured} | {each.goal} | {reached} | {each.seconds:.0f} |"
        )
    return "\n".join(lines)
