"""memory_limit is true: of the process, not of what the store chooses to count."""

import json
import subprocess
import sys

import memory_watch
import numpy as np
import pytest
from checks import WIDE

import monolith_kv as mkv

MIB = 1 << 20
LIMIT = 256 * MIB if WIDE else 40 * MIB
ROWS = 2_000_000 if WIDE else 100_000
CHURN_STEPS = 1000 if WIDE else 8


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What memory_watch tells of each phase."""
    folder = tmp_path_factory.mktemp("watched") / "s"
    command = [sys.executable, memory_watch.__file__, str(folder)]
    command += [str(number) for number in (LIMIT, ROWS, CHURN_STEPS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def test_a_process_stays_within_the_limit_through_growth_churn_seal_and_snapshot(watched):
    # All of the process; under the small limit only what the store adds to Python and NumPy, which
    # take some 40 MiB.
    begin = 0 if WIDE else watched["begin"]["resident"]
    highest = {phase: found["resident"] - begin for phase, found in watched.items()}
    assert set(highest) >= {"growth", "churn", "seal", "snapshot", "growth again"}
    assert max(highest.values()) <= 1.05 * LIMIT + 64 * MIB, highest


def test_what_a_store_counts_stays_within_the_limit(watched):
    # New rows of a call come in before others go.
    batch = memory_watch.BATCH * 4 * 2 * memory_watch.DIM
    for phase in ("growth", "churn", "growth again"):
        assert watched[phase]["used"] <= 1.02 * LIMIT + batch


def test_memory_is_used_and_not_only_kept_free(watched):
    # Rows in memory, of what the limit leaves for them.
    for phase in ("churn", "growth again"):
        kinds = watched[phase]["kinds"]
        allowed = LIMIT - sum(size for kind, size in kinds.items() if kind != "rows")
        taken = watched[phase]["rows"] * 4 * 2 * memory_watch.DIM
        assert taken >= 0.8 * allowed, (phase, watched[phase])


def test_all_bytes_of_a_store_have_a_kind(store_dir):
    with mkv.open(store_dir, delta_interval=None, memory_limit="8MiB") as store:
        table = store.create_table("item", 16, admission=mkv.FrequencyGate(1, capacity=10_000))
        table.pull(np.arange(1000, dtype=np.uint64))
        store.dense.publish({"w": np.ones(100, np.float32)})
        memory = store.stats()["memory"]
        assert memory["used"] == sum(memory["kinds"].values())
        assert memory["bytes"] == sum(store.stats()["tables"]["item"]["memory"].values())
        assert all(memory["kinds"][kind] > 0 for kind in ("rows", "index", "sketch", "touched"))
        assert memory["kinds"]["dense"] >= 400
