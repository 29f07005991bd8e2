"""Open what a power cut left, and compare it with what was promised."""

import os
import shutil
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from crash.disk import Image, materialise
from crash.observed import Observed, observe
from crash.oracle import Oracle, Promise
from crash.traced_scenarios import RECOVERED_AT, Scenario
from crash.traced_scripts import DIM
from crash.witness import Clock

import monolith_kv as mkv

SHARE = 30  # One state in so many is read by a reader, opened again, and goes on being used.
TEXT_MAX = 1_500


class Violation(Exception):
    """A promise that was not kept, with the image that shows it."""

    image: Image = ()


class Checker:
    """Checks images of one scenario, one after the other, in one folder.

    Parameters
    ----------
    scenario : Scenario
        Says how the store is opened.
    folder, given : Path
        To write images into, and what the scenario was given.
    oracle : Oracle
        After the last mark.
    must_report : bool
        The loss that recovery reports was not acknowledged: an opening has to report it again.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        given: Path,
        oracle: Oracle,
        must_report: bool = False,
    ) -> None:
        self.scenario, self.folder, self.given = scenario, folder, given
        self.oracle = oracle
        self.must_report = must_report
        self.checked = self.silent = 0  # States; those that lost calls of which nothing can tell.
        self._clock = Clock(RECOVERED_AT)
        self._root = folder / "image"
        self._copies: dict[bytes, str] = {}
        self._numbers: dict[str, list[int]] = {}
        for number, call in enumerate(oracle.calls):
            self._numbers.setdefault(call.observed.main, []).append(number)

    def check(self, image: Image, promise: Promise) -> None:
        """Raise Violation unless the image is recovered as promised."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir()
        materialise(image, self._root)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._check(image, promise, caught)
        except Violation as violation:
            violation.image = image
            raise
        except Exception as error:
            found = Violation(f"{type(error).__name__}: {error}")
            found.image = image
            raise found from error
        self.checked += 1

    def _check(self, image: Image, promise: Promise, caught: list[warnings.WarningMessage]) -> None:
        is_used = self.checked % SHARE == 0
        read = self._read() if is_used else None
        with self._recover() as store:
            observed, epoch = observe(store), store.epoch
            lost = store.stats()["lost"]
            is_writer = store.mode == "rw"
            if problems := store.verify():
                raise Violation(f"verify() finds {problems}")
            if is_writer and not is_used:
                self._check_sightings(store, promise)
        if bool(lost) != any(issubclass(w.category, mkv.DataLossWarning) for w in caught):
            raise Violation(f"the warnings do not tell what stats() does: {lost}")
        number = self._compare(observed, promise)
        self._check_report(number, promise, bool(lost))
        if is_writer:
            self._check_epoch(epoch, promise)
        self._check_copies(image, promise)
        if read is not None and read != observed:
            raise Violation(f"a reader saw\n{_cut(read)}\nrecovered is\n{_cut(observed)}")
        if is_used:
            self._open_again(observed, promise)

    def _recover(self) -> AbstractContextManager[mkv.Store]:
        return self.scenario.recover(self._root, self.given, self._clock)

    def _open_again(self, observed: Observed, promise: Promise) -> None:
        with self._recover() as store:
            again = observe(store)
            if again != observed:
                raise Violation(
                    f"opened again it is\n{_cut(again)}\nat first it was\n{_cut(observed)}"
                )
            if problems := store.verify():
                raise Violation(f"opened again, verify() finds {problems}")
            if store.mode == "rw":
                self._check_sightings(store, promise)
                self._use(store)

    # --- one promise each ----------------------------------------------------------------------

    def _compare(self, observed: Observed, promise: Promise) -> int:
        """The number of the last call that is recovered."""
        numbers = self._numbers.get(observed.main, [])
        calls = self.oracle.calls
        if not numbers or numbers[-1] < promise.durable or numbers[0] > promise.begun:
            raise Violation(
                f"recovered is the state after calls {numbers}, promised {promise.durable} to "
                f"{promise.begun}:\n{_cut(observed)}\npromised:\n"
                f"{_cut(calls[promise.durable].observed)}"
            )
        dense = [n for n, call in enumerate(calls) if call.observed.dense == observed.dense]
        if not dense or dense[-1] < promise.dense or dense[0] > promise.begun:
            raise Violation(
                f"dense parameters are {observed.dense}, promised {promise.dense} to "
                f"{promise.begun}: {calls[promise.dense].observed.dense}"
            )
        return max(n for n in numbers if n <= max(promise.begun, promise.acknowledged))

    def _check_report(self, number: int, promise: Promise, is_lost: bool) -> None:
        if self.must_report and promise.acknowledged == 0 and not is_lost:
            raise Violation("the loss that the recovery before would have reported is not told")
        if not is_lost and self._has_torn():
            raise Violation("a torn tail was cut, and nothing says so")
        if number >= promise.acknowledged or is_lost:
            return
        if number < promise.killed or self.scenario.durability != "batch":
            raise Violation(
                f"calls {number + 1} to {promise.acknowledged} are lost, and nothing says so"
            )
        self.silent += 1  # The log ends between two records: nobody can tell that there were more.

    def _has_torn(self) -> bool:
        try:
            return any(n.endswith(".torn") for n in os.listdir(self._root / "store/calls"))
        except FileNotFoundError:
            return False

    def _check_epoch(self, epoch: int, promise: Promise) -> None:
        calls, begun = self.oracle.calls, self.oracle.begun
        last = calls[promise.acknowledged]
        may_be_clean = last.kind in ("nothing", "close") or begun[promise.begun] == "close"
        if epoch < last.epoch + (not may_be_clean):
            raise Violation(f"epoch {epoch} after a crash in epoch {last.epoch}")

    def _check_copies(self, image: Image, promise: Promise) -> None:
        """Snapshots elsewhere: there when that was acknowledged, and whole if they are there."""
        there = {path: content for path, content in image if path.endswith(".snapshot")}
        for number, call in enumerate(self.oracle.calls):
            if call.file and number <= promise.acknowledged and call.file not in there:
                raise Violation(f"{call.file} is gone, its snapshot was acknowledged")
            content = there.get(call.file)
            if content is None:
                continue
            if content not in self._copies:
                self._copies[content] = self._restored(call.file)
            if self._copies[content] != call.observed.main:
                raise Violation(f"{call.file} holds {self._copies[content]}")

    def _restored(self, name: str) -> str:
        path = self.folder / "restored"
        shutil.rmtree(path, ignore_errors=True)
        source = self._root / name
        with mkv.restore(source, path, mode="replica", clock=self._clock) as store:
            return observe(store).main

    def _check_sightings(self, store: mkv.Store, promise: Promise) -> None:
        admits = {fid for call in self.oracle.calls[: promise.durable + 1] for fid in call.admits}
        if not admits:
            return
        ids = np.array(sorted(admits), np.uint64)
        gated = store.table("gated")
        gated.pull(ids)
        if not gated.contains(ids).all():
            raise Violation(f"sealed sightings of {ids[~gated.contains(ids)]} are gone")

    # --- what else one does with a store -------------------------------------------------------

    def _read(self) -> Observed | None:
        if not (self._root / "store/MANIFEST").exists():
            return None
        with mkv.open(self._root / "store", "r", clock=self._clock) as reader:
            return observe(reader)

    def _use(self, store: mkv.Store) -> None:
        """Go on: a call, a seal, a clean close, and all of it is there."""
        table = store.create_table("after", DIM, exist_ok=True)
        table.upsert([1, 2], np.ones((2, DIM), np.float32))
        store.seal()
        table.push([1], np.ones((1, DIM), np.float32))
        expected = observe(store)
        store.close()
        with self._recover() as again:
            found = observe(again)
            if found.main.partition(" ")[2] != expected.main.partition(" ")[2]:
                raise Violation(f"closed it was\n{_cut(expected)}\nopened it is\n{_cut(found)}")
            if again.stats()["lost"]:
                raise Violation(f"after a clean close there is a loss: {again.stats()['lost']}")


def _cut(observed: Observed) -> str:
    return observed.main[:TEXT_MAX]
