"""Headers and names: what is taken, what is refused, and why."""

import struct

import pytest

import monolith_kv as mkv
from monolith_kv._checksum import crc32c
from monolith_kv.storage import format
from monolith_kv.storage.format import FileIdentity, FileType

IDENTITY = FileIdentity("00112233445566778899aabbccddeeff", 3, 12)


def changed(offset: int, value: bytes) -> bytes:
    """A header with other fields and a good checksum: as another version would write it."""
    data = bytearray(format.pack_header(FileType.DELTA, IDENTITY))
    data[offset : offset + len(value)] = value
    data[60:] = struct.pack("<I", crc32c(data[:60]))
    return bytes(data)


def test_a_header_comes_back_as_it_was() -> None:
    header = format.unpack_header(format.pack_header(FileType.DELTA, IDENTITY), "x")
    assert (header.file_type, header.identity) == (FileType.DELTA, IDENTITY)
    assert header.is_writable


def test_each_file_has_its_own_salt_and_seed() -> None:
    headers = [
        format.unpack_header(format.pack_header(FileType.DELTA, IDENTITY), "x") for _ in range(20)
    ]
    assert len({header.seed for header in headers}) == 20


def test_a_store_without_identity_has_no_uuid() -> None:
    data = format.pack_header(FileType.MANIFEST, FileIdentity("", 0, 0))
    assert format.unpack_header(data, "x").identity.uuid == ""
    with pytest.raises(ValueError, match="uuid must be 32 hexadecimal digits"):
        FileIdentity("ABC", 0, 0)


def test_the_fields_fill_the_header_and_the_record() -> None:
    for fields, layout in (
        (format.HEADER_FIELDS, format.HEADER),
        (format.RECORD_FIELDS, format.RECORD),
    ):
        end = 0
        for _, offset, size in fields:
            assert offset == end
            end += size
        assert end == layout.size
    assert format.HEADER_BYTES % format.ALIGNMENT == 0
    assert format.RECORD_HEADER_BYTES % format.ALIGNMENT == 0


def test_an_unknown_major_or_incompatible_bit_is_a_version_error() -> None:
    for data in (changed(8, b"\2\0"), changed(12, b"\1\0\0\0")):
        with pytest.raises(mkv.FormatVersionError, match="use a newer monolith_kv"):
            format.unpack_header(data, "x")


def test_an_unknown_minor_is_read_and_a_read_only_bit_forbids_writing() -> None:
    assert format.unpack_header(changed(10, b"\7\0"), "x").is_writable
    assert not format.unpack_header(changed(16, b"\1\0\0\0"), "x").is_writable


def test_a_flipped_version_is_damage_not_a_newer_version() -> None:
    data = bytearray(format.pack_header(FileType.DELTA, IDENTITY))
    data[8] ^= 2
    with pytest.raises(mkv.CorruptionError, match="crc mismatch in the header"):
        format.unpack_header(bytes(data), "x")


def test_a_text_transfer_is_named_as_the_cause() -> None:
    data = format.pack_header(FileType.DELTA, IDENTITY)
    for spoilt in (data.replace(b"\r\n", b"\n"), bytes([data[0] & 0x7F]) + data[1:]):
        with pytest.raises(mkv.CorruptionError, match="transferred as text"):
            format.unpack_header(spoilt, "x")
    with pytest.raises(mkv.CorruptionError, match="no file of monolith_kv"):
        format.unpack_header(b"hello", "x")


def test_another_type_and_a_short_file_are_damage() -> None:
    data = format.pack_header(FileType.DELTA, IDENTITY)
    with pytest.raises(mkv.CorruptionError, match="is a delta file, expected a snapshot file"):
        format.unpack_header(data, "x", FileType.SNAPSHOT)
    with pytest.raises(mkv.CorruptionError, match="has 63 bytes"):
        format.unpack_header(data[:63], "x")


@pytest.mark.parametrize(
    "name", ["../MANIFEST", "1.delta", "", "\u0661" * 20 + "-000001.delta", "a/" + "0" * 20]
)
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(mkv.CorruptionError):
        format.join_checked("root", format.DELTA_FOLDER, name, format.DELTA_PATTERN)


def test_names_sort_as_numbers_do_and_are_recognised() -> None:
    names = [format.delta_name(n, e) for n, e in ((1, 1), (2, 1), (2, 2), (10, 1), (10**19, 1))]
    assert names == sorted(names)
    assert format.DELTA_PATTERN.fullmatch(names[0])
    assert format.SNAPSHOT_PATTERN.fullmatch(format.snapshot_name(1, 1))
    assert format.CALLS_PATTERN.fullmatch(format.calls_name(1))
    assert format.SIGHTINGS_PATTERN.fullmatch(format.sightings_name(1, 1))
    assert format.DENSE_PATTERN.fullmatch(format.dense_name(1))
