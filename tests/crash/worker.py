"""The process that is killed: makes the calls that a seed stands for, acknowledging each one.

Run as a script it is a warm parent: for each request (a JSON line on standard input) it forks a
child, so that no kill pays for imports again. On standard output: "pid N", then one dot for each
call after it returned, then "dead STATUS" once the child is gone.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

TABLES = {
    "plain": {"dim": 3},
    "gated": {"dim": 2, "threshold": 2},
    "fading": {"dim": 1, "ttl": 40},
    "steep": {"dim": 2, "optimizer": "Adagrad"},
    "passing": {"dim": 2},
}
FIDS = [0, 1, 2, 3, 2**63, 2**64 - 1, *((7 << 48) + n for n in range(6))]
KINDS = {
    "pull": 6,
    "push": 8,
    "upsert": 3,
    "remove": 2,
    "seal": 3,
    "snapshot": 1,
    "compact": 1,
    "advance": 2,
    "configure": 1,
    "dense": 1,
    "come_or_go": 1,
    "reopen": 0.5,
}


class Call(NamedTuple):
    kind: str
    table: str = ""
    ids: Sequence[int] = ()
    rows: Any = None  # whole numbers, exact in float32 under SGD with lr 1
    value: Any = None


def calls(seed: int, run: int, tables: Sequence[str]) -> Iterator[Call]:
    """An endless stream, the same in the child and in the oracle; `tables` are there already."""
    random = np.random.default_rng([seed, run])
    there = set(tables)
    for name in sorted(set(TABLES) - {"passing"} - there):
        yield Call("create", name)
        there.add(name)
    kinds, weights = list(KINDS), np.array(list(KINDS.values()), float)
    while True:
        kind = kinds[random.choice(len(kinds), p=weights / weights.sum())]
        name = sorted(there)[random.integers(len(there))]
        ids = [FIDS[i] for i in random.integers(0, len(FIDS), random.integers(1, 9))]
        rows = random.integers(-3, 4, (len(ids), TABLES[name]["dim"])).astype(np.float32)
        number = int(random.integers(1, 30))
        if kind == "pull" and name == "gated" and run > 0:
            continue  # a crash may forget sightings: what a pull does then is not one thing
        if kind == "come_or_go":
            name, kind = "passing", "drop" if "passing" in there else "create"
            there ^= {"passing"}
        if kind == "configure":
            name = "fading"
        yield Call(kind, name, ids, rows, number)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def open_store(request: dict[str, Any], clock: Clock) -> Any:
    import monolith_kv as mkv

    return mkv.open(
        request["path"],
        durability=request["durability"],
        memory_limit=request["memory_limit"],
        delta_interval=None,
        delta_retention="3650d",
        clock=clock,
    )


def create(store: Any, name: str) -> None:
    import monolith_kv as mkv

    given = TABLES[name]
    gate = None
    if "threshold" in given:
        gate = mkv.FrequencyGate(given["threshold"], capacity=1_000, error=1e-6, window="30d")
    adagrad = given.get("optimizer") == "Adagrad"
    store.create_table(
        name,
        given["dim"],
        optimizer=mkv.Adagrad(lr=0.5) if adagrad else mkv.SGD(lr=1.0),
        initializer=mkv.Constant(0.5) if adagrad else mkv.Zeros(),
        admission=gate,
        ttl=given.get("ttl"),
    )


def make(store: Any, call: Call) -> None:
    table = store.table(call.table) if call.kind in ("pull", "push", "upsert", "remove") else None
    ids = np.array(call.ids, np.uint64)
    match call.kind:
        case "create":
            create(store, call.table)
        case "drop":
            store.drop_table(call.table)
        case "pull":
            table.pull(ids)
        case "push":
            table.push(ids, call.rows)
        case "upsert":
            table.upsert(ids, call.rows)
        case "remove":
            table.remove(ids)
        case "seal":
            store.seal(cursor={"offset": call.value} if call.value % 2 else None)
        case "snapshot":
            store.snapshot()
        case "compact":
            store.compact()
        case "configure":
            store.table(call.table).configure(ttl=20 + call.value)
        case "dense":
            store.dense.publish({"w": np.array([call.value], np.int64)})


def child(request: dict[str, Any]) -> None:
    from crash.helped import help_with_all

    def opened() -> Any:
        store = open_store(request, clock)
        if request["seed"] % 2:
            help_with_all(store)
        return store

    clock = Clock(request["now"])
    store = opened()
    os.write(1, b".")  # the opening counts as a call
    if request["only_open"]:
        signal.pause()
    for call in calls(request["seed"], request["run"], request["tables"]):
        if call.kind == "advance":
            clock.now += call.value
        elif call.kind == "reopen":
            store.close()
            store = opened()
        else:
            make(store, call)
        os.write(1, b".")


def main() -> None:
    import zstandard  # noqa: F401  # warm, like all else that a child would have to import

    import monolith_kv  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.write(1, b"pid %d\n" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(1, b"dead %d\n" % status)


if __name__ == "__main__":
    main()
