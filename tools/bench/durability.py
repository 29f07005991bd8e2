"""What durability costs: training in each mode, a pull beside a seal or a snapshot, replay.

Stores lie on the disk of TMPDIR, but for "batch", which is measured in memory: how far the page
cache absorbs a disk's writes is for the disk to say.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import (
    FAST_FOLDER,
    Compared,
    compare,
    no_collection,
    percentile,
    time_text,
)
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import ACCUMULATOR, BLOCK, DIM, LR
from monolith_kv_tools.bench.traffic import (
    BATCH,
    scrambled_ids,
    uniform_positions,
    zipf_positions,
)

import monolith_kv as mkv

Mode = Literal["none", "interval", "batch", "sync"]
STEPS = 64  # Of training between two looks at the clock.
STREAM = 61
RECORD_BYTES = BATCH * (8 + 4 * DIM) + 48  # Of a push in the log.
PULL_IDS = 256
THREADS = 8
CALLS = 12
ALONE_S = 0.5
REPLAY_ROWS = 16 * BATCH
FLUSH_S = 0.0037  # Of the disk that the goal for "sync" was set with.


def run(scale: Scale) -> Iterator[Figure]:
    """Measure all."""
    rows = scale.sizes[0]
    yield from modes(rows, scale)
    yield from sync(rows, scale)
    yield flushes(rows)
    yield from pulls(scale.sizes[-1], scale)
    yield replay(scale)


class Trainer:
    """A store of `rows` rows and the training on it.

    Parameters
    ----------
    folder : str
        For the store; absent.
    rows : int
        Of the table.
    durability, delta_interval
        As of `open`.
    exponent : float, optional
        Of Zipf's law of the ids' popularity; by default all are alike.
    """

    def __init__(
        self,
        folder: str,
        rows: int,
        durability: Mode,
        delta_interval: float | None = None,
        exponent: float | None = None,
    ) -> None:
        self.store = mkv.open(
            folder,
            durability=durability,
            delta_interval=delta_interval,
            delta_retention=0,
            snapshots_kept=1,
        )
        self.table = self.store.create_table("item", DIM, optimizer=mkv.Adagrad(LR, ACCUMULATOR))
        ids = scrambled_ids(rows)
        values = np.random.default_rng(0).random((BLOCK, DIM), np.float32)
        for start in range(0, rows, BLOCK):
            part = ids[start : start + BLOCK]
            self.table.upsert(part, values[: len(part)])
        self.settle()
        rng = np.random.default_rng(1)
        size = STREAM * BATCH
        if exponent is None:
            positions = uniform_positions(rng, rows, size)
        else:
            positions = zipf_positions(rng, rows, size, exponent)
        self.batches = list(ids[positions].reshape(STREAM, BATCH))
        self.gradients = rng.normal(0, 0.1, (BATCH, DIM)).astype(np.float32)
        self.out = np.empty((BATCH, DIM), np.float32)
        self.at = 0

    def settle(self) -> None:
        """Leave nothing to seal, and let the files go that were needed for what was."""
        self.store.seal()
        self.store.snapshot()

    def push(self) -> None:
        """Push the next batch."""
        self.at = (self.at + 1) % STREAM
        self.table.push(self.batches[self.at], self.gradients)

    def train(self) -> None:
        """Make some steps of training."""
        for _ in range(STEPS):
            self.table.pull(self.batches[self.at], out=self.out)
            self.push()

    def close(self) -> None:
        """Close the store and throw it away."""
        self.store.close()
        shutil.rmtree(self.store.path)


def modes(rows: int, scale: Scale) -> Iterator[Figure]:
    """Compare training in "interval" and "batch" with training in "none"."""
    seconds = 2.5 * min(1.0, scale.share)  # As a whole more than one seal in each round.
    for name, exponent in (("zipf 1.05", 1.05), ("zipf 0.82", 0.82), ("uniform", None)):
        with tempfile.TemporaryDirectory() as folder:
            plain = Trainer(f"{folder}/none", rows, "none", exponent=exponent)
            other = Trainer(f"{folder}/interval", rows, "interval", 1.0, exponent)
            found = throughput(plain, other, seconds, scale.rounds(9))
            yield Figure(f"mode interval {name}", found.ratio, rows, f"{found.detail()} a step")
            plain.close()
            other.close()
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        plain = Trainer(f"{folder}/none", rows, "none")
        other = Trainer(f"{folder}/batch", rows, "batch")
        # Short rounds: the system's memory for more of the log than some hundred MB may be cold.
        found = throughput(plain, other, 0.2, scale.rounds(31))
        append = f"a step; {time_text(append_s(folder))} to append as many bytes"
        yield Figure("mode batch", found.ratio, rows, f"{found.detail()} {append}")
        plain.close()
        other.close()


def append_s(folder: str) -> float:
    """Return the seconds that it takes to append a push's record to a file there, unflushed."""
    data, times = np.random.default_rng(2).bytes(RECORD_BYTES), []
    with open(f"{folder}/appended", "wb", buffering=0) as file:
        for _ in range(STEPS):
            begun = time.perf_counter()
            file.write(data)
            times.append(time.perf_counter() - begun)
    os.unlink(file.name)
    return sorted(times)[STEPS // 2]


def throughput(plain: Trainer, other: Trainer, seconds: float, rounds: int) -> Compared:
    """Train both in turns, for so many seconds each; times are of one step."""
    ratios, own, yardstick = [], [], []
    with no_collection():
        for turn in range(-1, rounds):
            pair = [plain, other] if turn % 2 else [other, plain]
            spent = {id(each): step_s(each, seconds) for each in pair}
            if turn >= 0:
                own.append(spent[id(other)])
                yardstick.append(spent[id(plain)])
                ratios.append(yardstick[-1] / own[-1])
    ratios.sort()
    middle = rounds // 2
    return Compared(
        "steps",
        sorted(own)[middle],
        sorted(yardstick)[middle],
        ratios[middle],
        ratios[rounds // 4],
        ratios[3 * rounds // 4],
        rounds,
    )


def step_s(trainer: Trainer, seconds: float) -> float:
    """Train for so long; return the seconds of one step. Nothing is left to be done behind it."""
    begun, steps = time.perf_counter(), 0
    while (now := time.perf_counter()) < begun + seconds:
        trainer.train()
        steps += STEPS
    trainer.settle()
    return (now - begun) / steps


def sync(rows: int, scale: Scale) -> Iterator[Figure]:
    """Compare pushes in "sync" with appending and flushing as many bytes.

    On this disk, and as if each flush took as long as on the goal's: the faster a disk, the more of
    a push is its work in memory, which the yardstick has not.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(f"{folder}/s", rows, durability="sync")
        data = np.random.default_rng(2).bytes(RECORD_BYTES)
        file = os.open(f"{folder}/yardstick", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def append() -> None:
            os.write(file, data)
            os.fdatasync(file)

        found = compare("sync", trainer.push, append, rounds=scale.rounds(101))
        yield Figure("mode sync", found.ratio, rows, found.detail())
        with flushing(lambda: flush(FLUSH_S)):
            found = compare("sync", trainer.push, append, rounds=scale.rounds(101))
        yield Figure("mode sync slow", found.ratio, rows, found.detail())
        os.close(file)
        trainer.close()


@contextlib.contextmanager
def flushing(around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Put something around each flush, by the one name that Python has for it, here and there."""
    fdatasync = os.fdatasync

    def other(fd: Any) -> None:
        with around():
            fdatasync(fd)

    os.fdatasync = other
    try:
        yield
    finally:
        os.fdatasync = fdatasync


@contextlib.contextmanager
def flush(seconds: float) -> Iterator[None]:
    """Take so long, at least."""
    begun = time.perf_counter()
    yield
    time.sleep(max(0.0, begun + seconds - time.perf_counter()))


def flushes(rows: int) -> Figure:
    """Count the flushes of threads that push at once."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(f"{folder}/s", rows, durability="sync")
        counted: list[None] = []

        def count() -> AbstractContextManager[None]:
            counted.append(None)
            return contextlib.nullcontext()

        def work(_: int) -> None:
            for batch in trainer.batches[:CALLS]:
                trainer.table.push(batch, trainer.gradients)

        begun = time.perf_counter()
        with flushing(count), ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
        seconds = time.perf_counter() - begun
        trainer.close()
    calls = THREADS * CALLS
    detail = f"{len(counted)} of {calls} calls, {time_text(seconds / calls)} a call"
    return Figure("flushes", len(counted) / calls, rows, detail)


# --- pulls beside a seal and a snapshot --------------------------------------------------------


def pulls(rows: int, scale: Scale) -> Iterator[Figure]:
    """Compare the CPU time of small pulls beside a seal, and beside a snapshot, with alone."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(f"{folder}/s", rows, durability="none")
        ids = scrambled_ids(rows)
        every = [ids[start : start + BATCH] for start in range(0, rows, BATCH)]

        def touch() -> None:
            for batch in every:
                trainer.table.push(batch, trainer.gradients[: len(batch)])

        def snapshot() -> None:
            os.unlink(trainer.store.snapshot(f"{folder}/snapshot").path)

        yield beside("seal", trainer, trainer.store.seal, touch, scale)
        yield beside("snapshot", trainer, snapshot, lambda: None, scale)
        trainer.settle()
        trainer.close()


def beside(
    name: str,
    trainer: Trainer,
    work: Callable[[], object],
    before: Callable[[], None],
    scale: Scale,
) -> Figure:
    """Compare the 99.9th percentile of a pull's CPU time beside some work with that alone."""
    rng = np.random.default_rng(3)
    batches = [rng.choice(batch, PULL_IDS) for batch in trainer.batches]
    out = np.empty((PULL_IDS, DIM), np.float32)

    def until(end: float) -> Callable[[], bool]:
        return lambda: time.perf_counter() < end

    def pull_while(is_on: Callable[[], bool]) -> float:
        times, number = [], 0
        while is_on():
            number += 1
            begun = time.thread_time()
            trainer.table.pull(batches[number % STREAM], out=out)
            times.append(time.thread_time() - begun)
        return percentile(times or [0.0], 0.999)

    alone, disturbed = [], []
    with no_collection():
        for _ in range(scale.rounds(5)):
            before()
            alone.append(pull_while(until(time.perf_counter() + ALONE_S)))
            thread = threading.Thread(target=work)
            thread.start()
            disturbed.append(pull_while(thread.is_alive))
            thread.join()
    ratios = sorted(b / a for a, b in zip(alone, disturbed, strict=True))
    low, middle, high = (ratios[len(ratios) * quarter // 4] for quarter in (1, 2, 3))
    times = f"{time_text(np.median(disturbed))} : {time_text(np.median(alone))}"
    return Figure(f"beside {name}", middle, len(trainer.table), f"[{low:.3g} {high:.3g}] {times}")


# --- recovery ----------------------------------------------------------------------------------


def replay(scale: Scale) -> Figure:
    """Open what a killed process leaves: a snapshot of few rows and a log of many pushes."""
    pushes = -(-max(REPLAY_ROWS, scale.sizes[0]) // BATCH)
    rates = []
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        trainer = Trainer(f"{folder}/s", REPLAY_ROWS, durability="batch")
        for _ in range(pushes):
            trainer.push()
        for number in range(scale.rounds(5)):
            copy = f"{folder}/{number}"
            shutil.copytree(trainer.store.path, copy)
            begun = time.perf_counter()
            store = mkv.open(copy, durability="batch", delta_interval=None)
            rates.append(pushes * BATCH / (time.perf_counter() - begun) / 1e6)
            store.drop_table("item")
            store.close()
            shutil.rmtree(copy)
        trainer.close()
    rates.sort()
    return Figure(
        "replay", rates[len(rates) // 2], pushes * BATCH, f"[{rates[0]:.3g} {rates[-1]:.3g}]"
    )
