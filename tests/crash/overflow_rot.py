"""Rot in the row files of the overflow tier.

Every bit of a file goes through the tier: a record with a flipped one must be counted and left out.
And bits anywhere in the files are flipped under an open store: all rows must read as they were,
filled again from snapshot and deltas.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checks import FAST_FOLDER
from crash.figures import Figure

import monolith_kv as mkv
from monolith_kv._table import Barrier, TableCore
from monolith_kv.storage.format import HEADER_BYTES, PLACE_SUM_BYTES
from monolith_kv.storage.overflow import OverflowTier, fids_of

GOAL = "100 %, 0 silent, 0 crash"
DIM = 32
RECORDS = 456  # Of 144 bytes and a checksum: more than 64 KiB.
TABLE = 3
IDS = np.arange(1, 601, dtype=np.uint64)


def measure(full: bool) -> Iterator[Figure]:
    """Yield the figures: all bits of a file, and bits anywhere under an open store."""
    with tempfile.TemporaryDirectory(prefix="mkv-overflow-", dir=FAST_FOLDER) as folder:
        yield _flip_records(folder, 1 if full else 149)
        yield _flip_under_a_store(folder, 20_000 if full else 60)


def _flip_records(folder: str, step: int) -> Figure:
    begun = time.perf_counter()
    rng = np.random.default_rng(1)
    core = TableCore(Barrier(), [(DIM, 0, (1.0,), 0, 0.0, 0.0, 0)], 1)
    fids = np.sort(rng.integers(0, 2**64, RECORDS, dtype=np.uint64))
    core.upsert(fids, rng.random((RECORDS, DIM), dtype=np.float32), 1_000.0)
    records = core.pack(fids)[0].reshape(RECORDS, core.record_bytes)
    fids = fids_of(records)  # In the order of their places.
    tier = OverflowTier(os.path.join(folder, "tier"), None)
    places = tier.write(TABLE, core, records)
    core.evict(records.reshape(-1), places)
    tier.settle(TABLE, places)
    (path,) = Path(tier.folder).iterdir()
    size = path.stat().st_size
    width = core.record_bytes + PLACE_SUM_BYTES
    tried = range(0, 8 * size, step)
    with path.open("r+b", buffering=0) as file:
        silent = sum(not _is_left_out(tier, core, file.fileno(), bit, fids, width) for bit in tried)
    found, _ = tier.read(core, fids)
    assert (found == records).all()
    tier.close()
    measured = f"{len(tried):,} of {8 * size:,}, {silent} silent, 0 crash"
    return Figure("bits flipped, row file", measured, GOAL, not silent, time.perf_counter() - begun)


def _is_left_out(
    tier: OverflowTier, core: TableCore, fd: int, bit: int, fids: Any, width: int
) -> bool:
    """Flip a bit: the record that it is in is counted and does not come back, its neighbour does.

    Notes
    -----
    The header is for people: no row depends on it.
    """
    at, before = bit // 8, tier.corrupt
    number = max(0, at - HEADER_BYTES) // width
    asked = fids[number : number + 2]
    (byte,) = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte ^ 1 << bit % 8]), at)
    _, positions = tier.read(core, asked)
    os.pwrite(fd, bytes([byte]), at)
    if at < HEADER_BYTES:
        return tier.corrupt == before and len(positions) == len(asked)
    return tier.corrupt == before + 1 and positions.tolist() == list(range(1, len(asked)))


def _flip_under_a_store(folder: str, count: int) -> Figure:
    begun = time.perf_counter()
    outcomes: Counter[str] = Counter()
    rng = np.random.default_rng(7)
    rows = rng.random((len(IDS), DIM), np.float32)
    path = os.path.join(folder, "store")
    with mkv.open(path, memory_limit="32KiB", delta_interval=None) as store:
        table = store.create_table("t", DIM)
        table.upsert(IDS, rows)
        store.seal()
        table.remove(np.array([999], np.uint64))  # Moves what is over the limit.
        assert store.stats()["overflow"]["rows"] > len(IDS) // 2
        for _ in range(count):
            outcomes[_flip_one(store, rows.tobytes(), rng)] += 1
    told = ", ".join(f"{n:,} {what}" for what, n in sorted(outcomes.items()))
    return Figure(
        "bits flipped anywhere in row files, under an open store",
        f"{count:,} sampled: {told}",
        "0 silent",
        not set(outcomes) - {"same rows", "filled again"},
        time.perf_counter() - begun,
    )


def _flip_one(store: mkv.Store, truth: bytes, rng: np.random.Generator) -> str:
    path = rng.choice(sorted(Path(store.path, "overflow").iterdir()))
    before = store.stats()["overflow"]["corrupt"]
    with path.open("r+b", buffering=0) as file:
        at, bit = divmod(int(rng.integers(8 * path.stat().st_size)), 8)
        good = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([good[0] ^ 1 << bit]), at)
        rows = store.table("t").lookup(IDS).tobytes()
        os.pwrite(file.fileno(), good, at)
    if rows != truth:
        return "silent"
    return "same rows" if store.stats()["overflow"]["corrupt"] == before else "filled again"
