"""Does an installed package work at all? Run outside of the source tree: python smoke.py STORE."""

import sys
from pathlib import Path

import numpy as np

import monolith_kv as mkv

assert "site-packages" in mkv.__file__, f"not the installed package: {mkv.__file__}"
assert (Path(mkv.__file__).parent / "py.typed").exists()

path = sys.argv[1]
ids = np.arange(1000, dtype=np.uint64)
with mkv.open(path, durability="sync") as store:
    table = store.create_table("item", dim=8, optimizer=mkv.Adam(), ttl="30d")
    table.pull(ids)
    table.push(ids, np.ones((1000, 8), np.float32))
    delta = store.seal(cursor={"position": 1000})
    assert delta is not None
    assert delta.rows == 1000
    snapshot = store.snapshot()
    digest = store.digest()

with mkv.open(path, "r") as reader:
    assert reader.digest() == digest
    assert dict(reader.cursor) == {"position": 1000}
    assert reader.verify() == []

with mkv.restore(snapshot.path, f"{path}-restored") as restored:
    assert restored.digest() == digest
print(f"monolith_kv {mkv.__version__} works: {mkv.__file__}")
