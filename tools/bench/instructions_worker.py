"""What runs under callgrind: a fixed script of calls, with a mark before and after each kind.

The mark is a call of getsid, a function of the C library that nothing else here calls: callgrind
is told to dump its counts whenever it is entered. So start-up, imports and preparation are counted
apart, and neither the interpreter nor the engine has to know of valgrind.
"""

import json
import os
from collections.abc import Callable

import numpy as np
from monolith_kv_tools.bench.tables import DIM, scratch_store
from monolith_kv_tools.bench.traffic import BATCH, repeat_some, scrambled_ids
from numpy.typing import NDArray

import monolith_kv as mkv

ROWS = 8 * BATCH
BATCHES = 4
BAG = 20
TTL_S = 86_400

Fids = NDArray[np.uint64]


def mark() -> None:
    """Let callgrind write down what it has counted since the last mark, and begin at 0."""
    os.getsid(0)


def run(store: mkv.Store, now: list[float]) -> None:
    """Prepare, then do each kind between two marks."""
    rng = np.random.default_rng(0)
    # With gate and TTL, as tables are used.
    table = store.create_table("item", DIM, admission=mkv.FrequencyGate(2), ttl=TTL_S)
    ids = scrambled_ids(ROWS)
    rows = rng.random((BATCH, DIM), np.float32)
    for batch in ids.reshape(-1, BATCH):
        table.upsert(batch, rows)
    now[0] += TTL_S / 2
    # Changes are for the first half, which so stays when the other expires.
    present = rng.permutation(ids[: ROWS // 2]).reshape(BATCHES, BATCH)
    repeated = ids[repeat_some(rng, rng.permutation(ROWS // 2), BATCH, 0.3)].reshape(-1, BATCH)
    absent = scrambled_ids(BATCHES * BATCH, start=ROWS).reshape(BATCHES, BATCH)
    offsets = np.arange(0, BATCH, BAG)
    out = np.empty((BATCH, DIM), np.float32)
    pooled = np.empty((len(offsets), DIM), np.float32)
    gradients = rng.normal(0.0, 0.1, (BATCH, DIM)).astype(np.float32)

    def look(batch: Fids) -> None:
        table.lookup(batch, out=out)

    def look_pooled(batch: Fids) -> None:
        table.lookup_pooled(batch, offsets, out=pooled)

    def pull(batch: Fids) -> None:
        table.pull(batch, out=out)

    def push(batch: Fids) -> None:
        table.push(batch, gradients)

    def upsert(batch: Fids) -> None:
        table.upsert(batch, rows)

    def expire(batch: Fids) -> None:
        assert store.compact().expired == ROWS // 2

    for call in (look, look_pooled, pull, push, upsert):
        call(present[0])  # What is done once only, at the first call, is not counted.
    counted("lookup", look, present)
    counted("lookup of absent ids", look, absent)
    counted("lookup_pooled", look_pooled, present)
    counted("pull", pull, present)
    counted("push", push, present)
    counted("push, 30 % repeated", push, repeated)
    counted("upsert", upsert, present)
    counted("sighting", pull, absent)
    counted("insert by pull", pull, absent)
    assert len(table) == ROWS + BATCHES * BATCH
    counted("remove", table.remove, absent)
    now[0] += TTL_S / 2
    counted("expire", expire, ids[ROWS // 2 :].reshape(1, -1))


def counted(kind: str, call: Callable[[Fids], object], batches: Fids) -> None:
    """Call for each batch between two marks, and print how many ids that were."""
    print(json.dumps([kind, batches.size]), flush=True)
    mark()
    for batch in batches:
        call(batch)
    mark()


def main() -> None:
    """Run on a store whose secrets are none: its tables hash alike in every run."""
    os.urandom = lambda size: bytes(range(size))
    now = [1e9]
    with scratch_store(lambda: now[0]) as store:
        run(store, now)


if __name__ == "__main__":
    main()
