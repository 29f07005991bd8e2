"""Rot in the overflow tier, which is LMDB's and has no checksums but those in our values.

Every bit of the values goes through the tier itself: a damaged one must be counted and left out.
Bits anywhere in LMDB's file, its own pages included, are flipped under an open store in another
process: all rows must read as they were, filled again from snapshot and deltas, or be refused.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checks import FAST_FOLDER
from crash.figures import Figure

import monolith_kv as mkv
from monolith_kv.storage.overflow import OverflowTier

GOAL = "100 %, 0 silent, 0 crash"
RECORD_BYTES = 144
RECORDS = 456  # Of 144 bytes and a checksum: more than 64 KiB.
TABLE = 3
IDS = np.arange(1, 601, dtype=np.uint64)
DIM = 32
HANG_S = 30
# LMDB follows the page numbers in its pages, and beyond the end of its map there is a SIGBUS. The
# tier is made anew when the store is opened again.
DEAD = "process killed by LMDB, all rows there when opened again"


def measure(full: bool) -> Iterator[Figure]:
    """Yield the figures: all bits of the values, a sample of those of LMDB's file."""
    with tempfile.TemporaryDirectory(prefix="mkv-overflow-", dir=FAST_FOLDER) as folder:
        yield _flip_values(folder, 1 if full else 149)
        yield _flip_file(folder, 20_000 if full else 60, seed=5)


# --- values ------------------------------------------------------------------------------------


def _flip_values(folder: str, step: int) -> Figure:
    begun = time.perf_counter()
    rng = np.random.default_rng(1)
    fids = np.sort(rng.integers(0, 2**64, RECORDS, dtype=np.uint64))
    records = rng.integers(0, 256, (RECORDS, RECORD_BYTES), np.uint8)
    tier = OverflowTier(os.path.join(folder, "tier"), None)
    tier.put(TABLE, fids, records)
    env = tier._env
    assert env is not None
    with env.begin() as txn:
        entries = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
    bits = sum(8 * len(value) for _, value in entries)
    width = 8 * (RECORD_BYTES + 4)
    silent, tried = 0, range(0, bits, step)
    for place in tried:
        number, (at, bit) = place // width, divmod(place % width, 8)
        key, value = entries[number]
        wrong = bytearray(value)
        wrong[at] ^= 1 << bit
        with env.begin(write=True) as txn:
            txn.put(key, bytes(wrong))
        silent += not _is_left_out(tier, fids, number, whole=place % 997 == 0)
        if place + step >= (number + 1) * width:
            with env.begin(write=True) as txn:
                txn.put(key, value)
    found, _ = tier.get(TABLE, fids)
    assert (found == records).all()
    tier.close()
    measured = f"{len(tried):,} of {bits:,}, {silent} silent, 0 crash"
    return Figure(
        "bits flipped, overflow values", measured, GOAL, not silent, time.perf_counter() - begun
    )


def _is_left_out(tier: OverflowTier, fids: Any, number: int, *, whole: bool) -> bool:
    """Read the one record that is damaged, or all of them; it must be counted and not come back.

    Notes
    -----
    LMDB looks each key up by itself and each value has its own checksum, so what is read with it
    cannot change the verdict: all records are read for a sample only.
    """
    before = tier.corrupt
    _, positions = tier.get(TABLE, fids if whole else fids[number : number + 1])
    expected = [n for n in range(len(fids)) if n != number] if whole else []
    return positions.tolist() == expected and tier.corrupt == before + 1


# --- LMDB's own file ---------------------------------------------------------------------------


def _flip_file(folder: str, count: int, seed: int) -> Figure:
    begun = time.perf_counter()
    outcomes: Counter[str] = Counter()
    done = 0
    while done < count:
        for line in _child(folder, seed, done, count):
            outcomes[line] += 1
            done += 1
    wrong = set(outcomes) - {"same rows", "filled again", "refused", DEAD}
    told = ", ".join(f"{n:,} {what}" for what, n in sorted(outcomes.items()))
    measured = f"{done:,} sampled: {told}"
    return Figure(
        "bits flipped anywhere in LMDB's file, under an open store",
        measured,
        "0 silent, and no row lost with a process that LMDB kills",
        not wrong,
        time.perf_counter() - begun,
    )


def _child(folder: str, seed: int, done: int, count: int) -> Iterator[str]:
    """Yield what came of each flip; a child that dies or hangs at one is the last of them."""
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-m", "crash.overflow_rot", folder, str(seed), str(done), str(count)]
    paths = os.pathsep.join([*sys.path, str(tests)])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        for line in process.stdout or ():
            yield line.strip()
        status = process.wait()
    if status < 0:
        yield "hang" if status == -signal.SIGALRM else DEAD
    elif status:
        raise RuntimeError(f"the child failed with {status}")


def flip_in_child(folder: str, seed: int, done: int, count: int) -> None:
    """Flip one bit after the other of the tier's file and read all rows; a line for each."""
    places = np.random.default_rng(seed).random(count)
    path = os.path.join(folder, "store")
    truth = _make_store(path)
    number = done
    while number < count:
        with mkv.open(path, memory_limit="32KiB", delta_interval=None) as store:
            store.table("t").contains(IDS)
            store.table("t").remove(np.array([999], np.uint64))  # Moves what is over the limit.
            outcome = "same rows"
            while outcome == "same rows" and number < count:
                outcome = _flip_one(store, truth, float(places[number]))
                print(outcome, flush=True)
                number += 1


def _make_store(path: str) -> bytes:
    """Make the store, or open what is left of it by a child that died; return its rows."""
    rows = np.random.default_rng(7).random((len(IDS), DIM), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        store = mkv.open(path, delta_interval=None)
    with store:
        table = store.create_table("t", DIM, exist_ok=True)
        if not len(table):
            table.upsert(IDS, rows)
        assert (table.lookup(IDS) == rows).all(), "rows were lost with the process"
    return rows.tobytes()


def _flip_one(store: mkv.Store, truth: bytes, place: float) -> str:
    signal.alarm(HANG_S)
    path = os.path.join(store.path, "overflow", "data.mdb")
    before = store.stats()["overflow"]["corrupt"]
    fd = os.open(path, os.O_RDWR)
    try:
        place_bit = int(place * 8 * os.fstat(fd).st_size)
        at, bit = divmod(place_bit, 8)
        good = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([good[0] ^ 1 << bit]), at)
        try:
            rows = store.table("t").lookup(IDS).tobytes()
        except mkv.CorruptionError:
            return "refused"
        except Exception as error:
            return f"error {type(error).__name__}"
        finally:
            with contextlib.suppress(OSError):
                os.pwrite(fd, good, at)
    finally:
        os.close(fd)
        signal.alarm(0)
    if rows != truth:
        return "silent"
    return "same rows" if store.stats()["overflow"]["corrupt"] == before else "filled again"


def main(arguments: Sequence[str]) -> None:
    """Run the child's part."""
    folder, seed, done, count = arguments
    flip_in_child(folder, int(seed), int(done), int(count))


if __name__ == "__main__":
    main(sys.argv[1:])
