"""Reading rows: lookup, pull and lookup_pooled against the limit, NumPy and torch.

The limit is a compiled loop that copies rows of a plain array from known positions: no hashing, no
index, no lock. np.take is what those use whose ids are positions already.
"""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator

import numpy as np
from monolith_kv_tools.bench.goals import MILLION, Figure
from monolith_kv_tools.bench.harness import compare, timed
from monolith_kv_tools.bench.scale import Scale, torch_or_none
from monolith_kv_tools.bench.tables import Bed, aligned, filled
from monolith_kv_tools.bench.traffic import (
    BATCH,
    Batches,
    fresh_batches,
    traffics,
    uniform_positions,
)
from numpy.typing import NDArray

import monolith_kv as mkv
from monolith_kv import _yardsticks

BAG = 20
AHEAD = (4, 8, 16, 32, 64, 128)  # Rows that the limit asks for before it copies one.
TRIALS = 15
Copy = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]], None]
SMALL_BATCH = 256


def on_bed(bed: Bed, scale: Scale) -> Iterator[Figure]:
    """Measure all reads on one table."""
    kinds = traffics(bed.rows, bed.ids, scale.batches)
    copy = fastest_copy(bed, kinds["uniform"])
    for name, batches in kinds.items():
        yield from lookups(name, bed, batches, copy, scale)
    yield absent(bed, kinds["uniform"], scale)
    yield pull(bed, scale)
    yield from pooled(bed, kinds["uniform"], scale)
    yield small_batch(bed, copy, scale)


def fastest_copy(bed: Bed, batches: Batches) -> Copy:
    """Return the limit: the loop that asks for rows in the way that is best on this machine."""
    out = aligned(BATCH, bed.dense.shape[1])
    ways = [
        functools.partial(_yardsticks.copy_rows, ahead=ahead, is_once=is_once)
        for ahead, is_once in itertools.product(AHEAD, (False, True))
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(TRIALS):
        for way, times in zip(ways, seconds, strict=True):
            batches.turn()
            times.append(timed(functools.partial(way, bed.dense, batches.positions, out)))
    medians = [statistics.median(times) for times in seconds]
    return ways[medians.index(min(medians))]


def lookups(
    name: str, bed: Bed, batches: Batches, copy_rows: Copy, scale: Scale
) -> Iterator[Figure]:
    """Compare with the limit and with np.take, and see that all read the same rows."""
    out = aligned(BATCH, bed.dense.shape[1])
    copied, taken = aligned(*out.shape), aligned(*out.shape)

    def look() -> None:
        bed.table.lookup(batches.ids, out=out)

    def copy() -> None:
        copy_rows(bed.dense, batches.positions, copied)

    def take() -> None:
        np.take(bed.dense, batches.positions, axis=0, out=taken)

    size = size_text(bed.rows)
    limit = compare(name, look, copy, rounds=scale.rounds(301), before=batches.turn)
    yield Figure(f"lookup {name} {size}", limit.ratio, bed.rows, limit.detail())
    np.testing.assert_array_equal(out, copied)  # Fast and wrong does not count.
    against = compare(name, look, take, rounds=scale.rounds(201), before=batches.turn)
    np.testing.assert_array_equal(out, taken)
    key = "lookup take-out" if name == "uniform" else "lookup take-out zipf"
    yield Figure(key, against.ratio, bed.rows, against.detail())
    if name == "uniform":
        alone = compare(
            name,
            lambda: bed.table.lookup(batches.ids),
            lambda: np.take(bed.dense, batches.positions, axis=0),
            rounds=scale.rounds(201),
            before=batches.turn,
        )
        yield Figure(f"lookup take {size}", alone.ratio, bed.rows, alone.detail())


def size_text(rows: int) -> str:
    """Return which of the goals by size a table of so many rows is measured for."""
    return "20M" if rows > MILLION else "1M"


def absent(bed: Bed, present: Batches, scale: Scale) -> Figure:
    """Compare lookups of ids that are not there with those of ids that are."""
    out = aligned(BATCH, bed.dense.shape[1])
    strangers = fresh_batches(len(present), start=2 * bed.rows)

    def turn() -> None:
        present.turn()
        strangers.turn()

    result = compare(
        "absent",
        lambda: bed.table.lookup(strangers.ids, out=out),
        lambda: bed.table.lookup(present.ids, out=out),
        rounds=scale.rounds(201),
        before=turn,
    )
    return Figure("lookup absent", result.ratio, bed.rows, result.detail())


def pull(bed: Bed, scale: Scale) -> Figure:
    """Compare pulls of present ids with lookups, of other ids: the first would warm the caches."""
    pulled, looked = (
        Batches(uniform_positions(np.random.default_rng(seed), bed.rows, BATCH * 32), bed.ids)
        for seed in (6, 7)
    )
    out = aligned(BATCH, bed.dense.shape[1])

    def turn() -> None:
        pulled.turn()
        looked.turn()

    result = compare(
        "pull",
        lambda: bed.table.pull(pulled.ids, out=out),
        lambda: bed.table.lookup(looked.ids, out=out),
        rounds=scale.rounds(301),
        before=turn,
    )
    return Figure("pull", result.ratio, bed.rows, result.detail())


def pooled(bed: Bed, batches: Batches, scale: Scale) -> Iterator[Figure]:
    """Compare sums of bags with torch's, on one thread each."""
    torch = torch_or_none()
    if torch is None:
        return
    torch.set_num_threads(1)  # The engine works on the thread of its caller.
    offsets = np.arange(0, BATCH, BAG)
    out = np.empty((len(offsets), bed.dense.shape[1]), np.float32)
    weights, starts = torch.from_numpy(bed.dense), torch.from_numpy(offsets)
    sums = [np.empty(0)]

    def bags() -> None:
        sums[0] = torch.nn.functional.embedding_bag(
            torch.from_numpy(batches.positions), weights, starts, mode="sum"
        ).numpy()

    with torch.no_grad():
        result = compare(
            "pooled",
            lambda: bed.table.lookup_pooled(batches.ids, offsets, out=out),
            bags,
            rounds=scale.rounds(201),
            before=batches.turn,
        )
    np.testing.assert_allclose(out, sums[0], rtol=1e-5, atol=1e-5)
    yield Figure("pooled", result.ratio, bed.rows, f"{result.detail()}, one thread each")


def small_batch(bed: Bed, copy_rows: Copy, scale: Scale) -> Figure:
    """Return the microseconds of a small lookup beyond the copy of the same rows."""
    positions = uniform_positions(np.random.default_rng(4), bed.rows, SMALL_BATCH * 2000)
    batches = Batches(positions, bed.ids, SMALL_BATCH)
    out = aligned(SMALL_BATCH, bed.dense.shape[1])
    result = compare(
        "small",
        lambda: bed.table.lookup(batches.ids, out=out),
        lambda: copy_rows(bed.dense, batches.positions, out),
        rounds=scale.rounds(2001),
        before=batches.turn,
    )
    beyond = result.seconds - result.yardstick_s
    return Figure("small batch", 1e6 * beyond, bed.rows, result.detail())


def widths(scale: Scale) -> Iterator[Figure]:
    """Measure narrow and wide rows."""
    yield of_width(16, scale.narrow_rows, mkv.Adagrad(), scale.batches, scale)
    # Without state: array and table of wide rows must fit into memory side by side.
    yield of_width(256, scale.wide_rows, mkv.SGD(), max(1, scale.batches // 4), scale)


def of_width(dim: int, rows: int, optimizer: mkv.Optimizer, count: int, scale: Scale) -> Figure:
    """Compare lookups of rows of one width with the limit."""
    out = aligned(BATCH, dim)
    copied = aligned(BATCH, dim)
    with filled(rows, dim, optimizer) as bed:
        positions = uniform_positions(np.random.default_rng(1), rows, BATCH * count)
        batches = Batches(positions, bed.ids)
        copy = fastest_copy(bed, batches)
        result = compare(
            f"dim {dim}",
            lambda: bed.table.lookup(batches.ids, out=out),
            lambda: copy(bed.dense, batches.positions, copied),
            rounds=scale.rounds(301),
            before=batches.turn,
        )
        np.testing.assert_array_equal(out, copied)
    return Figure(f"lookup dim{dim}", result.ratio, rows, result.detail())
