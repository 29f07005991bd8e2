"""Damaged records of the overflow tier: refused where no file that is good has their last state."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import spoil_rows, u64
from model import ManualClock

import monolith_kv as mkv


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


def reopened(store: mkv.Store, path: Path, options: dict[str, Any]) -> mkv.Store:
    """What a kill at this instant leaves, opened again."""
    shutil.copytree(store.path, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, **options)


def flip(path: str | Path) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize("durability", ["interval", "batch"])
def test_a_damaged_record_that_no_delta_has_is_refused_and_opening_again_recovers(
    folder: Path, options: dict[str, Any], durability: str
) -> None:
    options = {**options, "durability": durability, "memory_limit": "64KiB"}
    store = mkv.open(folder / "s", **options)
    table = store.create_table("t", 64)
    many = u64(range(2_000))
    sealed, unsealed = np.zeros((2_000, 64), np.float32), np.ones((2_000, 64), np.float32)
    table.upsert(many, sealed)
    store.seal()
    table.upsert(many, unsealed)
    tier, entry = store._state.overflow, store._state.tables["t"]
    assert tier is not None
    lost = entry.core.cold(many)[:3]
    spoil_rows(tier, entry.core, lost)
    for call in (lambda: table.pull(lost), lambda: table.lookup(lost), store.seal, store.snapshot):
        with pytest.raises(mkv.CorruptionError, match="no good file has their last state"):
            call()
    with reopened(store, folder / "k", options) as again:
        expected = unsealed if durability == "batch" else sealed
        np.testing.assert_array_equal(again.table("t").lookup(many), expected)
        assert bool(again.stats()["lost"]) is (durability == "interval")
    with pytest.raises(mkv.CorruptionError):
        store.close()


def test_a_damaged_record_is_never_filled_from_before_a_damaged_delta(
    folder: Path, options: dict[str, Any]
) -> None:
    store = mkv.open(folder / "s", memory_limit="64KiB", **options)
    table = store.create_table("t", 64)
    many = u64(range(2_000))
    table.upsert(many, np.zeros((2_000, 64), np.float32))
    store.seal()
    table.upsert(many, np.ones((2_000, 64), np.float32))
    delta = store.seal()
    assert delta is not None
    tier, entry = store._state.overflow, store._state.tables["t"]
    assert tier is not None
    lost = entry.core.cold(many)[:3]
    spoil_rows(tier, entry.core, lost)
    good = Path(delta.path).read_bytes()
    flip(delta.path)
    with pytest.raises(mkv.CorruptionError, match="no good file has their last state"):
        table.lookup(lost)
    Path(delta.path).write_bytes(good)
    assert (table.lookup(lost) == 1).all()
    store.close()
