"""The manifest: swapped in one step, never trusted, never missed silently."""

import struct
from pathlib import Path
from typing import Any

import pytest
import samples

import monolith_kv as mkv
from monolith_kv._checksum import crc32c
from monolith_kv.storage import dense, format, manifest
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.record_file import RecordWriter


def test_it_comes_back_as_it_was_stored(folder: Path) -> None:
    samples.write_manifest(folder)
    found = manifest.load(str(folder))
    assert found is not None
    assert (found.uuid, found.lineage, found.sequence) == (samples.UUID, samples.LINEAGE, 7)
    assert found.cursor == {"offset": 5}
    assert found.tables == [samples.SCHEMA]
    assert [entry["name"] for entry in found.deltas] == [format.delta_name(7, 2)]
    assert not found.clean
    manifest.store(str(folder), found)
    assert manifest.load(str(folder)) == found


def test_an_empty_or_absent_folder_has_none(folder: Path) -> None:
    assert manifest.load(str(folder)) is None
    assert manifest.load(str(folder / "none")) is None
    (folder / "LOCK").write_text("pid 1 on host")
    (folder / "deltas").mkdir()
    (folder / "deltas" / ".x.tmp").write_bytes(b"litter of a crash")
    assert manifest.load(str(folder)) is None


@pytest.mark.parametrize(
    "write",
    [
        samples.write_delta,
        samples.write_snapshot,
        samples.write_calls,
        samples.write_sightings,
        lambda folder: dense.store(str(folder), 1, b""),
    ],
)
def test_data_without_a_manifest_is_damage_not_a_new_store(folder: Path, write: Any) -> None:
    write(folder)
    with pytest.raises(mkv.CorruptionError, match="MANIFEST is missing, but .* is there"):
        manifest.load(str(folder))


def test_a_default_one_is_a_new_store(folder: Path) -> None:
    manifest.store(str(folder), Manifest())
    assert manifest.load(str(folder)) == Manifest()
    assert Manifest().deltas is not Manifest().deltas


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", "nope"),
        ("sequence", -1),
        ("sequence", True),
        ("clean", 1),
        ("mode", "r"),
        ("cursor", []),
        ("tables", [{"name": "without id"}]),
        ("deltas", [{"name": format.delta_name(1, 1)}]),
        ("dense", {"version": 1, "name": "../../etc/passwd"}),
        ("dense", {"version": 1, "name": format.dense_name(1), "bytes": 8, "crc32c": "0"}),
        ("sightings", "x/y"),
        ("first_call_log", "1"),
        ("clock_high", None),
    ],
)
def test_a_value_that_makes_no_sense_is_neither_stored_nor_read(
    folder: Path, key: str, value: Any
) -> None:
    wrong = Manifest(**{key: value})
    with pytest.raises(mkv.Error, match=r"cannot be stored"):
        manifest.store(str(folder), wrong)
    assert manifest.load(str(folder)) is None
    data = Manifest().to_json()
    del data[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        Manifest.from_json(data)


def test_a_name_that_leads_out_of_the_store_is_refused(folder: Path) -> None:
    samples.write_manifest(folder)
    found = manifest.load(str(folder))
    assert found is not None
    found.deltas[0]["name"] = "../../" + found.deltas[0]["name"]
    with pytest.raises(mkv.Error, match="no file name"):
        manifest.store(str(folder), found)


def test_an_old_one_holds_when_a_new_one_cannot_be_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.write_manifest(folder)
    before = manifest.load(str(folder))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monolith_kv.storage.files.sync_file", full)
    with pytest.raises(mkv.StoreFullError):
        manifest.store(str(folder), Manifest())
    assert manifest.load(str(folder)) == before
    assert [path.name for path in folder.iterdir()] == ["MANIFEST"]


def test_features_that_cannot_be_kept_up_are_read_but_not_written(folder: Path) -> None:
    path = samples.write_manifest(folder)
    data = bytearray(path.read_bytes())
    # What a later version would write: a feature bit, and all checksums with it.
    data[16:20] = b"\1\0\0\0"
    data[60:64] = struct.pack("<I", crc32c(data[:60]))
    data[68:72] = data[60:64]
    seed = crc32c(data[52:60])
    data[64:68] = struct.pack("<I", crc32c(data[68:], seed))
    path.write_bytes(data)
    assert manifest.load(str(folder)) is not None
    with pytest.raises(mkv.FormatVersionError, match='open the store with mode "r"'):
        manifest.load(str(folder), to_write=True)


def test_a_header_that_says_something_else_is_refused(folder: Path) -> None:
    path = str(folder / "MANIFEST")
    content = Manifest(samples.UUID, samples.LINEAGE, 7)
    for identity in (
        format.FileIdentity("", 2, 7),
        format.FileIdentity(samples.UUID, 1, 7),
        format.FileIdentity(samples.UUID, 2, 8),
    ):
        with RecordWriter(path, format.FileType.MANIFEST, identity, replace=True) as writer:
            writer.publish(content.to_json())
        with pytest.raises(mkv.CorruptionError, match="the header says"):
            manifest.load(str(folder))


def test_keys_of_a_later_minor_version_are_ignored() -> None:
    data = {**Manifest().to_json(), "later": 1}
    assert Manifest.from_json(data) == Manifest()
