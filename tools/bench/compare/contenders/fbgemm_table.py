"""FBGEMM's table-batched embedding on the CPU, its optimizer fused into the backward pass.

There is no index: ids are positions. EXACT_ADAGRAD is the element-wise one that all others here
take, too. A lookup of rows is pooling NONE; pooling SUM with one id in every bag gives the same
rows by other kernels. Both take part.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

# It imports more of itself for GPUs than is installed for CPUs, and says so at length.
os.environ.setdefault("FBGEMM_TBE_LOG_LEVEL", "ERROR")

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    OptimType,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, LR
from monolith_kv_tools.bench.compare.contender import Contender, Unsupported
from monolith_kv_tools.bench.compare.contenders.torch_table import FIXED
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

EPSILON = 1e-10


class FbgemmRows(Contender):
    """Pooling NONE: a row for each id."""

    wants_positions = True
    pooling = PoolingMode.NONE

    def version(self) -> str:
        return f"fbgemm-gpu-cpu {version('fbgemm-gpu-cpu')}, torch {torch.__version__}"

    def create(self, folder: Path, scope: Scope) -> None:
        self._scope = scope
        if scope.threads:
            torch.set_num_threads(scope.threads)
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
        self._module: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(scope.rows, scope.dim, *place)],
            optimizer=OptimType.EXACT_ADAGRAD,
            learning_rate=LR,
            eps=EPSILON,
            pooling_mode=self.pooling,
        )
        [states] = self._module.split_optimizer_states()
        for state in states:
            state.fill_(ACCUMULATOR)
        self._offsets = torch.arange(scope.batch + 1)

    def insert(self, ids: Ids, rows: Rows) -> None:
        self.upsert(ids, rows)

    def lookup(self, ids: Ids) -> Rows:
        with torch.no_grad():
            rows: Rows = self._module(torch.from_numpy(ids), self._offsets).numpy()
        return rows

    def upsert(self, ids: Ids, rows: Rows) -> None:
        [weights] = self._module.split_embedding_weights()
        with torch.no_grad():
            weights.index_copy_(0, torch.from_numpy(ids), torch.from_numpy(rows))

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        rows = self._module(torch.from_numpy(ids), self._offsets)
        rows.backward(torch.from_numpy(gradients))
        pulled: Rows = rows.detach().numpy()
        return pulled

    def grow(self, ids: Ids, rows: Rows) -> None:
        raise Unsupported(FIXED)

    def save(self, folder: Path) -> Path:
        path = folder / "state.pt"
        torch.save(self._module.state_dict(), path)
        return path

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.create(path.parent, self._scope)
        self._module.load_state_dict(state)

    def close(self) -> None:
        self._module = None


class FbgemmBags(FbgemmRows):
    """Pooling SUM, here of one row each."""

    pooling = PoolingMode.SUM
