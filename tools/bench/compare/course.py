"""The comparison itself: monolith_kv and one contender after the other, measured in turns.

In every round both do the same batches one after the other, so that a slow moment of the machine
meets both. Only two tables are there at a time. Who fails is named; the others go on.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monolith_kv_tools.bench.compare.environments import import_path, prepare
from monolith_kv_tools.bench.compare.process import FailedError, Process, UnsupportedError
from monolith_kv_tools.bench.compare.registry import ENTRIES, OWN
from monolith_kv_tools.bench.compare.results import Outcome, label
from monolith_kv_tools.bench.compare.work import LOOKUP, MEASURED, Scope

LEFT_OUT = "left out by --only"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Effort:
    """How much of it.

    Parameters
    ----------
    lookup_rounds, write_rounds : int
        Of lookups, and of upserts and steps.
    calls : int
        At most, of one contender in a round.
    budget_s : float
        After which no further call of it begins.
    limit_s : float
        Longest time for one answer.
    """

    lookup_rounds: int = 15
    write_rounds: int = 9
    calls: int = 16
    budget_s: float = 0.1
    limit_s: float = 300.0

    def rounds(self, operation: str) -> int:
        """Return how many rounds an operation gets."""
        return self.lookup_rounds if operation == LOOKUP else self.write_rounds


QUICK = Effort(lookup_rounds=3, write_rounds=2, calls=4, budget_s=0.05)


class Course:
    """One comparison.

    Parameters
    ----------
    names : list of str
        Who takes part beside monolith_kv.
    scope : Scope
        On what.
    effort : Effort
        How long.
    output : Path
        Where environments and logs are kept.
    scratch : Path
        For tables and what is saved of them.
    note : callable
        Is told how it goes.
    """

    def __init__(
        self,
        names: list[str],
        scope: Scope,
        effort: Effort,
        output: Path,
        scratch: Path,
        note: Callable[[str], None],
    ) -> None:
        self._names = names
        self._scope = scope
        self._effort = effort
        self._output = output
        self._scratch = scratch
        self._note = note
        self._processes: dict[str, Process] = {}
        self._fingerprint = 0
        self.outcomes = {name: Outcome(name, missing=LEFT_OUT) for name in ENTRIES}

    def run(self) -> dict[str, Outcome]:
        """Measure everything; what is known of each contender, in the order of the entries."""
        try:
            self._start(OWN)
            for name in self._names:
                if OWN in self._processes:
                    self._start(name)
                    self._beside(name)
                    self._alone(name)
                else:
                    self.outcomes[name].missing = "nothing to compare with: monolith_kv failed"
            if not self._names:
                self._beside(OWN)
            self._alone(OWN)
        finally:
            # Whoever is still here was not let go: this is an interrupt or a bug.
            for process in self._processes.values():
                process.end(at_once=True)
        return self.outcomes

    def _start(self, name: str) -> None:
        """Make the environment, start the worker, let it fill its table."""
        outcome = self.outcomes[name]
        outcome.missing = ""
        try:
            python = prepare(ENTRIES[name], self._output, self._note)
            self._note(f"{name}: filling {self._scope.rows:,} rows")
            self._processes[name] = self._worker(name, python)
            filled = self._processes[name].ask("begin")
        except FailedError as error:
            self._drop(name, str(error))
            return
        outcome.version = filled["version"]
        outcome.values["memory_bytes_a_row"] = filled["memory_bytes"] / self._scope.rows
        # All have to have made the same ids, rows and batches of the seed.
        self._fingerprint = self._fingerprint or filled["fingerprint"]
        if filled["fingerprint"] != self._fingerprint:
            self._drop(name, "made other rows or batches than monolith_kv of the same seed")

    def _worker(self, name: str, python: str) -> Process:
        logs = self._output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        folder = self._scratch / name
        folder.mkdir()
        environment = {"PYTHONPATH": str(import_path(self._output))}
        if self._scope.threads:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(self._scope.threads))
        module = "monolith_kv_tools.bench.compare.worker"
        command = [python, "-m", module, name, str(folder), json.dumps(asdict(self._scope))]
        return Process(command, environment, logs / f"{name}.log", self._effort.limit_s)

    def _beside(self, name: str) -> None:
        """Time a contender's calls and monolith_kv's in turns; `name` may be monolith_kv alone."""
        for operation, traffic in MEASURED:
            rounds = self._effort.rounds(operation)
            if name in self._processes:
                self._note(f"{name}: {label(operation, traffic)}, {rounds} rounds")
            for number in range(rounds):
                self._round(name, operation, traffic, number)

    def _round(self, name: str, operation: str, traffic: str, number: int) -> None:
        """One turn for each of the two; the other one begins in the next round."""
        taken: dict[str, float] = {}
        pair = dict.fromkeys((OWN, name) if number % 2 else (name, OWN))
        for each in pair:
            # A contender that has failed is not waited for, and neither is monolith_kv without it.
            if pair.keys() <= self._processes.keys():
                reply = self._ask(
                    each,
                    "turn",
                    operation=operation,
                    traffic=traffic,
                    first=number * (self._effort.calls + 1),
                    calls=self._effort.calls,
                    budget_s=self._effort.budget_s,
                )
                if reply is not None:
                    taken[each] = statistics.median(reply["seconds"])
        if taken.keys() == pair.keys():
            what = label(operation, traffic)
            for each, seconds in taken.items():
                self.outcomes[each].seconds.setdefault(what, []).append(seconds)
            if name != OWN:
                self.outcomes[name].own_seconds.setdefault(what, []).append(taken[OWN])

    def _alone(self, name: str) -> None:
        """Measure what is done once, then let the worker go."""
        for what in ("save", "grow"):
            if name in self._processes:
                self._note(f"{name}: {what}")
                self.outcomes[name].values |= self._ask(name, what) or {}
        if name in self._processes:
            self._processes.pop(name).end()

    def _ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            return self._processes[name].ask(do, **arguments)
        except UnsupportedError as reason:
            what = str(arguments.get("operation", do))
            self.outcomes[name].unsupported[what] = str(reason)
        except FailedError as error:
            self._drop(name, str(error))
        return None

    def _drop(self, name: str, reason: str) -> None:
        """Leave a contender out from here on; its figures do not count."""
        self._note(f"{name}: {reason}")
        outcome = self.outcomes[name]
        outcome.missing = reason
        outcome.seconds.clear()
        outcome.own_seconds.clear()
        outcome.values.clear()
        process = self._processes.pop(name, None)
        if process is not None:
            process.end(at_once=True)
