"""Compare a store with the oracle, and build one from the other, through the public API only."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from formulas import kernel
from model import Part, Row, StoreModel, TableModel, Ttl
from numpy.typing import NDArray

import monolith_kv as mkv

# One step of a kernel against its NumPy formula: a few units in the last place of float32, and of
# numbers around 1 where a difference cancels.
STEP_RTOL, STEP_ATOL = 4e-6, 4e-7
# The full counts of the continuous integration.
WIDE = os.environ.get("MKV_CI") == "1"
FAST_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def u64(ids: Sequence[int]) -> NDArray[np.uint64]:
    return np.array(ids, np.uint64)


def flat(name: str, dim: int, optimizer: str = "Adagrad", **gate_and_ttl: Any) -> TableModel:
    """The model of a table without slices, with default arguments but for those given."""
    part = Part("", dim, kernel(optimizer), kernel("Uniform"))
    return TableModel(name, [part], **gate_and_ttl)


def ttl_argument(ttl: Ttl) -> Any:
    return dict(ttl) if isinstance(ttl, tuple) else ttl


def create(store: mkv.Store, table: TableModel, **options: Any) -> mkv.Table:
    """Create in the store what the model describes."""
    settings = {
        "admission": None if table.gate is None else table.gate.make(mkv),
        "ttl": ttl_argument(table.ttl),
        **options,
    }
    if [part.name for part in table.parts] == [""]:
        part = table.parts[0]
        return store.create_table(
            table.name,
            part.dim,
            optimizer=part.optimizer.make(mkv),
            initializer=part.initializer.make(mkv),
            **settings,
        )
    slices = [
        mkv.Slice(p.name, p.dim, p.optimizer.make(mkv), p.initializer.make(mkv))
        for p in table.parts
    ]
    return store.create_table(table.name, slices, **settings)


def read_row(table: mkv.Table, fid: int) -> Row:
    """The row of an id that is there, as the engine tells it."""
    ids = u64([fid])
    state = {name: values[0].copy() for name, values in table.state(ids).items()}
    return Row(table.lookup(ids)[0].copy(), state, int(table.timestamps(ids)[0]))


def assert_near(row: Row, expected: Row) -> None:
    """Equal but for the rounding of one step."""
    near = {"rtol": STEP_RTOL, "atol": STEP_ATOL}
    np.testing.assert_allclose(row.embedding, expected.embedding, **near)
    assert row.state.keys() == expected.state.keys()
    for name, values in expected.state.items():
        np.testing.assert_allclose(row.state[name], values, err_msg=name, **near)
    assert row.timestamp == expected.timestamp


def settle(table: mkv.Table, model: TableModel, fids: Sequence[int]) -> None:
    """Compare computed rows within rounding, then take the engine's bits: errors never add up."""
    if not fids:
        return
    ids = u64(fids)
    embeddings, state, timestamps = table.lookup(ids), table.state(ids), table.timestamps(ids)
    for position, fid in enumerate(fids):
        own = {name: values[position].copy() for name, values in state.items()}
        row = Row(embeddings[position].copy(), own, int(timestamps[position]))
        assert_near(row, model.rows[fid])
        model.rows[fid] = row


def assert_table(table: mkv.Table, model: TableModel, universe: Sequence[int]) -> None:
    """Bit for bit the same rows, for every id of the universe, and no others."""
    ids = u64(universe)
    found = np.empty(len(ids), bool)
    embeddings = table.lookup(ids, found=found)
    expected, expected_found = model.lookup(universe)
    assert (table.name, table.dim, len(table)) == (model.name, model.dim, len(model.rows))
    np.testing.assert_array_equal(found, expected_found)
    np.testing.assert_array_equal(embeddings, expected)
    np.testing.assert_array_equal(table.timestamps(ids), model.timestamps(universe))
    state, expected_state = table.state(ids), model.state(universe)
    assert state.keys() == expected_state.keys()
    for name, values in expected_state.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)


def assert_store(store: mkv.Store, model: StoreModel, universe: Sequence[int]) -> None:
    """The same tables and rows, position, cursor and dense parameters."""
    assert set(store.tables) == set(model.tables)
    for name, table in model.tables.items():
        assert_table(store.table(name), table, universe)
    assert store.sequence == model.sequence
    assert dict(store.cursor) == model.cursor
    assert_dense(store.dense, model.dense)
    if model.dense_version:
        assert store.dense.version == model.dense_version


def assert_dense(dense: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert set(dense) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(dense[name], values, err_msg=name)


def same_rows(store: mkv.Store, model: StoreModel, universe: Sequence[int]) -> bool:
    """Whether tables and rows are those of the model: to find out which prefix was recovered."""
    if set(store.tables) != set(model.tables):
        return False
    try:
        for name, table in model.tables.items():
            assert_table(store.table(name), table, universe)
    except AssertionError:
        return False
    return True


def scanned(table: mkv.Table, batch: int = 65536) -> dict[int, bytes]:
    """All that a scan yields; an id that it yields twice is an error."""
    rows: dict[int, bytes] = {}
    for ids, embeddings in table.scan(batch):
        assert len(ids) == len(embeddings) <= batch
        for fid, embedding in zip(ids.tolist(), embeddings, strict=True):
            assert fid not in rows
            rows[fid] = embedding.tobytes()
    return rows


def rows_key(model: TableModel) -> frozenset[tuple[int, bytes]]:
    """What a digest is about: ids and embeddings."""
    return frozenset((fid, row.embedding.tobytes()) for fid, row in model.rows.items())


def spoil_rows(tier: Any, core: Any, fids: NDArray[np.uint64], bit: int = 200) -> None:
    """Flip a bit of the records of cold ids where they lie, as rot on the disk would."""
    (found,) = (each for each in tier._tables.values() if each.core is core)
    mask = (1 << found.place_bits) - 1
    for row in core.cold_rows_at(fids).tolist():
        number = row & 0x7FFFFFFF
        file = next(f for f in found.every() if f.number == number >> found.place_bits)
        at = file.base + (number & mask) * found.place_bytes + bit // 8
        with open(file.disk.path, "r+b", buffering=0) as disk:
            (byte,) = os.pread(disk.fileno(), 1, at)
            os.pwrite(disk.fileno(), bytes([byte ^ 1 << bit % 8]), at)


def open_files() -> dict[int, str]:
    """What each descriptor of this process is of."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # The one of this listing is gone.
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def open_files_in(path: Path | str) -> list[str]:
    """Those of files whose paths begin so."""
    return sorted(name for name in open_files().values() if name.startswith(str(path)))


def until(holds: Callable[[], bool]) -> None:
    """Wait for the background, as long as a busy machine may take."""
    for _ in range(6_000):
        if holds():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the background never did it")
