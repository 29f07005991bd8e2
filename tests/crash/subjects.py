"""Files of 64 KiB of every type, made by real calls on stores, and how the engine reads each.

`make_all(folder)` builds them; every Subject says where its file is, how it is read in whole, and
whether it is a log that was still open, whose tail may be cut. Parts of the kit that damage files
start from here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Publisher
from monolith_kv.replication import target as replication_target
from monolith_kv.storage import call_log, delta_log, dense, manifest, sightings, snapshot

SIZE_BYTES = 65_536
DIM = 16
OPTIONS: dict[str, Any] = {"delta_interval": None, "durability": "batch"}
Read = Callable[[], object]


class Subject(NamedTuple):
    """One file: `read` verifies all of it and returns its content, equal for equal content.

    Of an open log `read` returns a Log.
    """

    name: str
    path: Path
    read: Read
    is_open: bool = False


class Log(NamedTuple):
    """What was read of a call log, and the tail that has to be cut; see `comparable`."""

    calls: list[call_log.Call]
    torn: call_log.Torn | None
    is_closed: bool


class Stores(NamedTuple):
    """The folders that the subjects lie in, and the universe of ids in them."""

    main: Path
    before_last: Path  # The main store before its last call.
    many: Path
    target: Path
    ids: Any


def read_log(path: Path, *, must_be_closed: bool) -> Log:
    with call_log.read(str(path), must_be_closed=must_be_closed) as log:
        calls = list(log)
        return Log(calls, log.torn, log.is_closed)


def read_contents(reader: delta_log.DeltaReader | snapshot.SnapshotReader) -> object:
    records = [(r.kind, r.table, r.count, bytes(r.payload)) for r in reader.records()]
    return reader.meta, reader.end, records


def comparable(call: call_log.Call) -> object:
    """Return the same for calls that are the same: arrays do not compare."""
    values = (getattr(call, name, None) for name in ("now", "fids", "gradients", "rows"))
    parts = [v.tobytes() if isinstance(v, np.ndarray) else v for v in values]
    return type(call).__name__, call.table, *parts, getattr(call, "settings", None)


# --- stores ------------------------------------------------------------------------------------


def make_stores(folder: Path, seed: int = 1) -> Stores:
    """Make the stores below `folder`; another seed makes others with other rows."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 2**63, 10_000, dtype=np.uint64)
    clock = ManualClock(1_500_000_000.0)
    main, before = folder / "main", folder / "before_last"
    with mkv.open(folder / "life", clock=clock, snapshots_kept=2, **OPTIONS) as store:
        _live(store, ids, rng)
        shutil.copytree(store.path, before)
        store.table("item").remove(ids[3:5])
        # A crash: the call log has no end yet.
        shutil.copytree(store.path, main)
    shutil.rmtree(folder / "life")
    with mkv.open(folder / "many", clock=clock, snapshots_kept=9, **OPTIONS) as store:
        table = store.create_table("item", DIM)
        while (folder / "many" / "MANIFEST").stat().st_size < SIZE_BYTES:
            table.upsert(ids[:1], _rows(rng, 1))
            store.seal(cursor={"offset": store.sequence})
            if store.sequence % 64 == 1:
                store.snapshot()
    Publisher(folder / "many", folder / "target").run_once()
    return Stores(main, before, folder / "many", folder / "target", ids)


def _live(store: mkv.Store, ids: Any, rng: np.random.Generator) -> None:
    """Two snapshots with deltas before, between and after them, then what no delta has."""
    table = store.create_table("item", DIM, optimizer=mkv.Adagrad(lr=0.1), ttl="30d")
    gated = store.create_table("gated", 4, admission=mkv.FrequencyGate(3, capacity=4_000))
    store.dense.publish({"w": rng.random((8, 8)), "bias": rng.random(3).astype(np.float32)})
    table.upsert(ids[:500], _rows(rng, 500))
    for _ in range(3):
        gated.pull(ids[:40])
    store.seal(cursor={"offset": 1})
    store.snapshot()
    table.push(ids[:450], _rows(rng, 450))
    table.remove(ids[450:460])
    gated.pull(ids[40:60])
    store.seal(cursor={"offset": 2})
    table.push(ids[:50], _rows(rng, 50))
    store.snapshot()
    table.upsert(ids[:460], _rows(rng, 460))
    table.remove(ids[460:470])
    store.seal(cursor={"offset": 3})
    for start in range(60, 9_500, 500):
        gated.pull(ids[start : start + 500])
    assert store.seal() is None  # Nothing but sightings.
    store.dense.publish({"w": rng.random((91, 90)), "steps": np.array(7)})
    store.create_table("late", 2)
    for start in range(0, 320, 80):
        table.push(ids[start : start + 120], _rows(rng, 120))
        table.upsert(ids[start + 10 : start + 130], _rows(rng, 120))
        table.remove(ids[start : start + 1])
        table.pull(ids[start + 1_000 : start + 1_009])
    table.configure(ttl="60d")
    store.drop_table("late")
    table.push(ids[:20], _rows(rng, 20))


def _rows(rng: np.random.Generator, count: int) -> Any:
    return rng.random((count, DIM), np.float32)


# --- their files -------------------------------------------------------------------------------


def subjects_of(stores: Stores) -> list[Subject]:
    """Return one file of each type: the one that opening its store needs."""
    main, many = stores.main, stores.many
    found = manifest.load(str(main))
    assert found is not None
    delta = Path(delta_log.path_of(str(main), found.deltas[-1]["name"]))
    snap = Path(snapshot.path_of(str(main), found.snapshots[-1]["name"]))
    seen = found.sightings
    assert seen is not None
    log = Path(call_log.path_of(str(main), call_log.numbers(str(main))[-1]))
    closed = main.parent / log.name
    _close_log(log, closed)
    subjects = [
        Subject("manifest", many / "MANIFEST", lambda: manifest.load(str(many))),
        Subject("delta", delta, lambda: read_contents(delta_log.DeltaReader(str(delta)))),
        Subject("snapshot", snap, lambda: read_contents(snapshot.SnapshotReader(str(snap)))),
        Subject("call log, open", log, lambda: read_log(log, must_be_closed=False), True),
        Subject("call log, closed", closed, lambda: read_log(closed, must_be_closed=True)),
        Subject("sightings", main / "sightings" / seen, lambda: sightings.load(str(main), seen)),
        Subject(
            "target catalogue",
            stores.target / replication_target.PUBLISHED_NAME,
            lambda: replication_target.read_target(str(stores.target)),
        ),
        Subject(
            "dense safetensors",
            Path(dense.path_of(str(main), found.dense["name"])),
            lambda: dense.load(str(main), found.dense),
        ),
    ]
    for subject in subjects:
        assert subject.path.stat().st_size >= SIZE_BYTES, subject.name
    return subjects


def _close_log(log: Path, copy: Path) -> None:
    """Copy a log, with the END that its writer would have given it."""
    from monolith_kv.storage.format import FileType
    from monolith_kv.storage.log_finish import finish_log

    shutil.copyfile(log, copy)
    finish_log(str(copy), FileType.CALLS)
