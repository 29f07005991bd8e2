"""Restore from one snapshot: its file is taken over, read once, and checked to the last row."""

import errno
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checks import scanned

import monolith_kv as mkv
from monolith_kv._table import Barrier, TableCore
from monolith_kv.loading import PENDING_BYTES_MAX, Loader, read_ahead
from monolith_kv.schema import TableSchema, slices_of
from monolith_kv.state import NO_FIDS
from monolith_kv.storage import files, record_file, stream
from monolith_kv.storage.framing import decode_json
from monolith_kv.storage.record_file import RecordReader
from monolith_kv.storage.stream import File, Stream

ROWS, DIM = 6_000, 64  # More than a loader takes without a thread.
IDS = np.random.default_rng(3).integers(0, 2**64, ROWS, np.uint64)
OPTIONS: dict[str, Any] = {"delta_interval": None}


@pytest.fixture
def store(store_dir: Path) -> Iterator[mkv.Store]:
    with mkv.open(store_dir, **OPTIONS) as store:
        rng = np.random.default_rng(4)
        table = store.create_table("t", DIM, optimizer=mkv.Adagrad())
        table.upsert(IDS, rng.random((ROWS, DIM), np.float32))
        table.push(IDS, rng.normal(0, 1, (ROWS, DIM)).astype(np.float32))
        yield store


def snapshots(store: mkv.Store) -> list[Path]:
    return sorted(Path(store.path, "snapshots").iterdir())


# --- the file ----------------------------------------------------------------------------------


def test_a_restored_store_takes_the_file_over_and_keeps_it_when_the_source_goes(
    store: mkv.Store, folder: Path
) -> None:
    path = Path(store.snapshot(folder / "s.snapshot").path)
    content, digest = path.read_bytes(), store.digest()
    with mkv.restore(path, folder / "r", **OPTIONS) as copy:
        (own,) = snapshots(copy)
        assert own.read_bytes() == content
        path.unlink()
        assert (copy.digest(), copy.verify()) == (digest, [])
    with mkv.open(folder / "r", **OPTIONS) as copy:
        assert scanned(copy.table("t")) == scanned(store.table("t"))


def test_a_file_with_two_names_may_be_written_to_by_neither(store: mkv.Store, folder: Path) -> None:
    path = Path(store.snapshot(folder / "s.snapshot").path)
    mkv.restore(path, folder / "r", **OPTIONS).close()
    own = next(Path(folder, "r", "snapshots").iterdir())
    is_shared = own.stat().st_ino == path.stat().st_ino
    assert bool(path.stat().st_mode & 0o222) is not is_shared


@pytest.mark.parametrize("why", ["another file system", "of another user"])
def test_where_no_link_may_be_made_the_file_is_copied(
    store: mkv.Store, folder: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    path = Path(store.snapshot(folder / "s.snapshot").path)

    def refused(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if why == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    else:
        monkeypatch.setattr(files, "link_file", refused)
    with mkv.restore(path, folder / "r", **OPTIONS) as copy:
        (own,) = snapshots(copy)
        assert own.stat().st_ino != path.stat().st_ino
        assert own.read_bytes() == path.read_bytes()
    assert path.stat().st_mode & 0o200


def test_a_file_that_changes_while_it_is_restored_is_refused(
    store: mkv.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    store.table("t").remove(IDS[:9])
    other = store.snapshot(folder / "other.snapshot").path

    def swapped(source: str, target: str) -> None:
        files.copy_durably(other, target)

    monkeypatch.setattr("monolith_kv.restoring.adopt", swapped)
    with pytest.raises(mkv.CorruptionError, match=r"s.snapshot changed"):
        mkv.restore(path, folder / "r", **OPTIONS)
    assert not (folder / "r").exists()


# --- what is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0.3, 0.98])
def test_damage_behind_rows_that_were_loaded_leaves_nothing(
    store: mkv.Store, folder: Path, where: float
) -> None:
    path = Path(store.snapshot(folder / "s.snapshot").path)
    flip(path, int(path.stat().st_size * where))
    with pytest.raises(mkv.CorruptionError, match=r"s.snapshot at byte") as caught:
        mkv.restore(path, folder / "r", **OPTIONS)
    assert caught.value.path == str(path)
    assert path.stat().st_mode & 0o200
    assert sorted(each.name for each in folder.iterdir()) == ["s.snapshot", "store"]


def test_rows_of_a_damaged_snapshot_are_gone_when_the_one_before_is_taken(
    store: mkv.Store,
) -> None:
    store.seal()
    store.snapshot()
    store.table("t").remove(IDS[:5])
    store.seal()
    newest = store.snapshot()
    expected = scanned(store.table("t"))
    store.close()
    flip(Path(newest.path), int(newest.bytes * 0.98))
    with mkv.open(store.path, **OPTIONS) as again:
        assert scanned(again.table("t")) == expected


def test_rows_that_are_not_those_of_the_digest_are_refused(store: mkv.Store, folder: Path) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    forge_digest(path, folder / "forged")
    with pytest.raises(mkv.CorruptionError, match="digest"):
        mkv.restore(folder / "forged", folder / "r", **OPTIONS)
    assert not (folder / "r").exists()


def test_progress_counts_up_to_all_rows(store: mkv.Store, folder: Path) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    for limit in (None, "64MiB"):
        done, totals = [], []

        def progress(rows: int, total: int, done: Any = done, totals: Any = totals) -> None:
            done.append(rows)
            totals.append(total)

        to = folder / f"r-{limit}"
        mkv.restore(path, to, memory_limit=limit, progress=progress, **OPTIONS).close()
        assert done == sorted(done)
        assert (done[-1], set(totals)) == (ROWS, {ROWS})


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x04
    path.chmod(0o600)
    path.write_bytes(data)


def forge_digest(source: str, target: Path) -> None:
    """Write the records of a snapshot anew, with the end of another one."""
    reader = RecordReader(source)
    identity, kind = reader.header.identity, reader.header.file_type
    with record_file.RecordWriter(str(target), kind, identity) as writer:
        for record in reader:
            writer.append(record.kind, record.payload, record.table, record.count)
        end = dict(decode_json(reader._end.payload, source, 0))
        writer.publish({**end, "digest": "0" * 32})


# --- its parts ---------------------------------------------------------------------------------


def test_what_was_read_stays_as_it_is_while_somebody_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_BYTES", 100)
    data = np.random.default_rng(5).bytes(1000)
    (folder / "a").write_bytes(data)
    source = Stream(File(str(folder / "a")))
    held = [(start, np.frombuffer(source.view(start, 30), np.uint8)) for start in range(0, 960, 70)]
    for start, view in held:
        assert view.tobytes() == data[start : start + 30]
    assert bytes(source.view(990, 30)) == data[990:]


def test_memory_of_a_window_that_nobody_looks_at_serves_a_later_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_BYTES", 100)
    (folder / "a").write_bytes(bytes(1000))
    source = Stream(File(str(folder / "a")))
    places = {
        np.frombuffer(source.view(start, 30), np.uint8).ctypes.data for start in range(0, 900, 100)
    }
    assert len(places) == 2


def test_no_byte_is_read_twice_from_front_to_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_BYTES", 100)
    data = np.random.default_rng(5).bytes(1000)
    (folder / "a").write_bytes(data)
    source, read = Stream(File(str(folder / "a"))), []
    preadv = os.preadv

    def counted(*args: Any) -> int:
        read.append(preadv(*args))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    assert b"".join(bytes(source.view(at, 30)) for at in range(0, 1000, 30)) == data
    assert sum(read) == 1000


def test_a_stream_reads_what_is_there_however_it_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(5).bytes(5_000)
    (folder / "a").write_bytes(data)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(stream, "WINDOW_BYTES", int(rng.choice([50, 100, 300])))
        source, at, held = Stream(File(str(folder / "a"))), 0, []
        for _ in range(40):
            size = int(rng.choice([5, 30, 90, 250, 900]))
            held.append((data[at : at + size], source.view(at, size)))
            step = rng.random()
            at = int(rng.integers(0, 5_100)) if step < 0.1 else at + size * (step < 0.8)
        for expected, view in held:
            assert bytes(view) == expected


@pytest.mark.skipif(not stream.UNCACHED, reason="the system has no reads that leave no cache")
@pytest.mark.parametrize("is_refused", [False, True])
def test_of_a_large_file_no_cache_is_kept_where_the_system_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    asked: list[int] = []
    preadv = os.preadv

    def read(fd: int, views: list[memoryview], at: int, flags: int = 0) -> int:
        asked.append(flags)
        if is_refused and flags:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(fd, views, at)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(stream, "UNCACHED_BYTES_MIN", 1000)
    for name, size in (("small", 999), ("large", 1000)):
        data = np.random.default_rng(5).bytes(size)
        (folder / name).write_bytes(data)
        file = File(str(folder / name))
        assert bytes(file.view(0, size)) == data
        assert bytes(file.view(10, 20)) == data[10:30]
    with_cache = [0, 0]
    uncached = [stream.UNCACHED, 0, 0] if is_refused else [stream.UNCACHED] * 2
    assert asked == with_cache + uncached


def test_an_error_of_the_disk_is_not_taken_for_a_refusal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(fd: int, views: list[memoryview], at: int, flags: int = 0) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(stream, "UNCACHED_BYTES_MIN", 1)
    (folder / "a").write_bytes(bytes(10))
    file = File(str(folder / "a"))
    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.view(0, 10)


def test_a_loader_passes_on_what_its_threads_fail_at() -> None:
    def apply(records: Any, removed: Any) -> None:
        raise MemoryError("no memory for more rows")

    entry: Any = SimpleNamespace(core=SimpleNamespace(apply=apply))

    def load() -> None:
        with Loader() as loader:
            for _ in range(3):
                loader.add(entry, np.empty(1 << 20, np.uint8))

    with pytest.raises(MemoryError):
        load()


def test_what_waits_to_be_loaded_is_bounded() -> None:
    gate, waiting, most = threading.Event(), [0], [0]

    def apply(records: Any, removed: Any) -> None:
        gate.wait(10)
        waiting[0] -= records.nbytes

    entry: Any = SimpleNamespace(core=SimpleNamespace(apply=apply))
    part = np.empty(2 << 20, np.uint8)

    def add() -> None:
        with Loader() as loader:
            for _ in range(16):
                waiting[0] += part.nbytes
                loader.add(entry, part)
                most[0] = max(most[0], waiting[0])
                if most[0] >= PENDING_BYTES_MAX:
                    gate.set()  # From here on nothing but room lets it go on.

    thread = threading.Thread(target=add)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert most[0] <= PENDING_BYTES_MAX


def test_what_is_read_ahead_comes_in_order_and_its_error_behind_it() -> None:
    def broken() -> Iterator[int]:
        yield from range(100)
        raise mkv.CorruptionError("a.calls at byte 9: broken")

    with read_ahead(range(100)) as numbers:
        assert list(numbers) == list(range(100))
    seen: list[int] = []
    with pytest.raises(mkv.CorruptionError, match="broken"), read_ahead(broken()) as numbers:
        seen.extend(numbers)
    assert seen == list(range(100))


def test_a_reader_that_goes_leaves_no_thread_behind() -> None:
    with pytest.raises(ZeroDivisionError), read_ahead(itertools.count(1)) as numbers:
        assert next(numbers) // 0
    assert not [t for t in threading.enumerate() if t.name == "monolith-kv-read"]


def empty_core() -> TableCore:
    slices, named = slices_of(2, None, None)
    return TableCore(Barrier(), TableSchema("t", slices, named).core_slices(), 0)


def records_of(core: TableCore, fids: Any) -> Any:
    width = core.dim + core.state_floats
    dtype = np.dtype([("fid", "<u8"), ("timestamp", "<i8"), ("row", "<f4", (width,))])
    records = np.zeros(len(fids), dtype)
    records["fid"] = fids
    records["row"] = np.arange(len(fids))[:, None]
    return records


def test_of_records_of_one_id_in_one_batch_the_last_counts() -> None:
    core = empty_core()
    records = records_of(core, np.arange(600) % 200)
    core.apply(records.view(np.uint8), NO_FIDS)
    out = np.empty((200, 2), np.float32)
    core.lookup(np.arange(200, dtype=np.uint64), out)
    assert core.rows == 200
    assert np.array_equal(out, records["row"][400:, :2])
    assert core.check() == []


# --- memory made ready -------------------------------------------------------------------------

MANY = 60_000  # Several segments of the index in each shard.


@pytest.mark.parametrize("announced", [0, 1, MANY // 2, MANY, 20 * MANY])
@pytest.mark.parametrize("present", [0, MANY // 3])
def test_rows_are_loaded_whatever_number_was_announced(announced: int, present: int) -> None:
    core, plain = empty_core(), empty_core()
    records = records_of(core, np.random.default_rng(9).integers(0, 2**64, MANY, np.uint64))
    core.apply(records[:present].view(np.uint8), NO_FIDS)
    core.expect(announced)
    for each in (core, plain):
        each.apply(records.view(np.uint8), NO_FIDS)
    assert core.check() == []
    assert (core.rows, core.digest()) == (MANY, plain.digest())


def test_an_index_that_knows_what_comes_has_room_for_just_that() -> None:
    core, plain = empty_core(), empty_core()
    records = records_of(core, np.random.default_rng(9).integers(0, 2**64, MANY, np.uint64))
    core.expect(MANY)
    announced = core.memory()["index"]
    core.apply(records[: MANY // 2].view(np.uint8), NO_FIDS)
    made = core.memory()["index"]
    for each in (core, plain):
        each.apply(records.view(np.uint8), NO_FIDS)
    assert core.memory()["index"] == made
    assert announced < made // 10  # Room is made by who uses it.
    assert made <= 1.25 * plain.memory()["index"]


def test_what_was_announced_is_forgotten_once_it_is_there() -> None:
    core, plain = empty_core(), empty_core()
    ids = np.random.default_rng(9).integers(0, 2**64, 3 * MANY, np.uint64)
    records = records_of(core, ids)
    core.expect(MANY)
    for start in range(0, len(ids), MANY // 10):
        for each in (core, plain):
            each.apply(records[start : start + MANY // 10].view(np.uint8), NO_FIDS)
        if start > MANY:
            assert core.memory()["index"] <= 1.05 * plain.memory()["index"]


def test_what_was_announced_is_forgotten_once_rows_have_gone() -> None:
    core, plain = empty_core(), empty_core()
    ids = np.random.default_rng(9).integers(0, 2**64, MANY, np.uint64)
    records = records_of(core, ids)
    core.expect(MANY)
    for each in (core, plain):
        each.apply(records.view(np.uint8), NO_FIDS)
        each.apply(records[:0].view(np.uint8), ids[MANY // 20 :])
        cursor = 0
        while cursor >= 0:
            _, cursor = each.shrink(cursor)
        each.apply(records[-MANY // 100 :].view(np.uint8), NO_FIDS)
    assert core.memory()["index"] <= 1.2 * plain.memory()["index"]


def test_a_restored_table_knew_what_came(
    store: mkv.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    told: list[int] = []

    class Told(TableCore):
        def expect(self, rows: int, cold_rows: int = 0) -> None:
            told.append(rows)
            super().expect(rows, cold_rows)

    monkeypatch.setattr("monolith_kv.state.TableCore", Told)
    with mkv.restore(path, folder / "r", **OPTIONS) as copy:
        assert (told, copy.digest()) == ([ROWS], store.digest())
