"""The overflow tier over a real table: rows out, back and read; damage, forks, threads."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import spoil_rows
from hypothesis import given
from hypothesis import strategies as st
from tier_bed import Bed, random_fids, rows_of

import monolith_kv as mkv
from monolith_kv.budget import fill_cold
from monolith_kv.storage import overflow
from monolith_kv.storage.format import PLACE_SUM_BYTES
from monolith_kv.storage.overflow import OverflowTier


def test_records_come_back_in_the_order_asked_for(bed: Bed) -> None:
    fids = np.concatenate([random_fids(1000), np.array([0, 1, 2**64 - 1], np.uint64)])
    bed.put(fids)
    asked = np.concatenate([fids[::-1], random_fids(100, seed=1), fids[:5]])
    found, positions = bed.get(asked)
    assert len(found) == 1008 == len(positions)
    assert (np.diff(positions) > 0).all()
    assert np.array_equal(found, rows_of(asked[positions], 0.0))
    assert (bed.tier.rows, bed.tier.corrupt) == (1003, 0)


def test_what_is_not_in_the_page_cache_is_read_all_the_same(bed: Bed, folder: Path) -> None:
    fids = random_fids(3_000)
    bed.put(fids)
    for path in (folder / "overflow").iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    assert bed.holds(fids[::-1].copy())


def test_tables_are_kept_apart(bed: Bed) -> None:
    fids = np.arange(10, dtype=np.uint64)
    bed.put(fids)
    bed.put(fids, 100.0, table=2)
    assert len(bed.get(fids, 3)[0]) == 0
    bed.tier.forget_table(1)
    assert bed.holds(fids, 100.0, table=2)
    assert bed.tier.rows == 10
    bed.tier.forget_table(7)


def test_a_row_that_has_left_memory_does_not_leave_again(bed: Bed) -> None:
    fids = random_fids(300)
    core = bed.core()
    core.upsert(fids, rows_of(fids, 0.0), 1_000.0)
    records = core.pack(fids)[0].reshape(len(fids), -1)
    places = bed.tier.write(1, core, records)
    twice = np.concatenate([records, records]).reshape(-1)
    core.evict(twice, np.concatenate([places, places[::-1]]))
    core.evict(records.reshape(-1), places[::-1].copy())
    bed.tier.settle(1, places)
    assert bed.holds(fids)
    assert (bed.tier.rows, core.rows, core.check()) == (300, 300, [])


def test_a_row_that_comes_back_leaves_and_returns_with_its_latest_values(bed: Bed) -> None:
    fids = np.arange(5, dtype=np.uint64)
    bed.put(fids)
    bed.put(fids[:2], 50.0)
    assert bed.holds(fids[:2], 50.0)
    assert bed.holds(fids[2:])
    assert bed.tier.rows == 5
    assert bed.core().check() == []


def test_empty_batches_are_fine(bed: Bed) -> None:
    none = np.empty(0, np.uint64)
    bed.put(none)
    assert len(bed.get(none)[0]) == 0
    assert len(bed.get(random_fids(3))[0]) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "forget", "promote", "shrink"]),
            st.sets(st.integers(0, 60), max_size=25),
        ),
        max_size=25,
    )
)
def test_it_holds_what_a_dict_holds(steps: list[Any]) -> None:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "."
    os.makedirs(path := f"{base}/mkv-overflow-{os.getpid()}", exist_ok=True)
    small = pytest.MonkeyPatch()
    small.setattr(overflow, "FILE_BYTES_MAX", 1 << 10)  # 16 places a file.
    bed = Bed(path)
    try:
        model: dict[int, float] = {}
        in_memory: set[int] = set()
        for number, (step, chosen) in enumerate(steps):
            fids = np.array(sorted(chosen), np.uint64)
            if step == "put":
                bed.put(fids, 1_000.0 * number)
                model.update(dict.fromkeys(map(int, fids), 1_000.0 * number))
                in_memory -= set(map(int, fids))
            elif step == "forget":
                bed.forget(fids)
                for fid in map(int, fids):
                    model.pop(fid, None)
            elif step == "promote":
                bed.promote(fids)
                in_memory |= set(map(int, fids)) & set(model)
            else:
                bed.tier.shrink()
            in_memory &= set(model)
            asked = np.array(sorted(model), np.uint64)
            found, positions = bed.get(asked)
            assert set(map(int, asked[positions])) == set(model) - in_memory
            for fid, row in zip(asked[positions], found, strict=True):
                assert row[0] == int(fid) + model[int(fid)]
            assert bed.tier.rows == len(model) - len(in_memory)
            assert bed.core().check() == []
    finally:
        small.undo()
        bed.tier.close()
        os.rmdir(path)


# --- damage --------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_record_is_counted_and_left_out(bed: Bed) -> None:
    fids = np.array([3, 4], np.uint64)
    bed.put(fids)
    size = bed.core().record_bytes + PLACE_SUM_BYTES
    for bit in range(8 * size):
        spoil_rows(bed.tier, bed.core(), fids[:1], bit)
        found, positions = bed.get(fids)
        assert positions.tolist() == [1]
        assert np.array_equal(found, rows_of(fids[1:], 0.0))
        assert bed.tier.corrupt == bit + 1
        spoil_rows(bed.tier, bed.core(), fids[:1], bit)
    assert bed.holds(fids)


def test_a_good_record_in_the_place_of_another_is_left_out(bed: Bed) -> None:
    fids = np.array([3, 4], np.uint64)
    bed.put(fids)
    core = bed.core()
    first, second = core.cold_rows_at(fids)
    core.relocate(fids[:1], np.array([first]), np.array([second & 0x7FFFFFFF], np.uint32))
    assert bed.get(fids)[1].tolist() == [1]
    assert bed.tier.corrupt == 1


def test_a_file_with_a_damaged_record_is_not_thrown_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 16 << 10)
    bed = Bed(folder)
    fids = np.sort(random_fids(2_000))
    bed.put(fids)
    spoil_rows(bed.tier, bed.core(), fids[:1], 200)
    bed.forget(fids[1:1_900])
    bed.tier.shrink()
    assert bed.holds(fids[1_900:])
    assert bed.core().cold(fids[:1]).tolist() == fids[:1].tolist()
    assert bed.tier.dead_bytes <= overflow.DEAD_SHARE_MAX * bed.tier.bytes
    spoil_rows(bed.tier, bed.core(), fids[:1], 200)
    assert bed.holds(fids[:1])
    bed.tier.close()


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_emptied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 16 << 10)
    bed = Bed(folder)
    fids = np.sort(random_fids(4_000))
    bed.put(fids)
    bed.forget(fids[::2].copy())
    full, read, first = bed.tier.bytes, os.preadv, []

    def broken(fd: int, buffers: Any, offset: int) -> int:
        first.append(fd)
        if fd == first[0]:
            raise OSError(5, "broken")
        return read(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        assert bed.tier.shrink() > full / 4
    assert bed.holds(fids[1::2].copy())
    bed.tier.close()


# --- life ----------------------------------------------------------------------------------


def test_a_new_tier_is_empty_whatever_was_there(folder: Path) -> None:
    bed = Bed(folder)
    fids = np.arange(2, dtype=np.uint64)
    bed.put(fids)
    path = folder / "overflow"
    (name,) = os.listdir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / name).stat().st_mode & 0o777 == 0o600
    data = (path / name).read_bytes()
    bed.tier.close()
    assert not path.exists()
    bed.tier.close()
    path.mkdir()
    (path / name).write_bytes(data)
    again = OverflowTier(str(path), None)
    assert os.listdir(path) == []
    again.close()
    with pytest.raises(mkv.ClosedError):
        again.read(bed.core(), fids)


def test_a_table_that_was_dropped_takes_no_records(bed: Bed) -> None:
    fids = random_fids(100)
    bed.put(fids)
    bed.promote(fids[:10])
    records = bed.core().pack(fids[:10])[0].reshape(10, -1)
    bed.tier.forget_table(1)
    with pytest.raises(mkv.ClosedError, match="dropped"):
        bed.tier.write(1, bed.core(), records)
    assert bed.tier.bytes == 0


def test_cold_rows_of_a_store_that_is_closed_meanwhile_are_refused(folder: Path) -> None:
    ids = np.arange(2_000, dtype=np.uint64)
    store = mkv.open(folder / "s", memory_limit="64KiB", delta_interval=None)
    table = store.create_table("t", 64)
    table.upsert(ids, np.ones((2_000, 64), np.float32))
    state, entry = store._state, store._state.tables["t"]
    out = np.zeros((2_000, 64), np.float32)
    cold = entry.core.lookup(ids, out)  # As far as a lookup is when another thread closes.
    assert cold is not None
    store.close()
    with pytest.raises(mkv.ClosedError):
        fill_cold(state, entry, ids, cold, out)


def test_a_forked_child_is_refused_and_leaves_the_tier_alone(bed: Bed) -> None:
    fids = np.arange(2, dtype=np.uint64)
    bed.put(fids)
    core = bed.core()
    records = np.zeros((1, core.record_bytes), np.uint8)
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: bed.tier.read(core, fids),
            lambda: bed.tier.write(1, core, records),
            lambda: bed.tier.shrink(),
        ):
            try:
                call()
            except mkv.ForkedError:
                refused += 1
        bed.tier.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert bed.holds(fids)


def test_rows_are_read_while_others_move(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 16 << 10)
    bed = Bed(folder)
    fids = random_fids(4_000)
    bed.put(fids)
    stay, move = fids[:2_000], fids[2_000:]
    wrong: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            if not bed.holds(stay):
                wrong.append("a row that lies here was not found, or is another one's")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(60):
        bed.put(np.random.default_rng(seed).choice(move, 500, replace=False))
        bed.tier.shrink()
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bed.holds(fids)
    assert bed.core().check() == []
    bed.tier.close()
