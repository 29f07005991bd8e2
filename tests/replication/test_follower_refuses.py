"""What a follower refuses, and what it does about damage: a replica is never made worse."""

import os
import shutil
from pathlib import Path

import pytest
from replication.world import (
    World,
    content,
    delta_files,
    flip,
    grown,
    snapshot_files,
    write,
    write_deltas,
)

import monolith_kv as mkv
from monolith_kv.replication import Follower, replica

# --- refusing ------------------------------------------------------------------------------


def refused(world: World, source: Path, match: str) -> None:
    before, digest = content(world.replica), world.digest()
    with pytest.raises(mkv.FencedError, match=match):
        world.follow(source)
    assert content(world.replica) == before
    assert world.digest() == digest
    assert [p.name for p in (world.folder / ".replica.follow").iterdir()] == ["LOCK"]
    assert world.rows() > 0


def test_another_store_is_refused_unless_forced(world: World) -> None:
    grown(world)
    with world.open(world.folder / "other") as store:
        write_deltas(store, 5)
        digest = store.digest()
    world.push(world.folder / "other", world.folder / "target-2")
    refused(world, world.folder / "target-2", "another store")
    assert world.follow(world.folder / "target-2", force=True).in_step
    assert world.digest() == digest


def test_an_empty_primary_is_refused(world: World) -> None:
    grown(world)
    world.open(world.folder / "other").close()
    world.push(world.folder / "other", world.folder / "target-2")
    refused(world, world.folder / "target-2", "another store")


def test_a_source_that_fell_behind_is_refused(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        world.push(target=world.folder / "target-2")
        write_deltas(store, 1)
    world.push()
    world.follow()
    refused(world, world.folder / "target-2", "ends with delta 2")
    assert world.follow(world.folder / "target-2", force=True).sequence == 2


def test_an_older_epoch_is_refused(world: World) -> None:
    with world.open() as primary:
        write_deltas(primary, 2)
        world.push()
        world.follow()
        with world.open(world.folder / "second", "replica") as second:
            for delta in primary.deltas():
                second.apply(delta)
            second.promote()
            write_deltas(second, 1)
        world.push(world.folder / "second")
        assert world.follow().sequence == 3
        write_deltas(primary, 5)
        world.push(target=world.folder / "stale")
        refused(world, world.folder / "stale", "older than epoch")


def test_a_fork_in_a_newer_epoch_is_followed_by_a_resync(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        path = store.snapshot().path
        write_deltas(store, 2)
    world.push()
    world.follow()
    with mkv.restore(path, world.folder / "fork", **world.options) as fork:
        write_deltas(fork, 1, rows=7)
        digest = fork.digest()
    world.push(world.folder / "fork", world.folder / "target-2")
    done = world.follow(world.folder / "target-2")
    assert done.in_step
    assert "parted" in done.resynced
    assert (done.sequence, world.digest()) == (4, digest)


def test_a_fork_with_under_half_of_the_rows_is_refused(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        path = store.snapshot().path
        write_deltas(store, 4)
    world.push()
    world.follow()
    with mkv.restore(path, world.folder / "fork", **world.options) as fork:
        write_deltas(fork, 1)
    world.push(world.folder / "fork", world.folder / "target-2")
    refused(world, world.folder / "target-2", "under half")
    assert world.follow(world.folder / "target-2", force=True).in_step


def test_rows_are_counted_once_more_when_the_new_replica_is_built(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        path = store.snapshot().path
        write_deltas(store, 4)
    world.push()
    world.follow()
    with mkv.restore(path, world.folder / "fork", **world.options) as fork:
        for value in range(6):  # Many rows in deltas, but always the same ten.
            write(fork, 1000, 10, float(value))
            fork.seal()
    world.push(world.folder / "fork", world.folder / "target-2")
    refused(world, world.folder / "target-2", "under half")


def test_a_primary_is_never_overwritten(world: World) -> None:
    grown(world)
    before = content(world.store)
    for force in (False, True):
        with (
            pytest.raises(mkv.FencedError, match="store of its own"),
            Follower(world.target, world.store) as follower,
        ):
            follower.run_once(force=force)
    assert content(world.store) == before


@pytest.mark.parametrize(
    "name", ["thesis.txt", "thesis.tmp", "chapters/first", "snapshots/monday.snapshot", "dense/w"]
)
def test_a_folder_with_anything_else_in_it_is_no_replica(world: World, name: str) -> None:
    grown(world)
    kept = world.folder / "work" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("long work")
    before = content(world.folder / "work")
    for force in (False, True):
        with (
            pytest.raises(mkv.FencedError, match="is no replica"),
            Follower(world.target, world.folder / "work") as follower,
        ):
            follower.run_once(force=force)
    assert content(world.folder / "work") == before
    assert not (world.folder / ".work.follow").exists()


def test_the_folder_above_the_source_is_no_replica(world: World) -> None:
    grown(world)
    before = content(world.target)
    with pytest.raises(mkv.FencedError, match="is no replica"):
        Follower(world.target, world.target.parent)
    assert content(world.target) == before


def test_an_empty_store_of_folders_may_become_a_replica(world: World) -> None:
    grown(world)
    fresh = world.folder / "fresh"
    (fresh / "snapshots").mkdir(parents=True)
    (fresh / ".MANIFEST.0123456789abcdef.tmp").write_text("cut off")
    with Follower(world.target, fresh) as follower:
        assert follower.run_once().in_step


def test_a_published_delta_that_is_not_there_is_a_gap_for_a_new_replica_too(world: World) -> None:
    with world.open() as store:
        store.create_table("item", dim=4)
        store.snapshot()  # What it is built from, before deltas are applied.
        write_deltas(store, 2)
    world.push()
    delta_files(world.target)[-1].unlink()
    with pytest.raises(mkv.GapError, match="is published but not there"):
        world.follow()


def test_no_folder_is_not_the_current_one(world: World) -> None:
    grown(world)
    with pytest.raises(ValueError, match="replica_path must not be empty"):
        Follower(world.target, "")


# --- damage --------------------------------------------------------------------------------


def test_a_damaged_delta_is_refused_and_what_came_before_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(world)
    with world.open() as store:
        write_deltas(store, 3)
    world.push()
    flip(delta_files(world.target)[4])
    # No snapshot leads past it: nothing is built in vain, which a loop would do again and again.
    monkeypatch.setattr(replica, "build_replica", None)
    with pytest.raises(mkv.CorruptionError, match="digest"):
        world.follow()
    with world.open(world.replica, "r") as store:
        assert store.sequence == 4
        assert len(store.table("item")) == 40


def test_a_snapshot_past_a_damaged_delta_leads_on(world: World) -> None:
    grown(world)
    with world.open() as store:
        write_deltas(store, 3)
        store.snapshot()
        world.push()
        flip(delta_files(world.target)[4])
        done = world.follow()
        assert done.in_step
        assert world.digest() == store.digest()


def test_a_damaged_snapshot_gives_way_to_the_one_before(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        store.snapshot()
        write_deltas(store, 1)
        store.snapshot()
        world.push()
        flip(snapshot_files(world.target)[-1])
        assert world.follow().in_step
        assert world.digest() == store.digest()


def test_where_no_snapshot_is_good_nothing_is_replaced(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 2)
        world.push()
        world.follow()
        write_deltas(store, 2)
        store.snapshot()
        world.clock.advance(7200)
        write_deltas(store, 1)
        store.snapshot()
        world.push()
    for path in snapshot_files(world.target):
        flip(path)
    before = content(world.replica)
    with pytest.raises(mkv.CorruptionError):
        world.follow()
    assert content(world.replica) == before
    assert world.rows() == 20


def test_a_replica_whose_rows_differ_is_built_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(world)
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        real = mkv.Store.digest
        wrong = iter(["00" * 16])
        monkeypatch.setattr(mkv.Store, "digest", lambda self, *a: next(wrong, None) or real(self))
        done = world.follow()
        monkeypatch.undo()
        assert "digest" in done.resynced
        assert done.in_step
        assert world.digest() == store.digest()


def test_a_replica_in_step_whose_rows_differ_is_built_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        world.push()
        world.follow()
    real = mkv.Store.digest
    wrong = iter(["00" * 16])
    monkeypatch.setattr(mkv.Store, "digest", lambda self, *a: next(wrong, None) or real(self))
    done = world.follow()
    assert "digest" in done.resynced
    assert done.in_step


def test_another_good_snapshot_in_the_place_of_one_is_seen(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        first = Path(store.snapshot().path)
        write(store, 50_000, 5)
        second = Path(store.snapshot().path)
        world.push()
    (world.target / "snapshots" / second.name).write_bytes(first.read_bytes())
    (world.target / "snapshots" / first.name).unlink()
    delta_files(world.target)[0].unlink()
    with pytest.raises(mkv.CorruptionError, match="bytes, published were"):
        world.follow()


def test_rows_of_a_snapshot_that_its_primary_lost_are_given_up(world: World) -> None:
    with world.open() as store:
        store.snapshot()
        write_deltas(store, 1)
        shutil.copytree(world.store, world.folder / "backup")
        write(store, 50_000, 5)
        store.snapshot()
        world.push()
        world.follow()
        assert world.rows() == 15
    # The primary's disk dies, and with it its newest snapshot, the only file with those five rows.
    shutil.rmtree(world.store)
    os.rename(world.folder / "backup", world.store)
    with world.open() as store:
        assert store.epoch == 2
        write_deltas(store, 1)
        world.push()
        done = world.follow()
        assert "crash" in done.resynced
        assert done.in_step
        assert world.digest() == store.digest()
        assert world.rows() == 20


def test_a_damaged_replica_is_built_anew(world: World) -> None:
    grown(world)
    for path in world.replica.rglob("*-*"):
        path.write_bytes(b"")
    with pytest.raises(mkv.CorruptionError):
        world.open(world.replica, "r")
    done = world.follow()
    assert "damaged" in done.resynced
    assert world.rows() == 30
