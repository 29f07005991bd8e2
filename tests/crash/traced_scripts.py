"""What is traced and crashed: few calls on small stores, every kind of change of files.

A script makes its calls through a `Witness`, in one or more lives; how many calls, and on how many
ids, is up to its dice. Rows and images stay within a few KiB.
"""

from typing import Any

import numpy as np
from crash.helped import help_with_all
from crash.witness import Witness

import monolith_kv as mkv
from monolith_kv.replication import Follower

DIM = 64  # A record of some rows goes over several sectors.
IDS = np.array([0, 1, 2, 2**63, 2**64 - 1, *((7 << 48) + n for n in range(5))], np.uint64)
GATED = np.arange(100, 104, dtype=np.uint64)


def rows(count: int, number: int) -> Any:
    """Whole numbers, different in each call."""
    return np.arange(number, number + count * DIM, dtype=np.float32).reshape(count, DIM)


def create(w: Witness, name: str = "item", **settings: Any) -> mkv.Table:
    made = {"optimizer": mkv.SGD(lr=1.0), "initializer": mkv.Zeros(), **settings}
    w.call("create", lambda: w.store.create_table(name, DIM, **made))
    return w.store.table(name)


def upsert(w: Witness, table: mkv.Table, count: int = len(IDS)) -> None:
    given = rows(count, w.number())
    w.call("upsert", lambda: table.upsert(IDS[:count], given))


def push(w: Witness, table: mkv.Table, count: int | None = None) -> None:
    """One push, or some more: how many, and of how many ids, is up to the dice."""
    for _ in range(w.dice.randint(1, 3)):
        n = count or w.dice.randint(1, 8)
        given = rows(n, w.number())
        w.call("push", lambda n=n, given=given: table.push(IDS[:n], given))


# --- a writer ----------------------------------------------------------------------------------


def pushes(w: Witness) -> None:
    """Calls and nothing else, but for what each mode makes of them."""

    def life() -> None:
        w.open()
        table = create(w, optimizer=mkv.Adagrad(lr=0.5))
        w.call("pull", lambda: table.pull(IDS[:7]))
        for _ in range(4):
            push(w, table)
        upsert(w, table)
        push(w, table)

    w.life(life)


def helped(w: Witness) -> None:
    """Calls in which a helper takes part, written and flushed as large ones are."""

    def life() -> None:
        w.open()
        help_with_all(w.store)
        table = create(w, optimizer=mkv.Adagrad(lr=0.5))
        upsert(w, table)
        for _ in range(3):
            push(w, table)
        w.seal()
        upsert(w, table)
        push(w, table, 8)

    w.life(life)


def seals(w: Witness) -> None:
    def life() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        w.seal({"offset": 1})
        push(w, table)
        push(w, table)
        w.seal()
        push(w, table)
        w.seal({"offset": 2})
        w.seal()
        push(w, table)

    w.life(life)


def snapshots(w: Witness) -> None:
    """Under the store: before a seal, after it, and with calls that no delta has."""

    def life() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        w.snapshot()
        push(w, table)
        w.seal({"offset": 1})
        push(w, table)
        w.snapshot()
        push(w, table)
        w.snapshot()
        push(w, table)

    w.life(life)


def snapshots_elsewhere(w: Witness) -> None:
    def life() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        w.snapshot_to("first.snapshot")
        push(w, table)
        w.seal()
        push(w, table)
        w.snapshot_to("second.snapshot")
        push(w, table)

    w.life(life)


def tables(w: Witness) -> None:
    """Tables come, change and go, with rows in them and without, in deltas and between."""

    def life() -> None:
        w.open()
        first = create(w, "first", ttl=100)
        upsert(w, first)
        w.seal()
        second = create(w, "second", optimizer=mkv.Adagrad(lr=0.5))
        upsert(w, second)
        w.call("configure", lambda: first.configure(ttl=50, optimizer=mkv.SGD(lr=0.25)))
        push(w, first)
        w.call("drop", lambda: w.store.drop_table("second"))
        w.seal()
        create(w, "second")
        w.call("drop", lambda: w.store.drop_table("first"))
        upsert(w, w.store.table("second"), 5)
        w.seal()

    w.life(life)


def dense(w: Witness) -> None:
    def publish(value: int) -> None:
        arrays = {"w": np.full(20, value, np.float32), "b": np.array([value])}
        w.call("dense", lambda: w.store.dense.publish(arrays))

    def life() -> None:
        w.open()
        table = create(w)
        publish(1)
        upsert(w, table)
        publish(2)
        w.seal()
        push(w, table)
        publish(3)
        w.snapshot()
        publish(4)
        w.close()

    w.life(life)


def removals(w: Witness) -> None:
    """Removed by call and by age, sealed and not."""

    def life() -> None:
        w.open()
        table = create(w, ttl=100)
        upsert(w, table)
        w.seal()
        w.clock.now += 60
        push(w, table)
        w.call("remove", lambda: table.remove(IDS[:2]))
        w.seal()
        w.clock.now += 60
        w.compact()
        upsert(w, table)
        w.seal()
        w.call("remove", lambda: table.remove(IDS))
        w.clock.now += 200
        w.compact()
        w.snapshot()

    w.life(life)


def retention(w: Witness) -> None:
    """Snapshots and deltas that are not needed any more are dropped."""

    def life() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        for _ in range(3):
            push(w, table)
            w.seal()
            push(w, table)
            w.clock.now += 30
            w.snapshot()

    w.life(life)


def sightings(w: Witness) -> None:
    """At a gate: durable with the next seal or close, rows or not."""

    def life() -> None:
        w.open()
        gate = mkv.FrequencyGate(2, capacity=100, error=0.01)
        gated, table = create(w, "gated", admission=gate), create(w)
        w.call("pull", lambda: gated.pull(GATED[:2]))
        w.admits = GATED[:2].tolist()
        w.seal()
        w.call("pull", lambda: gated.pull(GATED[2:3]))
        upsert(w, table)
        w.admits = GATED[:3].tolist()
        w.seal()
        w.call("pull", lambda: gated.pull(GATED[[0, 3]]))
        w.snapshot()
        w.admits = GATED.tolist()
        w.close()
        w.open()
        w.call("pull", lambda: w.store.table("gated").pull(GATED[1:2]))
        w.close()

    w.life(life)


def reopened(w: Witness) -> None:
    """Closed and opened again, with something to seal, with nothing, and after an unclean end."""

    def first() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        w.close()
        w.open()
        push(w, w.store.table("item"))
        push(w, w.store.table("item"))
        w.close()
        w.open()
        w.close()

    w.life(first)


def unclean(w: Witness) -> None:
    """Processes that end in the middle of things, and others that go on after them."""

    def first() -> None:
        w.open()
        table = create(w)
        upsert(w, table)
        w.seal()
        push(w, table)

    def second() -> None:
        w.open()
        table = w.store.table("item")
        push(w, table)
        push(w, table)
        w.snapshot()
        push(w, table)

    def third() -> None:
        w.open()
        push(w, w.store.table("item"))
        w.seal({"offset": 1})
        push(w, w.store.table("item"))
        w.close()

    for life in (first, second, third):
        w.life(life)


def overflow(w: Witness) -> None:
    """A memory limit that sends most rows to the overflow tier."""

    def life() -> None:
        w.open()
        table = create(w)
        ids = np.arange(1, 61, dtype=np.uint64)
        w.call("upsert", lambda: table.upsert(ids, rows(60, w.number())))
        assert w.store.stats()["overflow"]["rows"] > 0
        w.seal()
        w.call("push", lambda: table.push(ids[:20], rows(20, w.number())))
        w.call("remove", lambda: table.remove(ids[:30]))
        w.seal()
        w.call("push", lambda: table.push(ids[40:50], rows(10, w.number())))
        w.snapshot()
        w.close()

    w.life(life)


def mixed(w: Witness) -> None:
    """Calls of all kinds as the dice fall, in three lives; each ends cleanly or not."""

    def life() -> None:
        w.open()
        if not w.store.tables:
            upsert(w, create(w, ttl=100))
        for _ in range(w.dice.randint(4, 10)):
            mixed_call(w, w.store.table("item"))
        if w.dice.random() < 0.5:
            w.close()

    for _ in range(3):
        w.life(life)
        w.clock.now += 30


def mixed_call(w: Witness, table: mkv.Table) -> None:
    kind = w.dice.choice(("push", "push", "upsert", "remove", "seal", "snapshot", "compact",
                          "dense", "tables", "configure", "elsewhere"))  # fmt: skip
    number, count = w.number(), w.dice.randint(1, len(IDS))
    if kind == "push":
        push(w, table)
    elif kind == "upsert":
        upsert(w, table, count)
    elif kind == "remove":
        w.call("remove", lambda: table.remove(IDS[:count:2]))
    elif kind == "seal":
        w.seal({"offset": number} if number % 2 else None)
    elif kind == "snapshot":
        w.snapshot()
    elif kind == "compact":
        w.clock.now += w.dice.choice((1, 60))
        w.compact()
    elif kind == "dense":
        w.call("dense", lambda: w.store.dense.publish({"w": np.full(9, number)}))
    elif kind == "tables" and "other" in w.store.tables:
        w.call("drop", lambda: w.store.drop_table("other"))
    elif kind == "tables":
        upsert(w, create(w, "other", optimizer=mkv.Adagrad(lr=0.5)), count)
    elif kind == "configure":
        w.call("configure", lambda: table.configure(optimizer=mkv.SGD(lr=1 / count), ttl=90))
    else:
        w.snapshot_to(f"{number}.snapshot")


# --- a replica ---------------------------------------------------------------------------------


def primary(w: Witness, deltas: int) -> list[str]:
    """A primary in the folder that is given, with a snapshot; the paths of its deltas."""
    with mkv.open(w.given / "primary", delta_interval=None, clock=w.clock) as store:
        table = store.create_table("item", DIM, optimizer=mkv.SGD(lr=1.0), ttl=100)
        for number in range(deltas):
            table.upsert(IDS[number : number + 5], rows(5, number))
            table.remove(IDS[:number])
            store.dense.publish({"w": np.array([number])})
            store.seal(cursor={"offset": number})
            if number == 0:
                store.snapshot(w.given / "snapshot")
        return [delta.path for delta in store.deltas()]


def apply(w: Witness) -> None:
    deltas = primary(w, 3)

    def life() -> None:
        w.open("replica")
        for path in deltas:
            w.call("apply", lambda path=path: w.store.apply(path))
        w.snapshot()
        w.close()

    def second() -> None:
        w.open("replica")
        w.call("apply", lambda: w.store.apply(deltas[-1]))

    w.life(life)
    w.life(second)


def promoted(w: Witness) -> None:
    deltas = primary(w, 2)

    def life() -> None:
        w.open("replica")
        w.call("apply", lambda: w.store.apply(deltas[0]))
        w.call("apply", lambda: w.store.apply(deltas[1]))
        w.call("promote", lambda: w.store.promote())
        push(w, w.store.table("item"))
        w.seal()
        push(w, w.store.table("item"))

    w.life(life)


def restored(w: Witness) -> None:
    """From a snapshot, as a writer."""
    primary(w, 1)

    def life() -> None:
        def make() -> None:
            w.store = mkv.restore(w.given / "snapshot", w.path, clock=w.clock, **w.options)

        w.call("restore", make)
        push(w, w.store.table("item"))
        w.seal()
        push(w, w.store.table("item"))

    w.life(life)


def resynced(w: Witness) -> None:
    """A replica that the source's history has left behind: built anew beside, then exchanged."""
    deltas = primary(w, 2)
    with mkv.restore(w.given / "snapshot", w.given / "later", clock=w.clock) as store:
        store.table("item").upsert(IDS, rows(len(IDS), 70))
        store.seal()
        store.snapshot()

    def life() -> None:
        w.open("replica")
        for path in deltas:
            w.call("apply", lambda path=path: w.store.apply(path))
        w.close()
        with Follower(w.given / "later", w.path, clock=w.clock, delta_interval=None) as follower:
            w.store = follower.store

            def resync() -> None:
                follower.run_once(force=True)
                w.store = follower.store

            w.call("restore", resync)

    w.life(life)
