"""mkv from the outside: stat, inspect, verify, snapshot, restore."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from e2e.tools import Ran, call

import monolith_kv as mkv
from monolith_kv import traffic


@pytest.fixture
def store_path(store_dir: Path) -> Path:
    """A closed store with two deltas, a snapshot between them and dense parameters."""
    with mkv.open(store_dir, delta_interval=None) as store:
        table = store.create_table("item", dim=4)
        store.create_table("user", dim=2)
        table.upsert(np.arange(10), np.ones((10, 4), np.float32))
        store.seal(cursor={"offset": 3})
        store.snapshot()
        table.upsert(np.arange(10, 15), np.ones((5, 4), np.float32))
        store.dense.publish({"w": np.arange(3, dtype=np.float32)})
        store.seal()
    return store_dir


def failed(ran: Ran, code: int) -> str:
    assert ran.code == code, ran
    [line] = ran.err.splitlines()
    assert line.startswith("mkv: ")
    return line


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_stat_tells_what_a_store_holds(store_path: Path) -> None:
    ran = call("mkv", "stat", store_path, "--json")
    assert ran.code == 0, ran
    [found] = ran.lines()
    assert (found["kind"], found["sequence"], found["rows"]) == ("store", 2, 15)
    assert found["cursor"] == {"offset": 3}
    assert [(t["name"], t["dim"], t["rows"]) for t in found["tables"]] == [
        ("item", 4, 15),
        ("user", 2, 0),
    ]
    with mkv.open(store_path, "r") as store:
        assert found["digest"] == store.digest()
    text = call("mkv", "stat", store_path)
    assert "15 rows" in text.out
    failed(call("mkv", "stat", store_path.parent / "nothing"), 4)


def test_quick_stat_loads_no_rows(store_path: Path) -> None:
    for path in store_path.rglob("*.snapshot"):
        path.unlink()  # Nobody misses it.
    ran = call("mkv", "stat", store_path, "--quick", "--json")
    assert ran.code == 0, ran
    [found] = ran.lines()
    assert (found["kind"], found["sequence"], found["deltas"]) == ("store", 2, 2)
    assert not {"rows", "digest", "tables", "memory"} & set(found)
    assert "delta 2" in call("mkv", "stat", store_path, "--quick").out
    failed(call("mkv", "stat", store_path.parent / "nothing", "--quick"), 4)


def test_stat_works_beside_a_writer(store_path: Path) -> None:
    with mkv.open(store_path, delta_interval=None):
        assert call("mkv", "stat", store_path).code == 0


def test_stat_tells_what_a_writers_overflow_takes_on_disk(store_path: Path) -> None:
    [found] = call("mkv", "stat", store_path, "--json").lines()
    assert found["overflow_bytes"] == 0
    assert found["memory"]["rows"] > 0
    with mkv.open(store_path, delta_interval=None, memory_limit="1MiB") as store:
        table = store.create_table("wide", 1024)
        table.upsert(np.arange(1000), np.ones((1000, 1024), np.float32))
        [found] = call("mkv", "stat", store_path, "--json").lines()
        assert found["overflow_bytes"] >= store.stats()["overflow"]["rows"] * 1024 * 4 > 0


def test_stat_shows_the_tiers_and_rates_of_a_running_writer(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no figures from a writer" in call("mkv", "stat", store_path).out
    monkeypatch.setattr(traffic, "PERIOD_S", 0.05)
    with mkv.open(store_path, delta_interval="1d", memory_limit="4MiB") as store:
        table = store.create_table("wide", 1024)
        ids = np.arange(1000, dtype=np.uint64)
        table.upsert(ids, np.ones((1000, 1024), np.float32))
        while True:  # Until a report has a pull in it.
            table.pull(ids[:100])
            table.pull(ids[-100:])
            [found] = call("mkv", "stat", store_path, "--json").lines()
            report = found["traffic"]
            if report and report["since_opening"]["promoted"] > 0:
                break
        assert 0 <= report["age_s"] < 60
        assert report["memory"]["rows"] + report["overflow"]["rows"] >= 1000
        assert report["memory"]["limit"] == 4 << 20
        assert 0 < report["since_opening"]["hit_rate"] < 1
        text = call("mkv", "stat", store_path, "--quick").out
        for words in ("its writer said", "hit rate", "rows/s promoted", "write amplification"):
            assert words in text
        shutil.copytree(store_path, store_path.parent / "killed")
    assert "no figures from a writer" in call("mkv", "stat", store_path).out
    left = store_path.parent / "killed" / "overflow" / "traffic.json"
    os.utime(left, (0, left.stat().st_mtime - 3600))
    assert "it has gone, or hangs" in call("mkv", "stat", left.parent.parent).out


def test_inspect_reads_every_file(store_path: Path) -> None:
    target = store_path.parent / "target"
    assert call("mkv-replicate", "push", store_path, target, "--once").code == 0
    paths = [p for top in (store_path, target) for p in top.rglob("*") if p.is_file()]
    kinds = set()
    for path in paths:
        ran = call("mkv", "inspect", path)
        assert ran.code == 0, ran
        assert path.name in ran.out
        kinds.update(line for line in ran.out.splitlines() if line.startswith("type: "))
    assert {kind.split()[1].rstrip(",") for kind in kinds} >= {
        "manifest",
        "delta",
        "snapshot",
        "target",
    }
    lines = call("mkv", "inspect", store_path / "MANIFEST", "--json").lines()
    assert any("manifest" in line["text"] for line in lines)


def test_inspect_reads_what_a_writer_with_two_tiers_has(folder: Path) -> None:
    with mkv.open(folder / "s", memory_limit="1MiB", delta_interval=None) as store:
        table = store.create_table("t", 256)
        table.upsert(np.arange(4_000), np.ones((4_000, 256), np.float32))
        for pattern, text in (("*.rows", "bytes of cold rows"), ("*.unsealed", "only memory has")):
            paths = list(Path(store.path).rglob(pattern))
            assert paths
            ran = call("mkv", "inspect", paths[0])
            assert (ran.code, ran.err) == (0, "")
            assert text in ran.out


def test_the_same_ids_in_two_snapshots_are_3(store_path: Path) -> None:
    path = next(store_path.rglob("*.snapshot"))
    to = store_path.parent / "two"
    assert "in two of the snapshots" in failed(call("mkv", "restore", path, path, to), 3)
    assert not to.exists()


def test_restore_says_where_the_store_stands_afterwards(folder: Path) -> None:
    with mkv.open(folder / "s", delta_interval=None) as store:
        store.create_table("t", 4).upsert([1], np.ones((1, 4), np.float32))
        path = store.snapshot(folder / "ahead.snapshot").path  # Of what no delta has.
    [said] = call("mkv", "restore", path, folder / "copy", "--json").lines()
    [found] = call("mkv", "stat", folder / "copy", "--json").lines()
    assert (said["sequence"], said["epoch"]) == (found["sequence"], found["epoch"])


def test_inspect_of_a_damaged_file_names_the_place(store_path: Path) -> None:
    path = next(store_path.rglob("*.snapshot"))
    flip(path)
    assert "at byte" in failed(call("mkv", "inspect", path), 3)
    failed(call("mkv", "inspect", store_path / "nothing"), 4)


def test_verify_of_a_good_store(store_path: Path) -> None:
    ran = call("mkv", "verify", store_path, "--json")
    assert (ran.code, ran.lines()) == (0, [{"good": True}])


def test_verify_of_a_damaged_store_and_salvage(store_path: Path) -> None:
    path = sorted(store_path.rglob("*.delta"))[-1]
    flip(path)
    ran = call("mkv", "verify", store_path)
    assert ran.code == 1, ran
    assert path.name in ran.out
    saved = store_path.parent / "saved"
    ran = call("mkv", "verify", store_path, "--salvage", saved)
    assert ran.code == 1, ran
    with mkv.open(saved, "r") as store:
        assert len(store.table("item")) >= 10
    failed(call("mkv", "verify", store_path.parent / "nothing"), 4)


def test_snapshot_and_restore(store_path: Path) -> None:
    path = store_path.parent / "today.snapshot"
    ran = call("mkv", "snapshot", store_path, path, "--json")
    assert ran.code == 0, ran
    [found] = ran.lines()
    assert (found["path"], found["rows"], found["sequence"]) == (str(path), 15, 2)
    restored = store_path.parent / "restored"
    ran = call("mkv", "restore", path, restored, "--json")
    assert ran.code == 0, ran
    assert ran.lines()[0]["rows"] == 15
    assert call("mkv-replicate", "verify", store_path, restored).code == 0
    failed(call("mkv", "snapshot", store_path, path), 3)
    failed(call("mkv", "restore", path, restored), 3)
    assert call("mkv", "snapshot", store_path).code == 0


def test_several_snapshots_become_one_store(store_path: Path) -> None:
    other = store_path.parent / "other"
    with mkv.open(other, delta_interval=None) as store:
        store.create_table("item", dim=4).upsert([100], np.ones((1, 4), np.float32))
        store.create_table("user", dim=2)
        store.snapshot(store_path.parent / "b.snapshot")
    call("mkv", "snapshot", store_path, store_path.parent / "a.snapshot")
    paths = [store_path.parent / f"{name}.snapshot" for name in "ab"]
    ran = call("mkv", "restore", *paths, store_path.parent / "both", "--json")
    assert ran.code == 0, ran
    assert ran.lines()[0]["rows"] == 16


def test_snapshot_of_a_store_in_use_is_refused(store_path: Path) -> None:
    with mkv.open(store_path, delta_interval=None):
        assert "pid" in failed(call("mkv", "snapshot", store_path), 3)
    failed(call("mkv", "snapshot", store_path.parent / "nothing"), 4)


def test_a_snapshot_of_a_replica_leaves_it_a_replica(store_path: Path) -> None:
    replica = store_path.parent / "replica"
    call("mkv-replicate", "follow", store_path, replica, "--once")
    assert call("mkv", "snapshot", replica).code == 0
    assert call("mkv", "stat", replica, "--json").lines()[0]["kind"] == "replica"
    assert call("mkv-replicate", "follow", store_path, replica, "--once").code == 0


def test_wrong_usage_is_2(store_path: Path) -> None:
    for arguments in ([], ["stat"], ["restore", "one"], ["dance"]):
        assert call("mkv", *arguments).code == 2
    for arguments in ([], ["stat"], ["inspect"], ["verify"], ["snapshot"], ["restore"]):
        assert call("mkv", *arguments, "--help").code == 0
