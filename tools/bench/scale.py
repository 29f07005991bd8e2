"""How much to measure: table sizes and rounds."""

from dataclasses import dataclass
from typing import Any

from monolith_kv_tools.bench.goals import MILLION


@dataclass(frozen=True)
class Scale:
    """Sizes of what is measured.

    Parameters
    ----------
    sizes : tuple of int
        Rows of the tables that calls are measured on.
    big_rows : int
        Of the table that grows and expires.
    narrow_rows, wide_rows : int
        Of the tables with dim 16 and dim 256.
    batches : int
        Different batches of one traffic.
    share : float
        Of the rounds.
    """

    sizes: tuple[int, ...]
    big_rows: int
    narrow_rows: int
    wide_rows: int
    batches: int = 64
    share: float = 1.0

    def rounds(self, count: int) -> int:
        """Return how many of so many rounds to do."""
        return max(3, round(count * self.share))


# Table, its state and the array beside it, at dim 64; wide rows are so many fewer.
BYTES_A_ROW = 850
WIDE_SHARE = 0.35


def scale_of(rows: int, share: float) -> Scale:
    """Return what to measure when the largest table has `rows` rows.

    Parameters
    ----------
    rows : int
        20 M is what the goals are for; calls are measured on 1 M as well.
    share : float
        Of the rounds.
    """
    sizes = (rows,) if rows <= MILLION else (MILLION, rows)
    wide = rows if rows <= MILLION else max(MILLION, int(rows * WIDE_SHARE))
    return Scale(sizes, rows, rows, wide, share=share)


def missing_memory(rows: int) -> str | None:
    """Return why `rows` rows do not fit into what is free now, or None if they do."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return None  # Not a Linux: it is for its user to know.
    needed = rows * BYTES_A_ROW
    if needed <= free:
        return None
    return (
        f"tables of {rows:,} rows need about {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free; "
        f"up to --rows {int(free / BYTES_A_ROW / 1e6)}e6 fit"
    )


def torch_or_none() -> Any:
    """Return torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch
