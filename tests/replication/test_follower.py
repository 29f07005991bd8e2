"""Follow: a replica gets in step from wherever it starts, and stays readable."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from replication.world import World, delta_files, grown, snapshot_files, write, write_deltas

import monolith_kv as mkv
from monolith_kv.replication import Follower, Stopped, positions

# --- getting in step -----------------------------------------------------------------------


def test_an_empty_replica_follows_deltas_from_the_first(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        digest = store.digest()
    world.push()
    assert snapshot_files(world.target) == []
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


def test_a_new_replica_that_does_not_open_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 2)
        world.push()
        with world.follower() as follower:
            follower.run_once()
            write_deltas(store, 2)
            store.snapshot()
            world.clock.advance(7200)
            write_deltas(store, 1)
            store.snapshot()
            world.push()

            def fail(self: Follower) -> mkv.Store:
                raise OSError("no memory")

            monkeypatch.setattr(Follower, "_open", fail)
            with pytest.raises(OSError, match="no memory"):
                follower.run_once()
            monkeypatch.undo()
            assert len(follower.store.table("item")) == 20
            with world.open(world.replica, "r") as reader:
                assert reader.sequence == 2
            assert follower.run_once().resynced
            assert len(follower.store.table("item")) == 50


def test_a_replica_takes_a_checkpoint_when_its_primary_does(world: World) -> None:
    with world.open(delta_retention=0, snapshots_kept=1) as store:
        world.options.update(delta_retention=0, snapshots_kept=1)
        write_deltas(store, 3)
        world.push()
        world.follow()
        assert len(delta_files(world.replica)) == 3
        store.snapshot()
        write_deltas(store, 1)
        world.push()
        assert not world.follow().resynced
        assert delta_files(world.replica) == []
        assert len(snapshot_files(world.replica)) == 1
        write_deltas(store, 2)
        world.push()
        world.follow()
        assert len(delta_files(world.replica)) == 2
        assert world.digest() == store.digest()


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


def test_a_resync_leaves_the_new_replica_its_overflow(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write(store, 0, 6000)
        store.seal()
        world.push()
        world.options["memory_limit"] = "256KiB"
        with world.follower() as follower:
            follower.run_once()
            write_deltas(store, 1)
            world.clock.advance(7200)
            write_deltas(store, 1)
            store.snapshot()
            world.push()
            assert follower.run_once().resynced
            follower.run_once()  # Closes the store before.
            assert follower.store.stats()["overflow"]["rows"] > 1000
            assert (world.replica / "overflow").is_dir()
        assert not (world.replica / "overflow").exists()


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


def test_a_replica_that_was_built_anew_is_as_old_as_its_rows(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        made_at = store.snapshot().created_at
    world.push()
    world.clock.advance(7200)
    assert world.follow().resynced
    [replica, target] = positions([world.replica, world.target])
    assert replica.sealed_at == target.sealed_at == made_at
    with world.open() as store:
        write_deltas(store, 1)
    [replica, _] = positions([world.replica, world.store])
    assert replica.lag == 1
    assert replica.lag_s == pytest.approx(7200, abs=60)
