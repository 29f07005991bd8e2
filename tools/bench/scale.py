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


SCALES = {
    "small": Scale((MILLION,), MILLION, MILLION, MILLION),
    "full": Scale((MILLION, 20 * MILLION), 20 * MILLION, 20 * MILLION, 7 * MILLION),
}


def torch_or_none() -> Any:
    """Return torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch
