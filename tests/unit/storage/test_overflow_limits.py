"""How large the overflow tier may be: its limit, its files, what is given back."""

import resource
from pathlib import Path

import numpy as np
import pytest
from tier_bed import Bed, random_fids, rows_of

import monolith_kv as mkv
from monolith_kv.storage import overflow, row_files
from monolith_kv.storage.format import PLACE_SUM_BYTES


def test_a_batch_past_the_limit_is_refused_whole_and_the_rest_goes_on(folder: Path) -> None:
    bed = Bed(folder, 2 << 20)
    fids = random_fids(60_000)
    kept, full = 0, ""
    while not full:
        try:
            bed.put(fids[kept : kept + 500])
            kept += 500
        except mkv.StoreFullError as error:
            full = str(error)
    assert "raise overflow_limit or memory_limit" in full
    assert kept > 20_000
    assert bed.tier.rows == kept
    assert bed.tier.bytes <= 2 << 20
    assert bed.holds(fids[:kept])
    # A full tier can still be emptied, and is then of use again.
    bed.forget(fids[: kept - 10])
    bed.put(fids[:1000])
    assert bed.tier.rows == 1010
    bed.tier.close()


def test_the_limit_holds_however_often_rows_come_and_go(folder: Path) -> None:
    limit = 2 << 20
    bed = Bed(folder, limit)
    fids = random_fids(12_000)
    rng = np.random.default_rng(2)
    for cycle in range(40):
        chosen = fids if cycle == 0 else np.sort(rng.choice(fids, 3_000, replace=False))
        bed.put(chosen, 0.0)
        assert bed.tier.bytes <= limit
        taken = sum(path.stat().st_size for path in (folder / "overflow").iterdir())
        assert taken <= limit
    assert bed.tier.written_bytes > 3 * limit
    assert bed.holds(fids)
    bed.tier.close()


def test_small_files_of_many_tables_are_emptied_where_room_is_short(folder: Path) -> None:
    bed = Bed(folder, 1 << 20)
    fids = random_fids(20_000)
    for table in range(2, 14):
        bed.put(fids[:600], table=table)
        bed.forget(fids[:599], table=table)
    assert bed.tier.dead_bytes > 400 << 10
    kept, is_full = 0, False
    while not is_full:
        try:
            bed.put(fids[kept : kept + 500])
            kept += 500
        except mkv.StoreFullError:
            is_full = True
    live = kept * (bed.core().record_bytes + PLACE_SUM_BYTES)
    assert live > 800 << 10
    assert bed.tier.bytes <= 1 << 20
    assert bed.holds(fids[:kept])
    assert all(bed.holds(fids[599:600], table=table) for table in range(2, 14))
    bed.tier.close()


def test_files_with_many_dead_places_are_emptied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 64 << 10)
    bed = Bed(folder)
    fids = random_fids(20_000)
    bed.put(fids)
    rng = np.random.default_rng(2)
    for _ in range(100):
        bed.put(rng.choice(fids, 1_000, replace=False))
    record = bed.core().record_bytes
    assert bed.tier.bytes <= 1.35 * record * bed.tier.rows
    assert bed.tier.written_bytes <= 3.2 * record * (20_000 + 100_000)
    assert bed.holds(fids)
    bed.tier.close()


def test_the_only_file_of_a_small_table_is_emptied_too(bed: Bed) -> None:
    fids = random_fids(30_000)
    bed.put(fids)
    rng = np.random.default_rng(3)
    for _ in range(60):
        bed.put(rng.choice(fids, 1_000, replace=False))
    assert bed.tier.bytes <= 1.35 * bed.core().record_bytes * bed.tier.rows
    assert bed.holds(fids)
    assert bed.core().check() == []


def test_a_table_with_as_many_files_as_it_can_have_is_full(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 1 << 10)  # 16 places a file.
    monkeypatch.setattr(row_files, "FILES_MAX", 4)
    fids = np.arange(100, dtype=np.uint64)
    bed.put(fids[:48])
    with pytest.raises(mkv.StoreFullError, match="3 files of rows"):
        bed.put(fids[48:49])
    assert bed.holds(fids[:48])
    bed.forget(fids[:16])
    bed.tier.shrink()
    bed.put(fids[60:76])
    assert bed.holds(np.concatenate([fids[16:48], fids[60:76]]))


def test_a_full_disk_is_store_full_and_changes_nothing(bed: Bed) -> None:
    fids = random_fids(20_000)
    bed.put(fids[:100])
    bed.core().upsert(fids[100:], rows_of(fids[100:], 0.0), 1_000.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
    try:
        with pytest.raises(mkv.StoreFullError):
            bed.evict(fids[100:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bed.tier.rows == 100
    bed.evict(fids[100:])
    assert bed.tier.rows == 20_000
    assert bed.holds(fids)


def test_disk_is_given_back_when_most_of_it_is_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 256 << 10)
    bed = Bed(folder)
    fids = np.sort(random_fids(50_000))
    bed.put(fids)
    full = bed.tier.bytes
    assert bed.tier.shrink() == 0
    bed.forget(fids[1000:])
    assert bed.tier.shrink() > 0.8 * full
    assert bed.tier.bytes == sum(p.stat().st_size for p in (folder / "overflow").iterdir())
    assert bed.holds(fids[:1000])
    bed.put(fids)
    assert bed.tier.rows == 50_000
    bed.tier.close()


def test_a_row_that_was_written_and_not_evicted_stays_in_memory(bed: Bed) -> None:
    fids = random_fids(100)
    core = bed.core()
    core.upsert(fids, rows_of(fids, 0.0), 1_000.0)
    records = core.pack(fids)[0].reshape(-1, core.record_bytes)
    places = bed.tier.write(1, core, records)
    bed.tier.shrink()  # Its file is waited for.
    core.evict(records[:50].reshape(-1), places[:50])
    bed.tier.settle(1, places)
    assert bed.tier.rows == 50
    assert bed.holds(overflow.fids_of(records)[:50])
    assert core.check() == []


def test_a_row_is_moved_only_from_where_it_was_seen(bed: Bed) -> None:
    fids = np.arange(10, dtype=np.uint64)
    bed.put(np.array([99], np.uint64))  # Keeps the file, or its places would be given again.
    bed.put(fids)
    seen = bed.core().cold_rows_at(fids)
    bed.put(fids, 50.0)  # Came back, changed and left again, while others empty its old file.
    records = bed.core().checksummed(np.zeros(10 * bed.core().record_bytes, np.uint8), 0)
    places = bed.tier.write(1, bed.core(), records[:, :-4].copy())
    bed.core().relocate(fids, seen, places)
    bed.tier.settle(1, places)
    assert bed.holds(fids, 50.0)
    assert bed.core().check() == []
