"""Flip every bit of a file, cut it at every byte, splice its records: nothing may pass in silence.

Every position of every type of file goes to the file's own reader, which reads the whole file each
time; a seeded sample of them goes to open(), which has to refuse the store or to come to the very
state that the damage left no doubt about. See subjects.py for the files. What LMDB holds is in
overflow_rot.py.
"""

import itertools
import mmap
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import samples
from checks import FAST_FOLDER, WIDE
from crash import overflow_rot
from crash.figures import Figure
from crash.subjects import OPTIONS, Log, Stores, Subject, comparable, make_stores, subjects_of
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Follower
from monolith_kv.storage.format import HEADER_BYTES, RECORD_HEADER_BYTES

GOAL = "100 %, 0 silent, 0 crash"
EXPECTED = (mkv.CorruptionError, mkv.FormatVersionError)
SMALL_STEP = 149 if WIDE else 997  # Odd: every bit of a byte in its turn.
SHOWN = 5  # Of what went wrong; the rest is a number.


class Silent(Exception):
    """Damage was passed over, or what was said of it is not so."""


def require(is_so: bool, otherwise: str) -> None:
    """Raise Silent unless it is so."""
    if not is_so:
        raise Silent(otherwise)


class Tally:
    """Counts what came of damages, and keeps what must not have come."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.silent: list[str] = []
        self.crashes: list[str] = []

    @property
    def tried(self) -> int:
        """How many damages there were."""
        return sum(self.outcomes.values())

    @property
    def is_clean(self) -> bool:
        """Whether none was silent and none led to another error than the documented ones."""
        return not self.silent and not self.crashes

    def add(self, what: str, judge: Callable[[], str]) -> None:
        """Take what `judge` says of one damage; Silent from it is a silent one."""
        try:
            outcome = judge()
        except Silent as error:
            outcome = "silent"
            self.silent.append(f"{what}: {error}")
        except Exception as error:
            outcome = "crash"
            self.crashes.append(f"{what}: {error!r}")
        self.outcomes[outcome] += 1

    def text(self) -> str:
        """What was measured, and the first of what went wrong."""
        wrong = f"{len(self.silent)} silent, {len(self.crashes)} crash"
        first = "".join(f"; {each}" for each in (self.silent + self.crashes)[:SHOWN])
        return wrong + first


# --- one file and its reader -------------------------------------------------------------------


class Judge:
    """Tells what one damage of a subject's file came to: refused or cut, or Silent."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._data = subject.path.read_bytes()
        self._truth = subject.read()
        self._ends = [part.end for part in samples.parts(self._data)] if subject.is_open else []

    def __call__(self, at: int) -> str:
        """Read the file, whose first wrong byte is at `at`."""
        try:
            found = self._subject.read()
        except mkv.CorruptionError as error:
            path, offset = str(self._subject.path), error.offset
            require(error.path == path, f"the error names {error.path}")
            size = max(len(self._data), self._subject.path.stat().st_size)
            require(offset is not None and 0 <= offset <= size, f"the error names byte {offset}")
            return "refused"
        except mkv.FormatVersionError:
            return "refused"
        require(self._subject.is_open, "it was read as if nothing had happened")
        self._check_prefix(found, at)
        return "cut"

    def _check_prefix(self, found: object, at: int) -> None:
        """An open log gives the calls before the damage, and tells where the tail begins."""
        assert isinstance(found, Log)
        assert isinstance(self._truth, Log)
        kept = sum(end <= at for end in self._ends)
        start = self._ends[kept - 1] if kept else HEADER_BYTES
        size = self._subject.path.stat().st_size
        require(len(found.calls) == kept, f"{len(found.calls)} calls, not {kept}")
        for call, expected in zip(found.calls, self._truth.calls, strict=False):
            require(comparable(call) == comparable(expected), "another call")
        told = None if found.torn is None else found.torn[:2]
        tail = None if size == start else (start, size - start)
        require(told == tail, f"the tail is {tail}, told was {told}")


def flipped(path: Path, places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Flip one bit after the other, each back again; yields byte and bit while it is wrong."""
    data = path.read_bytes()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for place in places:
            at, bit = divmod(place, 8)
            view[at] = data[at] ^ 1 << bit
            yield at, bit
            view[at] = data[at]
    assert path.read_bytes() == data


def flip_bits(subject: Subject, places: Iterable[int] | None = None) -> Tally:
    """Flip the bits at these places, all by default, one at a time, and read the file each time."""
    judge, tally = Judge(subject), Tally()
    places = range(8 * subject.path.stat().st_size) if places is None else places
    for at, bit in flipped(subject.path, places):
        tally.add(f"{subject.name}, byte {at}, bit {bit}", lambda at=at: judge(at))
    return tally


def cut_lengths(subject: Subject, sizes: Iterable[int] | None = None) -> Tally:
    """Cut the file to these sizes, all by default, and read it each time."""
    judge, tally = Judge(subject), Tally()
    data = subject.path.read_bytes()
    with subject.path.open("r+b", buffering=0) as file:
        for size in sorted(range(len(data)) if sizes is None else sizes, reverse=True):
            file.truncate(size)
            tally.add(f"{subject.name} of {size} bytes", lambda size=size: judge(size))
    subject.path.write_bytes(data)
    for more in (b"\0", bytes(4_096), data[HEADER_BYTES:], data):
        subject.path.write_bytes(data + more)
        what = f"{subject.name} with {len(more)} bytes more"
        tally.add(what, lambda: judge(len(data)))
    subject.path.write_bytes(data)
    return tally


def splice_records(subject: Subject, others: Sequence[bytes], step: int = 1) -> Tally:
    """Drop, double, swap and move records, and take some from other files, each way in turn.

    Parameters
    ----------
    others : sequence of bytes
        Whole files of the same framing: of another store, or of another type.
    step : int
        Take each record in turn, or one in so many.
    """
    judge, tally = Judge(subject), Tally()
    data = subject.path.read_bytes()
    for what, content in _spliced(data, others, step):
        if content != data:
            at = first_difference(data, content)
            subject.path.write_bytes(content)
            tally.add(f"{subject.name}: {what}", lambda at=at: judge(at))
    subject.path.write_bytes(data)
    return tally


def _spliced(data: bytes, others: Sequence[bytes], step: int) -> Iterator[tuple[str, bytes]]:
    head, own, dice = data[:HEADER_BYTES], _records(data), random.Random(0)

    def joined(records: Iterable[bytes], header: bytes = head) -> bytes:
        return header + b"".join(records)

    for index, record in list(enumerate(own))[::step]:
        before, after = own[:index], own[index + 1 :]
        yield f"record {index} left out", joined(before + after)
        yield f"record {index} twice", joined([*before, record, record, *after])
        yield f"record {index} once more at the end", joined([*own, record])
        rest, place = before + after, dice.randrange(len(own))
        yield f"record {index} moved to {place}", joined([*rest[:place], record, *rest[place:]])
        partner = dice.randrange(len(own))
        swapped = list(own)
        swapped[index], swapped[partner] = swapped[partner], swapped[index]
        yield f"records {index} and {partner} swapped", joined(swapped)
        for number, other in enumerate(others):
            theirs = _records(other)
            foreign = theirs[index % len(theirs)]
            yield f"record {index} of file {number}", joined([*before, foreign, *after])
            yield (
                f"a record of file {number} before {index}",
                joined([*before, foreign, *own[index:]]),
            )
    for number, other in enumerate(others):
        yield f"header of file {number}", joined(own, other[:HEADER_BYTES])
        yield f"records of file {number}", joined(_records(other))


def _records(data: bytes) -> list[bytes]:
    return [data[part.offset : part.end] for part in samples.parts(data)]


def first_difference(one: bytes, two: bytes) -> int:
    """Return the first place at which two contents differ, at the latest the shorter one's end."""
    size = min(len(one), len(two))
    differ = np.frombuffer(one, np.uint8, size) != np.frombuffer(two, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size


# --- a whole store -----------------------------------------------------------------------------


def everything(path: Path, ids: Any, mode: Any = "rw", **options: Any) -> object:
    """Open a store; return all that it holds, and whether it warned that something is lost."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = mkv.open(path, mode, clock=ManualClock(1_500_000_000.0), **OPTIONS, **options)
    with store:
        assert all(issubclass(each.category, mkv.DataLossWarning) for each in caught)
        tables = {}
        for name, table in sorted(store.tables.items()):
            state = {part: values.tobytes() for part, values in table.state(ids).items()}
            gate = store._state.tables[name].core.gate_state()
            rows = table.lookup(ids).tobytes(), table.timestamps(ids).tobytes()
            tables[name] = (len(table), rows, state, gate)
        dense = {name: values.tobytes() for name, values in store.dense.items()}
        held = (tables, dense, dict(store.cursor), store.sequence, store._state.tables_json())
        return held, bool(store.stats()["lost"])


class Opened:
    """Opens copies of one store with one damage each, and compares with what it has to hold."""

    def __init__(self, store: Path, before_last: Path, ids: Any, scratch: Path) -> None:
        self._store, self._ids, self._copy = store, ids[:600], scratch / "copy"
        # Opened where they do not matter: an open for writing leaves a new epoch.
        self._truth = self._held(store, "rw")[0]
        self._without_last = self._held(before_last, "rw")[0]

    def _held(self, source: Path, mode: Any) -> Any:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(source, self._copy)
        return everything(self._copy, self._ids, mode)

    def check(self, path: Path, content: bytes, mode: Any) -> str:
        """Open the store with `content` in place of the file at `path`."""
        good = path.read_bytes()
        path.write_bytes(content)
        try:
            held, is_lost = self._held(self._store, mode)
        except EXPECTED as error:
            name = str(path.relative_to(self._store))
            require(name in str(error), f"{error} names another file than {name}")
            return "refused"
        finally:
            path.write_bytes(good)
        if held == self._truth:
            return "same state"
        require(held == self._without_last, "another state")
        require(is_lost or mode == "r", "the last call is missing, and nothing was said")
        return "last call cut"


def files_of(store: Path) -> list[Path]:
    """Return the files of a store that have content."""
    return sorted(p for p in store.rglob("*") if p.is_file() and p.stat().st_size)


def open_stores(stores: Stores, scratch: Path, count: int, seed: int) -> Tally:
    """Flip `count` bits of each file of a store and cut it `count` / 4 times; open it each time."""
    dice, tally = random.Random(seed), Tally()
    opened = Opened(stores.main, stores.before_last, stores.ids, scratch)
    for path in files_of(stores.main):
        data, name = path.read_bytes(), str(path.relative_to(stores.main))
        for index, at in enumerate(sampled(data, count, dice)):
            wrong = bytearray(data)
            wrong[at] ^= 1 << dice.randrange(8)
            mode = "r" if index % 4 == 3 else "rw"
            what = f"{name}, byte {at}, opened {mode}"
            tally.add(what, lambda w=wrong, p=path, m=mode: opened.check(p, bytes(w), m))
        if path.suffix == ".calls":
            continue  # An open log that is cut is a shorter log: see cut_lengths.
        for size in sorted(dice.sample(range(len(data)), min(len(data), count // 4))):
            what = f"{name} of {size} bytes"
            tally.add(what, lambda s=size, p=path, d=data: opened.check(p, d[:s], "rw"))
    return tally


def sampled(data: bytes, count: int, dice: random.Random) -> list[int]:
    """Return places in each region of a file: its header, headers of records, payloads, its end."""
    regions: list[Sequence[int]] = [
        range(HEADER_BYTES),
        range(max(0, len(data) - 256), len(data)),
        range(len(data)),
    ]
    if data[1:4] == b"MKV":
        starts = [part.offset for part in samples.parts(data)]
        fields = [range(start, start + RECORD_HEADER_BYTES) for start in starts]
        regions.append(list(itertools.chain.from_iterable(fields)))
    turns = itertools.islice(itertools.cycle(regions), count)
    places = [dice.choice(region[: len(data)]) for region in turns]
    return [min(place, len(data) - 1) for place in places]


def follow_targets(stores: Stores, scratch: Path, count: int, seed: int) -> Tally:
    """Flip bits of a target's catalogue; no replica may follow it then."""
    dice, tally = random.Random(seed), Tally()
    path = stores.target / "PUBLISHED"

    def follow() -> str:
        try:
            with Follower(stores.target, scratch / "replica", delta_interval=None) as follower:
                follower.run_once()
        except EXPECTED as error:
            require(path.name in str(error), f"{error} names another file")
            return "refused"
        raise Silent("a replica followed a damaged catalogue")

    places = dice.sample(range(8 * path.stat().st_size), count)
    for at, bit in flipped(path, places):
        tally.add(f"target catalogue, byte {at}, bit {bit}", follow)
    return tally


# --- the figures -------------------------------------------------------------------------------


def figure(what: str, tally: Tally, begun: float, detail: str = "") -> Figure:
    """Return one line of the table."""
    measured = f"{detail}{tally.text()}"
    return Figure(what, measured, GOAL, tally.is_clean, time.perf_counter() - begun)


def measure(full: bool) -> Iterator[Figure]:
    """Yield the figures: of all positions, or in small of a sample."""
    folder = Path(tempfile.mkdtemp(prefix="mkv-damage-", dir=FAST_FOLDER))
    try:
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        stores, strangers = make_stores(folder / "one"), make_stores(folder / "two", seed=2)
        subjects = subjects_of(stores)
        for subject in subjects:
            yield _flip_figure(subject, full)
        yield _cut_figure(subjects, full)
        yield _splice_figure(subjects, subjects_of(strangers), 1 if full else 7)
        begun, count = time.perf_counter(), 1_000 if full else 12
        tally = open_stores(stores, folder, count, seed=3)
        detail = ", ".join(f"{n:,} {what}" for what, n in sorted(tally.outcomes.items())) + ": "
        yield figure("whole stores opened with a damaged file", tally, begun, detail)
        begun = time.perf_counter()
        tally = follow_targets(stores, folder, count, seed=4)
        yield figure(
            "targets followed with a damaged catalogue", tally, begun, f"{tally.tried:,}: "
        )
        yield from overflow_rot.measure(full)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flip_figure(subject: Subject, full: bool) -> Figure:
    begun, bits = time.perf_counter(), 8 * subject.path.stat().st_size
    places = range(0, bits, 1 if full else SMALL_STEP)
    tally = flip_bits(subject, places)
    cut = tally.outcomes["cut"]
    detail = f"{tally.tried:,} of {bits:,}, {f'{cut:,} in a tail that is cut, ' if cut else ''}"
    return figure(f"bits flipped, {subject.name}", tally, begun, detail)


def _cut_figure(subjects: Sequence[Subject], full: bool) -> Figure:
    begun, total = time.perf_counter(), Tally()
    for subject in subjects:
        sizes = range(0, subject.path.stat().st_size, 1 if full else SMALL_STEP)
        add(total, cut_lengths(subject, sizes))
    return figure(f"lengths cut, {len(subjects)} types", total, begun, f"{total.tried:,}: ")


def _splice_figure(subjects: Sequence[Subject], strangers: Sequence[Subject], step: int) -> Figure:
    """Splice each file with its counterpart of another store and with others of its own store."""
    begun, total = time.perf_counter(), Tally()
    framed = [(s, t) for s, t in zip(subjects, strangers, strict=True) if "dense" not in s.name]
    contents = [subject.path.read_bytes() for subject, _ in framed]
    for index, (subject, stranger) in enumerate(framed):
        others = [stranger.path.read_bytes()]
        # Both logs are the same one, and so not foreign to each other.
        others += [c for c in contents if c[:HEADER_BYTES] != contents[index][:HEADER_BYTES]]
        add(total, splice_records(subject, others, step))
    return figure(f"records spliced, {len(framed)} types", total, begun, f"{total.tried:,}: ")


def add(total: Tally, tally: Tally) -> None:
    """Add one tally to another."""
    total.outcomes += tally.outcomes
    total.silent += tally.silent
    total.crashes += tally.crashes
