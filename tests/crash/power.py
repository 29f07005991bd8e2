"""Power cuts on a real kernel: ext4, xfs and btrfs, each durability mode, as make powercut runs it.

A kernel in user mode (uml.py) makes calls on a store and tells the host of each that returned. At a
random instant it is killed: while it boots, replays the file system's journal, recovers the store,
or calls. With it go its page cache and, at random, any part of what its disk (volatile_disk.py)
had not been told to flush. The next kernel mounts the disk and hands the store over as found. Here
it is opened beside a model that makes the same calls:

sync      every call that returned is there
batch     a prefix of the calls, at least up to the last seal, snapshot or close that returned
interval  a prefix, at least up to the begin of the last seal of the background that ended; what is
          lost is no longer than the interval, the pause of the background and one flush
none      as batch

What it cannot show: a disk that lies about its flushes, and a kernel other than this one.
"""

import random
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checks import FAST_FOLDER
from crash.figures import Figure
from crash.power_guest import made
from crash.sigkill import (
    DURABLE,
    State,
    as_lists,
    check_replica,
    half_compacted,
    is_same,
    play,
    settled,
)
from crash.uml import MAKE_FILE_SYSTEM, GuestError, Machine, PowerError, missing
from crash.worker import Clock, open_store
from model import ManualClock, StoreModel

import monolith_kv as mkv

TESTS = Path(__file__).resolve().parent.parent
BOOT_S = 120.0
INTERVAL_S = 0.3
PAUSE_S = INTERVAL_S / 20  # Of the background, between two looks at the time.
COMMIT_OFTEN = {
    "ext4": "commit=1",
    "xfs": "",
    "btrfs": "commit=1",
}  # Each second, not each 5 or 30.
# So many calls may have returned whose lines were still under way when the power was cut.
AHEAD = 64
THREADS = 4
CUTS_FULL, CUTS_SMALL = 15, 3  # of each mode on each file system
CUTS_A_SYSTEM = 15
MODES = ("none", "interval", "batch", "sync", "sync of 4 threads")


# --- what was seen of one life -----------------------------------------------------------------


@dataclass
class Seen:
    """What the guest told, by its own clock."""

    is_settled: bool = False
    acknowledged: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)  # seals of the background
    ended: list[float] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)  # what each thread has come to
    counted: int = 0

    def hear(self, line: str) -> None:
        kind, *words = line.split()
        if kind == "settled":
            self.is_settled = True
        elif kind in ("a", "b", "e"):
            times = {"a": self.acknowledged, "b": self.begun, "e": self.ended}
            times[kind].append(float(words[0]))
        elif kind == "t":
            self.counts[int(words[0])] = int(words[1])
            self.counted += 1

    @property
    def returned(self) -> int:
        """How many calls are known to have returned."""
        return len(self.acknowledged) + self.counted

    @property
    def sealed(self) -> int:
        """How many calls had returned when the last seal that ended began."""
        if not self.ended:
            return 0
        begun = self.begun[len(self.ended) - 1]
        return sum(each < begun for each in self.acknowledged)

    def allowed_loss_s(self, interval_s: float, pause_s: float) -> float:
        """The promise of "interval": the interval and one flush, which may be under way."""
        last = max([*self.acknowledged, *self.begun, *self.ended], default=0.0)
        ends = [*self.ended, last][: len(self.begun)]
        flushes = [end - begun for begun, end in zip(self.begun, ends, strict=True)]
        return interval_s + pause_s + max(flushes, default=0.0)

    def loss_s(self, recovered: int) -> float:
        """From the first call that is lost to the last that returned."""
        lost = self.acknowledged[recovered:]
        return lost[-1] - lost[0] if lost else 0.0


# --- the oracle --------------------------------------------------------------------------------


class Life:
    """The calls of one kernel on a store, and all states that it may have left."""

    def __init__(self, model: StoreModel, request: dict[str, Any], seen: Seen) -> None:
        self.request, self.seen = request, seen
        self.returned = len(seen.acknowledged)
        stream, clock = made(request), ManualClock(request["now"])
        self.calls = [next(stream) for _ in range(self.returned + AHEAD)]
        self.states = [State(model.copy(), clock.now, 0)]
        model = model.copy()
        for call in self.calls:
            free = play(model, call, clock) + self.states[-1].free_seals
            self.states.append(State(model.copy(), clock.now, free))
        self.now = clock.now
        self.recoveries_cut = 0
        self.recovered = 0  # Where it was found once, it has to be found again.

    @property
    def durable(self) -> int:
        """How many calls have to be there."""
        if self.request["durability"] == "sync":
            return self.returned
        sealing = [
            n for n, call in enumerate(self.calls[: self.returned], 1) if call.kind in DURABLE
        ]
        return max([self.recovered, self.seen.sealed, *sealing])

    def check(self, store: mkv.Store) -> StoreModel:
        """Find out after how many calls the store is; AssertionError if that may not be."""
        found = self._find(store)
        assert found is not None, (
            f"{self.returned} calls returned, {self.durable} of them have to be there, it is "
            f"in no state from there on; the last that returned: {self.calls[: self.returned][-3:]}"
        )
        self._check_position(store)
        self.recovered, model = found
        return model

    def _find(self, store: mkv.Store) -> tuple[int, StoreModel] | None:
        for number in range(len(self.calls), self.durable - 1, -1):
            state = self.states[number]
            if is_same(store, state.model):
                return number, state.model
            # A compaction goes in steps: some of what has expired may be gone.
            if number < len(self.calls) and self.calls[number].kind == "compact":
                half = half_compacted(store, state.model, state.now)
                if is_same(store, half):
                    return number, half
        return None

    def _check_position(self, store: mkv.Store) -> None:
        possible = self.states[self.returned :]
        dense = as_lists(store.dense)
        assert dense in [as_lists(state.model.dense) for state in possible], (
            f"dense parameters that were published are lost: {dense} are there"
        )
        if self.request["delta_interval"] is None:
            assert any(
                0 <= store.sequence - state.model.sequence <= state.free_seals + self.recoveries_cut
                and dict(store.cursor) == state.model.cursor
                for state in possible
            ), f"a seal that returned is lost: {store.sequence} and {dict(store.cursor)} are there"


def check_counts(store: mkv.Store, counts: dict[int, int]) -> None:
    """What each thread counted up to is there."""
    for fid, count in counts.items():
        found = int(store.table("counts").lookup([fid])[0, 0])
        assert count <= found <= count + AHEAD, f"thread {fid} had {count}, the store has {found}"


# --- one disk, cut again and again -------------------------------------------------------------


@dataclass
class Report:
    """What came of a trial."""

    cuts: int = 0
    returned: int = 0  # calls, in all
    lost: int = 0  # of these, in all
    loss_s: float = 0.0  # at the worst cut,
    allowed_s: float = 0.0  # and what was allowed there
    violations: list[str] = field(default_factory=list)
    trouble: str = ""  # Not the store's: the machine did not come up, say.


class Trial:
    """A store on one disk, whose power is cut again and again."""

    def __init__(
        self, folder: Path, system: str, mode: str, seed: int, left_out: Sequence[str] = ()
    ) -> None:
        self.folder, self.system, self.mode, self.seed = folder, system, mode, seed
        self.left_out = list(left_out)
        self.dice = random.Random(f"{system} {mode} {seed}")
        self.boots, self.now, self.tables = 0, 1_000_000.0, list[str]()
        self.model = StoreModel()
        self.life = Life(self.model, self._request(), Seen())
        self.counts: dict[int, int] = {}
        self.report = Report()

    def run(self, cuts: int) -> Report:
        """Cut so often, or until a promise was broken."""
        with Machine(self.folder, Path(__file__).with_name("power_guest.py")) as machine:
            machine.format(self.system)
            try:
                while self.report.cuts < cuts:
                    self._boot(machine)
                    if self.dice.randrange(8) == 0:
                        time.sleep(self.dice.uniform(0.5, 3.0))  # It boots, mounts, replays.
                        machine.cut()
                    else:
                        self._check(machine)
                        self._live(machine)
                    self.report.cuts += 1
                self._boot(machine)
                self._check(machine)
            except (AssertionError, mkv.Error, GuestError) as error:
                where = f"{self.system}, {self.mode}, seed {self.seed}, cut {self.report.cuts}"
                self.report.violations.append(f"{where}: {error}")
            except PowerError as error:
                self.report.trouble = str(error)
        return self.report

    def _boot(self, machine: Machine) -> None:
        self.boots += 1
        machine.boot(
            GUEST_SYSTEM=self.system,
            GUEST_OPTIONS=COMMIT_OFTEN[self.system] if self._is_eager else "",
            GUEST_SEED=str(self.dice.randrange(1 << 30)),
            PYTHONPATH=f"{TESTS.parent}:{TESTS}",
        )

    @property
    def _is_eager(self) -> bool:
        """Whether this kernel writes back at once what nobody flushes."""
        return self.boots % 2 == 0

    def _request(self) -> dict[str, Any]:
        return {
            "durability": self.mode.split()[0],
            "delta_interval": INTERVAL_S if self.mode == "interval" else None,
            "memory_limit": 64 * 1024 if self.seed % 4 == 3 else None,
            "threads": THREADS if "threads" in self.mode else 0,
            "seed": self.seed,
            "run": self.boots,
            "tables": self.tables,
            "now": self.now,
            "left_out": self.left_out,
            "is_eager": self._is_eager,
            # A call that seals would hide what the background does, and keeps logs short.
            "only_changes": self.mode == "interval" or self.boots % 3 == 0,
        }

    def _live(self, machine: Machine) -> None:
        """Let the guest call for a while and cut the power."""
        request, seen = self._request(), Seen()
        machine.tell(request)
        longest = 600 if request["only_changes"] or request["threads"] else 150
        after = self.dice.randrange(self.dice.choice([1, 12, longest, longest]))
        if after == 0:
            time.sleep(self.dice.uniform(0.0, 1.0))  # It recovers, or has just begun.
        while seen.returned < after:
            seen.hear(machine.line(BOOT_S) or "")
        end = time.perf_counter() + self.dice.uniform(0.0, 0.02)
        while time.perf_counter() < end:
            pass
        machine.cut()
        for line in machine.lines(BOOT_S):
            seen.hear(line)
        if seen.is_settled:
            self.life = Life(self.model, request, seen)
            self.now = self.life.now
            self.counts |= seen.counts
            self.report.returned += seen.returned
        else:
            self.life.recoveries_cut += 1

    def _check(self, machine: Machine) -> None:
        """Open what the guest found, beside the model."""
        while machine.line(BOOT_S) != "copied":
            pass
        copy, request = machine.out / "store", self._request()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mkv.DataLossWarning)
            store = open_store({**request, "path": str(copy)}, Clock(self.now))
        with store:
            if request["threads"]:
                check_counts(store, self.counts)
            else:
                self._check_life(store)
                check_replica(store, machine.out / "replica")
            problems = store.verify()
            assert problems == [], f"verify() found {problems}"
            self.tables = sorted(self.model.tables)
            self.model = settled(store, self.model)

    def _check_life(self, store: mkv.Store) -> None:
        life, report = self.life, self.report
        self.model = life.check(store)
        if life.recoveries_cut == 0:
            report.lost += max(0, life.returned - life.recovered)
        if self.mode == "interval":
            loss_s = life.seen.loss_s(life.recovered)
            allowed_s = life.seen.allowed_loss_s(INTERVAL_S, PAUSE_S)
            assert loss_s <= allowed_s, f"{loss_s:.3f} s lost, {allowed_s:.3f} s allowed"
            if loss_s > report.loss_s:
                report.loss_s, report.allowed_s = loss_s, allowed_s


# --- figures -----------------------------------------------------------------------------------


# Steps of storage/files.py, and the mode in which leaving one out has to be seen: where each call
# is flushed, the next flush takes the names in a folder along.
LEFT_OUT = {"sync_file": "sync", "fsync_folder": "none"}


def need() -> None:
    """Leave with exit code 2 and one sentence if something is not there."""
    packages = " ".join(missing())
    if packages:
        print(f"power cuts need more packages: apt-get install {packages}", file=sys.stderr)
        raise SystemExit(2)


def measure(full: bool) -> Iterator[Figure]:
    need()
    cuts = CUTS_FULL if full else CUTS_SMALL
    by_mode: dict[str, list[Report]] = defaultdict(list)
    for number, system in enumerate(MAKE_FILE_SYSTEM):
        begun = time.monotonic()
        reports = []
        for mode in MODES:
            reports.append(tried(system, mode, number + len(by_mode), cuts))
            by_mode[mode].append(reports[-1])
        yield cuts_figure(system, reports, time.monotonic() - begun)
    yield sync_figure(by_mode["sync"] + by_mode["sync of 4 threads"])
    yield interval_figure(by_mode["interval"])
    for name in LEFT_OUT:
        yield left_out_figure(name, cuts)


def tried(system: str, mode: str, seed: int, cuts: int, left_out: Sequence[str] = ()) -> Report:
    """Make one trial in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mkv-power-", dir=FAST_FOLDER) as folder:
        report = Trial(Path(folder), system, mode, seed, left_out).run(cuts)
    print(f"    {system}, {mode}: {report}", file=sys.stderr, flush=True)
    return report


def cuts_figure(system: str, reports: Sequence[Report], seconds: float) -> Figure:
    cuts = sum(report.cuts for report in reports)
    violations = sum(len(report.violations) for report in reports)
    troubles = sum(bool(report.trouble) for report in reports)
    return Figure(
        f"power cuts, {system}",
        f"{cuts:,}, {violations} promises broken, {troubles} trials ended early",
        f">= {CUTS_A_SYSTEM}, 0 broken, 0 ended early",
        cuts >= CUTS_A_SYSTEM and violations == troubles == 0,
        seconds,
    )


def sync_figure(reports: Sequence[Report]) -> Figure:
    lost, returned = (sum(getattr(r, name) for r in reports) for name in ("lost", "returned"))
    broken = any(report.violations for report in reports)
    return Figure(
        "acknowledged calls lost by power cuts in sync",
        f"{lost} of {returned:,}" + (", and a promise broken" if broken else ""), "0",
        lost == 0 and not broken,
    )  # fmt: skip


def interval_figure(reports: Sequence[Report]) -> Figure:
    worst = max(reports, key=lambda report: report.loss_s)
    broken = any(report.violations for report in reports)
    return Figure(
        f"updates lost by a power cut in interval, {INTERVAL_S} s",
        f"{worst.loss_s:.2f} s at most",
        f"interval + pause + flush: {worst.allowed_s:.2f} s there",
        not broken,
    )


def left_out_figure(name: str, cuts: int) -> Figure:
    """A store that skips a step on purpose: if that is not seen, nothing would be."""
    begun = time.monotonic()
    for system in MAKE_FILE_SYSTEM:
        report = tried(system, LEFT_OUT[name], 0, 2 * cuts, [name])
        if report.violations:
            break
    found = f"seen on {system} at cut {report.cuts}" if report.violations else "not seen"
    return Figure(
        f"power cuts with {name} left out", found, "seen", bool(report.violations),
        time.monotonic() - begun,
    )  # fmt: skip
