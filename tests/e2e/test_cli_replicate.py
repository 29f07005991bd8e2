"""mkv-replicate from the outside: exit codes, lines of output, signals."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from e2e.tools import Ran, call, start

import monolith_kv as mkv

FLIP_AT = -40


class Place:
    """A store, a target and a replica in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.target = folder / "target"
        self.replica = folder / "replica"

    def write(self, first: int, seals: int = 1, path: Path | None = None) -> None:
        with mkv.open(path or self.store, delta_interval=None) as store:
            table = store.create_table("item", dim=4, exist_ok=True)
            for number in range(seals):
                ids = np.arange(first + 10 * number, first + 10 * number + 10)
                table.upsert(ids, np.full((10, 4), first, np.float32))
                store.seal()

    def snapshot(self) -> None:
        with mkv.open(self.store, delta_interval=None) as store:
            store.snapshot()

    def push(self, *more: str) -> Ran:
        return call("mkv-replicate", "push", self.store, self.target, "--once", *more)

    def follow(self, *more: str) -> Ran:
        return call("mkv-replicate", "follow", self.target, self.replica, "--once", *more)

    def rows(self) -> int:
        with mkv.open(self.replica, "r") as replica:
            return len(replica.table("item"))


@pytest.fixture
def place(folder: Path) -> Place:
    return Place(folder)


def failed(ran: Ran, code: int) -> str:
    """Check that it failed as documented, with one line that says why; return that line."""
    assert ran.code == code, ran
    [line] = ran.err.splitlines()
    assert line.startswith("mkv-replicate: ")
    return line


def test_a_store_reaches_a_replica(place: Place) -> None:
    place.write(0, seals=2)
    pushed = place.push("--json")
    assert pushed.code == 0, pushed
    [line] = pushed.lines()
    assert (line["sequence"], line["deltas"], line["changed"]) == (2, 2, True)
    followed = place.follow("--json")
    assert followed.code == 0, followed
    [line] = followed.lines()
    assert (line["sequence"], line["in_step"], line["lag"]) == (2, True, 0)
    equal = call("mkv-replicate", "verify", place.store, place.replica, "--json")
    assert (equal.code, equal.lines()[0]["equal"]) == (0, True)
    equal = call("mkv-replicate", "verify", place.target, place.replica)
    assert equal.code == 0, equal
    assert "equal: 20 rows" in equal.out
    assert place.follow().out.startswith("at delta 2 (epoch 1), in step")


def test_status_tells_kinds_positions_and_lag(place: Place) -> None:
    place.write(0)
    place.snapshot()
    place.push()
    place.follow()
    place.write(100, seals=2)
    paths = (place.store, place.target, place.replica)
    ran = call("mkv-replicate", "status", *paths, "--json")
    assert ran.code == 0, ran
    store, target, replica = ran.lines()
    assert [p["kind"] for p in (store, target, replica)] == ["store", "target", "replica"]
    assert (store["sequence"], target["sequence"], replica["sequence"]) == (3, 1, 1)
    assert (store["lag"], target["lag"], replica["lag"]) == (0, 2, 2)
    assert store["uuid"] == target["uuid"] == replica["uuid"]
    assert store["rows"] == 10
    assert 0 <= store["age_s"] < 600
    text = call("mkv-replicate", "status", *paths)
    assert len(text.out.splitlines()) == 4
    missing = call("mkv-replicate", "status", place.folder / "nothing", place.store)
    failed(missing, 4)
    assert "store" in missing.out


def test_different_rows_are_told(place: Place) -> None:
    place.write(0)
    place.push()
    place.follow()
    place.write(100)
    ran = call("mkv-replicate", "verify", place.store, place.replica, "--json")
    assert "tables item" in failed(ran, 1)
    assert (ran.lines()[0]["equal"], ran.lines()[0]["different"]) == (False, ["item"])


def test_wrong_usage_is_2(place: Place) -> None:
    for arguments in ([], ["push"], ["push", "a"], ["fly"], ["follow", "a", "b", "--poll", "0"]):
        assert call("mkv-replicate", *arguments).code == 2
    assert call("mkv-replicate", "--help").code == 0
    for name in ("push", "follow", "status", "verify"):
        assert call("mkv-replicate", name, "--help").code == 0


def test_what_cannot_be_reached_is_4(place: Place) -> None:
    assert "store" in failed(place.push(), 4)
    assert not place.target.exists()
    assert "target" in failed(place.follow(), 4)
    assert not place.replica.exists()
    failed(call("mkv-replicate", "verify", place.store, place.replica), 4)
    place.write(0)
    place.target.write_text("a file")
    failed(place.push(), 4)


def test_a_damaged_delta_is_3_and_the_replica_readable(place: Place) -> None:
    place.write(0)
    place.push()
    place.follow()
    place.write(100)
    place.push()
    path = sorted(place.target.rglob("*.delta"))[-1]
    data = bytearray(path.read_bytes())
    data[FLIP_AT] ^= 1
    path.write_bytes(data)
    assert path.name in failed(place.follow(), 3)
    assert place.rows() == 10
    failed(place.follow("--json"), 3)
    path.unlink()
    assert place.push().code == 0
    assert place.follow().code == 0
    assert place.rows() == 20


def test_a_lost_delta_is_1(place: Place) -> None:
    place.write(0)
    place.push()
    place.follow()
    place.write(100)
    place.push()
    sorted(place.target.rglob("*.delta"))[-1].unlink()
    failed(place.follow(), 1)
    assert place.rows() == 10


def test_an_older_history_is_3_unless_forced(place: Place) -> None:
    place.write(0)
    shutil.copytree(place.store, place.folder / "backup")
    place.write(100, seals=2)
    place.push()
    place.follow()
    place.store, place.target = place.folder / "backup", place.folder / "target-2"
    place.push()
    failed(place.follow(), 3)
    assert place.rows() == 30
    assert place.follow("--force").code == 0
    assert place.rows() == 10


def test_a_fenced_primary_is_3(place: Place) -> None:
    place.write(0)
    place.push()
    place.follow()
    with mkv.open(place.replica, "replica") as replica:
        replica.promote()
    place.write(50, path=place.replica)
    assert call("mkv-replicate", "push", place.replica, place.target, "--once").code == 0
    place.write(100)
    assert "epoch" in failed(place.push(), 3)


def test_a_replica_in_use_is_3(place: Place) -> None:
    place.write(0)
    place.push()
    place.follow()
    with mkv.open(place.replica, "replica"):
        assert "pid" in failed(place.follow(), 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_loops_end_cleanly_on_a_signal(place: Place, number: signal.Signals) -> None:
    with mkv.open(place.store, delta_interval=None) as store:
        table = store.create_table("item", dim=4)
        push = start("mkv-replicate", "push", place.store, place.target, "--poll", "0.05")
        follow = start(
            "mkv-replicate", "follow", place.target, place.replica, "--poll", "0.05", "--json"
        )
        try:
            assert push.stdout is not None
            assert follow.stdout is not None
            push.stdout.readline()
            for first in (0, 10):
                table.upsert(np.arange(first, first + 10), np.ones((10, 4), np.float32))
                store.seal()
                while f'"sequence": {store.sequence},' not in follow.stdout.readline():
                    assert follow.poll() is None
        finally:
            for process in (push, follow):
                process.send_signal(number)
        for process in (push, follow):
            process.communicate(timeout=60)
            assert process.returncode == 0
        assert place.rows() == 20


def test_a_loop_outlives_what_goes_wrong(place: Place) -> None:
    follow = start("mkv-replicate", "follow", place.target, place.replica, "--poll", "0.05")
    try:
        assert follow.stderr is not None
        assert follow.stdout is not None
        assert "target" in follow.stderr.readline()
        place.write(0)
        place.push()
        assert "in step" in follow.stdout.readline()
        # While it follows nobody else may.
        assert "pid" in failed(place.follow(), 3)
    finally:
        follow.terminate()
        follow.communicate(timeout=60)
    assert follow.returncode == 0
