"""What was measured, as ratios to monolith_kv, and whether the goals are reached."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monolith_kv_tools.bench.compare.registry import ENTRIES
from monolith_kv_tools.bench.compare.work import LOOKUP, STEP, UNIFORM, ZIPF

GOAL_ROWS, GOAL_DIM = 1_000_000, 64
"""What the goals are promised for; smaller tables fit into caches."""


@dataclass
class Outcome:
    """All that is known of one contender.

    Parameters
    ----------
    name : str
        Its entry.
    version : str
        Of its libraries; empty if it never began.
    missing : str
        Why there are no figures, or no more of them; empty: all went well.
    seconds : dict of str to list of float
        By measurement, the median of each round's calls.
    own_seconds : dict of str to list of float
        Those of monolith_kv in the same rounds.
    values : dict of str to float
        What is measured once: bytes and seconds by name.
    unsupported : dict of str to str
        Request and reason.
    """

    name: str
    version: str = ""
    missing: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    own_seconds: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)

    def call_s(self, measurement: str) -> float | None:
        """Return the median of a call; None if it was not measured."""
        seconds = self.seconds.get(measurement)
        return statistics.median(seconds) if seconds else None

    def ratios(self, measurement: str) -> list[float]:
        """Return its time over monolith_kv's for each round, ascending; monolith_kv has none.

        Both were timed within a second of each other, so that the machine's moods cancel.
        """
        own = self.own_seconds.get(measurement)
        if own is None:
            return []
        theirs = self.seconds[measurement]
        return sorted(their_s / own_s for their_s, own_s in zip(theirs, own, strict=True))

    def ratio(self, measurement: str) -> float | None:
        """Return the median of `ratios`; None if there are none."""
        found = self.ratios(measurement)
        return statistics.median(found) if found else None


@dataclass(frozen=True)
class Goal:
    """A ratio to reach."""

    measurement: str
    name: str
    at_least: float


def label(operation: str, traffic: str) -> str:
    """Return the name of a measurement."""
    return f"{operation}, {traffic}"


def goals() -> list[Goal]:
    """Return what is to be reached, against whom."""
    stores = [entry.name for entry in ENTRIES.values() if entry.is_store]
    found = []
    for traffic in (UNIFORM, ZIPF):
        lookups = {"tfra": 10.0, "fbgemm": 1.5, "torch": 1.5, **dict.fromkeys(stores, 15.0)}
        found += [Goal(label(LOOKUP, traffic), n, least) for n, least in lookups.items()]
    found += [Goal(label(STEP, traffic), "tfra", 12.0) for traffic in (UNIFORM, ZIPF)]
    return found


@dataclass(frozen=True)
class Verdict:
    """How a goal stands: "ok", "MISS", or "--" where nothing can be said."""

    mark: str
    text: str


def verdicts(outcomes: Mapping[str, Outcome], rows: int, dim: int) -> list[Verdict]:
    """Judge every goal; what was not measured, or on too small a table, is said to be so."""
    found = []
    for goal in goals():
        what = f"{goal.measurement}: {goal.at_least:g} x {goal.name}"
        outcome = outcomes.get(goal.name)
        value = outcome.ratio(goal.measurement) if outcome else None
        if value is None:
            reason = outcome.missing if outcome else "not in this comparison"
            found.append(Verdict("--", f"{what}: not measured ({reason})"))
        elif rows < GOAL_ROWS or dim != GOAL_DIM:
            size = f"{GOAL_ROWS:,} rows of {GOAL_DIM}"
            found.append(Verdict("--", f"{what}: {value:.3g} (promised for {size})"))
        else:
            mark = "ok" if value >= goal.at_least else "MISS"
            found.append(Verdict(mark, f"{what}: {value:.3g}"))
    return found


def as_json(
    outcomes: Mapping[str, Outcome], rows: int, dim: int, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything, for other programs."""
    return {
        "machine": dict(machine),
        "contenders": {
            name: {
                "version": outcome.version,
                "missing": outcome.missing,
                "unsupported": outcome.unsupported,
                "call_s": {m: outcome.call_s(m) for m in outcome.seconds},
                "ratio": {m: outcome.ratio(m) for m in outcome.own_seconds},
                "ratio_by_round": {m: outcome.ratios(m) for m in outcome.own_seconds},
                **outcome.values,
            }
            for name, outcome in outcomes.items()
        },
        "goals": [f"{v.mark} {v.text}" for v in verdicts(outcomes, rows, dim)],
    }
