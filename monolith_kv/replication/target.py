"""A folder that holds what a store published, and the catalogue of such a folder.

A target has the layout of a store's published files (deltas/, snapshots/) and one file of its own,
PUBLISHED, which names them with sizes and digests. PUBLISHED is written last and replaced in one
step: what it does not name is not there, and no listing of a folder is ever trusted. A store's own
MANIFEST reads as the same catalogue, without digests.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monolith_kv.errors import CorruptionError, FencedError, FormatVersionError
from monolith_kv.lineage import Lineage
from monolith_kv.storage import files, manifest
from monolith_kv.storage.format import (
    DELTA_FOLDER,
    DELTA_PATTERN,
    HARMLESS_NAMES,
    NO_UUID,
    SNAPSHOT_FOLDER,
    FileIdentity,
    FileType,
    join_checked,
)
from monolith_kv.storage.record_file import RecordReader, RecordWriter

PUBLISHED_NAME = "PUBLISHED"
DIGEST_BYTES = 16
READ_BYTES = 4 << 20
SNAPSHOT_FILE = re.compile(r"[0-9]{20}-[0-9]{6,}(-[0-9]{6,})?(\.[0-9a-f]{8})?\.snapshot")
MEND = "remove it there and push again"

Kind = Literal["store", "replica", "target"]
Check = Callable[[], None]
"""Called between blocks; raises to end a long step early."""


@dataclass(frozen=True)
class Entry:
    """One published file, as a catalogue names it.

    `made_at` is by the store's clock. `digest` (blake2b of the whole file) and `modified_ns` are
    known for the files of a target only. There `file` is the name on disk where that is another
    one: a store that rests may give a name again, to a later snapshot of the same sequence, and
    the file of the first stays as it is for those who are reading it.
    """

    name: str
    sequence: int
    epoch: int
    rows: int
    bytes: int
    made_at: float
    removals: int = 0
    digest: str = ""
    modified_ns: int = 0
    file: str = ""

    @property
    def is_snapshot(self) -> bool:
        """Whether the file is a snapshot; a delta otherwise."""
        return self.name.endswith(".snapshot")

    def is_same_file(self, other: "Entry") -> bool:
        """Whether both name one and the same content, as far as catalogues tell."""
        here = (self.name, self.bytes, self.rows, self.removals, self.made_at)
        return here == (other.name, other.bytes, other.rows, other.removals, other.made_at)


@dataclass(frozen=True)
class Catalogue:
    """What a folder publishes: whose history it is, how far it goes, and in which files."""

    kind: Kind
    folder: str
    uuid: str
    lineage: Lineage
    sequence: int
    deltas: tuple[Entry, ...]
    snapshots: tuple[Entry, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All files, in the order in which a reader needs them."""
        return (*self.snapshots, *self.deltas)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.entries)

    def path(self, entry: Entry) -> str:
        """Return where the file is; the name is checked, so that it cannot lead elsewhere."""
        return entry_path(self.folder, entry)

    def chain(self, after: int) -> tuple[Entry, ...]:
        """Return the deltas from `after` + 1 on, as far as they go without a hole."""
        found: list[Entry] = []
        for entry in self.deltas:
            if entry.sequence == after + 1 + len(found):
                found.append(entry)
        return tuple(found)

    def reaches(self, after: int) -> bool:
        """Whether the deltas lead from `after` to the end without a hole."""
        return after + len(self.chain(after)) >= self.sequence


def entry_path(folder: str, entry: Entry) -> str:
    """Return the path of a published file below `folder`."""
    if entry.is_snapshot:
        return join_checked(folder, SNAPSHOT_FOLDER, entry.file or entry.name, SNAPSHOT_FILE)
    return join_checked(folder, DELTA_FOLDER, entry.file or entry.name, DELTA_PATTERN)


# --- reading -------------------------------------------------------------------------------


def read_catalogue(folder: str) -> Catalogue:
    """Return what a target, a store or a replica has published.

    Parameters
    ----------
    folder : str
        The folder; no lock is taken and nothing is loaded.

    Raises
    ------
    FileNotFoundError
        Nothing is there, or nothing is published yet.
    CorruptionError, FormatVersionError
        Its manifest is damaged, or of a newer version.
    """
    found = read_target(folder) or read_store(folder)
    if found is None or (found.kind == "target" and not found.uuid):
        what = "nothing is published there yet" if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(f"{folder} is no store, target or replica: {what}")
    return found


def read_store(folder: str) -> Catalogue | None:
    """Return the catalogue of a store or replica; None if the folder holds none."""
    state = manifest.load(folder)
    if state is None:
        return None
    return Catalogue(
        "replica" if state.mode == "replica" else "store",
        folder,
        state.uuid,
        state.lineage,
        state.sequence,
        tuple(
            _entry(delta, delta["sealed_at"], delta["removals"])
            for delta in sorted(state.deltas, key=lambda delta: delta["sequence"])
        ),
        tuple(
            _entry(snapshot, snapshot["created_at"], 0)
            for snapshot in sorted(state.snapshots, key=lambda s: (s["sequence"], s["created_at"]))
        ),
    )


def _entry(fields: Mapping[str, Any], made_at: float, removals: int) -> Entry:
    name, sequence, epoch, rows, size = (
        fields[key] for key in ("name", "sequence", "epoch", "rows", "bytes")
    )
    return Entry(name, sequence, epoch, rows, size, made_at, removals)


def read_target(folder: str) -> Catalogue | None:
    """Return the catalogue of a target; None if nothing is published there."""
    path = os.path.join(folder, PUBLISHED_NAME)
    try:
        reader = RecordReader(path, FileType.TARGET)
    except FileNotFoundError:
        return None
    with reader:
        reader.verify()
    found = _unpack(folder, path, reader.meta)
    identity = FileIdentity(found.uuid, found.lineage.epoch, found.sequence)
    if identity != reader.header.identity:
        raise CorruptionError(
            f"{path}: the header says {reader.header.identity}, the content {identity}", path, 0
        )
    return found


def _unpack(folder: str, path: str, data: Mapping[str, Any]) -> Catalogue:
    """Return the catalogue in the JSON of a PUBLISHED; keys of a later version are ignored."""
    try:
        deltas, snapshots = (
            tuple(_unpack_entry(fields) for fields in data[key]) for key in ("deltas", "snapshots")
        )
        lineage = Lineage.from_json(data["lineage"])
        found = Catalogue(
            "target",
            folder,
            _uuid(data["uuid"]),
            lineage,
            _count(data["sequence"]),
            deltas,
            snapshots,
        )
    except (KeyError, TypeError, ValueError, FormatVersionError) as error:
        raise CorruptionError(
            f"{path} cannot be read: {error!r}; push to a new target", path, 0
        ) from error
    for entry in found.entries:
        entry_path(folder, entry)
    return found


def _uuid(value: Any) -> str:
    return FileIdentity(value, 0, 0).uuid


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"expected a whole number of 63 bits, got {value!r}")
    return value


def _unpack_entry(fields: Mapping[str, Any]) -> Entry:
    values = {field.name: fields[field.name] for field in dataclasses.fields(Entry)}
    for name, value in values.items():
        kinds = _KINDS.get(name, (int,))
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, int) and not 0 <= value < 1 << 63:
            raise ValueError(f"{name} is {value!r}")
    return Entry(**values)


_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "digest": (str,),
    "file": (str,),
    "made_at": (int, float),
}


# --- writing -------------------------------------------------------------------------------


def write_target(catalogue: Catalogue) -> None:
    """Publish the catalogue: from now on its files are what the target holds."""
    path = os.path.join(catalogue.folder, PUBLISHED_NAME)
    identity = FileIdentity(catalogue.uuid, catalogue.lineage.epoch, catalogue.sequence)
    data = {
        "uuid": catalogue.uuid,
        "lineage": catalogue.lineage.to_json(),
        "sequence": catalogue.sequence,
        "deltas": [dataclasses.asdict(entry) for entry in catalogue.deltas],
        "snapshots": [dataclasses.asdict(entry) for entry in catalogue.snapshots],
    }
    with RecordWriter(path, FileType.TARGET, identity, replace=True) as writer:
        writer.publish(data)


def make_target(folder: str) -> None:
    """Make an empty folder a target that belongs to nobody yet; nothing if it is one.

    Notes
    -----
    PUBLISHED is there before the first file is copied: a folder with deltas and no manifest is
    always a damaged one, never a push that has not come to its end.
    """
    if os.path.lexists(os.path.join(folder, PUBLISHED_NAME)):
        return
    strange = [name for name in files.list_names(folder) if name not in HARMLESS_NAMES]
    if strange:
        raise FencedError(
            f"{folder} holds {strange[0]} and is no target; give an empty or a new folder"
        )
    write_target(Catalogue("target", folder, NO_UUID, Lineage(), 0, (), ()))


def digest_file(path: str, check: Check) -> str:
    """Return the digest of a whole file, as catalogues name it."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with open(files.open_readable(path), "rb", buffering=0) as reader:
        while block := reader.read(READ_BYTES):
            check()
            digest.update(block)
    return digest.hexdigest()


def verify_entry(path: str, entry: Entry, check: Check) -> None:
    """Raise CorruptionError unless the file has the size and the digest that were published."""
    size = os.stat(path).st_size
    if size != entry.bytes:
        raise CorruptionError(
            f"{path} has {size} bytes, published were {entry.bytes}; {MEND}", path, size
        )
    if entry.digest and (found := digest_file(path, check)) != entry.digest:
        raise CorruptionError(
            f"{path} has digest {found}, published was {entry.digest}; {MEND}", path
        )
