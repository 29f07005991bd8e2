"""Makes the calls of a scenario in a traced process, and writes into the trace what came of each.

Before a call there is a mark that it begins, after it returned one that it is acknowledged, with
what the store holds then: the oracle of the exploration. All marks go to the file MARKS.
"""

import itertools
import json
import os
import random
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from crash.observed import Observed, observe
from crash.trace import MARKS

import monolith_kv as mkv

Result = TypeVar("Result")
STEP = "compaction step"
# What is durable in every mode when it returns; snapshots only those under the store.
DURABLE = {"open", "seal", "snapshot", "close", "apply", "promote", "restore"}


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Witness:
    """One scenario's folder, its store and its marks.

    Parameters
    ----------
    root : Path
        The folder that is traced; the store is in `store`.
    given : Path
        A folder beside it for what is there before, not traced.
    durability : str
        Of the store.
    options : dict
        More arguments of `open`.
    seed : int
        Of the dice.
    """

    def __init__(
        self, root: Path, given: Path, durability: str, options: dict[str, Any], seed: int = 0
    ) -> None:
        self.root, self.given, self.durability = root, given, durability
        self.options = {"durability": durability, "delta_interval": None, **options}
        self.clock = Clock()
        self.path = root / "store"
        self.store: mkv.Store
        self.admits: list[int] = []
        self.dice = random.Random(seed)
        self._marks = -1
        self._numbers = itertools.count(1)
        self._seed, self._lives = seed, 0

    def number(self) -> int:
        """The next number, another one in each call and each life."""
        return next(self._numbers)

    def life(self, body: Callable[[], object]) -> None:
        """Run the body in a fork, which then ends without a clean up of any kind."""
        self._lives += 1
        self._numbers = itertools.count(1_000 * self._lives)
        self.dice.seed(f"{self._seed} {self._lives}")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._marks = os.open(self.root / MARKS, os.O_WRONLY | os.O_CREAT, 0o600)
                body()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise RuntimeError(f"scenario {self.root.name} failed, see above")

    def mark(self, **what: Any) -> None:
        """Write a mark."""
        os.write(self._marks, json.dumps(what).encode())

    # --- calls

    def call(self, kind: str, make: Callable[[], Result], file: str = "") -> Result:
        """Make a call, which may make a file, between two marks; return what it returned."""
        self.mark(begin=kind)
        result = make()
        self.acknowledge(kind, file)
        return result

    def acknowledge(self, kind: str, file: str = "") -> None:
        """Mark that a call has returned."""
        is_lost = bool(self.store.stats()["lost"])
        self.done(kind, observe(self.store), self.store.epoch, file, is_lost)

    def done(
        self, kind: str, observed: Observed, epoch: int, file: str = "", is_lost: bool = False
    ) -> None:
        """Mark that a call is acknowledged."""
        self.mark(
            done=kind,
            main=observed.main,
            dense=observed.dense,
            epoch=epoch,
            is_durable=kind in DURABLE or (self.durability == "sync" and kind != STEP),
            admits=self.admits if kind in ("seal", "close") else [],
            file=file,
            is_lost=is_lost,
        )

    def open(self, mode: str = "rw") -> mkv.Store:
        """Open the store."""

        def make() -> None:
            self.store = mkv.open(self.path, mode, clock=self.clock, **self.options)

        self.call("open", make)
        return self.store

    def close(self) -> None:
        """Close the store; what it holds then is read from its files."""
        self.mark(begin="close")
        epoch = self.store.epoch
        before = observe(self.store)
        self.store.close()
        with mkv.open(self.path, "r", clock=self.clock) as reader:
            after = observe(reader)
        # A close seals, which moves the position only.
        assert after.main.partition(" ")[2] == before.main.partition(" ")[2]
        assert after.dense == before.dense
        self.done("close", after, epoch)

    def seal(self, cursor: dict[str, Any] | None = None) -> None:
        self.call("seal", partial(self.store.seal, cursor=cursor))

    def snapshot(self) -> None:
        self.call("snapshot", self.store.snapshot)

    def snapshot_to(self, name: str) -> None:
        self.call("snapshot elsewhere", partial(self.store.snapshot, self.root / name), name)

    def compact(self) -> None:
        """Compact; it goes in steps, each of which is a call of its own to a crash."""
        compactor: Any = self.store._compactor
        advance = compactor._advance

        def step(*arguments: Any) -> Any:
            self.mark(begin=STEP)
            result = advance(*arguments)
            self.acknowledge(STEP)
            return result

        compactor._advance = step
        self.call("compact", self.store.compact)
        del compactor._advance
