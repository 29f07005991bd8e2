"""The rules for files, as a whole store keeps them; those of one file stand in unit/storage."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from checks import u64
from model import ManualClock

import monolith_kv as mkv
from monolith_kv._checksum import crc32c
from monolith_kv.storage import files, format
from monolith_kv.storage.framing import frame_record
from monolith_kv.storage.log_reader import SECTOR_BYTES

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
            found = modes(store_dir.parent)
            clock.advance(200)
            assert store.compact(force=True).expired == len(ids)
            store.seal()
            table.pull(u64([70_000]))
            assert store.seal() is None
            table.upsert(ids[:1], np.ones((1, 64), np.float32))
            log = Path(store.path, "calls", os.listdir(Path(store.path, "calls"))[0])
            assert files.cut_tail(str(log), log.stat().st_size).endswith(".torn")
            found |= modes(store_dir.parent)
        found |= modes(store_dir.parent)
    finally:
        os.umask(before)
    kinds = {Path(name).suffix or Path(name).name for name in found}
    assert kinds >= {".delta", ".snapshot", ".calls", ".torn", ".safetensors", ".sightings"}
    assert kinds >= {".rows", "MANIFEST", "LOCK", "deltas", "snapshots", "elsewhere", "overflow"}
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
    found = copied(store, folder, kind)
    shutil.copytree(folder / "copy", folder / "outside")
    outside = folder / "outside" / found.relative_to(folder / "copy")
    found.unlink()
    found.symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(OSError, match="symbolic"):
        mkv.open(folder / "copy", delta_interval=None)
    assert outside.read_bytes() == before


# --- headers -------------------------------------------------------------------------------

KINDS = ["MANIFEST", "deltas", "snapshots", "calls"]


def copied(store: mkv.Store, folder: Path, kind: str) -> Path:
    """The newest file of a kind in a copy of the store."""
    copy = folder / "copy"
    shutil.copytree(store.path, copy)
    return copy / kind if (copy / kind).is_file() else max((copy / kind).iterdir())


def change_header(path: Path, offset: int, bits: int) -> None:
    """Set bits in the header of a file, with all checksums as a later version would write them."""
    data = path.read_bytes()
    head = bytearray(data[: format.HEADER_BYTES])
    head[offset] |= bits
    crc = crc32c(bytes(head[:60]))
    pieces: list[Any] = [bytes(head[:60]), crc.to_bytes(4, "little")]
    seed = crc32c(bytes(head[52:60]))
    for part in samples.parts(data):
        _, _, _, *fields = part.header
        frame = frame_record([part.payload], seed, crc, *fields)
        pieces, crc = [*pieces, *frame.buffers], frame.crc
    path.write_bytes(b"".join(pieces))


def contents(root: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "LOCK"}


def test_a_header_lies_in_one_sector_and_is_written_once(
    store: mkv.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int, int]] = []
    real = os.writev

    def spy(fd: int, buffers: Any) -> int:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        written.append((name, os.lseek(fd, 0, os.SEEK_CUR), sum(map(len, buffers))))
        return real(fd, buffers)

    monkeypatch.setattr(files.os, "writev", spy)
    store.table("t").upsert(IDS, ONES)
    store.seal()
    store.snapshot()
    store.table("t").upsert(IDS, ONES)
    starts = {name: size for name, offset, size in written if offset == 0}
    assert set(starts.values()) == {format.HEADER_BYTES}
    assert format.HEADER_BYTES <= SECTOR_BYTES
    assert min(offset for _, offset, _ in written if offset) == format.HEADER_BYTES
    assert len(starts) == sum(offset == 0 for _, offset, _ in written)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [9, 12], ids=["major", "incompatible feature"])
def test_a_file_of_an_unknown_version_is_refused_and_nothing_is_changed(
    store: mkv.Store, folder: Path, kind: str, offset: int
) -> None:
    path = copied(store, folder, kind)
    change_header(path, offset, 0x40)
    before = contents(folder / "copy")
    for mode in ("rw", "r"):
        with pytest.raises(mkv.FormatVersionError, match="use a newer monolith_kv"):
            mkv.open(folder / "copy", mode=mode, delta_interval=None)
    assert contents(folder / "copy") == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_read_only_compatible_feature_is_read_and_not_written_over(
    store: mkv.Store, folder: Path, kind: str
) -> None:
    change_header(copied(store, folder, kind), 16, 0x40)
    before = contents(folder / "copy")
    with pytest.raises(mkv.FormatVersionError, match='open the store with mode "r"'):
        mkv.open(folder / "copy", delta_interval=None)
    with mkv.open(folder / "copy", mode="r") as reader:
        assert (reader.table("t").lookup(IDS[:9]) == 2).all()
    assert contents(folder / "copy") == before


def test_a_temporary_name_that_is_taken_is_never_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "urandom", lambda size: bytes(size))
    fd, temporary = files.create_temporary(str(folder / "a"))
    os.write(fd, b"mine")
    os.close(fd)
    with pytest.raises(FileExistsError):
        files.create_temporary(str(folder / "a"))
    assert Path(temporary).read_bytes() == b"mine"
