"""What was measured, as ratios to monolith_kv, and whether the goals are reached."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monolith_kv_tools.bench.compare.registry import ENTRIES, OWN
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
    values : dict of str to float
        What is measured once: bytes and seconds by name.
    unsupported : dict of str to str
        Request and reason.
    """

    name: str
    version: str = ""
    missing: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)

    def call_s(self, measurement: str) -> float | None:
        """Return the median of a call; None if it was not measured."""
        seconds = self.seconds.get(measurement)
        return statistics.median(seconds) if seconds else None


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


def ratios(outcomes: Mapping[str, Outcome], name: str, measurement: str) -> list[float]:
    """Return a contender's time over monolith_kv's, for each round, ascending.

    Both were timed within a second or two of each other, so that the machine's moods cancel.
    """
    own = outcomes[OWN].seconds.get(measurement, [])
    other = outcomes[name].seconds.get(measurement, [])
    return sorted(theirs / ours for theirs, ours in zip(other, own, strict=False))


def ratio(outcomes: Mapping[str, Outcome], name: str, measurement: str) -> float | None:
    """Return the median of `ratios`; None if one of the two has no figure."""
    found = ratios(outcomes, name, measurement)
    return statistics.median(found) if found else None


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
        value = ratio(outcomes, goal.name, goal.measurement) if outcome else None
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
                "ratio": {m: ratio(outcomes, name, m) for m in outcome.seconds},
                "ratio_by_round": {m: ratios(outcomes, name, m) for m in outcome.seconds},
                **outcome.values,
            }
            for name, outcome in outcomes.items()
        },
        "goals": [f"{v.mark} {v.text}" for v in verdicts(outcomes, rows, dim)],
    }
