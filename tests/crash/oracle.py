"""What the marks in a trace say: which states a scenario went through, and what it may lose."""

import itertools
import json
from dataclasses import dataclass, field
from typing import NamedTuple

from crash.observed import Observed
from crash.witness import STEP

EMPTY = Observed("0 [] []", "0 {}")


class Call(NamedTuple):
    """An acknowledged call, and what the store held after it."""

    kind: str
    observed: Observed
    epoch: int
    is_durable: bool
    admits: tuple[int, ...] = ()
    file: str = ""
    is_lost: bool = False  # The store reported a loss then.


class Moment(NamedTuple):
    """How many calls had begun, were acknowledged and are durable in any case."""

    begun: int
    acknowledged: int
    durable: int
    dense: int  # The last one that published dense parameters, or after which they are durable.


@dataclass
class Oracle:
    """All calls of a scenario; number 0 stands for what was there before the first."""

    calls: list[Call] = field(default_factory=lambda: [Call("nothing", EMPTY, 0, True)])
    begun: list[str] = field(default_factory=lambda: ["nothing"])

    def read(self, mark: bytes) -> None:
        """Take the next mark."""
        found = json.loads(mark)
        if "begin" in found:
            self.begun.append(found["begin"])
            return
        observed = Observed(found["main"], found["dense"])
        self.calls.append(
            Call(
                found["done"],
                observed,
                found["epoch"],
                found["is_durable"],
                tuple(found["admits"]),
                found["file"],
                found["is_lost"],
            )
        )

    def forks(self) -> list[str]:
        """Openings after an unclean end that did not begin a new epoch."""
        return [
            f"call {number}: opened in epoch {call.epoch}, in which another life had ended"
            for number, (before, call) in enumerate(itertools.pairwise(self.calls), 1)
            if call.kind == "open" and before.kind not in ("nothing", "close")
            if call.epoch <= before.epoch
        ]

    def moment(self) -> Moment:
        """Return where the scenario is after the marks so far."""
        numbers = range(len(self.calls))
        durable = max(n for n in numbers if self.calls[n].is_durable)
        dense = max(n for n in numbers if self.calls[n].kind == "dense" or n <= durable)
        returned = max(n for n in numbers if self.calls[n].kind != STEP)
        return Moment(len(self.begun) - 1, returned, durable, dense)


class Promise:
    """What is known of an image from all the moments at which it may be found."""

    def __init__(self, moment: Moment) -> None:
        self.begun = moment.begun  # At the first of them: nothing may be there from later on.
        self.acknowledged = self.durable = self.dense = self.killed = 0

    def extend(self, moment: Moment, *, is_kill: bool, is_handed_over: bool) -> None:
        """Add a moment; is_kill: nothing is missing. is_handed_over: each call was written."""
        self.acknowledged = max(self.acknowledged, moment.acknowledged)
        self.durable = max(self.durable, moment.durable)
        self.dense = max(self.dense, moment.dense)
        if is_kill:
            self.killed = max(self.killed, moment.acknowledged)
            if is_handed_over:
                self.durable = max(self.durable, moment.acknowledged)
