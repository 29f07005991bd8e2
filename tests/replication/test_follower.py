"""Follow: a replica gets in step from wherever it starts, and is never made worse."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from replication.world import World, content, delta_files, flip, write, write_deltas

import monolith_kv as mkv
from monolith_kv.replication import Follower, Stopped


def snapshot_files(path: Path) -> list[Path]:
    return sorted((path / "snapshots").glob("*.snapshot"))


# --- getting in step -----------------------------------------------------------------------


def test_an_empty_replica_follows_deltas_from_the_first(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        digest = store.digest()
    world.push()
    for path in snapshot_files(world.target):
        path.unlink()
    world.push()
    done = world.follow()
    assert (done.sequence, done.in_step, done.lag) == (3, True, 0)
    assert world.digest() == digest


def test_an_empty_replica_starts_from_the_newest_snapshot(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        store.snapshot()
        write_deltas(store, 2)
        world.push()
        done = world.follow()
        assert (done.sequence, done.in_step) == (4, True)
        assert "empty" in done.resynced
        assert world.digest() == store.digest()


def test_an_unsealed_store_gives_an_empty_replica_in_step(world: World) -> None:
    world.open().close()
    world.push()
    done = world.follow()
    assert done.in_step
    assert world.rows() == 0


def test_a_late_replica_catches_up_by_deltas(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        write_deltas(store, 4)
        store.table("item").remove(np.arange(1000, 1005, dtype=np.uint64))
        store.seal(cursor={"offset": 7})
        world.push()
        done = world.follow()
        assert (done.applied, done.resynced) == (5, "")
        with world.open(world.replica, "r") as replica:
            assert replica.digest() == store.digest()
            assert dict(replica.cursor) == {"offset": 7}


def test_a_replica_in_step_is_left_alone(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        world.push()
    with world.follower() as follower:
        follower.run_once()
        done = follower.run_once()
        assert (done.applied, done.resynced, done.in_step) == (0, "", True)


def test_a_replica_behind_a_gap_resyncs(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 2)
        world.push()
        world.follow()
        write_deltas(store, 3)
        store.snapshot()
        world.clock.advance(7200)
        write_deltas(store, 2)
        store.snapshot()
        world.push()
        assert [p.name for p in delta_files(world.target)][:1] != [f"{3:020d}-000001.delta"]
        done = world.follow()
        assert done.in_step
        assert "delta 3 is no longer" in done.resynced
        assert world.digest() == store.digest()


def test_a_lost_delta_is_a_gap(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        world.push()
        world.follow()
        write_deltas(store, 2)
        world.push()
        delta_files(world.target)[2].unlink()
        with pytest.raises(mkv.GapError, match="not there"):
            world.follow()
        assert world.rows() == 20
        store.snapshot()
        Path(world.target / "deltas" / delta_files(world.store)[2].name).unlink(missing_ok=True)
        world.push()
        delta_files(world.target)[2].unlink()
        done = world.follow()
        assert done.in_step
        assert done.resynced


def test_a_store_can_be_followed_without_a_target(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        assert world.follow(world.store).in_step
        write_deltas(store, 1)
        assert world.follow(world.store).applied == 1
        assert world.digest() == store.digest()


def test_dense_parameters_and_schema_changes_arrive(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        store.dense.publish({"w": np.arange(3, dtype=np.float32)})
        store.create_table("user", dim=2)
        store.drop_table("item")
        store.seal()
        world.push()
        world.follow()
    with world.open(world.replica, "r") as replica:
        assert list(replica.tables) == ["user"]
        assert replica.dense["w"].tolist() == [0, 1, 2]


def test_rows_that_no_delta_holds_arrive_by_the_snapshot(world: World) -> None:
    parts = []
    for shard in range(2):
        with world.open(world.folder / f"shard-{shard}") as store:
            write(store, 100 * shard, 10)
            parts.append(store.snapshot(world.folder / f"{shard}.snapshot").path)
    with mkv.restore(parts, world.store, **world.options) as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        assert world.digest() == store.digest()
        assert world.rows() == 30


# --- refusing ------------------------------------------------------------------------------


def grown(world: World, deltas: int = 3) -> None:
    with world.open() as store:
        write_deltas(store, deltas)
        store.snapshot()
    world.push()
    world.follow()


def refused(world: World, source: Path, match: str) -> None:
    before, digest = content(world.replica), world.digest()
    with pytest.raises(mkv.FencedError, match=match):
        world.follow(source)
    assert content(world.replica) == before
    assert world.digest() == digest
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


# --- damage --------------------------------------------------------------------------------


def test_a_damaged_delta_is_refused_and_what_came_before_is_kept(world: World) -> None:
    grown(world)
    with world.open() as store:
        write_deltas(store, 3)
    world.push()
    flip(delta_files(world.target)[4])
    with pytest.raises(mkv.CorruptionError, match="digest"):
        world.follow()
    with world.open(world.replica, "r") as replica:
        assert replica.sequence == 4
        assert len(replica.table("item")) == 40


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


def test_a_damaged_replica_is_built_anew(world: World) -> None:
    grown(world)
    for path in world.replica.rglob("*-*"):
        path.write_bytes(b"")
    with pytest.raises(mkv.CorruptionError):
        world.open(world.replica, "r")
    done = world.follow()
    assert "damaged" in done.resynced
    assert world.rows() == 30


# --- serving -------------------------------------------------------------------------------


def test_the_store_before_a_resync_stays_readable(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 2)
        world.push()
        with world.follower() as follower:
            follower.run_once()
            old = follower.store
            write_deltas(store, 2)
            store.snapshot()
            world.clock.advance(7200)
            write_deltas(store, 1)
            store.snapshot()
            world.push()
            assert follower.run_once().resynced
            assert follower.store is not old
            assert len(old.table("item")) == 20
            assert len(follower.store.table("item")) == 50
            follower.run_once()
            with pytest.raises(mkv.ClosedError):
                old.table("item")
            write_deltas(store, 1)
            world.push()
            assert follower.run_once().applied == 1
            digest = store.digest()
    assert world.digest() == digest


def test_poll_reports_what_went_wrong(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        with world.follower() as follower:
            assert follower.poll().in_step
            shutil.move(world.target, world.folder / "away")
            done = follower.poll()
            assert isinstance(done.error, FileNotFoundError)
            assert not done.in_step
            assert len(follower.store.table("item")) == 10
            shutil.move(world.folder / "away", world.target)
            assert follower.poll().in_step


def test_a_step_ends_early_where_it_is_told_to(world: World) -> None:
    grown(world)
    with world.open() as store:
        write_deltas(store, 3)
    world.push()

    def stop() -> None:
        raise Stopped

    with world.follower() as follower:
        follower.check = stop
        with pytest.raises(Stopped):
            follower.run_once()
        follower.check = lambda: None
        assert follower.run_once().in_step


def test_two_followers_of_one_replica_are_refused(world: World) -> None:
    grown(world)
    with world.follower(), pytest.raises(mkv.StoreLockedError):
        world.follower()


def test_memory_limit_holds_in_a_replica(world: World) -> None:
    with world.open() as store:
        for _ in range(3):
            write(store, 1000 * (store.sequence + 1), 2000)
            store.seal()
        store.snapshot()
        write_deltas(store, 1)
        world.push()
        world.options["memory_limit"] = "1MiB"
        assert world.follow().in_step
        assert world.digest() == store.digest()


def test_catalogue_files_that_are_pruned_under_a_step_are_looked_for_again(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        write_deltas(store, 3)
        world.push()
        happened = []

        def prune() -> None:
            if not happened:
                happened.append(True)
                store.snapshot()
                world.clock.advance(7200)
                write_deltas(store, 1)
                store.snapshot()
                world.push()

        with world.follower() as follower:
            follower.check = prune
            done = follower.run_once()
            assert (done.sequence, done.in_step) == (5, True)
        assert world.digest() == store.digest()
