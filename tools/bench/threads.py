"""Several threads on one table: what two give against one, and a reader beside a writer."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import Disturber, beside, compare
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import Bed, filled
from monolith_kv_tools.bench.traffic import BATCH, Batches, distinct_positions, uniform_positions
from monolith_kv_tools.bench.writes import make_gradients

from monolith_kv import _yardsticks

CALLS = 48
SMALL_BATCH = 256
WINDOW_S = 0.1


def run(scale: Scale) -> Iterator[Figure]:
    """Measure all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with filled(scale.sizes[0]) as bed:
        streams = [stream(bed, seed) for seed in (11, 12)]
        gradients = make_gradients(bed)
        outs = [np.empty_like(gradients) for _ in streams]

        def look(worker: int) -> None:
            bed.table.lookup(streams[worker].ids, out=outs[worker])

        def push(worker: int) -> None:
            bed.table.push(streams[worker].ids, gradients)

        def copy(worker: int) -> None:
            _yardsticks.copy_rows(bed.dense, streams[worker].positions, outs[worker])

        limit, _ = speed_up(copy, streams, scale.rounds(41))
        for name, call in (("lookup", look), ("push", push)):
            value, detail = speed_up(call, streams, scale.rounds(41))
            more = f"; plain copies {limit:.3g}; {cores} cores"
            yield Figure(f"threads {name}", value, bed.rows, detail + more)
        yield reader(bed, streams[0], scale)


def stream(bed: Bed, seed: int) -> Batches:
    """Return batches of distinct ids for one thread."""
    positions = distinct_positions(np.random.default_rng(seed), bed.rows, BATCH, 24)
    return Batches(positions, bed.ids)


def speed_up(call: Callable[[int], None], streams: list[Batches], rounds: int) -> tuple[float, str]:
    """Return what two threads do in the time in which one does 1, and the details."""

    def work(worker: int) -> None:
        for _ in range(CALLS):
            streams[worker].turn()
            call(worker)

    with ThreadPoolExecutor(2) as threads:

        def one() -> None:
            threads.submit(work, 0).result()

        def two() -> None:
            for task in [threads.submit(work, worker) for worker in (0, 1)]:
                task.result()

        result = compare("threads", two, one, rounds=rounds)
    low, high = 2 * result.low, 2 * result.high
    return 2 * result.ratio, f"[{low:.3g} {high:.3g}]"


def reader(bed: Bed, batches: Batches, scale: Scale) -> Figure:
    """Return how much longer small lookups take, at the 99th percentile, beside a pusher."""
    gradients = make_gradients(bed)

    def push() -> bool:
        batches.turn()
        bed.table.push(batches.ids, gradients)
        return True

    with Disturber(push) as pusher:
        result = beside(
            small_lookup(bed), pusher, windows=scale.rounds(61), window_s=WINDOW_S * scale.share
        )
    return Figure("p99 beside push", result.ratio, bed.rows, result.detail())


def small_lookup(bed: Bed, positions_below: int | None = None) -> Callable[[], None]:
    """Return a function that looks up the next few ids, of the last rows where so told."""
    rng = np.random.default_rng(13)
    first = positions_below or 0
    positions = first + uniform_positions(rng, bed.rows - first, SMALL_BATCH * 1000)
    batches = Batches(positions, bed.ids, SMALL_BATCH)
    out = np.empty((SMALL_BATCH, bed.dense.shape[1]), np.float32)

    def look() -> None:
        batches.turn()
        bed.table.lookup(batches.ids, out=out)

    return look
