"""The manifest: which files make up the store. One small record file, swapped in one step.

What must hold: a file counts only when the manifest names it, and it is named only when it is
durable. A folder that holds data but no manifest is damaged, never a new store.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from monolith_kv.errors import CorruptionError, Error, FormatVersionError
from monolith_kv.lineage import Lineage
from monolith_kv.storage import files, format
from monolith_kv.storage.format import FileIdentity, FileType
from monolith_kv.storage.record_file import RecordReader, RecordWriter

MODES = ("rw", "replica")


@dataclass
class Manifest:
    """What a store consists of, and where it stands.

    Parameters
    ----------
    uuid : str
        Of the store, 32 hexadecimal digits; "" on a replica that has taken no identity yet.
    lineage : Lineage
        Its epochs.
    sequence : int
        Of the last delta sealed or applied.
    clean : bool
        Whether it was closed cleanly: nothing is in memory that is not in the files.
    mode : str
        "rw" or "replica".
    cursor : dict
        As given to the last durable seal.
    tables : list of dict
        Schemas as JSON, each with its "id".
    next_table_id : int
        Ids are never used twice.
    snapshots : list of dict
        name, sequence, epoch, rows, bytes, created_at, lineage; oldest first.
    deltas : list of dict
        name, sequence, epoch, rows, removals, bytes, sealed_at; oldest first.
    dense : dict
        version, name (or None) and what `dense.store` returned for it.
    first_call_log : int
        Call logs with this number or a higher one are not covered by the last delta.
    sightings : str or None
        Name of the file of sightings that no delta holds yet.
    clock_high : float
        The latest time that the store's clock has shown.
    """

    uuid: str = ""
    lineage: Lineage = field(default_factory=Lineage)
    sequence: int = 0
    clean: bool = True
    mode: str = "rw"
    cursor: dict[str, Any] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    next_table_id: int = 1
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    deltas: list[dict[str, Any]] = field(default_factory=list)
    dense: dict[str, Any] = field(default_factory=lambda: {"version": 0, "name": None})
    first_call_log: int = 1
    sightings: str | None = None
    clock_high: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**self.__dict__, "lineage": self.lineage.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Manifest":
        """Return the manifest that `to_json` wrote; ValueError names what is wrong with `data`.

        Notes
        -----
        Keys of a later minor version are ignored.
        """
        values = {name: _taken(data, name, is_good) for name, is_good in _FIELDS.items()}
        try:
            values["lineage"] = Lineage.from_json(values["lineage"])
        except FormatVersionError as error:
            raise ValueError(str(error)) from error
        for key, pattern, wanted in _LISTS:
            for entry in values[key]:
                for name, is_good in wanted.items():
                    _taken(entry, name, is_good)
                _check_name(entry["name"], pattern)
        for name in ("version", *(("bytes", "crc32c") if values["dense"].get("name") else ())):
            _taken(values["dense"], name, _is_count)
        for name, pattern in (
            (values["dense"].get("name"), format.DENSE_PATTERN),
            (values["sightings"], format.SIGHTINGS_PATTERN),
        ):
            if name is not None:
                _check_name(name, pattern)
        for table in values["tables"]:
            _taken(table, "id", _is_count)
        return cls(**values)


def load(folder: str, *, to_write: bool = False) -> Manifest | None:
    """Return the manifest of the store in `folder`, None where there is no store yet.

    Parameters
    ----------
    folder : str
        The store; it need not exist.
    to_write : bool
        Refuse a store with features that this version may read but not keep up.

    Raises
    ------
    CorruptionError
        The manifest is damaged, or it is missing and the folder holds data of a store.
    FormatVersionError
        A version or a feature that this one cannot read, or cannot write.
    """
    path = os.path.join(folder, format.MANIFEST_NAME)
    try:
        reader = RecordReader(path, FileType.MANIFEST)
    except FileNotFoundError:
        _refuse_data(folder, path)
        return None
    with reader:
        reader.verify()
    if to_write:
        reader.header.refuse_to_write(path)
    try:
        found = Manifest.from_json(reader.meta)
    except ValueError as error:
        raise CorruptionError(
            f"{path} at byte {reader.end_offset}: {error}; run mkv verify", path, reader.end_offset
        ) from error
    identity = FileIdentity(found.uuid, found.lineage.epoch, found.sequence)
    if identity != reader.header.identity:
        raise CorruptionError(
            f"{path}: the header says {reader.header.identity}, the content {identity}", path, 0
        )
    return found


def store(folder: str, manifest: Manifest) -> None:
    """Make `manifest` the manifest of the store in `folder`, durably and in one step.

    Raises
    ------
    StoreFullError
        There is no room; the old manifest holds.
    """
    try:
        checked = Manifest.from_json(manifest.to_json())
    except ValueError as error:  # What cannot be read back must not be written.
        raise Error(f"the manifest of {folder} cannot be stored: {error}") from error
    path = os.path.join(folder, format.MANIFEST_NAME)
    identity = FileIdentity(checked.uuid, checked.lineage.epoch, checked.sequence)
    with RecordWriter(path, FileType.MANIFEST, identity, replace=True) as writer:
        writer.publish(checked.to_json())


def _refuse_data(folder: str, path: str) -> None:
    patterns = (
        (format.DELTA_FOLDER, format.DELTA_PATTERN),
        (format.SNAPSHOT_FOLDER, format.SNAPSHOT_PATTERN),
        (format.CALL_FOLDER, format.CALLS_PATTERN),
        (format.DENSE_FOLDER, format.DENSE_PATTERN),
        (format.SIGHTINGS_FOLDER, format.SIGHTINGS_PATTERN),
    )
    for sub, pattern in patterns:
        for name in files.list_names(os.path.join(folder, sub)):
            if pattern.fullmatch(name):
                raise CorruptionError(
                    f"{path} is missing, but {sub}/{name} is there; restore a snapshot, or salvage",
                    path,
                    0,
                )


# --- checks --------------------------------------------------------------------------------

Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


_FIELDS: dict[str, Check] = {
    "uuid": lambda value: _is_text(value) and bool(re.fullmatch(r"(?:[0-9a-f]{32})?", value)),
    "lineage": lambda value: isinstance(value, list),
    "sequence": _is_count,
    "clean": lambda value: isinstance(value, bool),
    "mode": lambda value: value in MODES,
    "cursor": lambda value: isinstance(value, dict),
    "tables": _is_objects,
    "next_table_id": _is_count,
    "snapshots": _is_objects,
    "deltas": _is_objects,
    "dense": lambda value: isinstance(value, dict),
    "first_call_log": _is_count,
    "sightings": lambda value: value is None or _is_text(value),
    "clock_high": _is_number,
}
_PUBLISHED: dict[str, Check] = {
    "name": _is_text,
    "sequence": _is_count,
    "epoch": _is_count,
    "rows": _is_count,
    "bytes": _is_count,
}
_LISTS: tuple[tuple[str, re.Pattern[str], dict[str, Check]], ...] = (
    (
        "snapshots",
        format.SNAPSHOT_PATTERN,
        {**_PUBLISHED, "created_at": _is_number, "lineage": _FIELDS["lineage"]},
    ),
    (
        "deltas",
        format.DELTA_PATTERN,
        {**_PUBLISHED, "removals": _is_count, "sealed_at": _is_number},
    ),
)


def _taken(data: dict[str, Any], name: str, is_good: Check) -> Any:
    if name not in data:
        raise ValueError(f"{name} is missing")
    if not is_good(data[name]):
        raise ValueError(f"{name} is {data[name]!r}")
    return data[name]


def _check_name(name: Any, pattern: re.Pattern[str]) -> None:
    if not _is_text(name) or not pattern.fullmatch(name):
        raise ValueError(f"{name!r} is no file name of the form {pattern.pattern}")
