"""torch: a module with sparse gradients and optim.Adagrad. There is no index: ids are positions.

A lookup of rows is nn.Embedding's work. nn.EmbeddingBag is made for sums over bags of ids; with
one id in every bag it gives the same rows, with a kernel that prefetches. Both take part.
"""

import abc
from pathlib import Path
from typing import Any

import torch
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, LR
from monolith_kv_tools.bench.compare.contender import Contender, Unsupported
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

FIXED = "a fixed number of rows, given when the table is made"


class _TorchTable(Contender):
    """What both modules have in common: weights, optimizer, state dicts."""

    wants_positions = True

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def create(self, folder: Path, scope: Scope) -> None:
        self._scope = scope
        if scope.threads:
            torch.set_num_threads(scope.threads)
        self._module = torch.nn.utils.skip_init(
            self.kind(), scope.rows, scope.dim, sparse=True, **self.options()
        )
        self._optimizer = torch.optim.Adagrad(
            self._module.parameters(), lr=LR, initial_accumulator_value=ACCUMULATOR
        )

    @abc.abstractmethod
    def kind(self) -> Any:
        """Return the class of the module."""

    def options(self) -> dict[str, Any]:
        """Return its further arguments."""
        return {}

    @abc.abstractmethod
    def forward(self, ids: Ids) -> Any:
        """Return the rows, a tensor (n, dim)."""

    def insert(self, ids: Ids, rows: Rows) -> None:
        self.upsert(ids, rows)

    def lookup(self, ids: Ids) -> Rows:
        with torch.inference_mode():
            rows: Rows = self.forward(ids).numpy()
        return rows

    def upsert(self, ids: Ids, rows: Rows) -> None:
        with torch.no_grad():
            self._module.weight.index_copy_(0, torch.from_numpy(ids), torch.from_numpy(rows))

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        self._optimizer.zero_grad()
        rows = self.forward(ids)
        rows.backward(torch.from_numpy(gradients))
        self._optimizer.step()
        pulled: Rows = rows.detach().numpy()
        return pulled

    def grow(self, ids: Ids, rows: Rows) -> None:
        raise Unsupported(FIXED)

    def save(self, folder: Path) -> Path:
        path = folder / "states.pt"
        states = {"module": self._module.state_dict(), "adagrad": self._optimizer.state_dict()}
        torch.save(states, path)
        return path

    def load(self, path: Path) -> None:
        states = torch.load(path, weights_only=True)
        self.create(path.parent, self._scope)
        self._module.load_state_dict(states["module"])
        self._optimizer.load_state_dict(states["adagrad"])

    def close(self) -> None:
        self._module = self._optimizer = None


class TorchEmbedding(_TorchTable):
    """nn.Embedding: a row for each id."""

    def kind(self) -> Any:
        return torch.nn.Embedding

    def forward(self, ids: Ids) -> Any:
        return self._module(torch.from_numpy(ids))


class TorchBags(_TorchTable):
    """nn.EmbeddingBag: sums, here of one row each."""

    def kind(self) -> Any:
        return torch.nn.EmbeddingBag

    def options(self) -> dict[str, Any]:
        return {"mode": "sum"}

    def create(self, folder: Path, scope: Scope) -> None:
        super().create(folder, scope)
        self._offsets = torch.arange(scope.batch)

    def forward(self, ids: Ids) -> Any:
        return self._module(torch.from_numpy(ids), self._offsets)
