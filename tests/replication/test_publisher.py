"""Push: what a target holds, what it refuses, and that nobody ever sees it half done."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from replication.faults import Crash, Faults
from replication.world import World, content, delta_files, flip, only, write, write_deltas

import monolith_kv as mkv
from monolith_kv.replication import Publisher, Stopped, positions
from monolith_kv.replication.target import read_target, write_target
from monolith_kv.storage.format import FileType
from monolith_kv.storage.record_file import RecordReader, RecordWriter


def test_a_push_copies_deltas_and_snapshots(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        store.snapshot()
        write_deltas(store, 2)
        done = world.push()
        assert (done.sequence, done.deltas, done.snapshots, done.changed) == (5, 5, 1, True)
        for path in world.target.rglob("*-*"):
            assert path.read_bytes() == (world.store / path.relative_to(world.target)).read_bytes()


def test_a_push_with_nothing_new_writes_nothing(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        world.push()
        before = content(world.target)
        done = world.push()
    assert (done.sequence, done.deltas, done.bytes, done.changed) == (2, 0, 0, False)
    assert content(world.target) == before


def test_an_empty_store_can_be_pushed(world: World) -> None:
    world.open().close()
    assert world.push().sequence == 0
    assert positions([world.target])[0].kind == "target"


def test_a_missing_store_leaves_no_target_behind(world: World) -> None:
    with pytest.raises(FileNotFoundError):
        world.push()
    assert not world.target.exists()


def test_what_retention_dropped_is_pruned(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 3)
        store.snapshot()
        world.push()
        world.clock.advance(7200)
        write_deltas(store, 1)
        store.snapshot()
        done = world.push()
        assert done.pruned > 0
        assert {p.name for p in world.target.rglob("*-*")} == {
            p.name for f in ("deltas", "snapshots") for p in (world.store / f).iterdir()
        }


def test_a_name_that_is_given_again_does_not_touch_the_first_file(world: World) -> None:
    with world.open(snapshots_kept=1) as store:
        write_deltas(store, 1)
        name = Path(store.snapshot().path).name
        world.push()
        first = only(world.target, "*.snapshot")
        content_before = first.read_bytes()
        write(store, 50_000, 5)
        assert Path(store.snapshot().path).name != name
        assert Path(store.snapshot().path).name == name
        readable = []

        def look(done: int, total: int) -> None:
            readable.append(first.read_bytes() == content_before)

        Publisher(world.store, world.target, progress=look).run_once()
        assert readable
        assert all(readable)
        # The first is pruned by the same push, but only after the catalogue names the second.
        assert only(world.target, "*.snapshot") != first
        assert world.follow().in_step
        assert world.rows() == 15
        assert not world.push().changed


def test_a_target_keeps_its_newest_snapshot_and_what_leads_on_from_it(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        store.snapshot()
        write_deltas(store, 2)
        world.push()
        with world.open(world.folder / "second", "replica", delta_retention=0) as second:
            for delta in store.deltas():
                second.apply(delta)
            second.promote()
            write_deltas(second, 1)
            digest = second.digest()
        world.push(world.folder / "second")
    assert only(world.target, "*.snapshot").exists()
    assert world.follow().in_step
    assert world.digest() == digest


def test_another_stores_target_is_refused(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
    world.push()
    with world.open(world.folder / "other") as store:
        write_deltas(store, 1)
    before = content(world.target)
    with pytest.raises(mkv.FencedError, match="belongs to store"):
        world.push(world.folder / "other")
    assert content(world.target) == before


def test_a_folder_of_something_else_is_refused(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
    world.target.mkdir()
    (world.target / "notes.txt").write_text("mine")
    with pytest.raises(mkv.FencedError, match=r"notes\.txt"):
        world.push()
    with pytest.raises(mkv.FencedError):
        world.push(target=world.store)


def test_a_stale_primary_is_fenced(world: World) -> None:
    with world.open() as primary:
        write_deltas(primary, 2)
        world.push()
        world.follow()
        with world.open(world.replica, "replica") as replica:
            replica.promote()
            write_deltas(replica, 1)
            world.push(world.replica)
        before = content(world.target)
        write_deltas(primary, 3)
        with pytest.raises(mkv.FencedError, match="older epoch"):
            world.push()
        assert content(world.target) == before


def test_a_promoted_replica_fences_before_its_first_delta(world: World) -> None:
    with world.open() as primary:
        write_deltas(primary, 2)
        world.push()
        world.follow()
        with world.open(world.replica, "replica") as replica:
            replica.promote()
        world.push(world.replica)
        write_deltas(primary, 1)
        with pytest.raises(mkv.FencedError):
            world.push()


def test_a_restored_older_store_is_fenced(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        snapshot = store.snapshot()
        write_deltas(store, 2)
    world.push()
    with mkv.restore(snapshot.path, world.folder / "restored", **world.options) as fork:
        write_deltas(fork, 5)
    with pytest.raises(mkv.FencedError, match="parted"):
        world.push(world.folder / "restored")


def test_a_store_that_lost_deltas_is_fenced(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
    shutil.copytree(world.store, world.folder / "backup")
    with world.open() as store:
        write_deltas(store, 2)
    world.push()
    with pytest.raises(mkv.FencedError, match="lost deltas"):
        world.push(world.folder / "backup")


def test_a_damaged_delta_of_the_store_is_not_published(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 2)
        world.push()
        write_deltas(store, 1)
        flip(delta_files(world.store)[-1])
        before = content(world.target)
        with pytest.raises(mkv.CorruptionError, match="at byte"):
            world.push()
    assert content(world.target) == before


def test_a_damaged_file_of_the_target_is_pushed_again(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 3)
        world.push()
        first, second, third = delta_files(world.target)
        flip(first)
        second.unlink()
        third.write_bytes(b"")
        assert world.push().deltas == 3
    assert world.follow().in_step


def test_a_file_that_was_only_touched_is_kept(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        delta_files(world.target)[0].touch()
        assert world.push().deltas == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_catalogue_is_refused(world: World, damage: str) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        path = world.target / "PUBLISHED"
        data = path.read_bytes()
        if damage == "flip":
            flip(path)
        else:
            path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
        with pytest.raises(mkv.CorruptionError):
            world.push()
        with pytest.raises(mkv.CorruptionError):
            world.follow()


def test_two_pushes_at_once_are_refused(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)

        def again(done: int, total: int) -> None:
            with pytest.raises(mkv.StoreLockedError):
                world.push()

        assert Publisher(world.store, world.target, progress=again).run_once().changed


def test_files_that_vanish_under_a_push_are_looked_for_again(world: World) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 3)
        happened = []

        def retain(done: int, total: int) -> None:
            if not happened:
                happened.append(True)
                store.snapshot()
                world.clock.advance(7200)
                write_deltas(store, 1)
                store.snapshot()

        Publisher(world.store, world.target, progress=retain).run_once()
        assert positions([world.target])[0].sequence == 4
    assert world.follow().sequence == 4


def test_a_push_ends_early_where_it_is_told_to(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)

        def stop() -> None:
            raise Stopped

        with pytest.raises(Stopped):
            Publisher(world.store, world.target, check=stop).run_once()
        assert world.push().deltas == 1


def test_a_crash_at_any_step_of_a_push_leaves_a_whole_target(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 2)
        store.snapshot()
        world.push()
        shutil.copytree(world.target, world.folder / "before")
        world.clock.advance(7200)
        write_deltas(store, 2)
        store.snapshot()
        digest = store.digest()
        faults = Faults(monkeypatch)
        at, is_done = 0, False
        while not is_done:
            at += 1
            target = world.folder / f"target-{at}"
            shutil.copytree(world.folder / "before", target)
            try:
                with faults.crashing(at):
                    world.push(target=target)
                is_done = True
            except Crash:
                pass
            world.replica = world.folder / f"replica-{at}"
            assert world.follow(target).sequence in (2, 4)
            world.push(target=target)
            assert world.follow(target).sequence == 4
            assert world.digest() == digest
            assert not list(target.rglob("*.tmp"))
    assert at > 10


def test_a_crash_at_any_step_of_the_first_push_can_be_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        faults = Faults(monkeypatch)
        at, is_done = 0, False
        while not is_done:
            at += 1
            target = world.folder / f"target-{at}"
            try:
                with faults.crashing(at):
                    world.push(target=target)
                is_done = True
            except Crash:
                # Nothing, or all of it where only the acknowledgement was lost.
                with contextlib.suppress(FileNotFoundError):
                    assert positions([target])[0].sequence == 1
            assert world.push(target=target).sequence == 1
            assert len(delta_files(target)) == 1
    assert at > 5


def test_a_header_that_does_not_belong_to_the_catalogue_is_seen(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
    world.push()
    path = str(world.target / "PUBLISHED")
    found = RecordReader(path)
    identity = replace(found.header.identity, number=7)
    with RecordWriter(path, FileType.TARGET, identity, replace=True) as writer:
        writer.publish(found.meta)
    with pytest.raises(mkv.CorruptionError, match="header"):
        read_target(str(world.target))


def test_a_name_in_the_catalogue_leads_nowhere_else(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
    world.push()
    catalogue = read_target(str(world.target))
    assert catalogue is not None
    evil = replace(catalogue.deltas[0], name="../../store/MANIFEST")
    write_target(replace(catalogue, deltas=(evil,)))
    with pytest.raises(mkv.CorruptionError, match="no name of a file"):
        world.follow()
    assert Path(world.store / "MANIFEST").exists()


def test_every_flipped_bit_and_every_cut_of_a_catalogue_is_seen(world: World) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        store.snapshot()
    world.push()
    path = world.target / "PUBLISHED"
    good = path.read_bytes()
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        for bad in (bytes(flipped), good[:position]):
            path.write_bytes(bad)
            with pytest.raises((mkv.CorruptionError, mkv.FormatVersionError)):
                read_target(str(world.target))
    path.write_bytes(good)
    assert read_target(str(world.target)) is not None
