"""Show how the demo goes: a table that changes on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

PLAIN_EVERY_S = 2.0
HEADER = (
    "    event time        trained     rows   admitted  rejected  expired  delta  "
    "    size   lag           AUC"
)


class Display:
    """Notes stay; the latest state is redrawn, or printed every other second.

    Parameters
    ----------
    total : int
        Events in the stream.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = time.monotonic()
        self._printed = 0.0
        self._live: Any = _rich_live() if sys.stdout.isatty() else None
        if self._live is not None:
            self._live.start()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        line = f"[{time.monotonic() - self._begun:5.1f} s] {text}"
        if self._live is not None:
            # Not markup: a message may hold brackets.
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def header(self) -> None:
        """Name the columns of the plain lines."""
        if self._live is None:
            print(HEADER, flush=True)

    def state(self, values: Mapping[str, Any], *, is_last: bool = False) -> None:
        """Show where the trainer stands; not every time on plain lines."""
        if self._live is not None:
            self._live.update(self._table(values))
        elif is_last or time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(self._line(values), flush=True)

    def close(self) -> None:
        """Leave the last state on the screen; again: nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, values: Mapping[str, Any]) -> str:
        share = values["position"] / self._total
        return (
            f"    {_time(values['seconds'])} {values['position']:>8,} {share:>4.0%} "
            f"{values['rows']:>8,} {values['admitted']:>9,} {values['rejected']:>9,} "
            f"{values['expired']:>8,} {values['sequence']:>6,} "
            f"{values['delta_bytes'] / 1024:>6.0f} KiB {values['lag']:>2} "
            f"({values['lag_s']:.2f} s) {values['auc']:>7.4f}"
        )

    def _table(self, values: Mapping[str, Any]) -> Any:
        from rich.table import Table

        table = Table(title=f"event time {_time(values['seconds'])}", show_header=False)
        share = values["position"] / self._total
        table.add_row(
            "events trained on", f"{values['position']:,} of {self._total:,} ({share:.0%})"
        )
        table.add_row("rows", f"{values['rows']:,}")
        table.add_row("ids admitted", f"{values['admitted']:,}")
        table.add_row("sightings rejected", f"{values['rejected']:,}")
        table.add_row("rows expired", f"{values['expired']:,}")
        table.add_row(
            "last delta", f"{values['sequence']:,}, {values['delta_bytes'] / 1024:.0f} KiB"
        )
        table.add_row("replica lag", f"{values['lag']} deltas, {values['lag_s']:.2f} s")
        table.add_row("progressive AUC", f"{values['auc']:.4f}")
        return table


def _rich_live() -> Any:
    """Return rich's live display; None where it is not installed."""
    try:
        from rich.live import Live
    except ImportError:
        return None
    return Live(refresh_per_second=8)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
