"""More kinds of work that meet faults: replicas, readers, and stores made from others."""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from crash.scenarios import GATE, closed
from crash.shim import Shim
from crash.world import (
    Scenario,
    Step,
    World,
    begin,
    ids,
    look_at_nothing,
    look_at_target,
    values,
)
from monolith_kv_tools import mkv_replicate

import monolith_kv as mkv


class Exited(Exception):
    """A command ended with an exit code that says it failed, and a line that says why."""


# --- replicas and readers ----------------------------------------------------------------------


def source(world: World, deltas: int = 4, **options: Any) -> list[Path]:
    """A store beside the one that is watched, and its deltas."""
    path = world.root / "source"
    with world.open(path, "rw", **options) as store:
        table = store.create_table("item", 3, ttl="1d", admission=None)
        for number in range(deltas):
            table.upsert(ids(30 * number, 50), values(number, 50, 3))
            table.remove(ids(7 * number, 4))
            if number == 1:
                store.dense.publish({"w": np.arange(3.0)})
                table.configure(ttl="2d")
                gated = store.create_table("gated", 2, admission=GATE)
                gated.pull(ids(0, 20))
            if number == 2:
                gated.pull(ids(10, 20))
                store.create_table("passing", 1)
            if number == 3:
                store.drop_table("passing")
            store.seal(cursor={"offset": number})
        return [Path(delta.path) for delta in store.deltas()]


def applying(world: World) -> list[Step]:
    deltas = source(world)
    world.open()
    return [
        Step("apply", lambda d=delta: world.store.apply(d), is_durable=True) for delta in deltas
    ]


def promoting(world: World) -> list[Step]:
    deltas = source(world)
    world.open()
    for delta in deltas:
        world.store.apply(delta)

    def promote() -> None:
        if world.store.mode == "replica":
            world.store.promote()

    return [
        Step("snapshot of a replica", lambda: world.store.snapshot(), is_durable=True),
        Step("promote", promote, is_durable=True),
    ]


def closing_replica(world: World) -> list[Step]:
    deltas = source(world)
    world.open()
    world.store.apply(deltas[0])
    return [
        closed(world),
        Step("open", world.reopen, is_durable=True),
        Step("apply", lambda: world.store.apply(deltas[1]), is_durable=True),
    ]


def refreshing(world: World) -> list[Step]:
    """A reader beside a writer: by deltas, by a snapshot, by what the call log has."""
    writer_world = World(world.live / "writer", "rw", {**world.options, "durability": "batch"})
    begin(writer_world)
    writer = writer_world.store
    path = writer_world.subject
    files_are = world.live / "now"
    folders = []

    def keep() -> None:
        folder = world.live / f"kept-{len(folders)}"
        shutil.copytree(path, folder)
        folders.append(folder)

    writer.seal()
    keep()
    writer_world.push("item", 0, 20)
    writer.seal()
    keep()
    writer_world.upsert("item", 100, 20)
    writer.seal()
    keep()
    writer_world.push("item", 0, 20)
    keep()
    writer.seal()
    writer.snapshot()
    keep()
    writer_world.close()
    world.subject = files_are
    shutil.copytree(folders[0], files_are)
    world.open()

    def refresh(number: int) -> None:
        with_shim_paused(lambda: swap(folders[number], files_are))
        world.store.refresh()

    return [Step("refresh", lambda n=number: refresh(n)) for number in (1, 2, 3, 4)]


def swap(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def with_shim_paused(call: Callable[[], None]) -> None:
    """For what another process would do meanwhile."""
    shim = Shim.current
    if shim is None:
        call()
    else:
        with shim.paused():
            call()


# --- new stores from others --------------------------------------------------------------------


def parts(world: World, count: int) -> list[Path]:
    """Snapshots of several stores of one table."""
    made = []
    for number in range(count):
        with world.open(world.root / f"part-{number}", "rw") as store:
            table = store.create_table("item", 3, admission=GATE)
            table.upsert(ids(100 * number, 60), values(number, 60, 3))
            table.pull(ids(1_000 + number, 5))
            store.dense.publish({"w": np.arange(2)})
            made.append(Path(store.snapshot(world.root / f"{number}.snapshot").path))
    return made


def restoring(count: int, mode: Any = "rw") -> Callable[[World], list[Step]]:
    def make(world: World) -> list[Step]:
        snapshots = parts(world, count)

        def restore() -> None:
            shutil.rmtree(world.subject) if is_left(world.subject) else None
            world.store = mkv.restore(snapshots, world.subject, mode=mode, **world.options)

        return [Step("restore", restore, is_durable=True)]

    return make


def is_left(path: Path) -> bool:
    """A restored store whose opening failed: its files are whole, and it can be restored again."""
    return path.exists() and (path / "MANIFEST").exists()


# --- the command for replicas ------------------------------------------------------------------


def command(*arguments: str) -> None:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = mkv_replicate.main([*arguments, "--once"])
    if code:
        raise Exited(f"{code}: {errors.getvalue()}")


def pushing(world: World) -> list[Step]:
    """mkv-replicate push: deltas, then a snapshot and a delta."""
    path = world.root / "source"

    def change(number: int) -> None:
        with world.open(path, "rw") as store:
            table = store.create_table("item", 3, exist_ok=True)
            table.upsert(ids(10 * number, 20), values(number, 20, 3))
            store.seal()
            if number == 1:
                store.snapshot()

    change(0)
    done = set()

    def push(number: int) -> None:
        if number not in done:
            done.add(number)
            with_shim_paused(lambda: change(number))
        command("push", str(path), str(world.subject))

    return [Step("push", lambda n=number: push(n), is_durable=True) for number in (0, 1, 2)]


def following(world: World) -> list[Step]:
    """mkv-replicate follow: a first build from a snapshot, then a delta."""
    path, target = world.root / "source", world.root / "target"

    def change(number: int) -> None:
        with world.open(path, "rw") as store:
            table = store.create_table("item", 3, exist_ok=True)
            table.upsert(ids(10 * number, 20), values(number, 20, 3))
            store.seal()
            if number == 0:
                store.snapshot()
        command("push", str(path), str(target))

    change(0)
    done = {0}

    def follow(number: int) -> None:
        if number not in done:
            done.add(number)
            with_shim_paused(lambda: change(number))
        command("follow", str(target), str(world.subject))

    return [Step("follow", lambda n=number: follow(n), is_durable=True) for number in (0, 1)]


def resyncing(world: World) -> list[Step]:
    """mkv-replicate follow of a source that has dropped what the replica needs: built anew."""
    path = world.root / "source"
    options = {"snapshots_kept": 1, "delta_retention": 0}
    with world.open(path, "rw", **options) as store:
        store.create_table("item", 3).upsert(ids(0, 30), values(1, 30, 3))
        store.seal()
    command("follow", str(path), str(world.subject))
    with world.open(path, "rw", **options) as store:
        for number in range(3):
            store.table("item").upsert(ids(20 * number, 30), values(number, 30, 3))
            store.seal()
        store.snapshot()
        store.table("item").upsert(ids(0, 5), values(9, 5, 3))
        store.seal()
    return [
        Step("resync", lambda: command("follow", str(path), str(world.subject)), is_durable=True)
    ]


# --- all ---------------------------------------------------------------------------------------

OTHERS = [
    Scenario("apply", applying, mode="replica"),
    Scenario("apply with two tiers", applying, {"memory_limit": 1 << 10}, mode="replica"),
    Scenario("promotion", promoting, mode="replica"),
    Scenario("opening of a replica", closing_replica, mode="replica"),
    Scenario("refresh of a reader", refreshing, mode="r", look=look_at_nothing),
    Scenario("restore of one snapshot", restoring(1)),
    Scenario("restore of several snapshots", restoring(3)),
    Scenario("restore as a replica", restoring(1, "replica"), mode="replica"),
    Scenario("mkv-replicate push", pushing, mode="rw", look=look_at_target),
    Scenario("mkv-replicate follow", following, mode="replica"),
    Scenario("resync of a replica", resyncing, mode="replica"),
]
