"""A training step, pull + push with Adagrad, against a dict of NumPy rows and against torch.

The dict is what a newcomer writes first: fid -> row, fid -> accumulator, a loop over the ids. It
does the same: duplicates summed, one step for each distinct id. torch is given what it cannot find
by itself, ids that are positions already.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import Compared, compare
from monolith_kv_tools.bench.scale import Scale, torch_or_none
from monolith_kv_tools.bench.tables import ACCUMULATOR, LR, Bed, filled
from monolith_kv_tools.bench.traffic import BATCH, Batches, traffics
from monolith_kv_tools.bench.writes import make_gradients
from numpy.typing import NDArray

Step = Callable[[Batches, NDArray[np.float32]], NDArray[np.float32]]


class DictTable:
    """Rows and accumulators in dicts, trained one id at a time."""

    def __init__(self, ids: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        self.rows = dict(zip(ids.tolist(), rows.copy(), strict=True))
        state = np.full_like(rows, ACCUMULATOR)
        self.state = dict(zip(ids.tolist(), state, strict=True))

    def pull(self, ids: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Copy the rows out."""
        rows = self.rows
        for place, fid in enumerate(ids.tolist()):
            out[place] = rows[fid]

    def push(self, ids: NDArray[np.uint64], gradients: NDArray[np.float32]) -> None:
        """Sum by id, then one step each."""
        sums: dict[int, NDArray[np.float32]] = {}
        for fid, gradient in zip(ids.tolist(), gradients, strict=True):
            sums[fid] = sums[fid] + gradient if fid in sums else gradient
        for fid, gradient in sums.items():
            accumulator = self.state[fid]
            accumulator += gradient * gradient
            self.rows[fid] -= LR * gradient / np.sqrt(accumulator)

    def step(self, batches: Batches, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pull and push; return the rows before."""
        out = np.empty_like(gradients)
        self.pull(batches.ids, out)
        self.push(batches.ids, gradients)
        return out


class TorchTable:
    """nn.EmbeddingBag with sparse gradients and optim.Adagrad, a bag for each id."""

    def __init__(self, torch: Any, rows: NDArray[np.float32]) -> None:
        # On the command line it is of no use, and torch 2.13 prints it whatever one does.
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        self._torch = torch
        self._bag = torch.nn.EmbeddingBag.from_pretrained(
            torch.from_numpy(rows.copy()), freeze=False, mode="sum", sparse=True
        )
        self._optimizer = torch.optim.Adagrad(
            self._bag.parameters(), lr=LR, initial_accumulator_value=ACCUMULATOR, eps=0.0
        )
        self._offsets = torch.arange(BATCH)

    def step(self, batches: Batches, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pull and push; return the rows before."""
        torch = self._torch
        self._optimizer.zero_grad()
        out = self._bag(torch.from_numpy(batches.positions), self._offsets)
        out.backward(torch.from_numpy(gradients))
        self._optimizer.step()
        rows: NDArray[np.float32] = out.detach().numpy()
        return rows


def run(scale: Scale) -> Iterator[Figure]:
    """Measure against each."""
    rows = scale.sizes[0]
    torch = torch_or_none()
    if torch is not None:
        with filled(rows) as bed:
            batches = traffics(rows, bed.ids, batches=32)["uniform"]
            cores = torch.get_num_threads()
            yardstick = TorchTable(torch, bed.dense)
            many = measure(bed, yardstick.step, batches, scale.rounds(101))
            torch.set_num_threads(1)
            one = measure(bed, yardstick.step, batches, scale.rounds(101))
            detail = f"{many.detail()}; torch on {cores} threads, on one {one.ratio:.3g}"
            yield Figure("step torch", many.ratio, rows, detail)
        del yardstick
    for name in ("uniform", "zipf"):
        with filled(rows) as bed:
            step = DictTable(bed.ids, bed.dense).step
            batches = traffics(rows, bed.ids, batches=32)[name]
            compared = measure(bed, step, batches, scale.rounds(21))
            yield Figure(f"step dict {name}", compared.ratio, rows, compared.detail())


def measure(bed: Bed, yardstick: Step, batches: Batches, rounds: int) -> Compared:
    """Compare one step, and see that both train the same."""
    gradients = make_gradients(bed)
    out = np.empty_like(gradients)
    other = [out]

    def step() -> None:
        bed.table.pull(batches.ids, out=out)
        bed.table.push(batches.ids, gradients)

    def other_step() -> None:
        other[0] = yardstick(batches, gradients)

    compared = compare("step", step, other_step, rounds=rounds, before=batches.turn)
    np.testing.assert_allclose(out, other[0], rtol=1e-3, atol=1e-4)
    return compared
