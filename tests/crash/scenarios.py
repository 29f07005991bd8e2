"""The kinds of work that meet faults: each makes a world ready and returns the steps to watch."""

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from crash.helped import help_with_all
from crash.shim import FAIL, SYNC, Fault, Shim
from crash.world import Scenario, Step, World, begin

import monolith_kv as mkv

GATE = mkv.FrequencyGate(2, capacity=1_000, error=1e-6, window="30d")


def sealed(world: World, **cursor: Any) -> Step:
    return Step("seal", lambda: world.store.seal(cursor=cursor or None), is_durable=True)


def closed(world: World) -> Step:
    return Step("close", world.close, is_durable=True)


# --- calls on rows -----------------------------------------------------------------------------


def pushes(world: World) -> list[Step]:
    begin(world)
    return [
        Step("push", lambda: world.push("item", 0, 20)),
        Step("push", lambda: world.push("item", 10, 50)),
    ]


def helped(world: World) -> list[Step]:
    begin(world)
    help_with_all(world.store)
    return [
        Step("push", lambda: world.push("item", 0, 50)),
        Step("upsert", lambda: world.upsert("item", 30, 40), is_partial=world.is_upsert_partial),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


def pulls(world: World) -> list[Step]:
    begin(world)
    return [
        Step("pull of new ids", lambda: world.pull("item", 30, 20)),
        Step("push", lambda: world.push("item", 40, 20)),
        Step("pull of known ids", lambda: world.pull("item", 0, 20)),
    ]


def upserts(world: World) -> list[Step]:
    begin(world)
    return [
        Step("upsert", lambda: world.upsert("item", 30, 20), is_partial=world.is_upsert_partial),
        Step("push", lambda: world.push("item", 30, 20)),
    ]


def removals(world: World) -> list[Step]:
    begin(world)
    return [
        Step("remove", lambda: world.remove("item", 3, 8)),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


def gated(world: World) -> list[Step]:
    world.open()
    world.create("item", 3, admission=GATE)
    world.pull("item", 0, 30)
    world.store.seal()
    # A pull that failed has counted, as one that succeeded: all of these were seen before.
    return [
        Step("pull that admits", lambda: world.pull("item", 10, 20)),
        Step("push", lambda: world.push("item", 0, 30)),
    ]


# --- tables and dense parameters ---------------------------------------------------------------


def schemas(world: World) -> list[Step]:
    begin(world)
    return [
        Step("create", lambda: world.create("user", 2)),
        Step("upsert", lambda: world.upsert("user", 0, 5), is_partial=world.is_upsert_partial),
        Step("configure", lambda: world.table("item").configure(ttl="1d")),
        Step("drop", lambda: world.store.drop_table("item")),
        Step("create again", lambda: world.create("item", 1)),
        sealed(world),
    ]


def dense(world: World) -> list[Step]:
    begin(world)
    world.store.dense.publish({"w": np.arange(4.0)})

    def publish(number: int) -> Step:
        arrays = {"w": np.full(3, number), "b": np.float32([number])}
        return Step("publish", lambda: world.store.dense.publish(arrays))

    return [publish(1), sealed(world), publish(2)]


# --- what is published -------------------------------------------------------------------------


def seals(world: World) -> list[Step]:
    begin(world)
    return [
        sealed(world, offset=2),
        Step("push", lambda: world.push("item", 0, 20)),
        Step("remove", lambda: world.remove("item", 0, 3)),
        sealed(world),
        sealed(world, offset=3),
    ]


def sightings(world: World) -> list[Step]:
    world.open()
    world.create("item", 3, admission=GATE)
    world.store.seal()
    world.pull("item", 0, 20)
    return [
        Step("seal of sightings", world.store.seal, is_durable=True),
        Step("reopen", world.reopen, is_durable=True),
        Step("pull that admits", lambda: world.pull("item", 5, 10)),
    ]


def snapshots(world: World) -> list[Step]:
    begin(world)
    return [
        Step("snapshot", lambda: world.store.snapshot(), is_durable=True),
        Step("push", lambda: world.push("item", 0, 20)),
        Step("snapshot", lambda: world.store.snapshot(), is_durable=True),
    ]


def snapshots_elsewhere(world: World) -> list[Step]:
    begin(world)

    def snapshot(number: int) -> None:
        path = world.live / f"{number}.snapshot"
        try:
            made = world.store.snapshot(path)
        except FileExistsError:
            made = None  # It has its name since an error in the last step.
        assert made is None or made.rows == 40
        shutil.rmtree(world.other, ignore_errors=True)
        restored = mkv.restore(path, world.other / f"{number}", clock=world.clock)
        with restored:
            assert len(restored.table("item")) == 40
        shutil.rmtree(world.other)

    return [
        Step("snapshot elsewhere", lambda: snapshot(1)),
        Step("push", lambda: world.push("item", 0, 20)),
        Step("snapshot elsewhere", lambda: snapshot(2)),
    ]


def retention(world: World) -> list[Step]:
    begin(world)
    world.store.seal()
    world.store.snapshot()
    world.push("item", 0, 5)
    world.store.seal()
    world.push("item", 0, 6)
    world.clock.advance(100)
    return [
        Step("snapshot that retires", lambda: world.store.snapshot(), is_durable=True),
        Step("compact that retires", lambda: world.store.compact(force=True)),
        sealed(world),
    ]


def compaction(world: World) -> list[Step]:
    world.open()
    world.create("item", 3, ttl=100)
    world.upsert("item", 0, 20)
    world.store.seal()
    world.clock.advance(60)
    world.upsert("item", 20, 20)
    world.clock.advance(60)
    return [
        Step("compact", lambda: world.store.compact(force=True), is_partial=True),
        Step("push", lambda: world.push("item", 10, 20)),
        sealed(world),
    ]


# --- open and close ----------------------------------------------------------------------------


def closing(world: World) -> list[Step]:
    begin(world)
    return [closed(world)]


def reopening(world: World) -> list[Step]:
    begin(world)
    world.store.seal()
    return [
        Step("reopen", world.reopen, is_durable=True),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


def opening(world: World) -> list[Step]:
    """The first opening of a store."""
    return [
        Step("open", world.reopen, is_durable=True),
        Step("create", lambda: world.create("item")),
        sealed(world),
    ]


def opening_unclean(world: World) -> list[Step]:
    begin(world)
    world.upsert("item", 30, 20)
    world.leave()
    return [
        Step("open", world.reopen, is_durable=True),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


def opening_torn(world: World) -> list[Step]:
    begin(world)
    world.upsert("item", 30, 20)
    world.upsert("item", 60, 20)
    world.leave()
    log = max((world.subject / "calls").glob("*.calls"))
    log.write_bytes(log.read_bytes()[:-100])
    return [
        Step("open", world.reopen, is_durable=True),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


def opening_damaged(world: World) -> list[Step]:
    """The newest snapshot is damaged: the one before and the deltas since stand in for it."""
    begin(world)
    world.store.snapshot()
    world.push("item", 0, 20)
    world.store.seal()
    world.store.snapshot()
    world.push("item", 0, 10)
    world.store.seal()
    world.close()
    newest = max((world.subject / "snapshots").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    return [
        Step("open", world.reopen, is_durable=True),
        Step("push", lambda: world.push("item", 0, 20)),
        sealed(world),
    ]


def rescuing(world: World) -> list[Step]:
    """The flush of the call log has failed: the next call writes a snapshot and goes on."""
    begin(world)
    shim = Shim()
    shim.arm(world.live, Fault("a flush fails", SYNC, FAIL, errno.EIO), 0)
    with suppress(mkv.Error):
        world.push("item", 0, 20)
    shim.disarm()
    return [
        Step("push after a failed flush", lambda: world.push("item", 0, 20)),
        sealed(world),
        Step("push", lambda: world.push("item", 0, 20)),
    ]


# --- two tiers ---------------------------------------------------------------------------------


def overflowing(world: World, rows: int = 3_000) -> None:
    world.open()
    world.create("item", 3, ttl=1_000)
    for first in range(0, rows, 1_000):
        world.upsert("item", first, 1_000)
    world.store.seal()
    assert world.store.stats()["overflow"]["rows"] > 0


def overflow_calls(world: World) -> list[Step]:
    overflowing(world)
    return [
        Step("push on cold rows", lambda: world.push("item", 100, 200)),
        Step("pull of cold and new rows", lambda: world.pull("item", 2_900, 200)),
        Step("remove of cold rows", lambda: world.remove("item", 500, 100)),
        Step("upsert of new rows", lambda: world.upsert("item", 4_000, 200)),
    ]


def overflow_published(world: World) -> list[Step]:
    overflowing(world)
    world.push("item", 0, 300)
    return [
        sealed(world),
        Step("snapshot", lambda: world.store.snapshot(), is_durable=True),
    ]


def overflow_compaction(world: World) -> list[Step]:
    overflowing(world)
    world.clock.advance(2_000)
    world.upsert("item", 0, 50)
    return [
        Step("compact", lambda: world.store.compact(force=True), is_partial=True),
        Step("upsert", lambda: world.upsert("item", 0, 100)),
        sealed(world),
    ]


def overflow_opening(world: World) -> list[Step]:
    overflowing(world)
    world.push("item", 0, 300)
    if world.options["durability"] != "batch":
        world.store.seal()
    world.leave()
    return [
        Step("open", world.reopen, is_durable=True),
        Step("drop", lambda: world.store.drop_table("item")),
        sealed(world),
    ]


def overflow_staying(world: World) -> list[Step]:
    """Cold rows stay in the snapshot, until it is retired: then they are moved out."""
    overflowing(world)
    world.store.snapshot()
    world.push("item", 0, 300)
    world.leave()
    return [
        Step("open", world.reopen, is_durable=True),
        Step("push on cold rows", lambda: world.push("item", 1_000, 200)),
        sealed(world),
        Step("snapshot", lambda: world.store.snapshot(), is_durable=True),
        Step("upsert of new rows", lambda: world.upsert("item", 4_000, 500)),
    ]


# --- all ---------------------------------------------------------------------------------------

Make = Callable[[World], Sequence[Step]]


def in_modes(
    name: str, make: Make, modes: str, damaged: str = "", **options: Any
) -> list[Scenario]:
    return [
        Scenario(f"{name} ({mode})", make, {"durability": mode, **options}, damaged=damaged)
        for mode in modes.split()
    ]


WRITERS = [
    *in_modes("pushes", pushes, "none interval batch sync"),
    *in_modes("calls with a helper", helped, "batch sync"),
    *in_modes("pulls", pulls, "interval batch sync"),
    *in_modes("gated pulls", gated, "none batch sync"),
    *in_modes("upserts", upserts, "interval batch sync"),
    *in_modes("removals", removals, "none batch sync"),
    *in_modes("tables", schemas, "none batch sync"),
    *in_modes("dense parameters", dense, "interval sync"),
    *in_modes("seals", seals, "none interval batch sync"),
    *in_modes("sightings", sightings, "none batch"),
    *in_modes("snapshots", snapshots, "none batch sync"),
    *in_modes("snapshots elsewhere", snapshots_elsewhere, "interval batch sync"),
    *in_modes("retention", retention, "interval sync", snapshots_kept=1, delta_retention=10),
    *in_modes("compaction", compaction, "none batch sync"),
    *in_modes("close", closing, "none batch sync"),
    *in_modes("close and open", reopening, "interval batch"),
    *in_modes("first opening", opening, "none sync"),
    *in_modes("opening after a kill", opening_unclean, "none batch sync"),
    *in_modes("opening with a torn log", opening_torn, "batch sync"),
    *in_modes(
        "opening with a damaged snapshot", opening_damaged, "interval batch", damaged=".snapshot"
    ),
    Scenario("rescue", rescuing, {"durability": "sync"}, raises=(mkv.ReadOnlyError,)),
    *in_modes("calls on two tiers", overflow_calls, "interval batch", memory_limit=64 << 10),
    *in_modes("seals of two tiers", overflow_published, "interval batch", memory_limit=64 << 10),
    *in_modes("compaction of two tiers", overflow_compaction, "none batch", memory_limit=64 << 10),
    *in_modes("opening with two tiers", overflow_opening, "none batch", memory_limit=64 << 10),
    *in_modes(
        "cold rows in a snapshot",
        overflow_staying,
        "interval batch",
        memory_limit=64 << 10,
        snapshots_kept=1,
    ),
]
