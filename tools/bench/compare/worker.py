"""The process that holds one contender; it obeys JSON lines and times inside itself.

Standard input carries requests, standard output the replies, one for each, and nothing else: what
a library prints goes to standard error. At the end of its input a worker closes and ends, so it
never outlives whoever started it.
"""

import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from monolith_kv_tools.bench.compare.contender import Contender, Unsupported, size_bytes
from monolith_kv_tools.bench.compare.registry import make
from monolith_kv_tools.bench.compare.work import (
    LOOKUP,
    STEP,
    UNIFORM,
    UPSERT,
    UPSERTED,
    Expected,
    Ids,
    Positions,
    Rows,
    Scope,
    Work,
    rows_at,
)
from numpy.typing import NDArray

BLOCK = 65536
GROW_BATCH = 256
# Sums of duplicates in another order, square roots of another library.
RELATIVE, ABSOLUTE = 1e-3, 1e-5


class WrongRowsError(Exception):
    """What was read is not what was written: fast and wrong does not count."""


class Session:
    """One contender at work; every method is a request, every argument and result JSON.

    Parameters
    ----------
    contender : Contender
        Not created yet.
    folder : Path
        Empty, for its files.
    scope : Scope
        The work.
    """

    def __init__(self, contender: Contender, folder: Path, scope: Scope) -> None:
        self._contender = contender
        self._folder = folder
        self._scope = scope
        self._work = Work(scope)
        self._expected = Expected(self._work)
        self._is_trained = False

    def begin(self) -> dict[str, Any]:
        """Fill the table; the memory that it has taken, and on what it works."""
        table = self._folder / "table"
        table.mkdir()
        before = self._contender.resident_bytes()
        self._contender.create(table, self._scope)
        for start in range(0, self._scope.rows, BLOCK):
            positions = np.arange(start, min(start + BLOCK, self._scope.rows))
            self._contender.insert(self._ids(positions), rows_at(positions, self._scope.dim))
        self._contender.settle()
        grown = self._contender.resident_bytes() - before
        return {
            "version": self._contender.version(),
            "fingerprint": self._work.fingerprint(),
            "memory_bytes": grown,
        }

    def turn(
        self, operation: str, traffic: str, first: int, calls: int, budget_s: float
    ) -> dict[str, Any]:
        """Time up to `calls` calls on batches from `first` on, after one that does not count.

        Once `budget_s` is used up no further call begins, but one counts always.
        """
        seconds: list[float] = []
        begun = time.perf_counter()
        gc.disable()  # A collection in the middle of a call is not the contender's doing.
        try:
            for number in range(first, first + calls + 1):
                positions = self._work.positions(operation, traffic, number)
                seconds.append(self._timed(operation, positions))
                if len(seconds) > 1 and time.perf_counter() - begun > budget_s:
                    break
        finally:
            gc.enable()
        return {"seconds": seconds[1:]}

    def save(self) -> dict[str, Any]:
        """Write everything, close, come back, and see that it is all there."""
        saved = self._folder / "saved"
        saved.mkdir()
        begun = time.perf_counter()
        path = self._contender.save(saved)
        save_s = time.perf_counter() - begun
        saved_bytes = size_bytes(path)
        self._contender.close()
        positions = self._work.positions(LOOKUP, UNIFORM, 0)
        ids = self._ids(positions)
        begun = time.perf_counter()
        self._contender.load(path)
        # The first batch belongs to loading: some open at once and read when asked.
        rows = self._contender.lookup(ids)
        load_s = time.perf_counter() - begun
        self._check(positions, rows, "lookup after load")
        positions = self._work.written()
        for start in range(0, len(positions), self._scope.batch):
            part = positions[start : start + self._scope.batch]
            if len(part) == self._scope.batch:
                self._check(part, self._contender.lookup(self._ids(part)), "lookup after load")
        return {"save_s": save_s, "load_s": load_s, "saved_bytes": saved_bytes}

    def grow(self) -> dict[str, Any]:
        """Fill a new table 256 ids at a time; the longest call, and all of them."""
        self._contender.close()
        shutil.rmtree(self._folder)
        table = self._folder / "grown"
        table.mkdir(parents=True)
        self._contender.create(table, self._scope)
        longest_s = total_s = 0.0
        gc.disable()
        try:
            for start in range(0, self._scope.rows, GROW_BATCH):
                positions = np.arange(start, min(start + GROW_BATCH, self._scope.rows))
                ids, rows = self._ids(positions), rows_at(positions, self._scope.dim)
                begun = time.perf_counter()
                self._contender.grow(ids, rows)
                elapsed = time.perf_counter() - begun
                longest_s, total_s = max(longest_s, elapsed), total_s + elapsed
        finally:
            gc.enable()
        positions = self._work.positions(LOOKUP, UNIFORM, 0)
        found = self._contender.lookup(self._ids(positions))
        self._check(positions, found, "lookup after growth", rows_at(positions, self._scope.dim))
        return {"pause_s": longest_s, "grow_s": total_s}

    def end(self) -> dict[str, Any]:
        """Give everything back."""
        self._contender.close()
        return {}

    def _timed(self, operation: str, positions: Positions) -> float:
        ids = self._ids(positions)
        call, gradients = self._contender, self._work.gradients
        if operation == UPSERT:
            rows = rows_at(positions, self._scope.dim, UPSERTED)
            begun = time.perf_counter()
            call.upsert(ids, rows)
            elapsed = time.perf_counter() - begun
            self._expected.upsert(positions, rows)
            self._check(positions, call.lookup(ids), "lookup after upsert")
        elif operation == STEP:
            begun = time.perf_counter()
            rows = call.step(ids, gradients)
            elapsed = time.perf_counter() - begun
            self._check(positions, rows, "pull of a step")
            self._expected.step(positions, gradients)
            self._is_trained = True
            self._check(positions, call.lookup(ids), "lookup after a step")
        else:
            begun = time.perf_counter()
            rows = call.lookup(ids)
            elapsed = time.perf_counter() - begun
            self._check(positions, rows, "lookup")
        return elapsed

    def _ids(self, positions: Positions) -> Ids:
        if self._contender.wants_positions:
            return np.ascontiguousarray(positions)
        return np.ascontiguousarray(self._work.ids[positions])

    def _check(
        self, positions: Positions, found: Rows, what: str, expected: Rows | None = None
    ) -> None:
        if expected is None:
            expected = self._expected.rows(positions)
        if found.shape != expected.shape or found.dtype != np.float32:
            raise WrongRowsError(
                f"{what}: {found.dtype} of shape {found.shape} in place of float32 of "
                f"{expected.shape}"
            )
        equal = found == expected
        if self._is_trained:
            equal = np.isclose(found, expected, RELATIVE, ABSOLUTE)
        same: NDArray[np.bool_] = np.all(equal, axis=1)
        if not same.all():
            first = int(np.argmin(same))
            raise WrongRowsError(
                f"{what}: {int((~same).sum())} of {len(same)} rows differ, the first that of "
                f"position {positions[first]}: {found[first, :3]}... in place of "
                f"{expected[first, :3]}..."
            )


def answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request says; a reply that says how it went."""
    what = request.pop("do")
    try:
        result: dict[str, Any] = getattr(session, what)(**request)
        return result
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except WrongRowsError as error:
        return {"failed": f"wrong rows: {error}"}
    except Exception as error:  # Reported, never hidden: the table names it.
        return {"failed": f"{what}: {type(error).__name__}: {error}"}


def main() -> int:
    """Obey until the end of the input: worker NAME FOLDER SCOPE."""
    name, folder, scope = sys.argv[1:]
    # Libraries print to file 1, from C as well: the replies get a file of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session: Session | None = None
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if session is None:
                try:
                    contender = make(name)
                except Exception as error:
                    reply = {"failed": f"import: {type(error).__name__}: {error}"}
                    print(json.dumps(reply), file=replies, flush=True)
                    return 1
                session = Session(contender, Path(folder), Scope(**json.loads(scope)))
            print(json.dumps(answer(session, request)), file=replies, flush=True)
    finally:
        if session is not None:
            answer(session, {"do": "end"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
