"""Records as bytes: framing, checks, compression, parts of one payload; JSON in payloads.

What must hold: each record's CRC covers its header and payload and starts from the file's random
salt, so foreign and stale bytes never validate; each record names the CRC of the one before, so
that none is missing, swapped or there twice. Lengths are checked against a cap and against the file
before anything is allocated.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import zstandard

from monolith_kv._checksum import crc32c
from monolith_kv.errors import CorruptionError, FormatVersionError
from monolith_kv.storage.files import Buffer, as_buffers, byte_view
from monolith_kv.storage.format import (
    BLOB_BYTES_MAX,
    FLAGS_KNOWN,
    RECORD,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RecordFlag,
    RecordHeader,
    RecordKind,
    padded,
)

COMPRESSION_LEVEL = 1
_KINDS = frozenset(RecordKind)
_ZEROS = bytes(8)


class Record(NamedTuple):
    """One logical record: its parts joined, decompressed, verified."""

    kind: int
    table: int
    count: int  # type: ignore[assignment]  # Hides tuple.count, which nobody calls.
    payload: memoryview
    offset: int


# --- writing -------------------------------------------------------------------------------


class Frame(NamedTuple):
    """Buffers of one record as they go to disk, and what the next one needs to know."""

    buffers: list[Buffer]
    crc: int
    size: int


def split_payload(payload: Buffer | Sequence[Buffer], limit: int) -> list[list[memoryview]]:
    """Cut a payload into parts of at most `limit` bytes, without copying; at least one part."""
    parts: list[list[memoryview]] = [[]]
    room = limit
    for view in map(byte_view, as_buffers(payload)):
        while len(view):
            if not room:
                parts.append([])
                room = limit
            piece = view[:room]
            parts[-1].append(piece)
            view = view[len(piece) :]
            room -= len(piece)
    return parts


def compressed(part: list[memoryview]) -> bytes | None:
    """Return the part as one zstd frame that states its size; None if that does not help."""
    size = sum(map(len, part))
    packer = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_content_size=True)
    data = packer.compress(part[0] if len(part) == 1 else b"".join(part))
    return data if len(data) < size else None


def frame_record(
    part: Sequence[Buffer], seed: int, previous: int, kind: int, flags: int, table: int,
    count: int, durable: int,
) -> Frame:  # fmt: skip
    """Return one physical record around the buffers of a part."""
    length = sum(len(view) for view in map(byte_view, part))
    header = RECORD.pack(0, previous, length, kind, flags, table, count, durable)[4:]
    crc = crc32c(header, seed)
    buffers: list[Buffer] = [b"", header, *part]
    if padded(length) != length:
        buffers.append(_ZEROS[: padded(length) - length])
    for view in buffers[2:]:
        crc = crc32c(byte_view(view), crc)
    buffers[0] = crc.to_bytes(4, "little")
    return Frame(buffers, crc, RECORD_HEADER_BYTES + padded(length))


def frame_payload(
    payload: Buffer | Sequence[Buffer], seed: int, previous: int, kind: int, table: int,
    count: int, durable: int, compress: bool, is_begun: bool = False,
) -> Iterator[Frame]:  # fmt: skip
    """Yield the physical records of one logical record, chained behind `previous`.

    Of one that is only begun more is to come.
    """
    parts = split_payload(payload, RECORD_BYTES_MAX)
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1 and not is_begun
        flags = RecordFlag(0) if is_last else RecordFlag.MORE
        packed = compressed(part) if compress and part else None
        if packed is not None:
            flags |= RecordFlag.COMPRESSED
        buffers = part if packed is None else [packed]
        frame = frame_record(buffers, seed, previous, kind, int(flags), table, count, durable)
        previous = frame.crc
        yield frame


# --- reading -------------------------------------------------------------------------------


class Source(Protocol):
    """Bytes of a file at any place, without a copy where that is possible."""

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset` on, fewer at the end of the file."""


class Damage(Exception):
    """The bytes at one place are no good record; the reader adds file and offset."""


class Part(NamedTuple):
    """One physical record, verified; `end` is where the next one starts."""

    header: RecordHeader
    payload: memoryview
    offset: int
    end: int


def read_part(source: Source, offset: int, size: int, seed: int, previous: int | None) -> Part:
    """Verify the physical record at `offset` of a file of `size` bytes.

    Parameters
    ----------
    previous : int or None
        CRC of the record before; None: not checked.

    Raises
    ------
    Damage
        It is cut, garbled, or not the next one.
    """
    header = peek_part(source, offset, size)
    end = offset + RECORD_HEADER_BYTES + padded(header.length)
    whole = source.view(offset, end - offset)
    if len(whole) < end - offset:
        raise Damage(f"the file ends after {offset + len(whole)} bytes, it had {size} before")
    computed = crc32c(whole[4:], seed)
    if computed != header.crc:
        raise Damage(f"crc mismatch: stored {header.crc:08x}, computed {computed:08x}")
    if previous is not None and header.previous != previous:
        raise Damage(
            f"the record follows one with crc {header.previous:08x}, the one before it here has "
            f"{previous:08x}: a record is missing, moved or there twice"
        )
    payload = whole[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + header.length]
    return Part(header, payload, offset, end)


def peek_part(source: Source, offset: int, size: int) -> RecordHeader:
    """Return the unverified header at `offset`, once its record is found to fit in the file."""
    view = source.view(offset, min(RECORD_HEADER_BYTES, size - offset))
    if len(view) < RECORD_HEADER_BYTES:
        raise Damage(f"the file ends {len(view)} bytes into a record header")
    header = RecordHeader(*RECORD.unpack(view))
    if header.length > RECORD_BYTES_MAX:
        raise Damage(f"record length {header.length} is above the cap of {RECORD_BYTES_MAX}")
    behind = offset + RECORD_HEADER_BYTES + padded(header.length) - size
    if behind > 0:
        raise Damage(f"the record runs {behind} bytes past the end of the file")
    return header


class Assembler:
    """Joins the parts of logical records; shared by the readers of finished and open files."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pieces: list[memoryview] = []
        self._size = 0
        self._first: Part | None = None

    @property
    def start(self) -> int | None:
        """Offset of the first part of an unfinished record, None between records."""
        return self._first.offset if self._first else None

    def add(self, part: Part) -> Record | None:
        """Take the next verified part; return the record when it is the last one of it."""
        header = part.header
        if header.kind not in _KINDS or header.flags & ~FLAGS_KNOWN:
            raise FormatVersionError(
                f"{self._path} has a record of kind {header.kind} with flags {header.flags:#x} at "
                f"byte {part.offset}, unknown to this version; use a newer monolith_kv"
            )
        first = self._first or part
        if (header.kind, header.table, header.count) != (
            first.header.kind,
            first.header.table,
            first.header.count,
        ):
            raise Damage(f"a record of kind {first.header.kind} goes on as another one")
        payload = part.payload
        if header.flags & RecordFlag.COMPRESSED:
            payload = decompress(payload)
        self._pieces.append(payload)
        self._size += len(payload)
        if self._size > BLOB_BYTES_MAX:
            raise Damage(f"a payload is above the cap of {BLOB_BYTES_MAX} bytes")
        self._first = first
        if header.flags & RecordFlag.MORE:
            return None
        if len(self._pieces) > 1:
            payload = memoryview(b"".join(self._pieces))
        self._pieces, self._size, self._first = [], 0, None
        return Record(header.kind, header.table, header.count, payload, first.offset)


def decompress(payload: memoryview) -> memoryview:
    """Return the content of a zstd frame that states its size, once that is found within the cap.

    Notes
    -----
    The decompressor allocates what the frame states, whatever limit it is given: the statement
    is what has to be checked.
    """
    try:
        stated = zstandard.get_frame_parameters(payload).content_size
        if stated > RECORD_BYTES_MAX:  # An unstated size is 2**64 - 1.
            raise Damage(f"a compressed record states {stated} bytes, cap {RECORD_BYTES_MAX}")
        content = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damage(f"a compressed record cannot be decompressed: {error}") from error
    if len(content) != stated:
        raise Damage(f"a compressed record has {len(content)} bytes, stated were {stated}")
    return memoryview(content)


def corruption(path: str, offset: int, damage: object) -> CorruptionError:
    """Return the error for damage at one place of a file."""
    return CorruptionError(f"{path} at byte {offset}: {damage}; run mkv verify", path, offset)


# --- JSON in records -----------------------------------------------------------------------


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as UTF-8, always the same bytes for the same object.

    Raises
    ------
    ValueError
        A NaN or an infinity, which JSON has not.
    TypeError
        Something that is not JSON.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode()


def decode_json(payload: memoryview, path: str, offset: int) -> dict[str, Any]:
    """Return the JSON object in a payload; anything else is a CorruptionError."""
    try:
        value = json.loads(
            bytes(payload), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        raise corruption(path, offset, f"no JSON object: {error}") from error
    if not isinstance(value, dict):
        raise corruption(path, offset, f"expected a JSON object, found {type(value).__name__}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value
