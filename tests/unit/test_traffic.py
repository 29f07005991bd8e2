"""A writer reports its tiers to whoever looks, and nothing depends on the report."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import until
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import traffic
from monolith_kv.storage import files

DIM = 64
IDS = np.arange(20_000, dtype=np.uint64)
LIMIT = 4 << 20


@pytest.fixture
def store(store_dir: Path) -> Iterator[mkv.Store]:
    """A store with far more rows than memory holds, whose background is the test itself."""
    with mkv.open(
        store_dir, delta_interval=None, memory_limit=LIMIT, overflow_limit="1GiB"
    ) as store:
        fill(store)
        yield store


def fill(store: mkv.Store) -> None:
    table = store.create_table("item", DIM, optimizer=mkv.SGD(), exist_ok=True)
    for start in range(0, len(IDS), 1000):
        table.upsert(IDS[start : start + 1000], np.ones((1000, DIM), np.float32))


def report_of(store: mkv.Store) -> Any:
    return store.stats()["traffic"]


def test_a_report_has_what_happened_since_the_one_before(store: mkv.Store) -> None:
    table, reporter = store.table("item"), traffic.Reporter(store._state, 100.0)
    reporter.step(104.9)
    assert report_of(store) is None  # No period is over yet.
    cold = IDS[store._state.tables["item"].core.cold_rows_at(IDS) > 0]
    hot = np.setdiff1d(IDS, cold)
    before = store.stats()["overflow"]
    table.lookup(np.concatenate([hot[:300], cold[:100]]))
    reporter.step(105.0)
    found = report_of(store)
    assert (found["lately"]["hits"], found["lately"]["hit_rate"]) == (400, 0.75)
    assert found["lately"]["write_amplification"] is None  # Nothing left memory.
    table.pull(cold[-2000:])
    reporter.step(115.0)
    found, now = report_of(store), store.stats()
    evicted = now["overflow"]["evicted"] - before["evicted"]
    lately, since = found["lately"], found["since_opening"]
    assert (lately["seconds"], lately["promoted_per_s"]) == (10.0, 200.0)
    assert lately["evicted_per_s"] == pytest.approx(evicted / 10) != 0
    assert 1.0 < lately["write_amplification"] < 4
    assert lately["hit_rate"] == 0.0
    assert (since["seconds"], since["promoted"], since["hits"]) == (15.0, 2000, 2400)
    assert found["memory"] == {
        "rows": len(IDS) - now["overflow"]["rows"], "bytes": now["memory"]["used"], "limit": LIMIT
    }  # fmt: skip
    names = ("rows", "bytes", "dead_bytes", "limit")
    assert found["overflow"] == {name: now["overflow"][name] for name in names}


def test_stats_tell_how_much_is_written_for_what_leaves_memory(store: mkv.Store) -> None:
    found = store.stats()["overflow"]
    assert found["write_amplification"] == found["written_bytes"] / found["evicted_bytes"]
    assert found["written_bytes"] >= found["evicted_bytes"] > 0
    assert found["dead_bytes"] == 0
    store.table("item").pull(IDS[:1000])
    assert store.stats()["overflow"]["dead_bytes"] > 0


def test_a_table_that_is_dropped_makes_no_rate_negative(store: mkv.Store) -> None:
    reporter = traffic.Reporter(store._state, 0.0)
    store.drop_table("item")
    reporter.step(5.0)
    found = report_of(store)["lately"]
    assert (found["evicted_per_s"], found["promoted_per_s"], found["hit_rate"]) == (0, 0, None)


@pytest.mark.parametrize("mode", ["rw", "replica"])
def test_a_background_reports_by_itself_and_a_close_takes_it_away(
    store_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(traffic, "PERIOD_S", 0.01)
    with mkv.open(store_dir, mode, memory_limit=LIMIT, clock=clock) as store:
        if mode == "rw":
            fill(store)
        until(lambda: report_of(store) is not None)
        first = report_of(store)["at"]
        until(lambda: report_of(store)["at"] > first)
        if mode == "rw":
            with mkv.open(store_dir, "r") as reader:
                assert report_of(reader)["memory"]["limit"] == LIMIT
                assert reader.verify() == []
            assert store.verify() == []
    assert not (store_dir / "overflow").exists()
    with mkv.open(store_dir, mode, delta_interval=None) as store:
        assert report_of(store) is None


def test_a_report_that_cannot_be_written_is_no_error(
    store: mkv.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, data: bytes) -> None:
        raise OSError(28, "no space")

    reporter = traffic.Reporter(store._state, 0.0)
    reporter.step(5.0)
    monkeypatch.setattr(files, "write_loosely", fail)
    reporter.step(10.0)
    assert report_of(store)["lately"]["seconds"] == 5.0
    monkeypatch.undo()
    reporter.step(16.0)
    assert report_of(store)["lately"]["seconds"] == 6.0


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 2}', "[" * 60_000, '{"format": 1' + "0" * 100_000, "\xff\x00"],
)
def test_a_report_that_makes_no_sense_is_passed_over(store: mkv.Store, text: str) -> None:
    Path(store.path, "overflow", "traffic.json").write_bytes(text.encode("latin-1"))
    assert report_of(store) is None
    assert store.verify() == []


def test_a_report_is_replaced_as_a_whole_and_private(store: mkv.Store) -> None:
    path = Path(store.path, "overflow", "traffic.json")
    reporter = traffic.Reporter(store._state, 0.0)
    reporter.step(5.0)
    with path.open() as file:
        reporter.step(10.0)
        assert json.load(file)["since_opening"]["seconds"] == 5.0  # The old file, whole.
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [name for name in os.listdir(path.parent) if name.endswith(".tmp")]
    os.unlink(path)
    path.symlink_to("/dev/zero")
    assert report_of(store) is None
