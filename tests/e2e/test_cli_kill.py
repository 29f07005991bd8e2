"""SIGKILL of real push and follow processes while a store goes on: the replica always opens."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from checks import WIDE
from e2e.tools import call, start

import monolith_kv as mkv

KILLS = 25 if WIDE else 6
LIFE_S = 1.5  # At most; a process polls every 10 ms, and takes a good part of it to start.


@pytest.mark.timeout(900)
def test_killed_processes_leave_a_replica_that_opens(folder: Path) -> None:
    chance = random.Random(7)
    paths = [folder / name for name in ("store", "target", "replica")]
    store_path, target, replica = paths
    seen = 0
    # Retention this short makes a follower that was away come back behind a gap.
    with mkv.open(store_path, delta_interval=None, delta_retention=0, snapshots_kept=1) as store:
        table = store.create_table("item", dim=16)
        rows = np.ones((2000, 16), np.float32)
        for kill in range(KILLS):
            push = start("mkv-replicate", "push", store_path, target, "--poll", "0.01")
            follow = start("mkv-replicate", "follow", target, replica, "--poll", "0.01")
            if kill % 2 == 0:  # In step, then killed at work; else killed wherever it was.
                assert follow.stdout is not None
                assert "in step" in follow.stdout.readline()
            until = time.monotonic() + LIFE_S * chance.random()
            while time.monotonic() < until:
                table.upsert(np.arange(2000, dtype=np.uint64) + 100 * store.sequence, rows)
                store.seal(cursor={"kill": kill})
                if chance.random() < 0.3:
                    store.snapshot()
            for process in (push, follow):
                process.kill()
                process.communicate()
            if (replica / "MANIFEST").exists():
                with mkv.open(replica, "r") as found:
                    assert found.sequence >= seen
                    assert found.verify() == []
                    seen = found.sequence
        assert call("mkv-replicate", "push", store_path, target, "--once").code == 0
        assert call("mkv-replicate", "follow", target, replica, "--once").code == 0
        with mkv.open(replica, "r") as found:
            assert found.digest() == store.digest()
    assert seen > 0
