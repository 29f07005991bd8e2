"""The comparison itself: workers are begun, then measured in turns, then ended.

In every round each contender does the same batches, so that a slow minute of the machine meets
all of them. Who fails is named and leaves; the others go on.
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
        Who takes part; monolith_kv is the first.
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
        self.outcomes = {name: Outcome(name, missing=LEFT_OUT) for name in ENTRIES}

    def run(self) -> dict[str, Outcome]:
        """Measure everything; what is known of each contender, in the order of the entries."""
        at_once = True
        try:
            for name in self._names:
                self.outcomes[name].missing = ""
                self._start(name)
            self._same_work()
            for operation, traffic in MEASURED:
                self._note(f"{label(operation, traffic)}: {self._effort.rounds(operation)} rounds")
                for number in range(self._effort.rounds(operation)):
                    self._round(operation, traffic, number)
            for name in list(self._processes):
                self._alone(name)
            at_once = False
        finally:
            for process in self._processes.values():
                process.end(at_once=at_once)
        return self.outcomes

    def _start(self, name: str) -> None:
        """Make the environment, start the worker, let it fill its table."""
        entry = ENTRIES[name]
        try:
            python = prepare(entry, self._output, self._note)
            self._note(f"{name}: filling {self._scope.rows:,} rows")
            self._processes[name] = self._worker(name, python)
            filled = self._processes[name].ask("begin")
        except FailedError as error:
            self._drop(name, str(error))
            return
        outcome = self.outcomes[name]
        outcome.version = filled["version"]
        outcome.values["memory_bytes_a_row"] = filled["memory_bytes"] / self._scope.rows
        outcome.values["fingerprint"] = filled["fingerprint"]

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

    def _same_work(self) -> None:
        """See that all have made the same ids, rows and batches of the seed."""
        marks = {name: self.outcomes[name].values.pop("fingerprint") for name in self._processes}
        for name, mark in marks.items():
            if mark != marks.get(OWN, mark):
                self._drop(name, "worked on other rows or batches than monolith_kv: a NumPy apart?")

    def _round(self, operation: str, traffic: str, number: int) -> None:
        """One turn for each; everyone is the first one in some round."""
        names = list(self._processes)
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            turn = {"first": number * (self._effort.calls + 1), "calls": self._effort.calls}
            reply = self._ask(
                name,
                "turn",
                operation=operation,
                traffic=traffic,
                budget_s=self._effort.budget_s,
                **turn,
            )
            if reply is not None:
                median_s = statistics.median(reply["seconds"])
                seconds = self.outcomes[name].seconds
                seconds.setdefault(label(operation, traffic), []).append(median_s)

    def _alone(self, name: str) -> None:
        """Measure what is done once, then let the worker go: saved tables are large."""
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
        self.outcomes[name].missing = reason
        self.outcomes[name].seconds.clear()
        self.outcomes[name].values.clear()
        process = self._processes.pop(name, None)
        if process is not None:
            process.end(at_once=True)
