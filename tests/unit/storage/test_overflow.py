"""The overflow tier against real LMDB: batches, limits, damage, forks."""

import errno
import os
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import monolith_kv as mkv
from monolith_kv.storage import files, overflow
from monolith_kv.storage.overflow import OverflowTier

SIZE = 48


def records(fids: Any, size: int = SIZE) -> Any:
    """A record for each fid that only it has."""
    return np.tile(np.asarray(fids, "<u8").view(np.uint8).reshape(-1, 8), (1, size // 8))


def random_fids(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


@pytest.fixture
def tier(folder: Path) -> Iterator[OverflowTier]:
    tier = OverflowTier(str(folder / "overflow"), None)
    yield tier
    tier.close()


def test_records_come_back_in_the_order_asked_for(tier: OverflowTier) -> None:
    fids = np.concatenate([random_fids(1000), np.array([0, 1, 2**64 - 1], np.uint64)])
    tier.put(1, fids, records(fids))
    asked = np.concatenate([fids[::-1], random_fids(100, seed=1), fids[:5]])
    found, positions = tier.get(1, asked)
    assert len(found) == 1008 == len(positions)
    assert (np.diff(positions) > 0).all()
    assert np.array_equal(found, records(asked[positions]))
    assert tier.rows == 1003
    assert tier.corrupt == 0


def test_tables_are_kept_apart(tier: OverflowTier) -> None:
    fids = np.arange(10, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    tier.put(2, fids, records(fids + np.uint64(100), 96))
    assert tier.get(2, fids)[0].shape == (10, 96)
    assert len(tier.get(3, fids)[0]) == 0
    assert tier.forget_table(1) == 10
    assert len(tier.get(1, fids)[0]) == 0
    assert np.array_equal(tier.get(2, fids)[0], records(fids + np.uint64(100), 96))
    assert tier.forget_table(7) == 0


def test_the_last_record_put_wins(tier: OverflowTier) -> None:
    fids = np.arange(5, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    tier.put(1, fids[:2], records(fids[:2] + np.uint64(50)))
    found, _ = tier.get(1, fids)
    assert np.array_equal(found[:, 0], [50, 51, 2, 3, 4])
    assert tier.rows == 5


def test_forgetting_tells_how_many_were_there(tier: OverflowTier) -> None:
    fids = random_fids(20)
    tier.put(1, fids, records(fids))
    assert tier.forget(1, np.concatenate([fids[:7], random_fids(3, seed=9)])) == 7
    assert len(tier.get(1, fids)[0]) == 13
    assert tier.forget(1, np.empty(0, np.uint64)) == 0


def test_empty_batches_are_fine(tier: OverflowTier) -> None:
    none = np.empty(0, np.uint64)
    tier.put(1, none, np.empty((0, SIZE), np.uint8))
    assert len(tier.get(1, none)[0]) == 0
    assert len(tier.scan(1, None, 10)[0]) == 0


def test_a_scan_sees_every_record_of_the_table_once_in_order(tier: OverflowTier) -> None:
    fids = np.concatenate([random_fids(500), np.array([0, 2**64 - 1], np.uint64)])
    tier.put(2, fids, records(fids))
    for table in (1, 3):
        tier.put(table, fids[:9], records(fids[:9]))
    seen, after = [], None
    while len(batch := tier.scan(2, after, 64)[0]):
        found = tier.scan(2, after, 64)
        assert np.array_equal(found[1], records(found[0]))
        seen.append(batch)
        after = int(batch[-1])
    assert np.array_equal(np.concatenate(seen), np.sort(fids))


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "forget"]), st.sets(st.integers(0, 30), max_size=9)),
        max_size=20,
    )
)
def test_it_holds_what_a_dict_holds(steps: list[Any]) -> None:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "."
    tier = OverflowTier(f"{base}/mkv-overflow-{os.getpid()}", None)
    try:
        model: dict[int, int] = {}
        for number, (step, chosen) in enumerate(steps):
            fids = np.array(sorted(chosen), np.uint64)
            if step == "put":
                tier.put(1, fids, records(fids + np.uint64(1000 * number)))
                model.update({int(fid): int(fid) + 1000 * number for fid in fids})
            else:
                gone = sum(model.pop(int(fid), None) is not None for fid in fids)
                assert tier.forget(1, fids) == gone
        asked = np.arange(31, dtype=np.uint64)
        found, positions = tier.get(1, asked)
        values = np.ascontiguousarray(found[:, :8]).view("<u8").reshape(-1)
        assert dict(zip(positions.tolist(), values.tolist(), strict=True)) == model
        assert tier.rows == len(model)
    finally:
        tier.close()


# --- limits --------------------------------------------------------------------------------


def test_a_batch_past_the_limit_is_refused_whole_and_the_rest_goes_on(folder: Path) -> None:
    tier = OverflowTier(str(folder / "overflow"), 2 << 20)
    fids = random_fids(100_000)
    kept = 0
    full = ""
    while not full:
        try:
            tier.put(1, fids[kept : kept + 500], records(fids[kept : kept + 500]))
            kept += 500
        except mkv.StoreFullError as error:
            full = str(error)
    assert "raise overflow_limit or memory_limit" in full
    assert kept > 5000
    assert tier.rows == kept
    assert tier.bytes <= 2 << 20
    with pytest.raises(mkv.StoreFullError):
        tier.put(1, fids[kept:], records(fids[kept:]))
    assert tier.rows == kept
    assert len(tier.get(1, fids[:kept])[0]) == kept
    # A full tier can still be emptied, and is then of use again.
    assert tier.forget(1, fids[: kept - 10]) == kept - 10
    tier.put(1, fids[:1000], records(fids[:1000]))
    assert tier.rows == 1010
    tier.close()


def test_the_limit_holds_however_often_a_full_tier_is_emptied(folder: Path) -> None:
    limit = 2 << 20
    tier = OverflowTier(str(folder / "overflow"), limit)
    for cycle in range(6):
        fids = random_fids(40_000, seed=cycle)
        for start in range(0, len(fids), 500):
            try:
                tier.put(1, fids[start : start + 500], records(fids[start : start + 500]))
            except mkv.StoreFullError:
                break
        else:
            pytest.fail("the limit was passed")
        kept = start
        assert tier.forget(1, fids[:kept:2]) == -(-kept // 2)
        assert tier.forget(1, fids[:kept]) == kept // 2
        assert tier.rows == 0
    assert tier.bytes <= limit + overflow.FORGET_ROOM_BYTES
    tier.close()


def test_without_a_limit_the_map_grows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "MAP_BYTES_STEP", 1 << 20)
    tier = OverflowTier(str(folder / "overflow"), None)
    fids = random_fids(50_000)
    tier.put(1, fids, records(fids))
    assert tier.rows == 50_000
    assert tier.bytes > 3 << 20
    tier.close()


def test_a_full_disk_is_store_full_and_changes_nothing(folder: Path) -> None:
    tier = OverflowTier(str(folder / "overflow"), None)
    fids = random_fids(20_000)
    tier.put(1, fids[:100], records(fids[:100]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
    try:
        with pytest.raises(mkv.StoreFullError):
            tier.put(1, fids, records(fids))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tier.rows == 100
    tier.put(1, fids, records(fids))
    assert tier.rows == 20_000
    tier.close()


def test_disk_is_given_back_when_most_of_it_is_free(folder: Path) -> None:
    tier = OverflowTier(str(folder / "overflow"), None)
    fids = np.sort(random_fids(50_000))
    tier.put(1, fids, records(fids))
    full = tier.bytes
    assert tier.shrink() == 0
    tier.forget(1, fids[1000:])
    freed = tier.shrink()
    assert freed > full / 2
    assert tier.bytes == (folder / "overflow" / "data.mdb").stat().st_size
    assert np.array_equal(tier.get(1, fids)[0], records(fids[:1000]))
    tier.put(1, fids, records(fids))
    assert tier.rows == 50_000
    assert os.listdir(folder) == ["overflow"]
    tier.close()


def test_a_disk_that_fails_a_compaction_takes_no_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = OverflowTier(str(folder / "overflow"), None)
    fids = np.sort(random_fids(50_000))
    tier.put(1, fids, records(fids))
    tier.forget(1, fids[1000:])
    sync_folder = files.fsync_folder

    def fail(path: str) -> None:
        if path == str(folder / "overflow"):
            raise OSError(errno.EIO, "broken")
        sync_folder(path)

    monkeypatch.setattr(files, "fsync_folder", fail)
    with pytest.raises(OSError, match="broken"):
        tier.shrink()
    assert np.array_equal(tier.get(1, fids)[0], records(fids[:1000]))
    assert os.listdir(folder) == ["overflow"]
    tier.close()


# --- damage --------------------------------------------------------------------------------


def spoil(tier: OverflowTier, change: Any) -> None:
    """Change what LMDB holds behind the tier's back, as rot on the disk would."""
    env = tier._env
    assert env is not None
    with env.begin(write=True) as txn:
        change(txn)


def test_every_flipped_bit_of_a_value_is_counted_and_left_out(tier: OverflowTier) -> None:
    fids = np.array([3, 4], np.uint64)
    tier.put(1, fids, records(fids))
    key = overflow._keys(1, fids[:1]).tobytes()
    env = tier._env
    assert env is not None
    with env.begin() as txn:
        good = txn.get(key)
    for bit in range(8 * len(good)):
        wrong = bytearray(good)
        wrong[bit // 8] ^= 1 << bit % 8
        spoil(tier, lambda txn, wrong=wrong: txn.put(key, bytes(wrong)))
        found, positions = tier.get(1, fids)
        assert positions.tolist() == [1]
        assert np.array_equal(found, records(fids[1:]))
        assert tier.corrupt == bit + 1


def test_a_good_value_under_another_key_is_left_out(tier: OverflowTier) -> None:
    fids = np.array([3, 4], np.uint64)
    tier.put(1, fids, records(fids))
    first, second = (overflow._keys(1, fids[i : i + 1]).tobytes() for i in (0, 1))
    spoil(tier, lambda txn: txn.put(first, txn.get(second)))
    assert tier.get(1, fids)[1].tolist() == [1]
    assert tier.corrupt == 1


def test_a_value_of_another_length_is_left_out_and_a_scan_goes_on(tier: OverflowTier) -> None:
    fids = np.arange(10, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    for fid in (0, 1, 2):
        key = overflow._keys(1, fids[fid : fid + 1]).tobytes()
        spoil(tier, lambda txn, key=key: txn.put(key, b"short"))
    assert tier.get(1, fids)[1].tolist() == list(range(3, 10))
    # Two of the first two, then one of the next two are damaged.
    assert tier.scan(1, None, 2)[0].tolist() == [3]
    assert tier.scan(1, 3, 2)[0].tolist() == [4, 5]


@pytest.mark.parametrize("limit", [1, 2, 16])
def test_a_scan_comes_to_its_end_whatever_a_damaged_key_says(
    tier: OverflowTier, folder: Path, limit: int
) -> None:
    fids = np.arange(1, 9, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    data = folder / "overflow" / "data.mdb"
    before, key, wrong = (
        overflow._keys(1, np.array([fid], np.uint64)).tobytes() for fid in (7, 8, 0)
    )
    spoil(tier, lambda txn: txn.put(before, bytes(overflow.CRC_BYTES + SIZE)))
    with data.open("r+b", buffering=0) as file:  # In place: LMDB has the file mapped.
        file.write(data.read_bytes().replace(key, wrong))
    found, last = [], None
    while len(part := tier.scan(1, last, limit)[0]):
        found += part.tolist()
        last = found[-1]
        assert len(found) < 8, "it went round in a circle"
    assert found == [1, 2, 3, 4, 5, 6]


def test_what_lmdb_cannot_read_is_damage_and_not_an_error_of_its_own(
    tier: OverflowTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    fids = np.arange(3, dtype=np.uint64)
    tier.put(1, fids, records(fids))

    class Damaged:
        def begin(self, **_: Any) -> Any:
            raise lmdb.CorruptedError("located page was wrong type")

    monkeypatch.setattr(tier, "_env", Damaged())
    assert len(tier.get(1, fids)[0]) == 0
    assert tier.corrupt == 3
    with pytest.raises(mkv.CorruptionError, match="its own pages") as caught:
        tier.scan(1, None, 2)
    assert caught.value.path == tier.folder
    monkeypatch.undo()


def test_records_of_another_size_are_refused(tier: OverflowTier) -> None:
    fids = np.arange(2, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    with pytest.raises(ValueError, match="have 48 bytes"):
        tier.put(1, fids, records(fids, 56))


# --- life ----------------------------------------------------------------------------------


def test_a_new_tier_is_empty_whatever_was_there(folder: Path) -> None:
    path = folder / "overflow"
    fids = np.arange(2, dtype=np.uint64)
    tier = OverflowTier(str(path), None)
    tier.put(1, fids, records(fids))
    data = (path / "data.mdb").read_bytes()
    tier.close()
    assert not path.exists()
    tier.close()
    path.mkdir()
    (path / "data.mdb").write_bytes(data)
    again = OverflowTier(str(path), None)
    assert again.rows == 0
    again.close()
    with pytest.raises(mkv.ClosedError):
        again.get(1, fids)


def test_the_environment_is_made_aside_and_named_when_it_is_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def spy(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(path: str, *args: Any) -> Any:
            steps.append(f"{name} {re.sub('[0-9a-f]{16}', '#', os.path.relpath(path, folder))}")
            return real(path, *args)

        monkeypatch.setattr(module, name, call)

    spy(files, "fsync_folder")
    spy(os, "mkdir")
    spy(os, "replace")
    OverflowTier(str(folder / "overflow"), None).close()
    aside = "overflow.#.tmp"
    assert steps == [
        f"mkdir {aside}", f"fsync_folder {aside}", f"replace {aside}", "fsync_folder .",
    ]  # fmt: skip


def test_what_a_crash_left_of_making_one_is_removed(folder: Path) -> None:
    for name in ("overflow.0123456789abcdef.tmp", "overflow"):
        (folder / name).mkdir()
        (folder / name / "data.mdb").write_bytes(bytes(100))
    (folder / "overflown.tmp").write_bytes(b"not of the tier")
    tier = OverflowTier(str(folder / "overflow"), None)
    assert sorted(os.listdir(folder)) == ["overflow", "overflown.tmp"]
    assert tier.rows == 0
    tier.close()


def test_rules_for_lmdb_are_kept(tier: OverflowTier, folder: Path) -> None:
    env = tier._env
    assert env is not None
    flags = env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert lmdb.version()[0] == 0
    assert os.listdir(folder / "overflow") == ["data.mdb"]
    assert (folder / "overflow").stat().st_mode & 0o777 == 0o700
    assert (folder / "overflow" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_a_forked_child_is_refused_and_leaves_the_tier_alone(tier: OverflowTier) -> None:
    fids = np.arange(2, dtype=np.uint64)
    tier.put(1, fids, records(fids))
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: tier.get(1, fids),
            lambda: tier.put(1, fids, records(fids)),
            lambda: tier.rows,
            lambda: tier.forget(1, fids),
        ):
            try:
                call()
            except mkv.ForkedError:
                refused += 1
        tier.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert len(tier.get(1, fids)[0]) == 2


def test_threads_may_use_it_at_once(tier: OverflowTier) -> None:
    fids = random_fids(4000).reshape(4, -1)
    wrong: list[int] = []

    def work(number: int) -> None:
        mine = fids[number]
        for start in range(0, len(mine), 50):
            batch = mine[start : start + 50]
            tier.put(1, batch, records(batch))
            found, positions = tier.get(1, mine[: start + 50])
            if not np.array_equal(found, records(mine[positions])) or len(found) != start + 50:
                wrong.append(number)
            tier.forget(1, batch[:10])
            tier.put(1, batch[:10], records(batch[:10]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tier.rows == 4000
