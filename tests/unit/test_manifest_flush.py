"""A manifest whose own flush fails: what is on disk after a power cut is either of two."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from faulty import broken_disk
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.storage import files

IDS = u64(range(20))
ONES = np.ones((len(IDS), 2), np.float32)


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


def make_table(store: mkv.Store) -> mkv.Table:
    return store.create_table("t", 2, optimizer=mkv.SGD(lr=1.0), exist_ok=True)


@pytest.mark.parametrize("durability", ["interval", "batch"])
def test_nothing_is_deleted_while_the_old_manifest_may_come_back(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    # The folder's fsync fails behind the rename: after a power cut either manifest may be there.
    options = {**options, "durability": durability, "delta_retention": 0, "snapshots_kept": 1}
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    store.seal()
    store.snapshot()
    table.push(IDS, ONES)
    store.dense.publish({"w": np.ones(2)})
    before = folder / "before"
    shutil.copytree(store.path, before)
    sync = files.fsync_folder

    def fail(path: str) -> None:
        if path == store.path:
            raise broken_disk()
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_folder", fail)
        for change in (
            store.seal,
            store.snapshot,
            lambda: store.dense.publish({"w": np.ones(3)}),
        ):
            for _ in range(2):  # The first one raises what the change before it has left.
                try:
                    change()
                except OSError:
                    continue
        after = folder / "after"
        shutil.copytree(store.path, after)
    shutil.copy(before / "MANIFEST", after / "MANIFEST")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        with mkv.open(before, **options) as old, mkv.open(after, **options) as back:
            assert back.digest() == old.digest()
            assert back.dense.version == old.dense.version
    store.close()


@pytest.fixture
def unflushed_root(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Path], None]:
    sync = files.fsync_folder

    def break_folder(folder: str | Path) -> None:
        def fail(path: str) -> None:
            if path == str(folder):
                raise broken_disk()
            sync(path)

        monkeypatch.setattr(files, "fsync_folder", fail)

    return break_folder


@pytest.mark.parametrize("publish", ["seal", "snapshot", "dense"])
def test_what_may_not_survive_a_power_cut_is_not_acknowledged(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    unflushed_root: Callable[[str | Path], None],
    publish: str,
) -> None:
    store = mkv.open(folder / "s", **options)
    make_table(store).upsert(IDS, ONES)
    calls: dict[str, Callable[[], object]] = {
        "seal": lambda: store.seal(cursor={"offset": 1}),
        "snapshot": store.snapshot,
        "dense": lambda: store.dense.publish({"w": np.ones(2)}),
    }
    calls[publish]()  # Makes the folder, which flushes the store's, too.
    unflushed_root(store.path)
    with pytest.raises(OSError, match="error"):
        calls[publish]()
    monkeypatch.undo()
    make_table(store).push(IDS, ONES)  # It was told; calls go on.
    calls[publish]()
    store.close()


def test_no_call_is_made_in_an_epoch_that_may_not_survive_a_power_cut(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    unflushed_root: Callable[[str | Path], None],
) -> None:
    store = mkv.open(folder / "s", durability="batch", **options)
    make_table(store).upsert(IDS, ONES)
    delta, digest = store.seal(), store.digest()
    assert delta is not None
    shutil.copytree(store.path, folder / "k")
    replica = mkv.open(folder / "r", mode="replica", **options)
    replica.apply(delta)
    for path, begin in (
        (folder / "k", lambda: mkv.open(folder / "k", **options)),
        (folder / "r", replica.promote),
    ):
        unflushed_root(path)
        with pytest.raises(OSError, match="error"):
            begin()
        monkeypatch.undo()
    with mkv.open(folder / "k", **options) as again:
        assert (again.digest(), again.epoch) == (digest, 3)
    with pytest.raises(mkv.ReadOnlyError):
        make_table(replica)
    replica.promote()
    make_table(replica).push(IDS, ONES)
    replica.close()
    store.close()


def test_a_delta_whose_position_may_not_survive_a_power_cut_is_not_acknowledged(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    unflushed_root: Callable[[str | Path], None],
) -> None:
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    deltas = []
    for _ in range(3):
        table.upsert(IDS, ONES)
        deltas.append(store.seal())
    replica = mkv.open(folder / "r", "replica", clock=options["clock"])
    replica.apply(deltas[0])  # Makes the folder, which flushes the store's, too.
    unflushed_root(replica.path)
    with pytest.raises(OSError, match="error"):
        replica.apply(deltas[1])
    monkeypatch.undo()
    assert replica.sequence == 2  # It counts, as after any manifest that may not survive.
    assert replica.apply(deltas[2])
    replica.close()
    store.close()
