"""The names, order of arguments and defaults that applications are written against stand still.

What is listed here may not be renamed, reordered or weakened; anything may be added.
"""

import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monolith_kv as mkv

ANY = object()  # a default there is, whatever it is

# callable -> its parameters: (name, kind, default). "/": positional or keyword, "*": keyword only.
SIGNATURES: dict[str, list[tuple[str, str, Any]]] = {
    "open": [
        ("path", "/", inspect.Parameter.empty),
        ("mode", "/", "rw"),
        ("durability", "*", "interval"),
        ("delta_interval", "*", "60s"),
        ("delta_retention", "*", "1d"),
        ("snapshots_kept", "*", 2),
        ("memory_limit", "*", None),
        ("overflow_limit", "*", None),
        ("clock", "*", ANY),
    ],
    "restore": [
        ("snapshots", "/", inspect.Parameter.empty),
        ("path", "/", inspect.Parameter.empty),
        ("mode", "*", "rw"),
        ("progress", "*", None),
        ("keep", "*", None),
        ("open_options", "**", inspect.Parameter.empty),
    ],
    "salvage": [
        ("path", "/", inspect.Parameter.empty),
        ("to", "/", inspect.Parameter.empty),
    ],
    "Store.create_table": [
        ("name", "/", inspect.Parameter.empty),
        ("dim", "/", inspect.Parameter.empty),
        ("optimizer", "*", ANY),
        ("initializer", "*", ANY),
        # Documented as None; a mark for "left out" is needed to keep what a table has.
        ("admission", "*", ANY),
        ("ttl", "*", ANY),
        ("exist_ok", "*", False),
    ],
    "Store.table": [("name", "/", inspect.Parameter.empty)],
    "Store.drop_table": [("name", "/", inspect.Parameter.empty)],
    "Store.seal": [("cursor", "*", None)],
    "Store.deltas": [("after", "/", 0)],
    "Store.apply": [("delta", "/", inspect.Parameter.empty)],
    "Store.promote": [],
    "Store.refresh": [],
    "Store.snapshot": [("path", "/", None), ("progress", "*", None)],
    "Store.snapshots": [],
    "Store.compact": [("budget", "*", None), ("force", "*", False)],
    "Store.digest": [("table", "/", None)],
    "Store.verify": [],
    "Store.stats": [],
    "Store.close": [],
    "Table.lookup": [
        ("ids", "/", inspect.Parameter.empty),
        ("out", "*", None),
        ("found", "*", None),
    ],
    "Table.lookup_pooled": [
        ("ids", "/", inspect.Parameter.empty),
        ("offsets", "/", inspect.Parameter.empty),
        ("combiner", "*", "sum"),
        ("weights", "*", None),
        ("include_last_offset", "*", False),
        ("out", "*", None),
    ],
    "Table.prefetch": [("ids", "/", inspect.Parameter.empty)],
    "Table.contains": [("ids", "/", inspect.Parameter.empty)],
    "Table.state": [("ids", "/", inspect.Parameter.empty)],
    "Table.timestamps": [("ids", "/", inspect.Parameter.empty)],
    "Table.scan": [("batch", "/", 65_536)],
    "Table.pull": [("ids", "/", inspect.Parameter.empty), ("out", "*", None)],
    "Table.push": [
        ("ids", "/", inspect.Parameter.empty),
        ("gradients", "/", inspect.Parameter.empty),
    ],
    "Table.upsert": [
        ("ids", "/", inspect.Parameter.empty),
        ("rows", "/", inspect.Parameter.empty),
    ],
    "Table.remove": [("ids", "/", inspect.Parameter.empty)],
    "Table.configure": [("ttl", "*", ANY), ("admission", "*", ANY), ("optimizer", "*", ANY)],
    "Slice": [
        ("name", "/", inspect.Parameter.empty),
        ("dim", "/", inspect.Parameter.empty),
        ("optimizer", "/", ANY),
        ("initializer", "/", ANY),
    ],
    "FrequencyGate": [
        ("threshold", "/", inspect.Parameter.empty),
        ("capacity", "*", ANY),
        ("window", "*", "7d"),
        ("error", "*", 0.01),
    ],
    "SGD": [("lr", "/", 0.01)],
    "Momentum": [("lr", "/", 0.01), ("momentum", "/", 0.9)],
    "Adagrad": [("lr", "/", 0.05), ("initial_accumulator", "/", 0.1), ("weight_decay", "/", 0.0)],
    "RowWiseAdagrad": [("lr", "/", 0.05), ("initial_accumulator", "/", 0.1)],
    "RMSProp": [("lr", "/", 0.01), ("decay", "/", 0.9), ("epsilon", "/", 1e-8)],
    "Adam": [
        ("lr", "/", 0.001),
        ("beta1", "/", 0.9),
        ("beta2", "/", 0.999),
        ("epsilon", "/", 1e-8),
        ("weight_decay", "/", 0.0),
    ],
    "Ftrl": [
        ("lr", "/", 0.05),
        ("l1", "/", 0.0),
        ("l2", "/", 0.0),
        ("beta", "/", 1.0),
        ("lr_power", "/", -0.5),
    ],
    "Zeros": [],
    "Constant": [("value", "/", inspect.Parameter.empty)],
    "Uniform": [("low", "/", -0.05), ("high", "/", 0.05), ("seed", "/", 0)],
    "Normal": [("mean", "/", 0.0), ("std", "/", 0.01), ("seed", "/", 0)],
    "DenseParameters.publish": [("arrays", "/", inspect.Parameter.empty)],
}
ERRORS = [
    "StoreLockedError",
    "ReadOnlyError",
    "ClosedError",
    "ForkedError",
    "TableExistsError",
    "SchemaError",
    "ClockError",
    "CorruptionError",
    "FormatVersionError",
    "GapError",
    "FencedError",
    "StoreFullError",
]
CLASSES = ["Store", "Table", "Delta", "Snapshot", "Compaction", "Optimizer", "Initializer"]


def found(name: str) -> Any:
    value: Any = mkv
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_keep_their_names_order_kinds_and_defaults(name: str) -> None:
    parameters = inspect.signature(found(name)).parameters
    own = [p for p in parameters.values() if p.name != "self"]
    kinds = inspect.Parameter
    positional = [p.name for p in own if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    expected = SIGNATURES[name]
    assert positional == [n for n, kind, _ in expected if kind == "/"]
    for parameter, kind, default in expected:
        here = parameters[parameter]
        if kind == "**":
            assert here.kind == kinds.VAR_KEYWORD
            continue
        if kind == "*":
            assert here.kind == kinds.KEYWORD_ONLY
        if default is ANY:
            assert here.default is not kinds.empty
        else:
            assert here.default == default
    # What was added since may not be required.
    added = [p for p in own if p.name not in {n for n, _, _ in expected}]
    assert all(p.default is not kinds.empty for p in added)


@pytest.mark.parametrize("name", [*ERRORS, *CLASSES, "Error", "DataLossWarning"])
def test_the_contracts_names_are_public(name: str) -> None:
    assert inspect.isclass(getattr(mkv, name))
    assert name in mkv.__all__


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_the_one_root(name: str) -> None:
    assert issubclass(getattr(mkv, name), mkv.Error)
    assert not issubclass(mkv.DataLossWarning, mkv.Error)
    assert issubclass(mkv.DataLossWarning, UserWarning)


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adagrad", "RowWiseAdagrad", "RMSProp"])
def test_optimizers_are_optimizers_and_initializers_initializers(name: str) -> None:
    assert isinstance(getattr(mkv, name)(), mkv.Optimizer)
    assert isinstance(mkv.Uniform(), mkv.Initializer)
    assert not isinstance(mkv.Uniform(), mkv.Optimizer)


@pytest.mark.parametrize("name", sorted(n for n in SIGNATURES if "." in n))
def test_public_methods_say_what_they_do(name: str) -> None:
    assert (found(name).__doc__ or "").strip()


def test_what_is_published_has_the_documented_attributes(store_dir: Path) -> None:
    with mkv.open(store_dir, delta_interval=None, clock=lambda: 1_000.5) as store:
        store.create_table("t", 1).upsert(np.array([1, 2], np.uint64), np.ones((2, 1), np.float32))
        delta, snapshot, compaction = store.seal(), store.snapshot(), store.compact()
        assert (delta.epoch, delta.sequence, delta.rows, delta.removals) == (1, 1, 2, 0)
        assert delta.bytes == Path(delta.path).stat().st_size
        assert delta.sealed_at == snapshot.created_at == 1_000.5
        assert (snapshot.sequence, snapshot.rows) == (1, 2)
        assert snapshot.bytes == Path(snapshot.path).stat().st_size
        assert (compaction.expired, compaction.finished) == (0, True)
        assert compaction.bytes_freed >= 0
        assert pickle.loads(pickle.dumps(delta)) == delta


def test_a_new_store_has_the_documented_first_values(store_dir: Path) -> None:
    with mkv.open(store_dir) as store:
        assert (store.mode, store.sequence, store.epoch) == ("rw", 0, 1)
        assert dict(store.cursor) == {}
        assert isinstance(store.tables, Mapping)
        assert len(store.tables) == 0
        assert isinstance(store.dense, Mapping)
        assert len(store.dense) == 0
        assert list(store.deltas()) == []
        assert store.snapshots() == []
        assert store.seal() is None
        assert isinstance(store.stats(), dict)


def test_the_example_of_the_contract_runs(store_dir: Path) -> None:
    ids = np.array([5, 6, 5], np.uint64)
    gradients = np.ones((3, 64), np.float32)
    with mkv.open(store_dir, memory_limit="8GiB") as store:
        items = store.create_table(
            "item",
            dim=64,
            optimizer=mkv.Adagrad(lr=0.05),
            admission=mkv.FrequencyGate(threshold=3),
            ttl="30d",
        )
        for _ in range(3):
            items.pull(ids)
        items.push(ids, gradients)
        assert store.seal().rows == 2
        assert store.snapshot().rows == 2


@pytest.mark.parametrize("ids", [[], np.array([], np.uint64), np.array([], np.int64)])
def test_an_empty_list_is_no_ids(store_dir: Path, ids: Any) -> None:
    with mkv.open(store_dir) as store:
        table = store.create_table("t", 3)
        assert table.lookup(ids).shape == table.pull(ids).shape == (0, 3)
        assert table.contains(ids).shape == table.timestamps(ids).shape == (0,)
        assert table.state(ids)["accumulator"].shape == (0, 3)
        table.push(ids, np.empty((0, 3), np.float32))
        table.upsert(ids, np.empty((0, 3), np.float32))
        assert table.remove(ids) == 0
        assert table.lookup_pooled(ids, [0, 0]).tolist() == [[0.0] * 3] * 2


def test_signed_ids_are_the_same_64_bits(store_dir: Path) -> None:
    with mkv.open(store_dir) as store:
        table = store.create_table("t", 2)
        row = table.pull(np.array([-1], np.int64))
        assert table.contains(np.array([2**64 - 1], np.uint64)).all()
        assert -1 in table
        assert 2**64 - 1 in table
        np.testing.assert_array_equal(table[-1], row[0])
        np.testing.assert_array_equal(table[2**64 - 1], row[0])
        assert table.remove([-1]) == 1


def test_ids_need_not_be_contiguous(store_dir: Path) -> None:
    ids = np.arange(20, dtype=np.uint64)
    with mkv.open(store_dir) as store:
        table = store.create_table("t", 2)
        table.pull(ids[::2])
        assert table.contains(ids).tolist() == [True, False] * 10
        gradients = np.ones((10, 4), np.float32)[:, ::2]
        table.push(ids[::2], gradients)
        wide = np.asfortranarray(np.arange(20, dtype=np.float32).reshape(10, 2))
        table.upsert(ids[::2], wide)
        np.testing.assert_array_equal(table.lookup(ids[::2]), wide)
