"""A readable dump of any file of a store, for people: fields of the header, a line a record."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from monolith_kv.errors import CorruptionError
from monolith_kv.storage import call_log, dense, files, format, marks
from monolith_kv.storage.format import FileType, Header, RecordKind, unpack_header
from monolith_kv.storage.framing import Record, decode_json, encode_json
from monolith_kv.storage.log_reader import LogReader
from monolith_kv.storage.record_file import RecordReader

SHOWN_COUNT = 4  # Of ids; the rest is a number.
DUMPED_BYTES = 64
TEXT_BYTES_MAX = 1 << 16
JSON_KINDS = (RecordKind.META, RecordKind.CONFIGURE, RecordKind.CREATE, RecordKind.MARK)


def describe(path: str) -> Iterator[str]:
    """Yield lines that tell what is in a file of ours, verifying it on the way.

    Parameters
    ----------
    path : str
        A manifest, delta, snapshot, call log or sightings file, a row file, a torn tail that was
        kept aside, a safetensors file, a report of traffic, a mark, or LOCK.

    Raises
    ------
    CorruptionError
        The file is damaged, or none of ours; what was good before the damage has been yielded.
    FormatVersionError
        It was written by a version that this one does not know.

    Examples
    --------
    >>> for line in describe("store/MANIFEST"):  # doctest: +SKIP
    ...     print(line)
    """
    with open(files.open_readable(path), "rb") as file:
        head = file.read(format.HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
    yield f"{path}: {size} bytes"
    if path.endswith(files.TORN_SUFFIX):
        yield "torn tail of a log, kept aside; it was never acknowledged or could not be saved"
        yield f"first bytes: {head[:DUMPED_BYTES].hex(' ')}"
    elif os.path.basename(path) == files.LOCK_NAME:
        yield f"lock, last held by {head.decode('utf-8', 'replace').strip() or 'nobody'}"
    elif os.path.basename(path) == format.TRAFFIC_NAME:
        yield "a writer's report of its tiers, for people"
        with open(files.open_readable(path), "rb") as file:
            yield file.read(TEXT_BYTES_MAX).decode("utf-8", "replace").strip()
    elif marks.MARK_PATTERN.fullmatch(os.path.basename(path)):
        yield "mark: calls were made since the newest seal that only memory has"
    elif head[dense.LENGTH.size :][:1] == b"{":
        yield from _describe_dense(path)
    else:
        yield from _describe_records(path, unpack_header(head, path))


def _describe_records(path: str, header: Header) -> Iterator[str]:
    identity = header.identity
    yield f"type: {header.file_type.name.lower()}, format {header.major}.{header.minor}"
    yield (
        f"features: incompatible {header.incompatible:#x}, "
        f"read-only compatible {header.read_only_compatible:#x}"
    )
    yield f"store: {identity.uuid or 'none yet'}"
    yield f"epoch: {identity.epoch}"
    yield f"number: {identity.number}"
    yield f"salt: {header.salt.hex()}, crc32c {header.crc:08x}"
    if header.file_type is FileType.ROWS:
        size = os.stat(path).st_size - format.HEADER_BYTES
        yield f"{size} bytes of cold rows of one table, a checksum behind each"
        return
    if header.file_type is FileType.CALLS:
        with LogReader(path, header.file_type) as log:
            for index, record in enumerate(log):
                yield _describe_record(index, record, path)
            if log.torn:
                yield (
                    f"torn tail at byte {log.torn.offset}: {log.torn.bytes} bytes, "
                    f"{log.torn.records} records"
                )
            elif log.is_closed:
                yield f"end: {_text(log.meta)}"
            else:
                yield "no end record: the log is in use, or its writer died"
        return
    with RecordReader(path, header.file_type) as reader:
        for index, record in enumerate(reader):
            yield _describe_record(index, record, path)
    yield f"end: {_text(reader.meta)}"


def _describe_record(index: int, record: Record, path: str) -> str:
    kind = RecordKind(record.kind)
    line = f"{index} at byte {record.offset}: {kind.name.lower()}"
    if record.table:
        line += f" table {record.table}"
    if record.count:
        line += f" count {record.count}"
    line += f", {len(record.payload)} bytes"
    if kind in JSON_KINDS:
        line += f" {_text(decode_json(record.payload, path, record.offset))}"
    elif kind in (RecordKind.REMOVED, RecordKind.TOUCHED):
        line += _ids(np.frombuffer(record.payload, "<u8"))
    elif kind == RecordKind.ROWS and record.count:
        width = len(record.payload) // record.count
        rows = np.frombuffer(record.payload, np.uint8, record.count * width)
        first = np.ascontiguousarray(rows.reshape(-1, width)[:SHOWN_COUNT, :8]).view("<u8")
        line += f", {width} a row{_ids(first.reshape(-1), record.count)}"
    elif kind >= RecordKind.INSERT:
        call = call_log.unpack_call(record, path)
        fids = getattr(call, "fids", None)
        if hasattr(call, "now"):
            line += f" at {call.now:.3f}"
        if fids is not None:
            line += _ids(fids)
    return line


def _ids(fids: Any, count: int | None = None) -> str:
    total = len(fids) if count is None else count
    shown = ", ".join(str(fid) for fid in fids[:SHOWN_COUNT].tolist())
    more = f" and {total - SHOWN_COUNT} more" if total > SHOWN_COUNT else ""
    return f": ids {shown}{more}" if total else ""


def _describe_dense(path: str) -> Iterator[str]:
    with open(files.open_readable(path), "rb") as file:
        data = file.read()
    yield "type: dense parameters, safetensors (its checksum is in the manifest)"
    try:
        arrays = dense.unpack(data, path)
    except CorruptionError:
        yield "damaged, or not of ours"
        raise
    for name, array in arrays.items():
        yield f"{name}: {array.dtype.name} {list(array.shape)}, {array.nbytes} bytes"


def _text(value: Any) -> str:
    return encode_json(value or {}).decode()
