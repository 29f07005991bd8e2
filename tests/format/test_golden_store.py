"""A whole store of every version opens with all that it held, and goes on."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_store
import numpy as np
import pytest
from golden_files import FOLDER
from golden_store import ABSENT, NOW, OPTIONS
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.storage import call_log, delta_log, snapshot
from monolith_kv.storage.format import FileType, RecordKind
from monolith_kv.storage.record_file import RecordReader

STORES = sorted(path.parent.name for path in FOLDER.glob("*/store"))


@pytest.fixture(params=STORES)
def golden(
    request: pytest.FixtureRequest, folder: Path
) -> Iterator[tuple[mkv.Store, dict[str, Any]]]:
    """A copy of the store of one version, open, and what it held."""
    version = FOLDER / str(request.param)
    path = folder / "store"
    shutil.copytree(version / "store", path)
    with mkv.open(path, clock=ManualClock(NOW), **OPTIONS) as store:
        yield store, json.loads((version / "store.json").read_text())


def test_it_holds_what_it_held(golden: tuple[mkv.Store, dict[str, Any]]) -> None:
    store, expected = golden
    assert golden_store.told(store) == expected
    assert store.verify() == []


def test_its_gate_has_counted_what_no_delta_holds_and_what_one_does(
    golden: tuple[mkv.Store, dict[str, Any]],
) -> None:
    store, _ = golden
    item = store.table("item")
    assert not item.contains(ABSENT).any()
    item.pull(ABSENT)
    # Batch mode makes calls durable; sightings are, with the next seal: the second one had none.
    assert list(item.contains(ABSENT)) == [True, False]


def test_its_settings_are_those_it_was_given(golden: tuple[mkv.Store, dict[str, Any]]) -> None:
    store, _ = golden
    ids = golden_store.IDS
    user = store.table("user")
    before, state = user.lookup(ids), user.state(ids)["momentum"]
    user.push(ids, np.ones((len(ids), 2), np.float32))
    step = before - np.float32(0.5) * (np.float32(0.9) * state + np.float32(1))
    np.testing.assert_allclose(user.lookup(ids)[1:], step[1:], rtol=1e-6)
    assert store.stats()["tables"]["item"]["rows"] == len(ids)


def shards(data: bytes) -> list[bytes]:
    """What each shard has in a payload, behind its length."""
    found = []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        found.append(data[8 : 8 + size])
        assert len(found[-1]) == size
        data = data[8 + size :]
    assert len(found) == 8
    return found


@pytest.mark.parametrize("version", STORES)
def test_gates_and_sightings_are_laid_out_as_the_pages_say(version: str) -> None:
    (path,) = (FOLDER / version / "store" / "snapshots").iterdir()
    found = {record.kind: record for record in snapshot.SnapshotReader(str(path)).records()}
    for sketch in shards(bytes(found[RecordKind.GATE].payload)):
        fields = struct.unpack_from("<4sIIIQqqII", sketch)
        magic, number, cell_bytes, width, _, window, start, count_max, is_started = fields
        assert (magic, number, window, count_max) == (b"MKSK", 1, 30 * 86_400, 2)
        assert len(sketch) == 48 + 2 * 4 * width * cell_bytes
        counts = np.frombuffer(sketch, np.uint8, offset=48).reshape(2, 4, width)
        assert not counts[1].any()
        assert counts[0].any() == bool(is_started) == (start > 0)
    (path,) = (FOLDER / version / "store" / "deltas").glob("*1-*.delta")
    found = {record.kind: record for record in delta_log.DeltaReader(str(path)).records()}
    seen = []
    for runs in shards(bytes(found[RecordKind.SIGHTINGS].payload)):
        while runs:
            now, count = struct.unpack_from("<qQ", runs)
            assert now == NOW
            seen += struct.unpack_from(f"<{count}Q", runs, 16)
            runs = runs[16 + 8 * count :]
    # Slot 5 is admitted at once; all others are seen twice.
    gated = [fid for fid in golden_store.IDS.tolist() if fid >> 48 != 5]
    assert sorted(seen) == sorted([*gated, *gated, int(ABSENT[0])])


def test_every_kind_of_record_is_in_the_golden_files_of_this_version() -> None:
    newest = FOLDER / STORES[-1]
    kinds: set[int] = set()
    for name in ("delta", "snapshot"):
        reader = RecordReader(str(newest / name))
        kinds |= {record.kind for record in reader} | {RecordKind.END}
    kinds |= {call.kind for call in call_log.read(str(newest / "calls"))}
    assert kinds == set(RecordKind)
    names = {path.name for path in newest.iterdir() if path.is_file()}
    # Row files do not outlive the process: no version reads those of another.
    lasting = set(FileType) - {FileType.ROWS}
    assert {file_type.name.lower() for file_type in lasting} | {"dense"} <= names
