"""TFRA: a dynamic embedding variable in its cuckoo table, trained by its optimizer.

Eager lookups and upserts (a tf.function around a single operation measured slower); the step as in
its examples, in a tf.function: a shadow variable of the distinct ids, DynamicEmbeddingOptimizer.
"""

import gc
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_recommenders_addons as tfra
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, LR
from monolith_kv_tools.bench.compare.contender import Contender
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope
from tensorflow_recommenders_addons import dynamic_embedding as de


class TfraTable(Contender):
    """int64 keys: the same 64 bits."""

    _made = 0

    def version(self) -> str:
        return f"tensorflow-recommenders-addons {tfra.__version__}, TensorFlow {tf.__version__}"

    def create(self, folder: Path, scope: Scope) -> None:
        self._scope = scope
        if scope.threads:
            tf.config.threading.set_intra_op_parallelism_threads(scope.threads)
            tf.config.threading.set_inter_op_parallelism_threads(scope.threads)
        self._made += 1
        name = f"rows{self._made}"  # A name is taken for as long as the process lives.
        self._rows: Any = de.get_variable(
            name,
            key_dtype=tf.int64,
            value_dtype=tf.float32,
            dim=scope.dim,
            initializer=0.0,
            devices=["/CPU:0"],
        )
        shadow = de.shadow_ops.ShadowVariable(self._rows, name=f"{name}-shadow")
        optimizer = de.DynamicEmbeddingOptimizer(
            tf.compat.v1.train.AdagradOptimizer(LR, initial_accumulator_value=ACCUMULATOR)
        )

        def step(ids: Any, gradients: Any) -> Any:
            with tf.GradientTape() as tape:
                rows = de.shadow_ops.embedding_lookup_unique(shadow, ids, scope.dim)
            summed = tape.gradient(rows, [shadow], output_gradients=gradients)
            optimizer.apply_gradients(zip(summed, [shadow], strict=True))
            return rows

        shapes = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, scope.dim], tf.float32)]
        self._step: Any = tf.function(step, input_signature=shapes).get_concrete_function()
        # Tracing has made the optimizer's table: rows are put in with their state, as elsewhere.
        [self._accumulators] = self._rows.get_slot_variables(optimizer)

    def insert(self, ids: Ids, rows: Rows) -> None:
        keys = _keys(ids)
        self._rows.upsert(keys, tf.constant(rows))
        self._accumulators.upsert(keys, tf.fill(rows.shape, ACCUMULATOR))

    def lookup(self, ids: Ids) -> Rows:
        rows: Rows = self._rows.lookup(_keys(ids)).numpy()
        return rows

    def upsert(self, ids: Ids, rows: Rows) -> None:
        self._rows.upsert(_keys(ids), tf.constant(rows))

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        rows: Rows = self._step(_keys(ids), tf.constant(gradients)).numpy()
        return rows

    def save(self, folder: Path) -> Path:
        for variable, name in self._files():
            variable.save_to_file_system(str(folder), file_name_list=[name])
        return folder

    def load(self, path: Path) -> None:
        self.create(path.parent, self._scope)
        for variable, name in self._files():
            variable.load_from_file_system(str(path), file_name_list=[name])

    def close(self) -> None:
        for variable, _ in self._files():
            if variable is not None:
                variable.clear()
        self._rows = self._accumulators = self._step = None
        gc.collect()

    def _files(self) -> list[tuple[Any, str]]:
        return [(self._rows, "rows"), (self._accumulators, "accumulators")]


def _keys(ids: Ids) -> Any:
    return tf.constant(ids.view(np.int64))
