"""Deltas: what a seal publishes, and how a replica takes them, refuses them, and is promoted."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import scanned, u64
from model import ManualClock

import monolith_kv as mkv

DAY = 86_400


def row(value: float) -> np.ndarray:
    return np.full((1, 2), value, np.float32)


class Pair:
    """A writer with one table, and replicas of it."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.folder, self.clock, self.opened = folder, clock, []
        self.store = self.open("primary")
        self.table = self.store.create_table("t", 2)

    def open(self, name: str, **options: Any) -> mkv.Store:
        options = {"delta_interval": None, "clock": self.clock, **options}
        self.opened.append(mkv.open(self.folder / name, **options))
        return self.opened[-1]

    def restore(self, snapshot: Any, name: str, **options: Any) -> mkv.Store:
        options = {"delta_interval": None, "clock": self.clock, **options}
        self.opened.append(mkv.restore(snapshot, self.folder / name, **options))
        return self.opened[-1]

    def replica(self, name: str = "replica") -> mkv.Store:
        return self.open(name, mode="replica")

    def sealed(self, fid: int, value: float = 1.0) -> mkv.Delta:
        self.table.upsert(u64([fid]), row(value))
        delta = self.store.seal()
        assert delta is not None
        return delta

    def crash(self, name: str) -> mkv.Store:
        """The writer as a kill would leave it, opened again elsewhere."""
        shutil.copytree(self.store.path, self.folder / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mkv.DataLossWarning)
            return self.open(name)


@pytest.fixture
def pair(folder: Path, clock: ManualClock) -> Iterator[Pair]:
    pair = Pair(folder, clock)
    yield pair
    for store in pair.opened:
        store.close()


# --- what a seal publishes ---------------------------------------------------------------------


def test_a_seal_with_nothing_to_publish_is_none(pair: Pair) -> None:
    pair.sealed(1)
    pair.table.lookup(u64([1]))
    pair.table.pull(u64([1]))
    pair.table.push(u64([99]), row(1))
    pair.table.remove(u64([99]))
    pair.table.prefetch(u64([1]))
    pair.store.compact()
    assert pair.store.seal() is None
    assert pair.store.sequence == 1


def test_a_delta_holds_each_touched_id_once_with_its_last_state(pair: Pair) -> None:
    pair.store.seal()
    for value in (1.0, 2.0, 3.0):
        pair.table.upsert(u64([1, 2]), np.full((2, 2), value, np.float32))
    delta = pair.store.seal()
    assert (delta.rows, delta.removals) == (2, 0)
    replica = pair.replica()
    for each in pair.store.deltas():
        replica.apply(each)
    np.testing.assert_array_equal(replica.table("t").lookup(u64([1, 2])), np.full((2, 2), 3.0))


def test_an_id_that_came_and_went_is_a_removal(pair: Pair) -> None:
    pair.store.seal()
    pair.table.upsert(u64([1]), row(1))
    pair.table.remove(u64([1]))
    delta = pair.store.seal()
    assert (delta.rows, delta.removals) == (0, 1)


def test_an_id_that_went_and_came_is_a_row(pair: Pair) -> None:
    pair.sealed(1)
    pair.table.remove(u64([1]))
    pair.table.upsert(u64([1]), row(5))
    delta = pair.store.seal()
    assert (delta.rows, delta.removals) == (1, 0)


@pytest.mark.parametrize("cursor", [{}, {"offset": 7}, {"a": [1, None, {"b": "c"}]}])
def test_a_cursor_is_something_to_publish(pair: Pair, cursor: dict[str, Any]) -> None:
    pair.store.seal()
    delta = pair.store.seal(cursor=cursor)
    assert (delta.rows, delta.removals) == (0, 0)
    assert dict(pair.store.cursor) == cursor
    assert pair.store.seal() is None


def test_a_cursor_left_out_stays_as_it_was(pair: Pair) -> None:
    pair.store.seal(cursor={"offset": 7})
    pair.sealed(1)
    assert dict(pair.store.cursor) == {"offset": 7}
    pair.store.close()
    assert dict(pair.open("primary").cursor) == {"offset": 7}


def test_creating_and_dropping_tables_is_part_of_the_next_delta(pair: Pair) -> None:
    replica = pair.replica()
    pair.store.create_table("u", 3)
    assert replica.apply(pair.store.seal())
    assert set(replica.tables) == {"t", "u"}
    assert replica.table("u").dim == 3
    pair.store.drop_table("u")
    assert replica.apply(pair.store.seal())
    assert set(replica.tables) == {"t"}
    with pytest.raises(KeyError, match="t"):
        replica.table("u")


def test_a_table_made_anew_under_its_name_shares_no_row_with_the_old(pair: Pair) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    pair.store.drop_table("t")
    table = pair.store.create_table("t", 5)
    table.pull(u64([2]))
    replica.apply(pair.store.seal())
    assert replica.table("t").dim == 5
    assert scanned(replica.table("t")) == scanned(table)


def test_optimizer_state_timestamps_and_settings_travel_with_the_rows(pair: Pair) -> None:
    pair.table.pull(u64([1]))
    pair.table.push(u64([1]), row(2))
    pair.table.configure(optimizer=mkv.Adagrad(lr=0.5), ttl=50)
    replica = pair.replica()
    replica.apply(pair.store.seal())
    copy = replica.table("t")
    assert copy.timestamps(u64([1])).tolist() == [int(pair.clock.now)]
    np.testing.assert_array_equal(
        copy.state(u64([1]))["accumulator"], pair.table.state(u64([1]))["accumulator"]
    )
    replica.promote()
    for table in (pair.table, copy):
        table.push(u64([1]), row(1))
    np.testing.assert_array_equal(copy.lookup(u64([1])), pair.table.lookup(u64([1])))
    pair.clock.advance(50)
    assert replica.compact().expired == 1


def test_deltas_are_listed_in_order_after_a_sequence(pair: Pair) -> None:
    for fid in range(5):
        pair.sealed(fid)
    assert [delta.sequence for delta in pair.store.deltas()] == [1, 2, 3, 4, 5]
    assert [delta.sequence for delta in pair.store.deltas(after=3)] == [4, 5]
    assert list(pair.store.deltas(after=5)) == []


def test_sequences_have_no_hole_across_epochs(pair: Pair) -> None:
    pair.sealed(1)
    again = pair.crash("after")
    again.table("t").upsert(u64([2]), row(1))
    delta = again.seal()
    assert (delta.sequence, delta.epoch) == (2, 2)
    assert [d.sequence for d in again.deltas()] == [1, 2]


def test_closing_seals_what_is_left(pair: Pair) -> None:
    pair.table.upsert(u64([1]), row(1))
    pair.store.close()
    replica = pair.replica()
    for delta in pair.open("primary").deltas():
        replica.apply(delta)
    assert 1 in replica.table("t")


# --- retention ---------------------------------------------------------------------------------


def test_deltas_stay_for_their_retention_and_then_leave_a_gap(pair: Pair) -> None:
    first = pair.sealed(1)
    pair.sealed(2)
    pair.store.snapshot()
    pair.clock.advance(DAY - 1)
    pair.sealed(3)
    pair.store.snapshot()
    assert [d.sequence for d in pair.store.deltas()] == [1, 2, 3]
    pair.clock.advance(2)
    pair.sealed(4)
    pair.store.snapshot()
    pair.store.compact()
    with pytest.raises(mkv.GapError):
        list(pair.store.deltas())
    assert not Path(first.path).exists()
    assert [d.sequence for d in pair.store.deltas(after=2)] == [3, 4]


def test_a_delta_that_no_snapshot_covers_is_kept_however_old(pair: Pair) -> None:
    pair.sealed(1)
    pair.clock.advance(100 * DAY)
    pair.sealed(2)
    again = pair.crash("after")
    assert again.table("t").contains(u64([1, 2])).all()
    assert again.verify() == []


# --- a replica ---------------------------------------------------------------------------------


def test_a_replica_follows_to_the_same_digest(pair: Pair) -> None:
    replica = pair.replica()
    for fid in range(10):
        assert replica.apply(pair.sealed(fid, fid)) is True
        assert replica.digest() == pair.store.digest()
        assert (replica.sequence, replica.epoch) == (pair.store.sequence, pair.store.epoch)
    pair.table.remove(u64([3]))
    replica.apply(pair.store.seal())
    assert replica.digest() == pair.store.digest()
    assert scanned(replica.table("t")) == scanned(pair.table)


def test_re_delivery_is_false_and_changes_nothing(pair: Pair) -> None:
    replica, deltas = pair.replica(), [pair.sealed(fid) for fid in range(3)]
    for delta in deltas:
        replica.apply(delta)
    digest = replica.digest()
    for delta in deltas:
        assert replica.apply(delta.path) is False
    assert (replica.digest(), replica.sequence) == (digest, 3)


def test_a_delta_out_of_order_is_a_gap(pair: Pair) -> None:
    replica, deltas = pair.replica(), [pair.sealed(fid) for fid in range(3)]
    with pytest.raises(mkv.GapError) as caught:
        replica.apply(deltas[1])
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert replica.sequence == 0
    replica.apply(deltas[0])
    with pytest.raises(mkv.GapError):
        replica.apply(deltas[2])
    assert len(replica.table("t")) == 1
    assert replica.apply(deltas[1])


def test_another_stores_delta_is_fenced(pair: Pair) -> None:
    other = Pair(pair.folder / "other", pair.clock)
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    other.sealed(1)
    with pytest.raises(mkv.FencedError):
        replica.apply(other.sealed(2))
    assert replica.digest() == pair.store.digest()
    other.store.close()


def test_a_replica_goes_on_over_a_crash_of_the_primary(pair: Pair) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    pair.table.upsert(u64([7]), row(1))
    again = pair.crash("after")
    again.table("t").upsert(u64([2]), row(1))
    assert replica.apply(again.seal())
    assert (replica.epoch, replica.digest()) == (2, again.digest())


def test_the_old_primary_is_fenced_after_a_promotion(pair: Pair) -> None:
    first, second = pair.replica("first"), pair.replica("second")
    delta = pair.sealed(1)
    first.apply(delta)
    second.apply(delta)
    first.promote()
    assert (first.mode, first.epoch, first.sequence) == ("rw", 2, 1)
    first.table("t").upsert(u64([2]), row(1))
    assert second.apply(first.seal())
    stale = pair.sealed(3)
    with pytest.raises(mkv.FencedError):
        second.apply(stale)
    assert second.digest() == first.digest()


def test_a_replica_that_followed_the_old_primary_too_far_is_fenced(pair: Pair) -> None:
    first, second = pair.replica("first"), pair.replica("second")
    delta = pair.sealed(1)
    first.apply(delta)
    second.apply(delta)
    second.apply(pair.sealed(2))
    first.promote()
    for fid in (3, 4):
        first.table("t").upsert(u64([fid]), row(1))
        with pytest.raises(mkv.FencedError):
            second.apply(first.seal())


def test_two_stores_of_one_snapshot_are_two_histories(pair: Pair) -> None:
    pair.sealed(1)
    snapshot = pair.store.snapshot(pair.folder / "s.snapshot")
    replica = pair.restore(snapshot.path, "replica", mode="replica")
    one, two = pair.restore(snapshot.path, "one"), pair.restore(snapshot.path, "two")
    assert (one.epoch, two.epoch) == (2, 2)
    for store in (one, two):
        store.table("t").upsert(u64([2]), row(1))
    first, other = one.seal(), two.seal()
    assert (first.sequence, other.sequence) == (2, 2)
    assert replica.apply(first)
    with pytest.raises(mkv.FencedError):
        replica.apply(other)
    two.table("t").upsert(u64([3]), row(1))
    with pytest.raises((mkv.FencedError, mkv.GapError)):
        replica.apply(two.seal())
    assert replica.digest() == one.digest()


def test_what_a_replicas_snapshot_holds_is_applied_already(pair: Pair) -> None:
    deltas = [pair.sealed(fid) for fid in range(3)]
    snapshot = pair.store.snapshot(pair.folder / "s.snapshot")
    replica = pair.restore(snapshot.path, "replica", mode="replica")
    assert (replica.sequence, replica.epoch) == (3, 1)
    assert [replica.apply(delta) for delta in deltas] == [False, False, False]
    assert replica.apply(pair.sealed(9))
    assert replica.digest() == pair.store.digest()


def test_rows_that_a_snapshot_has_ahead_of_its_deltas_reach_every_replica(pair: Pair) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    pair.table.upsert(u64([2]), row(1))
    snapshot = pair.store.snapshot(pair.folder / "s.snapshot")
    heir = pair.restore(snapshot.path, "heir")
    heir.table("t").upsert(u64([3]), row(1))
    replica.apply(heir.seal())
    assert replica.digest() == heir.digest()


def test_a_promoted_replica_of_a_snapshot_publishes_what_the_snapshot_had_ahead(
    pair: Pair,
) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    pair.table.upsert(u64([2]), row(1))
    snapshot = pair.store.snapshot(pair.folder / "s.snapshot")
    heir = pair.restore(snapshot.path, "heir", mode="replica")
    heir.promote()
    heir.table("t").upsert(u64([3]), row(1))
    replica.apply(heir.seal())
    assert replica.digest() == heir.digest()


def test_a_replica_whose_snapshot_is_ahead_of_what_a_crash_kept_does_not_diverge(
    pair: Pair,
) -> None:
    pair.sealed(1)
    pair.table.upsert(u64([2]), row(1))
    snapshot = pair.store.snapshot(pair.folder / "s.snapshot")
    replica = pair.restore(snapshot.path, "replica", mode="replica")
    again = pair.crash("after")
    again.table("t").upsert(u64([3]), row(1))
    delta = again.seal()
    # The crash took id 2 from the primary; the replica has it. It must be told, or be fenced.
    try:
        replica.apply(delta)
    except mkv.FencedError:
        return
    assert replica.digest() == again.digest()


def test_a_damaged_delta_leaves_the_replica_unchanged(pair: Pair) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    delta = pair.sealed(2)
    bytes_ = bytearray(Path(delta.path).read_bytes())
    before = (replica.digest(), replica.sequence)
    copy = pair.folder / Path(delta.path).name
    for position in range(0, len(bytes_), 7):
        bytes_[position] ^= 0x10
        copy.write_bytes(bytes_)
        bytes_[position] ^= 0x10
        with pytest.raises((mkv.CorruptionError, mkv.FormatVersionError)):
            replica.apply(copy)
        assert (replica.digest(), replica.sequence) == before
    copy.write_bytes(bytes_[:-1])
    with pytest.raises(mkv.CorruptionError):
        replica.apply(copy)
    copy.write_bytes(bytes_)
    assert replica.apply(copy)


def test_a_replica_keeps_position_and_rows_over_a_reopen(pair: Pair) -> None:
    replica = pair.replica()
    for fid in range(3):
        replica.apply(pair.sealed(fid))
    replica.close()
    replica = pair.replica()
    assert (replica.sequence, replica.epoch) == (3, 1)
    assert replica.digest() == pair.store.digest()
    assert replica.apply(pair.sealed(9))


def test_readers_of_a_replica_go_on_while_deltas_are_applied(pair: Pair) -> None:
    replica = pair.replica()
    replica.apply(pair.sealed(1))
    table = replica.table("t")
    reader = pair.open("replica", mode="r")
    replica.apply(pair.sealed(2))
    assert table.contains(u64([1, 2])).all()
    assert reader.table("t").contains(u64([1, 2])).tolist() == [True, False]
    assert reader.refresh()
    assert reader.table("t").contains(u64([1, 2])).all()
