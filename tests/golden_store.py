"""A golden store: a small one with everything in it, killed as it stood; what it held is beside it.

Golden files fix the framing. This fixes what lies in it: schemas, rows with optimizer state, gates,
sightings, calls. Run as a script, this makes that of the present version where there is none yet.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from checks import u64
from golden_files import FOLDER, VERSION
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.storage.files import LOCK_NAME

NOW = 1_500_000_000
IDS = u64([0, 1, 2, 5 << 48, 2**64 - 1])
ABSENT = u64([1000, 1001])  # seen once, in a delta and in no delta yet
OPTIONS: dict[str, Any] = {"durability": "batch", "delta_interval": None}


def fill(store: mkv.Store) -> None:
    """Make calls of every kind, a delta, a snapshot, a delta after it, calls after that."""
    slices = [
        mkv.Slice("bias", 1, mkv.Ftrl(), mkv.Zeros()),
        mkv.Slice("vector", 3, mkv.Adam(), mkv.Normal(seed=4)),
    ]
    gate = mkv.FrequencyGate({None: 2, 5: 1}, capacity=64, window="30d", error=0.1)
    item = store.create_table("item", slices, admission=gate, ttl={5: "1d", None: "60d"})
    user = store.create_table("user", 2, optimizer=mkv.Momentum(), initializer=mkv.Uniform(seed=7))
    ones = np.ones((len(IDS), 4), np.float32)
    for _ in range(2):
        item.pull(IDS)
    item.push(IDS, ones)
    item.pull(ABSENT[:1])
    user.upsert(IDS, ones[:, :2])
    store.dense.publish({"w": np.array([[1.5, -2]], np.float32), "step": np.int64(7)})
    store.seal(cursor={"offset": 17})
    store.snapshot()
    user.remove(IDS[:1])
    user.push(IDS, ones[:, :2])
    store.create_table("gone", 1)
    store.seal(cursor={"offset": 18})
    store.drop_table("gone")
    item.pull(ABSENT[1:])
    item.push(IDS[:3], 2 * ones[:3])
    user.pull(u64([77]))
    user.upsert(u64([78]), ones[:1, :2])
    user.remove(u64([78]))
    user.configure(optimizer=mkv.Momentum(lr=0.5))


def told(store: mkv.Store) -> dict[str, Any]:
    """What the store holds, as JSON; floats of float32 keep their bits in it."""
    tables = {}
    for name, table in sorted(store.tables.items()):
        ids = IDS if name == "item" else u64([*IDS.tolist(), 77])
        tables[name] = {
            "rows": table.lookup(ids).tolist(),
            "state": {key: values.tolist() for key, values in sorted(table.state(ids).items())},
            "timestamps": table.timestamps(ids).tolist(),
            "records": len(table),
        }
    return {
        "tables": tables,
        "digest": store.digest(),
        "sequence": store.sequence,
        "cursor": dict(store.cursor),
        "dense": {name: store.dense[name].tolist() for name in sorted(store.dense)},
    }


def main() -> None:
    """Add the store of the present version."""
    target = FOLDER / VERSION / "store"
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "store"
        with mkv.open(path, clock=ManualClock(NOW), **OPTIONS) as store:
            fill(store)
            shutil.copytree(path, target, ignore=shutil.ignore_patterns(LOCK_NAME))
            text = json.dumps(told(store), indent=1)
            (FOLDER / VERSION / "store.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
