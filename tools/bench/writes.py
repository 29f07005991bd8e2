"""Changing rows: push and upsert against compiled loops and NumPy on known positions."""

from collections.abc import Iterator

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import Compared, compare
from monolith_kv_tools.bench.reads import size_text
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import ACCUMULATOR, LR, Bed
from monolith_kv_tools.bench.traffic import BATCH, Batches, distinct_positions, repeat_some
from numpy.typing import NDArray

from monolith_kv import _yardsticks

SHARE_REPEATED = 0.3


def on_bed(bed: Bed, scale: Scale, *, with_push: bool) -> Iterator[Figure]:
    """Measure all changes on one table; pushes need a second array as large as the rows."""
    rng = np.random.default_rng(3)
    positions = distinct_positions(rng, bed.rows, BATCH, scale.batches)
    if with_push:
        states = np.full_like(bed.dense, ACCUMULATOR)
        result = push_unique(bed, states, positions, scale)
        yield Figure("push unique", result.ratio, bed.rows, result.detail())
        repeated = repeat_some(rng, positions, BATCH, SHARE_REPEATED)
        result = push_repeated(bed, states, repeated, scale)
        yield Figure("push repeated", result.ratio, bed.rows, result.detail())
    yield upsert(bed, positions, scale)


def push_unique(
    bed: Bed, states: NDArray[np.float32], positions: NDArray[np.int64], scale: Scale
) -> Compared:
    """Compare a step for distinct ids with the same step at known positions."""
    gradients = make_gradients(bed)
    batches = Batches(positions, bed.ids)
    result = compare(
        "push unique",
        lambda: bed.table.push(batches.ids, gradients),
        lambda: _yardsticks.step_rows(bed.dense, states, batches.positions, gradients, LR),
        rounds=scale.rounds(151),
        before=batches.turn,
    )
    assert_same_rows(bed, batches)
    return result


def push_repeated(
    bed: Bed, states: NDArray[np.float32], positions: NDArray[np.int64], scale: Scale
) -> Compared:
    """Compare a step for a batch in which some ids stand twice or more.

    The yardstick knows the distinct positions and which gradients are of which; it sums them, row
    by row, and takes the step. To find what is a repetition is left to the engine alone, as is to
    find the rows.
    """
    gradients = make_gradients(bed)
    batches = Batches(positions, bed.ids)
    groups = [grouped(batch) for batch in positions.reshape(-1, BATCH)]
    result = compare(
        "push repeated",
        lambda: bed.table.push(batches.ids, gradients),
        lambda: _yardsticks.step_sums(bed.dense, states, *groups[batches.at], gradients, LR),
        rounds=scale.rounds(151),
        before=batches.turn,
    )
    assert_same_rows(bed, batches)
    return result


def grouped(
    positions: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return distinct positions as they first appear, where each group starts, and its members."""
    unique, firsts, inverse = np.unique(positions, return_index=True, return_inverse=True)
    appearance = np.argsort(firsts)
    ranks = np.empty_like(appearance)
    ranks[appearance] = np.arange(len(unique))
    members = np.argsort(ranks[inverse], kind="stable")
    counts = np.bincount(ranks[inverse], minlength=len(unique))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return unique[appearance], starts.astype(np.int64), members.astype(np.int64)


def upsert(bed: Bed, positions: NDArray[np.int64], scale: Scale) -> Figure:
    """Compare overwriting rows with NumPy's assignment, and with the limit beside it."""
    rows = np.random.default_rng(5).random((BATCH, bed.dense.shape[1]), np.float32)
    batches = Batches(positions, bed.ids)

    def work() -> None:
        bed.table.upsert(batches.ids, rows)

    def assign() -> None:
        bed.dense[batches.positions] = rows

    def scatter() -> None:
        _yardsticks.scatter_rows(bed.dense, batches.positions, rows)

    limit = compare("limit", work, scatter, rounds=scale.rounds(101), before=batches.turn)
    result = compare("upsert", work, assign, rounds=scale.rounds(151), before=batches.turn)
    assert_same_rows(bed, batches)
    detail = f"{result.detail()}; of plain scattered copies {limit.ratio:.3g}"
    return Figure(f"upsert {size_text(bed.rows)}", result.ratio, bed.rows, detail)


def make_gradients(bed: Bed) -> NDArray[np.float32]:
    """Return gradients for a batch."""
    rng = np.random.default_rng(2)
    return rng.normal(0.0, 0.1, (BATCH, bed.dense.shape[1])).astype(np.float32)


def assert_same_rows(bed: Bed, batches: Batches) -> None:
    """See that both were changed alike: fast and wrong does not count."""
    for _ in range(len(batches)):
        batches.turn()
        np.testing.assert_allclose(
            bed.table.lookup(batches.ids), bed.dense[batches.positions], rtol=1e-4, atol=1e-5
        )
