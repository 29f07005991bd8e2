"""How often a row that is trained is in memory, beside an exact LRU with room for as many rows.

The engine itself decides, through the public API, on the ids of three kinds of traffic: Zipf 0.82,
Zipf 1.05 and completejourney in time order, with memory for about a tenth of the ids. A training
step is a pull and a push; the first use of a row that is new, or not in memory, is a miss.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import FAST_FOLDER
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.traffic import scrambled_ids, zipf_ranks
from monolith_kv_tools.demo.data import load_completejourney
from numpy.typing import NDArray

import monolith_kv as mkv

DIM = 24
RECORD_BYTES = 16 + 4 * DIM
INDEX_BYTES = 40  # A row in the index, at worst, and its header and dead ones in overflow.
STEP_IDS = 2048
SETTLED = 0.5  # Of a traffic: what comes before only fills memory.
SEAL_STEPS = 32
TRAIL_DAYS = 120

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Rates:
    """Shares of the ids that were in memory when they were used.

    Parameters
    ----------
    engine, lru : float
        Of the engine and of an exact LRU.
    resident : int
        Rows that memory held at most; the LRU's room.
    """

    engine: float
    lru: float
    resident: int


def run(scale: Scale) -> Iterator[Figure]:
    """Measure all."""
    rows = min(scale.big_rows, 200_000)
    for exponent in (0.82, 1.05):
        count = scale.rounds(12 * rows // STEP_IDS)
        found = rates(zipf_steps(rows, exponent, count), rows)
        yield Figure(f"hits zipf {exponent}", found.engine / found.lru, 0, detail(found))
    try:
        steps = list(retail_steps(max(1, int(TRAIL_DAYS * min(1.0, scale.share)))))
    except ImportError:
        return
    found = rates(steps, len(np.unique(np.concatenate(steps))))
    yield Figure("hits retail", found.engine / found.lru, 0, detail(found))


def detail(found: Rates) -> str:
    """Return both rates in words."""
    return f"{found.engine:.4f} : {found.lru:.4f}, {found.resident:,} rows in memory"


def zipf_steps(rows: int, exponent: float, steps: int) -> list[Ids]:
    """Return the ids of training steps by Zipf's law."""
    rng = np.random.default_rng(11)
    ids = scrambled_ids(rows)
    return list(ids[zipf_ranks(rng, rows, steps * STEP_IDS, exponent)].reshape(steps, STEP_IDS))


def retail_steps(days: int) -> Iterator[Ids]:
    """Yield the ids of completejourney's last days, in the order in which they were bought."""
    ids = load_completejourney(days).fids.reshape(-1)
    for start in range(0, len(ids), STEP_IDS):
        yield np.ascontiguousarray(ids[start : start + STEP_IDS])


def rates(steps: list[Ids], ids_count: int) -> Rates:
    """Train an engine with memory for a tenth of the ids, then an LRU with as much room."""
    used, missed, resident = trained(steps, ids_count)
    return Rates(1 - missed / used, lru_rate(steps, resident), resident)


def trained(steps: list[Ids], ids_count: int) -> tuple[int, int, int]:
    """Return how many ids were used, and missed, once memory was full; and its rows."""
    limit = ids_count // 10 * RECORD_BYTES + ids_count * INDEX_BYTES
    settled = int(SETTLED * len(steps))
    before, resident = 0, 0
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(
            f"{folder}/s", durability="none", delta_interval="1d", memory_limit=limit
        ) as store,
    ):
        table = store.create_table("item", DIM, optimizer=mkv.SGD())
        for number, ids in enumerate(steps):
            if number == settled:
                before = misses(store)
            rows = table.pull(ids)
            table.push(ids, np.zeros_like(rows))  # Rows that grew would end as infinity.
            if number % SEAL_STEPS == 0:
                store.seal()
            if number >= settled:
                found = store.stats()["tables"]["item"]
                resident = max(resident, found["rows"] - found["cold_rows"])
        after = misses(store)
        store.drop_table("item")
    return sum(map(len, steps[settled:])), after - before, resident


def misses(store: mkv.Store) -> int:
    """Return how many uses found no row in memory."""
    counters = store.stats()["tables"]["item"]["counters"]
    return int(counters["promoted"] + counters["inserted"])


def lru_rate(steps: Iterable[Ids], room: int) -> float:
    """Return the hit rate of an exact LRU with room for so many rows, once it has settled."""
    steps = list(steps)
    settled = int(SETTLED * len(steps))
    kept: OrderedDict[int, None] = OrderedDict()
    used = hits = 0
    for number, ids in enumerate(steps):
        for fid in ids.tolist():
            used += number >= settled
            if fid in kept:
                kept.move_to_end(fid)
                hits += number >= settled
                continue
            kept[fid] = None
            if len(kept) > room:
                kept.popitem(last=False)
    return hits / used
