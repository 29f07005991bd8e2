"""Layout of every file of ours: magic, versions, fields, record kinds, names. All little endian.

Numbers here are on disk: they are never given a new meaning. docs/reference/format tells each file
in words; tests/format compares those pages with this module.
"""

import enum
import os
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from monolith_kv._checksum import crc32c
from monolith_kv.errors import CorruptionError, FormatVersionError
from monolith_kv.storage.files import LOCK_NAME

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
# Feature bits that this version knows. An unknown bit of the first set makes a file unreadable,
# one of the second makes the store read-only.
INCOMPATIBLE_KNOWN = 0
READ_ONLY_COMPATIBLE_KNOWN = 0

MAGIC_HEAD = b"\x89MKV"  # A byte above 127: a transfer that strips bit 7 shows.
MAGIC_TAIL = b"\r\n\x1a"  # A transfer that converts line ends shows, too.

RECORD_BYTES_MAX = 16 << 20  # Of one payload, before and after compression.
BLOB_BYTES_MAX = 1 << 40  # Of all parts of one logical payload together.
PLACE_SUM_BYTES = 4  # Of the checksum behind each record in a row file, and of a cold row.
ALIGNMENT = 8  # Records start at multiples of it, so that arrays in payloads are aligned.

NO_UUID = ""
UUID_BYTES = 16


class FileType(enum.Enum):
    """What a record file is; the value is byte 4 of its magic. On disk: never reuse one."""

    MANIFEST = b"M"
    DELTA = b"D"
    SNAPSHOT = b"S"
    CALLS = b"C"
    SIGHTINGS = b"G"
    TARGET = b"T"
    ROWS = b"R"

    @property
    def magic(self) -> bytes:
        """The first eight bytes of such a file."""
        return MAGIC_HEAD + self.value + MAGIC_TAIL


class RecordKind(enum.IntEnum):
    """What a record holds. On disk: never renumber."""

    END = 1
    META = 2
    ROWS = 3
    REMOVED = 4
    SIGHTINGS = 5
    GATE = 6
    DENSE = 7
    TOUCHED = 8
    COLD = 9
    COLD_IDS = 10
    INSERT = 16
    PUSH = 17
    UPSERT = 18
    REMOVE = 19
    CONFIGURE = 20
    CREATE = 21
    DROP = 22
    MARK = 23


class RecordFlag(enum.IntFlag):
    """Bits of a record's flags. On disk: never renumber."""

    COMPRESSED = 1  # The payload is one zstd frame that states its content size.
    MORE = 2  # The next record goes on with this payload.


FLAGS_KNOWN = int(RecordFlag.COMPRESSED | RecordFlag.MORE)

# --- header --------------------------------------------------------------------------------

HEADER = struct.Struct("<8sHHII16sQQ8sI")
HEADER_BYTES = HEADER.size
HEADER_FIELDS = (  # name, offset, bytes
    ("magic", 0, 8),
    ("format major", 8, 2),
    ("format minor", 10, 2),
    ("incompatible features", 12, 4),
    ("read-only compatible features", 16, 4),
    ("store uuid", 20, 16),
    ("epoch", 36, 8),
    ("number", 44, 8),
    ("salt", 52, 8),
    ("crc32c", 60, 4),
)


@dataclass(frozen=True)
class FileIdentity:
    """Where a file belongs.

    Parameters
    ----------
    uuid : str
        Of the store, 32 hexadecimal digits; `NO_UUID` before a replica has taken one.
    epoch : int
        In which the file was written.
    number : int
        Sequence of a delta or a snapshot, number of a call log.
    """

    uuid: str
    epoch: int
    number: int

    def __post_init__(self) -> None:
        if self.uuid != NO_UUID and not re.fullmatch(r"[0-9a-f]{32}", self.uuid):
            raise ValueError(f"uuid must be 32 hexadecimal digits, got {self.uuid!r}")


@dataclass(frozen=True)
class Header:
    """The first 64 bytes of a record file, once they were found good."""

    file_type: FileType
    identity: FileIdentity
    salt: bytes
    crc: int
    major: int = FORMAT_MAJOR
    minor: int = FORMAT_MINOR
    incompatible: int = 0
    read_only_compatible: int = 0

    @property
    def seed(self) -> int:
        """Start value of every record's checksum in this file."""
        return crc32c(self.salt)

    @property
    def is_writable(self) -> bool:
        """Whether this version may change a store that holds such a file."""
        return not self.read_only_compatible & ~READ_ONLY_COMPATIBLE_KNOWN

    def refuse_to_write(self, path: str) -> None:
        """Raise FormatVersionError where the file has a feature that a writer would lose."""
        if not self.is_writable:
            raise FormatVersionError(
                f"{path} has features {self.read_only_compatible:#x} that this version would not "
                'keep up; open the store with mode "r" or use a newer monolith_kv'
            )


def random_salt() -> bytes:
    """Return the salt of a new file."""
    return os.urandom(8)


def pack_header(file_type: FileType, identity: FileIdentity, salt: bytes | None = None) -> bytes:
    """Return the header of a new file; the salt is random unless it is given."""
    fields = HEADER.pack(
        file_type.magic,
        FORMAT_MAJOR,
        FORMAT_MINOR,
        INCOMPATIBLE_KNOWN,
        READ_ONLY_COMPATIBLE_KNOWN,
        bytes.fromhex(identity.uuid) or bytes(UUID_BYTES),
        identity.epoch,
        identity.number,
        random_salt() if salt is None else salt,
        0,
    )[:-4]
    return fields + crc32c(fields).to_bytes(4, "little")


def unpack_header(data: bytes, path: str, file_type: FileType | None = None) -> Header:
    """Check the first bytes of a file and return its header.

    Parameters
    ----------
    data : bytes
        The first `HEADER_BYTES` of the file, or all of a shorter one.
    path : str
        For messages.
    file_type : FileType, optional
        What the file has to be.

    Raises
    ------
    CorruptionError
        It is no such file, or the header is damaged.
    FormatVersionError
        A version or a feature that this one cannot read.
    """
    found = _file_type(data, path)
    if len(data) < HEADER_BYTES:
        raise CorruptionError(
            f"{path} has {len(data)} bytes, a header takes {HEADER_BYTES}; restore the file",
            path,
            len(data),
        )
    fields = HEADER.unpack(data[:HEADER_BYTES])
    computed = crc32c(data[: HEADER_BYTES - 4])
    if computed != fields[9]:
        raise CorruptionError(
            f"crc mismatch in the header of {path}: stored {fields[9]:08x}, computed "
            f"{computed:08x}; run mkv verify",
            path,
            0,
        )
    # The checksum comes first: a flipped bit in the version is damage, not a newer version.
    major, incompatible = fields[1], fields[3]
    if major != FORMAT_MAJOR or incompatible & ~INCOMPATIBLE_KNOWN:
        raise FormatVersionError(
            f"{path} has format {major}.{fields[2]} with features {incompatible:#x}, this version "
            f"reads {FORMAT_MAJOR}.x with {INCOMPATIBLE_KNOWN:#x}; use a newer monolith_kv"
        )
    if file_type is not None and found is not file_type:
        raise CorruptionError(
            f"{path} is a {found.name.lower()} file, expected a {file_type.name.lower()} file",
            path,
            0,
        )
    uuid = "" if fields[5] == bytes(UUID_BYTES) else fields[5].hex()
    return Header(
        found,
        FileIdentity(uuid, fields[6], fields[7]),
        fields[8],
        fields[9],
        major,
        fields[2],
        incompatible,
        fields[4],
    )


def _file_type(data: bytes, path: str) -> FileType:
    magic = bytes(data[:8])
    for file_type in FileType:
        if magic == file_type.magic:
            return file_type
    hint = "it is no file of monolith_kv, or its first bytes are damaged"
    if magic[:4] == b"\x09MKV" or magic[:6] == MAGIC_HEAD + magic[4:5] + b"\n":
        hint = "it was transferred as text; transfer it again as binary"
    raise CorruptionError(f"{path} starts with {magic.hex() or 'nothing'}: {hint}", path, 0)


# --- record --------------------------------------------------------------------------------

RECORD = struct.Struct("<IIQHHIQQ")
RECORD_HEADER_BYTES = RECORD.size
RECORD_FIELDS = (  # name, offset, bytes
    ("crc32c", 0, 4),
    ("previous crc32c", 4, 4),
    ("length", 8, 8),
    ("kind", 16, 2),
    ("flags", 18, 2),
    ("table", 20, 4),
    ("count", 24, 8),
    ("durable", 32, 8),
)


class RecordHeader(NamedTuple):
    """The 40 bytes before a payload. `durable`: offset known durable when it was written."""

    crc: int
    previous: int
    length: int
    kind: int
    flags: int
    table: int
    count: int  # type: ignore[assignment]  # Hides tuple.count, which nobody calls.
    durable: int


def padded(length: int) -> int:
    """Return `length` rounded up to the alignment of records."""
    return (length + ALIGNMENT - 1) & -ALIGNMENT


# --- names ---------------------------------------------------------------------------------

MANIFEST_NAME = "MANIFEST"
DELTA_FOLDER = "deltas"
SNAPSHOT_FOLDER = "snapshots"
CALL_FOLDER = "calls"
SIGHTINGS_FOLDER = "sightings"
DENSE_FOLDER = "dense"
OVERFLOW_FOLDER = "overflow"
TRAFFIC_NAME = "traffic.json"
HARMLESS_NAMES = frozenset({LOCK_NAME, "lost+found"})  # In a folder that holds nothing yet.

DELTA_PATTERN = re.compile(r"([0-9]{20})-([0-9]{6,})\.delta")
SNAPSHOT_PATTERN = re.compile(r"([0-9]{20})-([0-9]{6,})(?:-([0-9]{6,}))?\.snapshot")
CALLS_PATTERN = re.compile(r"([0-9]{20})\.calls")
SIGHTINGS_PATTERN = re.compile(r"([0-9]{20})-([0-9]{6,})\.sightings")
DENSE_PATTERN = re.compile(r"([0-9]{20})\.safetensors")


def delta_name(sequence: int, epoch: int) -> str:
    """Return the file name of a delta; names sort as sequences do."""
    return f"{sequence:020d}-{epoch:06d}.delta"


def snapshot_name(sequence: int, epoch: int, number: int = 0) -> str:
    """Return the file name of a snapshot under the store; `number`: of several at one sequence."""
    suffix = f"-{number:06d}" if number else ""
    return f"{sequence:020d}-{epoch:06d}{suffix}.snapshot"


def calls_name(number: int) -> str:
    """Return the file name of a call log."""
    return f"{number:020d}.calls"


def sightings_name(number: int, epoch: int) -> str:
    """Return the file name of pending sightings."""
    return f"{number:020d}-{epoch:06d}.sightings"


def dense_name(version: int) -> str:
    """Return the file name of one version of the dense parameters."""
    return f"{version:020d}.safetensors"


def join_checked(root: str, folder: str, name: str, pattern: re.Pattern[str]) -> str:
    """Return the path of `name` below the store, once it was found to be a name of that kind.

    Raises
    ------
    CorruptionError
        The name is anything else: no file of ours ever leads to a path out of the store.
    """
    if not pattern.fullmatch(name):
        raise CorruptionError(
            f"{name!r} is no name of a file in {folder}, expected {pattern.pattern}", root
        )
    return os.path.join(root, folder, name)
