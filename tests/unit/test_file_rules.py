"""The rules for files, as a whole store keeps them; those of one file stand in unit/storage."""

import errno
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from model import ManualClock

import monolith_kv as mkv
from monolith_kv._checksum import crc32c
from monolith_kv.storage import files

IDS = u64([*range(40), 2**64 - 1])
ONES = np.ones((len(IDS), 3), np.float32)


@pytest.fixture
def store(store_dir: Path, clock: ManualClock) -> Iterator[mkv.Store]:
    """A store that logs each call, with something in every kind of file."""
    with mkv.open(store_dir, durability="sync", delta_interval=None, clock=clock) as store:
        gate = mkv.FrequencyGate(2, capacity=1_000)
        table = store.create_table("t", 3, admission=gate)
        table.upsert(IDS, ONES)
        store.seal()
        store.snapshot()
        table.upsert(IDS[:3], ONES[:3])
        store.seal()
        store.dense.publish({"w": np.arange(3)})
        table.upsert(IDS[:9], 2 * ONES[:9])
        yield store


def reopened(path: Path) -> mkv.Store:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, delta_interval=None)


# --- published first, deleted last ---------------------------------------------------------


def test_a_seal_publishes_then_names_then_deletes(
    store: mkv.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            # A descriptor tells its file, a pair of names the one that is given.
            path = os.readlink(f"/proc/self/fd/{args[0]}") if type(args[0]) is int else args[-1]
            kind = os.path.relpath(path, store.path).split("/")[0]
            made.append(f"{name} {'MANIFEST' if kind.startswith('.MANIFEST') else kind}")
            return real(*args, **options)

        monkeypatch.setattr(files.os, name, call)

    for name in ("writev", "fdatasync", "replace", "fsync", "unlink"):
        spy(name)
    store.seal()
    steps = [step for step, before in zip(made, ["", *made], strict=False) if step != before]
    assert steps == [
        "writev calls",  # The log ends before the next one begins ...
        "fdatasync calls",
        "writev deltas",  # ... the delta is whole, durable, named, its name is durable ...
        "fdatasync deltas",
        "replace deltas",
        "fsync deltas",
        "writev MANIFEST",  # ... then the manifest, in the same order ...
        "fdatasync MANIFEST",
        "replace MANIFEST",
        "fsync .",
        "unlink calls",  # ... and only now goes what the delta covers.
        "fsync calls",
    ]


def test_the_name_of_a_folder_that_was_there_already_is_made_durable(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_dir.mkdir()
    synced: list[str] = []
    sync_folder: Callable[[str], None] = files.fsync_folder

    def spy(path: str) -> None:
        synced.append(path)
        sync_folder(path)

    monkeypatch.setattr(files, "fsync_folder", spy)
    with mkv.open(store_dir, delta_interval=None):
        assert synced[0] == str(store_dir.parent)


def test_a_store_below_a_folder_that_cannot_be_read_is_opened_all_the_same(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_dir.mkdir()
    sync_folder: Callable[[str], None] = files.fsync_folder

    def refuse(path: str) -> None:
        if path == str(store_dir.parent):
            raise PermissionError(errno.EACCES, "not yours", path)
        sync_folder(path)

    monkeypatch.setattr(files, "fsync_folder", refuse)
    mkv.open(store_dir, delta_interval=None).close()


# --- names ---------------------------------------------------------------------------------


def test_folders_and_files_are_private_whatever_the_umask_is(
    store_dir: Path, clock: ManualClock
) -> None:
    before = os.umask(0)
    try:
        options: dict[str, Any] = {"delta_interval": None, "clock": clock, "durability": "batch"}
        with mkv.open(store_dir, memory_limit="256KiB", **options) as store:
            gate = mkv.FrequencyGate(2, capacity=1_000)
            table = store.create_table("t", 64, admission=gate, ttl=100)
            ids = np.arange(9_000, dtype=np.uint64)
            table.upsert(ids, np.ones((len(ids), 64), np.float32))
            store.dense.publish({"w": np.arange(3)})
            store.seal()
            store.snapshot(store_dir.parent / "elsewhere")
            store.snapshot()
            assert store.stats()["overflow"]["rows"] > 5_000
            clock.advance(200)
            assert store.compact(force=True).expired == len(ids)
            store.seal()
            table.pull(u64([70_000]))
            assert store.seal() is None
            table.upsert(ids[:1], np.ones((1, 64), np.float32))
            log = Path(store.path, "calls", os.listdir(Path(store.path, "calls"))[0])
            assert files.cut_tail(str(log), log.stat().st_size).endswith(".torn")
            found = modes(store_dir.parent)
        found |= modes(store_dir.parent)
    finally:
        os.umask(before)
    kinds = {Path(name).suffix or Path(name).name for name in found}
    assert kinds >= {".delta", ".snapshot", ".calls", ".torn", ".safetensors", ".sightings"}
    assert kinds >= {".mdb", "MANIFEST", "LOCK", "deltas", "snapshots", "elsewhere", "overflow"}
    wanted = {name: 0o700 if "." not in name and name.islower() else 0o600 for name in found}
    wanted["elsewhere"] = 0o600
    assert {name: oct(mode) for name, mode in found.items()} == {
        name: oct(mode) for name, mode in wanted.items()
    }


def modes(root: Path) -> dict[str, int]:
    """The permissions of all that lies below a folder, by name."""
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in root.rglob("*")}


@pytest.mark.parametrize("kind", ["MANIFEST", "deltas", "snapshots", "calls", "dense", "LOCK"])
def test_no_link_in_the_place_of_a_file_is_followed(
    store: mkv.Store, folder: Path, kind: str
) -> None:
    copy = folder / "copy"
    shutil.copytree(store.path, copy)
    found = copy / kind if (copy / kind).is_file() else max((copy / kind).iterdir())
    shutil.copytree(copy, folder / "outside")
    outside = folder / "outside" / found.relative_to(copy)
    found.unlink()
    found.symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(OSError, match="symbolic"):
        reopened(copy)
    assert outside.read_bytes() == before


# --- versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MANIFEST", "deltas", "snapshots", "calls"])
@pytest.mark.parametrize(("offset", "name"), [(8, "major"), (12, "incompatible")])
def test_a_file_of_a_version_that_is_unknown_is_refused_and_left_alone(
    store: mkv.Store, folder: Path, kind: str, offset: int, name: str
) -> None:
    copy = folder / "copy"
    shutil.copytree(store.path, copy)
    found = copy / kind if (copy / kind).is_file() else max((copy / kind).iterdir())
    data = bytearray(found.read_bytes())
    data[offset + 1] |= 0x40
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")
    found.write_bytes(data)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(mkv.FormatVersionError, match="use a newer monolith_kv"):
        reopened(copy)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    del before[copy / "LOCK"], after[copy / "LOCK"]
    assert after == before
