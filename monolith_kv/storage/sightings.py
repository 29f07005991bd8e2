"""Sightings that no delta holds yet, kept over a clean close: a small finished record file."""

import os
from collections.abc import Mapping

from monolith_kv.storage import files, format
from monolith_kv.storage.format import (
    SIGHTINGS_FOLDER,
    SIGHTINGS_PATTERN,
    FileIdentity,
    FileType,
    RecordKind,
)
from monolith_kv.storage.framing import corruption
from monolith_kv.storage.record_file import RecordReader, RecordWriter


def path_of(root: str, name: str) -> str:
    """Return the path of the sightings `name` of the store at `root`; refuse any other name."""
    return format.join_checked(root, SIGHTINGS_FOLDER, name, SIGHTINGS_PATTERN)


def names(root: str) -> list[str]:
    """Return the names of all sightings files of the store."""
    found = files.list_names(os.path.join(root, SIGHTINGS_FOLDER))
    return [name for name in found if SIGHTINGS_PATTERN.fullmatch(name)]


def store(root: str, uuid: str, sequence: int, epoch: int, by_table: Mapping[int, bytes]) -> str:
    """Write the pending sightings of each table id, durably; return the file's name.

    Parameters
    ----------
    root, uuid : str
        The store.
    sequence, epoch : int
        Of the last delta: the sightings came after it. A file of the same name is replaced.
    by_table : mapping of int to bytes
        Opaque bytes by table id.
    """
    name = format.sightings_name(sequence, epoch)
    files.make_folder(os.path.join(root, SIGHTINGS_FOLDER))
    identity = FileIdentity(uuid, epoch, sequence)
    with RecordWriter(path_of(root, name), FileType.SIGHTINGS, identity, replace=True) as writer:
        for table, data in sorted(by_table.items()):
            writer.append(RecordKind.SIGHTINGS, data, table, compress=True)
        writer.publish({"tables": len(by_table)})
    return name


def load(root: str, name: str) -> dict[int, bytes]:
    """Return the pending sightings by table id.

    Raises
    ------
    CorruptionError
        The file is damaged.
    """
    path = path_of(root, name)
    found: dict[int, bytes] = {}
    with RecordReader(path, FileType.SIGHTINGS) as reader:
        for record in reader:
            if record.kind != RecordKind.SIGHTINGS or record.table in found:
                raise corruption(path, record.offset, f"unexpected record kind {record.kind}")
            found[record.table] = bytes(record.payload)
    return found
