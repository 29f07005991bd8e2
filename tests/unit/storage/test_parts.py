"""Rows of a snapshot in the overflow tier: they stay where they lie, until nobody else keeps it."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import open_files_in, spoil_rows
from tier_bed import Bed, new_core, random_fids, rows_of

import monolith_kv as mkv
from monolith_kv.storage import overflow, row_files
from monolith_kv.storage.format import PLACE_SUM_BYTES
from monolith_kv.storage.overflow import OverflowTier

LIMIT = 1 << 20  # Of a tier whose files have 64 KiB.


@pytest.fixture
def bed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 2 << 10)  # 16 places a file, or a part.
    bed = Bed(folder)
    yield bed
    bed.tier.close()


def do(jobs: list[Any]) -> None:
    for job in jobs:
        job()


def is_open(disk: Any) -> bool:
    """Whether the tier has the file open still; it is the only one of that name."""
    return bool(open_files_in(disk.path))


def test_rows_that_are_taken_are_read_where_they_lie(bed: Bed, folder: Path) -> None:
    fids = random_fids(200)
    do(bed.take(folder / "a", fids[:150], fids[150:])[1])
    assert len(bed.parts()) == 14
    assert bed.holds(fids[::-1].copy())
    other = new_core(1)
    other.upsert(fids, rows_of(fids, 0.0), 1_000.0)
    assert bed.core().digest() == other.digest()
    assert (bed.tier.written_bytes, bed.tier.rows) == (0, 200)
    assert bed.core().check() == []


def test_a_part_whose_rows_have_not_come_yet_is_kept_though_nobody_else_keeps_its_file(
    bed: Bed, folder: Path
) -> None:
    fids = random_fids(200)
    _, jobs = bed.take(folder / "a", fids)
    (folder / "a").unlink()
    for job in jobs:
        bed.tier.shrink()
        job()
    assert bed.holds(fids)
    bed.tier.shrink()
    assert bed.parts() == []
    assert bed.holds(fids)


def test_a_file_without_a_name_is_emptied_in_portions(
    bed: Bed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fids = random_fids(1_600)
    do(bed.take(folder / "a", fids)[1])
    (folder / "a").unlink()
    size = bed.core().record_bytes + PLACE_SUM_BYTES
    monkeypatch.setattr(overflow, "SHRINK_BYTES", 10 * 16 * size)
    bed.tier.shrink()
    assert len(bed.parts()) == 90
    bed.put(random_fids(40, seed=1))  # Four times as much: ten more.
    assert len(bed.parts()) == 80
    assert bed.holds(fids)


def test_memory_for_places_is_counted(bed: Bed, folder: Path) -> None:
    fids = random_fids(160)
    bed.core().upsert(fids, rows_of(fids, 0.0), 1_000.0)
    bed.core().remove(fids)  # The index has grown.
    before = sum(bed.core().memory().values())
    do(bed.take(folder / "a", fids)[1])
    after = sum(bed.core().memory().values())
    assert after - before >= 8 * len(fids)


def test_times_that_no_row_can_have_are_those_of_rows_that_are_read() -> None:
    times = np.array([-(2**63), -1, 0, 1_000, 2**40, 2**63 - 1], np.int64)
    fids = random_fids(len(times))
    rows = np.zeros((len(times), new_core(1).record_bytes), np.uint8)
    rows[:, :16] = np.stack([fids, times.view(np.uint64)], axis=1).view(np.uint8)
    other = new_core(1)
    other.apply(rows.reshape(-1), random_fids(0))
    cold = new_core(1)
    cold.begin_overflow(4)
    cold.add_row_file(0, -1, 0, 0, len(times))
    cold.enter_cold(fids, times, 0, *other.digest_of(rows.reshape(-1)))
    found = np.empty((2, len(times)), np.int64)
    for core, out in zip((cold, other), found, strict=True):
        core.timestamps(fids, out)
    assert np.array_equal(*found)


def test_a_part_whose_rows_have_not_come_yet_is_kept(bed: Bed, folder: Path) -> None:
    fids = random_fids(200)
    _, jobs = bed.take(folder / "a", fids)
    for job in jobs:
        for _ in bed.parts():
            bed.tier.shrink()
        job()
    assert bed.holds(fids)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_a_file_without_a_name_is_let_go_at_once_when_its_rows_have_moved(
    bed: Bed, folder: Path, count: int
) -> None:
    fids = random_fids(16 * count)
    disk, jobs = bed.take(folder / "a", fids)
    do(jobs)
    (folder / "a").unlink()
    bed.tier.shrink()
    assert (bed.parts(), is_open(disk)) == ([], False)
    assert bed.tier.bytes == sum(p.stat().st_size for p in (folder / "overflow").iterdir())
    assert bed.holds(fids)
    assert bed.core().check() == []


def test_only_rows_are_counted_in_a_file_that_is_not_the_tiers_own(bed: Bed, folder: Path) -> None:
    fids = random_fids(160)
    do(bed.take(folder / "a", fids)[1])
    size = bed.core().record_bytes + 4
    bed.promote(fids[:40])
    assert (bed.tier.bytes, bed.tier.dead_bytes) == (120 * size, 0)
    bed.tier.shrink()
    assert bed.tier.written_bytes == 0


def test_a_file_with_a_name_outlives_its_rows(bed: Bed, folder: Path) -> None:
    fids = random_fids(40)
    disk, jobs = bed.take(folder / "a", fids)
    do(jobs)
    numbers = (bed.core().cold_rows_at(fids) & 0x7FFFFFFF) >> 4
    for gone in (bed.parts()[-1].number, None):
        bed.promote(fids if gone is None else fids[numbers == gone])
        for _ in range(4):
            bed.tier.shrink()
        assert len(bed.parts()) == (0 if gone is None else 2)
    assert not is_open(disk)
    assert (folder / "a").exists()


def test_a_damaged_row_keeps_its_part_and_no_other(bed: Bed, folder: Path) -> None:
    fids = random_fids(200)
    _, jobs = bed.take(folder / "a", fids)
    do(jobs)
    spoil_rows(bed.tier, bed.core(), fids[100:101])
    (folder / "a").rename(folder / "b")
    (folder / "b").unlink()
    bed.tier.shrink()
    bed.tier.shrink()
    assert len(bed.parts()) == 1
    assert bed.tier.rows == 200
    assert bed.holds(np.delete(fids, 100))


def test_numbers_of_parts_are_used_again_and_one_stays_free(
    bed: Bed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "FILES_MAX", 4)
    fids = random_fids(64)
    with pytest.raises(mkv.StoreFullError, match="3 files of rows"):
        bed.take(folder / "a", fids)
    bed.tier.begin_anew()
    bed.cores.clear()
    for name in "abc":
        do(bed.take(folder / name, fids[:48])[1])
        assert bed.holds(fids[:48])
        bed.forget(fids[:48])
        for _ in range(4):
            bed.tier.shrink()
        assert bed.parts() == []


def test_parts_of_all_tables_together_must_fit(folder: Path) -> None:
    bed = Bed(folder, LIMIT)
    fids = random_fids(9_000)
    do(bed.take(folder / "a", fids)[1])
    with pytest.raises(mkv.StoreFullError, match="raise overflow_limit"):
        bed.take(folder / "b", fids, table=2)
    bed.tier.close()


def test_rows_that_come_after_their_file_was_gone_through_can_be_emptied(folder: Path) -> None:
    bed = Bed(folder)
    fids = random_fids(30_000)
    core = bed.core()
    core.upsert(fids, rows_of(fids, 0.0), 1_000.0)
    records = core.pack(fids)[0].reshape(len(fids), -1)
    places = bed.tier.write(1, core, records)
    bed.tier.shrink()
    core.evict(records.reshape(-1), places)
    bed.tier.settle(1, places)
    full = bed.tier.bytes
    bed.forget(fids[1_000:])
    bed.tier.shrink()
    assert bed.tier.bytes < full / 10
    assert bed.holds(fids[:1_000])
    bed.tier.close()


def test_emptying_a_full_tier_stays_within_its_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed, write, most = Bed(folder, LIMIT), OverflowTier._write, [0]

    def watched(self: OverflowTier, *arguments: Any) -> None:
        write(self, *arguments)
        most.append(self.bytes)

    monkeypatch.setattr(OverflowTier, "_write", watched)
    fids = random_fids(20_000)
    kept = 0
    with contextlib.suppress(mkv.StoreFullError):
        while True:
            bed.put(fids[kept : kept + 100])
            kept += 100
    rng = np.random.default_rng(5)
    for _ in range(20):
        bed.put(rng.choice(fids[:kept], 100, replace=False))
        bed.tier.shrink()
    assert 0.8 * LIMIT < max(most) <= LIMIT
    bed.tier.close()


def test_a_write_empties_no_more_than_its_share(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    fids = random_fids(3_200)
    bed.put(fids)
    bed.forget(fids[::2].copy())
    monkeypatch.setattr(row_files, "LAST_BYTES_MIN", 0)
    before = bed.tier.bytes
    bed.put(random_fids(1, seed=1))
    assert before - 5_000 < bed.tier.bytes
    bed.tier.shrink()
    assert bed.tier.bytes < 0.8 * before


def test_a_tier_takes_at_most_half_of_the_files_that_may_be_open(bed: Bed) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2 * len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        with pytest.raises(mkv.StoreFullError, match="half of what this process may have open"):
            bed.put(random_fids(16 * most))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tier_whose_folder_cannot_be_wiped_is_not_opened(folder: Path) -> None:
    (folder / "overflow").write_bytes(b"no folder")
    with pytest.raises(FileExistsError):
        OverflowTier(str(folder / "overflow"), None)
    assert (folder / "overflow").read_bytes() == b"no folder"
