"""Which rows leave memory: nearly those that an exact LRU would send out, and never for a scan."""

import numpy as np
import pytest
from checks import WIDE
from monolith_kv_tools.bench import hit_rate
from monolith_kv_tools.bench.traffic import scrambled_ids

import monolith_kv as mkv

IDS = 100_000 if WIDE else 40_000
LRU_SHARE = 0.95


@pytest.mark.parametrize("exponent", [0.82, 1.05])
def test_rows_in_memory_serve_as_many_uses_as_those_of_an_exact_lru(exponent):
    steps = hit_rate.zipf_steps(IDS, exponent, 4 * IDS // hit_rate.STEP_IDS)
    found = hit_rate.rates(steps, IDS)
    assert IDS / 20 < found.resident < IDS / 2  # Or else there was nothing to choose.
    assert found.engine >= LRU_SHARE * found.lru


def test_an_exact_lru_keeps_what_was_used_last():
    # Of two places: 1 misses, 2 misses, 1 hits, 3 misses for 2, 2 misses, 3 hits, 3 hits.
    steps = [np.array([fid], np.uint64) for fid in (1, 2, 1, 3, 2, 3, 3)]
    assert hit_rate.lru_rate(steps, 2) == 2 / 4  # Of the second half: 3, 2, 3, 3.


@pytest.mark.parametrize("walk", ["scan", "snapshot", "seal", "export"])
def test_a_walk_over_all_rows_leaves_the_hot_ones_in_memory(walk, store_dir):
    ids = scrambled_ids(20_000)
    hot = ids[-1000:]
    with mkv.open(store_dir, delta_interval=None, memory_limit="2MiB") as store:
        table = store.create_table("item", 32, optimizer=mkv.SGD())
        for start in range(0, len(ids), 1000):
            table.upsert(ids[start : start + 1000], np.ones((1000, 32), np.float32))
        for _ in range(4):
            table.pull(hot)
        before = counters(store)
        if walk == "scan":
            assert sum(len(fids) for fids, _ in table.scan()) == len(ids)
        elif walk == "snapshot":
            store.snapshot()
        elif walk == "seal":
            assert store.seal().rows == len(ids)
        else:
            store.snapshot(store_dir.parent / "exported")
        after = counters(store)
        assert after["promoted"] == before["promoted"]
        assert after["evicted"] == before["evicted"]
        table.pull(hot)
        assert counters(store)["promoted"] == before["promoted"]


def counters(store):
    return store.stats()["tables"]["item"]["counters"]
