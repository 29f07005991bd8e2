"""Bad input of every kind raises the documented error and changes nothing. One table to scan.

Each row is a claim: what is called, and what it raises. The store's rows, states, digest, position
and counters are compared before and after.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import FAST_FOLDER, scanned, u64
from model import ManualClock

import monolith_kv as mkv

NAN, INF = float("nan"), float("inf")
ONE = u64([1])
ROW = np.ones((1, 4), np.float32)


def floats(*shape: int, fill: float = 1.0) -> np.ndarray:
    return np.full(shape, fill, np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


# Arguments that no id array may be, and what they raise.
BAD_IDS: dict[str, tuple[Any, type[Exception]]] = {
    "float64 ids": (np.array([1.0]), TypeError),
    "int32 ids": (np.array([1], np.int32), TypeError),
    "uint32 ids": (np.array([1], np.uint32), TypeError),
    "bool ids": (np.array([True]), TypeError),
    "object ids": (np.array([1, None], object), TypeError),
    "text ids": (["a"], TypeError),
    "an id beyond 64 bits": ([2**64], (TypeError, OverflowError)),
    "2-D ids": (np.zeros((2, 2), np.uint64), ValueError),
    "0-D ids": (np.uint64(1), ValueError),
    "no ids at all": (None, TypeError),
}

# name -> (call on the table t, error)
BAD_ROWS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "push: float64 gradients": (lambda t: t.push(ONE, np.ones((1, 4))), TypeError),
    "push: integer gradients": (lambda t: t.push(ONE, np.ones((1, 4), np.int64)), TypeError),
    "push: too narrow": (lambda t: t.push(ONE, floats(1, 3)), ValueError),
    "push: too wide": (lambda t: t.push(ONE, floats(1, 5)), ValueError),
    "push: too few rows": (lambda t: t.push(u64([1, 2]), ROW), ValueError),
    "push: too many rows": (lambda t: t.push(ONE, floats(2, 4)), ValueError),
    "push: 1-D gradients": (lambda t: t.push(ONE, floats(4)), ValueError),
    "push: 3-D gradients": (lambda t: t.push(ONE, floats(1, 1, 4)), ValueError),
    "push: NaN": (lambda t: t.push(ONE, floats(1, 4, fill=NAN)), ValueError),
    "push: infinity": (lambda t: t.push(ONE, floats(1, 4, fill=-INF)), ValueError),
    "push: NaN in the last of many": (
        lambda t: t.push(u64([1, 2, 3]), np.vstack([floats(2, 4), floats(1, 4, fill=NAN)])),
        ValueError,
    ),
    "push: NaN for an absent id": (lambda t: t.push(u64([99]), ROW * np.float32(NAN)), ValueError),
    "push: a sum that overflows": (
        lambda t: t.push(u64([2, 1, 1]), floats(3, 4, fill=3e38)),
        ValueError,
    ),
    "upsert: NaN": (lambda t: t.upsert(u64([1, 9]), floats(2, 4, fill=NAN)), ValueError),
    "upsert: infinity": (lambda t: t.upsert(u64([1, 9]), floats(2, 4, fill=INF)), ValueError),
    "upsert: float64": (lambda t: t.upsert(ONE, np.ones((1, 4))), TypeError),
    "upsert: wrong shape": (lambda t: t.upsert(u64([1, 9]), ROW), ValueError),
}

BAD_OUTPUTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "out: float64": (lambda t: t.lookup(ONE, out=np.ones((1, 4))), TypeError),
    "out: too narrow": (lambda t: t.lookup(ONE, out=floats(1, 3)), ValueError),
    "out: too long": (lambda t: t.lookup(ONE, out=floats(2, 4)), ValueError),
    "out: not contiguous": (lambda t: t.lookup(ONE, out=floats(1, 8)[:, ::2]), ValueError),
    "out: Fortran order": (
        lambda t: t.lookup(u64([1, 2]), out=np.asfortranarray(floats(2, 4))),
        ValueError,
    ),
    "out: not writable": (lambda t: t.lookup(ONE, out=read_only(floats(1, 4))), ValueError),
    "out: a list": (lambda t: t.lookup(ONE, out=[[0.0] * 4]), TypeError),
    "pull: out float64": (lambda t: t.pull(u64([9]), out=np.ones((1, 4))), TypeError),
    "pull: out too narrow": (lambda t: t.pull(u64([9]), out=floats(1, 3)), ValueError),
    "pull: out not contiguous": (lambda t: t.pull(u64([9]), out=floats(1, 8)[:, ::2]), ValueError),
    "found: not bool": (lambda t: t.lookup(ONE, found=np.zeros(1, np.uint8)), TypeError),
    "found: wrong length": (lambda t: t.lookup(ONE, found=np.zeros(2, bool)), ValueError),
    "found: not contiguous": (
        lambda t: t.lookup(u64([1, 2]), found=np.zeros(4, bool)[::2]),
        ValueError,
    ),
    "found: not writable": (
        lambda t: t.lookup(ONE, found=read_only(np.zeros(1, bool))),
        ValueError,
    ),
}

BAD_BAGS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "offsets: not from 0": (lambda t: t.lookup_pooled(u64([1, 2]), [1]), ValueError),
    "offsets: falling": (lambda t: t.lookup_pooled(u64([1, 2]), [0, 2, 1]), ValueError),
    "offsets: past the end": (lambda t: t.lookup_pooled(u64([1, 2]), [0, 3]), ValueError),
    "offsets: last past the end": (
        lambda t: t.lookup_pooled(u64([1, 2]), [0, 3], include_last_offset=True),
        ValueError,
    ),
    "offsets: negative": (lambda t: t.lookup_pooled(u64([1, 2]), [0, -1]), ValueError),
    "offsets: floats": (lambda t: t.lookup_pooled(u64([1, 2]), np.array([0.0])), TypeError),
    "offsets: 2-D": (lambda t: t.lookup_pooled(u64([1, 2]), [[0, 1]]), ValueError),
    "offsets: none for some ids": (lambda t: t.lookup_pooled(u64([1, 2]), []), ValueError),
    "combiner: unknown": (lambda t: t.lookup_pooled(ONE, [0], combiner="max"), ValueError),
    "weights: with mean": (
        lambda t: t.lookup_pooled(ONE, [0], combiner="mean", weights=floats(1)),
        ValueError,
    ),
    "weights: with sqrtn": (
        lambda t: t.lookup_pooled(ONE, [0], combiner="sqrtn", weights=floats(1)),
        ValueError,
    ),
    "weights: wrong length": (lambda t: t.lookup_pooled(ONE, [0], weights=floats(2)), ValueError),
    "pooled out: wrong shape": (lambda t: t.lookup_pooled(ONE, [0], out=floats(2, 4)), ValueError),
}

BAD_SETTINGS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "configure: another optimizer": (lambda t: t.configure(optimizer=mkv.SGD()), mkv.SchemaError),
    "configure: not an optimizer": (lambda t: t.configure(optimizer=0.1), TypeError),
    "configure: slices of a flat table": (
        lambda t: t.configure(optimizer={"bias": mkv.Adagrad()}),
        (mkv.SchemaError, KeyError, TypeError, ValueError),
    ),
    "configure: negative ttl": (lambda t: t.configure(ttl=-1), ValueError),
    "configure: zero ttl": (lambda t: t.configure(ttl=0), ValueError),
    "configure: ttl of words": (lambda t: t.configure(ttl="soon"), ValueError),
    "configure: ttl of bytes": (lambda t: t.configure(ttl=b"1h"), TypeError),
    "configure: slot beyond 16 bits": (lambda t: t.configure(ttl={65_536: 1}), ValueError),
    "configure: negative slot": (lambda t: t.configure(ttl={-1: 1}), ValueError),
    "configure: gate is a number": (lambda t: t.configure(admission=3), TypeError),
    "item: absent id": (lambda t: t[999], KeyError),
    "item: text": (lambda t: t["1"], TypeError),
    "item: float": (lambda t: t[1.0], TypeError),
    "scan: batch of 0": (lambda t: list(t.scan(0)), ValueError),
    "scan: negative batch": (lambda t: list(t.scan(-1)), ValueError),
}

BAD_STORE_CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "create: name taken": (lambda s: s.create_table("t", 4), mkv.TableExistsError),
    "create: other dim": (lambda s: s.create_table("t", 5, exist_ok=True), mkv.SchemaError),
    "create: other optimizer": (
        lambda s: s.create_table("t", 4, optimizer=mkv.Adam(), exist_ok=True),
        mkv.SchemaError,
    ),
    "create: slices for none": (
        lambda s: s.create_table("t", [mkv.Slice("a", 4)], exist_ok=True),
        mkv.SchemaError,
    ),
    "create: empty name": (lambda s: s.create_table("", 4), ValueError),
    "create: long name": (lambda s: s.create_table("n" * 65, 4), ValueError),
    "create: name with a slash": (lambda s: s.create_table("a/b", 4), ValueError),
    "create: name with a newline": (lambda s: s.create_table("a\n", 4), ValueError),
    "create: name with an umlaut": (lambda s: s.create_table("ä", 4), ValueError),
    "create: name of bytes": (lambda s: s.create_table(b"a", 4), TypeError),
    "create: dim 0": (lambda s: s.create_table("new", 0), ValueError),
    "create: negative dim": (lambda s: s.create_table("new", -4), ValueError),
    "create: dim 4097": (lambda s: s.create_table("new", 4_097), ValueError),
    "create: dim of text": (lambda s: s.create_table("new", "4"), TypeError),
    "create: dim of float": (lambda s: s.create_table("new", 4.0), TypeError),
    "create: no slices": (lambda s: s.create_table("new", []), ValueError),
    "create: slices of one name": (
        lambda s: s.create_table("new", [mkv.Slice("a", 1), mkv.Slice("a", 1)]),
        ValueError,
    ),
    "create: slices too wide": (
        lambda s: s.create_table("new", [mkv.Slice("a", 4_096), mkv.Slice("b", 1)]),
        ValueError,
    ),
    "create: optimizer class": (
        lambda s: s.create_table("new", 4, optimizer=mkv.Adagrad),
        TypeError,
    ),
    "create: initializer of text": (
        lambda s: s.create_table("new", 4, initializer="zeros"),
        TypeError,
    ),
    "create: ttl negative": (lambda s: s.create_table("new", 4, ttl="-1s"), ValueError),
    "create: ttl NaN": (lambda s: s.create_table("new", 4, ttl=NAN), ValueError),
    "create: gate of text": (lambda s: s.create_table("new", 4, admission="3"), TypeError),
    "table: unknown": (lambda s: s.table("nope"), KeyError),
    "drop: unknown": (lambda s: s.drop_table("nope"), KeyError),
    "digest: unknown table": (lambda s: s.digest("nope"), KeyError),
    "deltas after a part": (lambda s: list(s.deltas(0.5)), TypeError),
    "deltas after True": (lambda s: list(s.deltas(True)), TypeError),
    "deltas after less than none": (lambda s: list(s.deltas(-1)), ValueError),
    "seal: cursor of a list": (lambda s: s.seal(cursor=[1]), TypeError),
    "seal: cursor not JSON": (lambda s: s.seal(cursor={"a": object()}), (TypeError, ValueError)),
    "seal: cursor with NaN": (lambda s: s.seal(cursor={"a": NAN}), ValueError),
    "seal: cursor with a number as key": (
        lambda s: s.seal(cursor={1: "a"}),
        (TypeError, ValueError),
    ),
    "compact: negative budget": (lambda s: s.compact(budget=-1), ValueError),
    "compact: budget of words": (lambda s: s.compact(budget="long"), ValueError),
    "apply: to a writer": (lambda s: s.apply("x.delta"), (mkv.Error, ValueError)),
    "promote: a writer": (lambda s: s.promote(), (mkv.Error, ValueError)),
    "dense: object array": (
        lambda s: s.dense.publish({"w": np.array([None])}),
        (TypeError, ValueError),
    ),
    "dense: name of bytes": (lambda s: s.dense.publish({b"w": ROW}), TypeError),
    "dense: not a mapping": (lambda s: s.dense.publish([ROW]), TypeError),
}


@pytest.fixture(params=["interval", "batch"])
def store(request: Any, store_dir: Path, clock: ManualClock) -> Iterator[mkv.Store]:
    options = {"durability": request.param, "delta_interval": None, "clock": clock}
    with mkv.open(store_dir, **options) as store:
        gated = mkv.FrequencyGate(2, capacity=1_000, error=1e-4)
        table = store.create_table("t", 4, admission=gated, ttl="1h")
        table.upsert(u64([1, 2, 3]), floats(3, 4))
        store.seal(cursor={"offset": 1})
        table.push(u64([1]), ROW)
        yield store


def everything(store: mkv.Store) -> Any:
    table = store.table("t")
    ids = u64([1, 2, 3])
    return (
        sorted(store.tables),
        len(table),
        scanned(table),
        {name: values.tobytes() for name, values in table.state(ids).items()},
        table.timestamps(ids).tolist(),
        store.digest(),
        (store.sequence, store.epoch, dict(store.cursor), store.dense.version),
        [delta.sequence for delta in store.deltas()] if store.mode == "rw" else None,
    )


def assert_refused(store: mkv.Store, call: Callable[[], Any], error: Any) -> None:
    before = everything(store)
    with pytest.raises(error):
        call()
    assert everything(store) == before
    assert_same_after_kill(store, before)
    # What was refused counts for nothing: no sighting, nothing more to seal than before.
    delta = store.seal()
    assert (delta.rows, delta.removals) == (1, 0)
    table = store.table("t")
    table.pull(u64([9]))
    assert 9 not in table


def assert_same_after_kill(store: mkv.Store, before: Any) -> None:
    """Where calls are logged, the refused one is not in the log either."""
    if not store.stats()["files"]["call_log_records"]:
        return
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        copy = shutil.copytree(store.path, Path(folder) / "killed")
        with mkv.open(copy, delta_interval=None, clock=lambda: 0.0) as again:
            rows, digest = everything(again)[2:4], everything(again)[5]
            assert (rows, digest) == (before[2:4], before[5])


def cases(*groups: dict[str, tuple[Callable[[Any], Any], Any]]) -> Any:
    return [
        pytest.param(call, error, id=name)
        for group in groups
        for name, (call, error) in group.items()
    ]


@pytest.mark.parametrize(("call", "error"), cases(BAD_ROWS, BAD_OUTPUTS, BAD_BAGS, BAD_SETTINGS))
def test_a_bad_call_on_a_table_changes_nothing(
    store: mkv.Store, call: Callable[[Any], Any], error: Any
) -> None:
    table = store.table("t")
    assert_refused(store, lambda: call(table), error)


@pytest.mark.parametrize(("call", "error"), cases(BAD_STORE_CALLS))
def test_a_bad_call_on_the_store_changes_nothing(
    store: mkv.Store, call: Callable[[Any], Any], error: Any
) -> None:
    assert_refused(store, lambda: call(store), error)


ID_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "lookup": lambda t, ids: t.lookup(ids),
    "lookup_pooled": lambda t, ids: t.lookup_pooled(ids, [0]),
    "pull": lambda t, ids: t.pull(ids),
    "push": lambda t, ids: t.push(ids, ROW),
    "upsert": lambda t, ids: t.upsert(ids, ROW),
    "remove": lambda t, ids: t.remove(ids),
    "contains": lambda t, ids: t.contains(ids),
    "state": lambda t, ids: t.state(ids),
    "timestamps": lambda t, ids: t.timestamps(ids),
    "prefetch": lambda t, ids: t.prefetch(ids),
}


@pytest.mark.parametrize("method", ID_CALLS)
@pytest.mark.parametrize("kind", BAD_IDS)
def test_bad_ids_are_refused_by_every_call(store: mkv.Store, method: str, kind: str) -> None:
    ids, error = BAD_IDS[kind]
    assert_refused(store, lambda: ID_CALLS[method](store.table("t"), ids), error)


# --- values ------------------------------------------------------------------------------------

BAD_VALUES: dict[str, tuple[Callable[[], Any], Any]] = {
    "gate: threshold 0": (lambda: mkv.FrequencyGate(0), ValueError),
    "gate: threshold negative": (lambda: mkv.FrequencyGate(-2), ValueError),
    "gate: threshold of float": (lambda: mkv.FrequencyGate(2.0), TypeError),
    "gate: capacity 0": (lambda: mkv.FrequencyGate(2, capacity=0), ValueError),
    "gate: window 0": (lambda: mkv.FrequencyGate(2, window=0), ValueError),
    "gate: window negative": (lambda: mkv.FrequencyGate(2, window="-7d"), ValueError),
    "gate: window in weeks": (lambda: mkv.FrequencyGate(2, window="1 fortnight"), ValueError),
    "gate: error 0": (lambda: mkv.FrequencyGate(2, error=0), ValueError),
    "gate: error 1": (lambda: mkv.FrequencyGate(2, error=1.0), ValueError),
    "gate: error NaN": (lambda: mkv.FrequencyGate(2, error=NAN), ValueError),
    "gate: slot 65536": (lambda: mkv.FrequencyGate({65_536: 2}), ValueError),
    "gate: slot of text": (lambda: mkv.FrequencyGate({"a": 2}), TypeError),
    "sgd: lr NaN": (lambda: mkv.SGD(lr=NAN), ValueError),
    "sgd: lr of text": (lambda: mkv.SGD(lr="0.1"), TypeError),
    "adagrad: initial_accumulator 0": (lambda: mkv.Adagrad(initial_accumulator=0.0), ValueError),
    "adagrad: lr infinite": (lambda: mkv.Adagrad(lr=INF), ValueError),
    "rowwise: initial_accumulator -1": (
        lambda: mkv.RowWiseAdagrad(initial_accumulator=-1.0),
        ValueError,
    ),
    "adam: beta1 of 1": (lambda: mkv.Adam(beta1=1.0), ValueError),
    "adam: beta2 negative": (lambda: mkv.Adam(beta2=-0.1), ValueError),
    "rmsprop: decay above 1": (lambda: mkv.RMSProp(decay=1.5), ValueError),
    "ftrl: l1 negative": (lambda: mkv.Ftrl(l1=-1.0), ValueError),
    "ftrl: lr 0": (lambda: mkv.Ftrl(lr=0.0), ValueError),
    "uniform: bounds swapped": (lambda: mkv.Uniform(1.0, -1.0), ValueError),
    "uniform: low NaN": (lambda: mkv.Uniform(low=NAN), ValueError),
    "normal: std negative": (lambda: mkv.Normal(std=-1.0), ValueError),
    "constant: infinite": (lambda: mkv.Constant(INF), ValueError),
    "constant: beyond float32": (lambda: mkv.Constant(1e39), ValueError),
    "slice: name with a dot-dot-slash": (lambda: mkv.Slice("../a", 1), ValueError),
    "slice: dim 0": (lambda: mkv.Slice("a", 0), ValueError),
}


@pytest.mark.parametrize(("call", "error"), cases(BAD_VALUES))
def test_a_bad_value_is_refused_where_it_is_made(call: Callable[[], Any], error: Any) -> None:
    with pytest.raises(error):
        call()


BAD_OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "mode unknown": ({"mode": "w"}, ValueError),
    "durability unknown": ({"durability": "most"}, ValueError),
    "delta_interval negative": ({"delta_interval": -1}, ValueError),
    "delta_interval of words": ({"delta_interval": "often"}, ValueError),
    "delta_interval NaN": ({"delta_interval": NAN}, ValueError),
    "delta_interval True": ({"delta_interval": True}, (TypeError, ValueError)),
    "delta_retention negative": ({"delta_retention": "-1d"}, ValueError),
    "delta_retention of a list": ({"delta_retention": [1]}, TypeError),
    "snapshots_kept 0": ({"snapshots_kept": 0}, ValueError),
    "snapshots_kept of float": ({"snapshots_kept": 1.5}, TypeError),
    "memory_limit negative": ({"memory_limit": -1}, ValueError),
    "memory_limit of words": ({"memory_limit": "lots"}, ValueError),
    "memory_limit in tons": ({"memory_limit": "8t"}, ValueError),
    "memory_limit of float": ({"memory_limit": 1.5}, TypeError),
    "overflow_limit negative": ({"overflow_limit": "-1GiB"}, ValueError),
    "clock is a number": ({"clock": 12.0}, TypeError),
    "no such option": ({"cache": 1}, TypeError),
}


def test_a_restore_names_an_option_that_there_is_not(store: mkv.Store, folder: Path) -> None:
    snapshot = store.snapshot(folder / "a.snapshot")
    with pytest.raises(TypeError, match="restore.*cache"):
        mkv.restore(snapshot.path, folder / "copy", cache=1)
    assert not (folder / "copy").exists()


def test_no_path_is_not_the_current_folder() -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(ValueError, match="must not be empty"):
        mkv.open("")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("now", [NAN, INF, None, "noon"])
def test_a_clock_that_tells_no_time_changes_nothing(store_dir: Path, now: Any) -> None:
    times = [1.0]
    with mkv.open(store_dir, delta_interval=None, clock=lambda: times[0]) as store:
        table = store.create_table("t", 4)
        table.upsert(ONE, ROW)
        before = everything(store)
        times[0] = now
        for call in (
            lambda: table.push(ONE, ROW),
            lambda: table.upsert(u64([2]), ROW),
            lambda: table.pull(u64([2])),
            store.compact,
            store.seal,
        ):
            with pytest.raises(ValueError, match="clock must return"):
                call()
        times[0] = 2.0
        assert everything(store) == before
        assert store.seal().rows == 1


@pytest.mark.parametrize(
    ("options", "error"), [pytest.param(o, e, id=name) for name, (o, e) in BAD_OPTIONS.items()]
)
def test_a_bad_option_leaves_no_store_behind(
    store_dir: Path, options: dict[str, Any], error: Any
) -> None:
    with pytest.raises(error):
        mkv.open(store_dir, **options)
    assert not store_dir.exists()


# --- handles that may not, or no longer, be used -------------------------------------------------

STORE_CALLS: dict[str, Callable[[Any], Any]] = {
    "create_table": lambda s: s.create_table("new", 1),
    "table": lambda s: s.table("t"),
    "drop_table": lambda s: s.drop_table("t"),
    "seal": lambda s: s.seal(),
    "deltas": lambda s: list(s.deltas()),
    "promote": lambda s: s.promote(),
    "refresh": lambda s: s.refresh(),
    "snapshot": lambda s: s.snapshot(),
    "snapshots": lambda s: s.snapshots(),
    "compact": lambda s: s.compact(),
    "digest": lambda s: s.digest(),
    "verify": lambda s: s.verify(),
    "stats": lambda s: s.stats(),
    "publish": lambda s: s.dense.publish({"w": ROW}),
}
TABLE_CALLS: dict[str, Callable[[Any], Any]] = {
    **{name: lambda t, c=call: c(t, ONE) for name, call in ID_CALLS.items()},
    "scan": lambda t: list(t.scan()),
    "configure": lambda t: t.configure(ttl=1),
    "len": len,
    "in": lambda t: 1 in t,
    "item": lambda t: t[1],
}
WRITES = ["create_table", "drop_table", "seal", "publish"]
TABLE_WRITES = ["pull", "push", "upsert", "remove", "configure"]


@pytest.mark.parametrize("name", STORE_CALLS)
def test_a_closed_store_raises_closed_error(store: mkv.Store, name: str) -> None:
    store.close()
    with pytest.raises(mkv.ClosedError):
        STORE_CALLS[name](store)


@pytest.mark.parametrize("name", TABLE_CALLS)
def test_tables_of_a_closed_store_raise_closed_error(store: mkv.Store, name: str) -> None:
    table = store.table("t")
    store.close()
    with pytest.raises(mkv.ClosedError):
        TABLE_CALLS[name](table)


@pytest.mark.parametrize("name", TABLE_CALLS)
def test_a_dropped_table_raises_closed_error(store: mkv.Store, name: str) -> None:
    table = store.table("t")
    store.drop_table("t")
    store.create_table("t", 4).upsert(ONE, ROW)
    with pytest.raises(mkv.ClosedError):
        TABLE_CALLS[name](table)
    assert len(store.table("t")) == 1


@pytest.mark.parametrize("mode", ["r", "replica"])
def test_what_would_change_a_store_that_is_read_only_is_refused(
    store: mkv.Store, clock: ManualClock, mode: Any
) -> None:
    store.snapshot(Path(store.path).parent / "s.snapshot")
    store.close()
    path = store.path
    if mode == "replica":
        path = store.path + "-replica"
        source = Path(store.path).parent / "s.snapshot"
        mkv.restore(source, path, mode="replica", delta_interval=None, clock=clock).close()
    with mkv.open(path, mode=mode, delta_interval=None, clock=clock) as opened:
        before = everything(opened)[:6]
        for name in WRITES:
            with pytest.raises(mkv.ReadOnlyError):
                STORE_CALLS[name](opened)
        for name in TABLE_WRITES:
            with pytest.raises(mkv.ReadOnlyError):
                TABLE_CALLS[name](opened.table("t"))
        assert everything(opened)[:6] == before
