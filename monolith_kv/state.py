"""The state of one open store, which all parts of the control plane share, and its locks.

Locks, always taken in this order: `files` (who changes which files make up the store), `mutex` (in
a store that logs calls or overflows, who changes rows; always, who changes schemas), the barrier
(an instant between calls; a large logged call shares it while it flushes). Readers take none.
"""

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import Barrier, Helper, TableCore
from monolith_kv.errors import (
    ClosedError,
    CorruptionError,
    Error,
    ForkedError,
    ReadOnlyError,
    StoreFullError,
)
from monolith_kv.schema import TableSchema
from monolith_kv.storage import marks
from monolith_kv.storage.call_log import CallLogWriter
from monolith_kv.storage.files import FolderLock
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.overflow import OverflowTier

NO_FIDS: NDArray[np.uint64] = np.empty(0, np.uint64)
NO_RECORDS: NDArray[np.uint8] = np.empty(0, np.uint8)
LOGGED = ("batch", "sync")
Mode = Literal["rw", "r", "replica"]


@dataclass(frozen=True)
class Settings:
    """How a store was opened; durations in seconds, sizes in bytes."""

    durability: str = "interval"
    delta_interval_s: float | None = 60.0
    delta_retention_s: float = 86400.0
    snapshots_kept: int = 2
    memory_limit: int | None = None
    overflow_limit: int | None = None

    @property
    def is_logged(self) -> bool:
        """Whether every call goes to a call log."""
        return self.durability in LOGGED


class Room(Protocol):
    """What keeps rows in memory within a limit; see budget.Budget."""

    is_full: bool
    is_held: bool
    wake: Callable[[], None] | None

    def used(self) -> int:
        """Bytes in memory."""

    def settle(self, need: int = 0) -> None:
        """Move to the overflow tier what is over the limit, and room for `need` bytes more."""

    def step(self) -> bool:
        """Do a bounded part of that in advance; whether there is more to do."""

    def make_room(self, need: int) -> None:
        """Step until there is room for `need` bytes."""


class TableEntry:
    """One table of an open store: what it is, and its rows."""

    __slots__ = (
        "core",
        "dropped",
        "dtype",
        "flipped_sightings",
        "handle",
        "id",
        "pending_sightings",
        "rules",
        "schema",
    )

    def __init__(self, table_id: int, schema: TableSchema, core: TableCore) -> None:
        self.id = table_id
        self.schema = schema
        self.core = core
        self.dropped = False
        self.rules = 0  # Counts changes of the TTL: an expiry pass begins anew.
        self.handle: Any = None  # The Table that users hold.
        # Sightings that were taken from the core, in order, but are in no delta yet. Guarded by
        # files.
        self.pending_sightings: list[bytes] = []
        self.flipped_sightings: list[list[NDArray[np.uint8]]] = []  # Not joined yet, by shard.
        width = core.dim + core.state_floats
        self.dtype = np.dtype([("fid", "<u8"), ("timestamp", "<i8"), ("row", "<f4", (width,))])

    def to_json(self) -> dict[str, Any]:
        """Return the schema with the table's id, as files hold it."""
        return {**self.schema.to_json(), "id": self.id}

    def digest(self) -> tuple[int, int]:
        """Return the order-independent hash of its rows, in two parts."""
        return self.core.digest()

    def flip_sightings(self) -> None:
        """Set apart what was counted since the last time, uncopied. Under files."""
        self.flipped_sightings.append(self.core.take_sightings())

    def pieces(self) -> list[bytes]:
        """Return all pending sightings up to the last flip. Under files."""
        while self.flipped_sightings:
            parts = self.flipped_sightings[0]
            if any(map(len, parts)):
                sized = [len(part).to_bytes(8, "little") + part.tobytes() for part in parts]
                self.pending_sightings.append(b"".join(sized))
            del self.flipped_sightings[0]
        return list(self.pending_sightings)

    def take_sightings(self) -> list[bytes]:
        """Return all pending sightings, those since the last time included. Under files."""
        self.flip_sightings()
        return self.pieces()

    def rows_of(self, records: NDArray[np.uint8]) -> NDArray[Any]:
        """Return records as a structured array, not copied."""
        return np.ascontiguousarray(records).reshape(-1).view(self.dtype)


@dataclass
class DenseState:
    """The dense parameters in memory."""

    version: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    data: bytes = b""
    is_pending: bool = False  # Published, but in no delta yet.
    entry: dict[str, Any] = field(default_factory=lambda: {"version": 0, "name": None})


class StoreState:
    """What an open store is.

    Parameters
    ----------
    path : str
        Folder of the store.
    mode : str
        "rw", "r" or "replica".
    settings : Settings
        How it was opened.
    clock, monotonic : callable
        Seconds since the epoch, and for measuring; handed in by the store.
    """

    def __init__(
        self,
        path: str,
        mode: Mode,
        settings: Settings,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.path = path
        self.mode = mode
        self.settings = settings
        self.clock = clock
        self.monotonic = monotonic
        self.pid = os.getpid()
        self.closed = False
        self.lock: FolderLock | None = None
        self.files = threading.RLock()
        self.mutex = threading.RLock()
        self.snapshotting = threading.RLock()
        self.barrier = Barrier()
        # Guarded by mutex.
        self.helper = Helper() if settings.is_logged else None  # For large calls.
        self.caller = 0  # The thread that made the last call which changes rows.
        self.company_at = -math.inf  # When it was another one than before, monotonic.
        self.is_logging = False  # Whether a call is being logged and made.
        # Bucket choice only; nobody outside may know it, nothing on disk depends on it.
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.manifest = Manifest()  # Replaced as a whole. Guarded by files.
        self.manifest_before: Manifest | None = None  # Set while a delta's rows are loaded.
        # What its flush has failed at: an older one, and its files, may come back.
        self.manifest_error: Exception | None = None
        # Replaced as a whole, so that readers need no lock. Guarded by mutex.
        self.tables: dict[str, TableEntry] = {}
        self.next_table_id = 1
        self.schema_changed = False  # Since the last seal.
        self.dense = DenseState()
        self.log: CallLogWriter | None = None
        self.next_log = 1
        # Whether deltas and call logs lead to what memory holds, without a snapshot; true only
        # of a store that logs its calls. Guarded by files.
        self.is_log_whole = True
        self.log_begun = 0  # The number of a log that could not be begun.
        self.is_marked = False  # Whether calls since the last instant have left a mark.
        self.mark_number = 1
        self.overflow: OverflowTier | None = None
        self.budget: Room | None = None
        self.failure: Exception | None = None  # Writing was given up.
        self.rescue: Callable[[StoreState], None] | None = None  # See checkpoint.
        self.background_error: Exception | None = None
        self.overdue: Exception | None = None  # What the seal that is due has failed at.
        self.lost: list[dict[str, Any]] = []
        # Snapshots taken since the last seal, by their ids: the next delta covers their content.
        self.instants: list[str] = []
        self.is_recovering = False  # Rows are not those of the manifest yet.
        self.damaged: list[str] = []  # Files that were passed over, in words.
        self.partial: str | None = None  # Id of a snapshot that holds part of the next delta.
        self.calls_replayed = 0
        self.read_position: Any = None  # What a reader has loaded; see recovery.position.
        self.suspects: dict[str, str] = {}  # Tables that compaction leaves alone, and why.
        self.prefetch: Callable[[TableEntry, NDArray[np.uint64]], None] | None = None

    @property
    def visible(self) -> Manifest:
        """The manifest that the rows in memory have come up to."""
        return self.manifest_before or self.manifest

    @property
    def is_serial(self) -> bool:
        """Whether changes are made one after the other, under the mutex."""
        return self.mode == "rw" and (self.settings.is_logged or self.budget is not None)

    # --- who may call ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise ForkedError or ClosedError where the store cannot be used."""
        if self.pid != os.getpid():
            raise ForkedError(
                f"{self.path} was opened by process {self.pid}, this is its fork {os.getpid()}; "
                "open it again here"
            )
        if self.closed:
            raise ClosedError(f"the store {self.path} is closed; open it again")

    def admit(self) -> None:
        """Check as `check_writable`, at the door: where writing was given up, try to go on."""
        if self.failure is not None and self.rescue is not None:
            self.check()
            self.rescue(self)
        self.check_writable()

    def admit_change(self) -> None:
        """Admit, but in "interval" not while a due seal fails: the call might be lost too late."""
        self.admit()
        error = self.overdue
        if error is None or self.settings.durability != "interval":
            return
        kind = StoreFullError if isinstance(error, StoreFullError) else Error
        raise kind(
            f"{self.path}: the seal that is due fails, more calls would not be safe within "
            f"delta_interval; it is tried again, calls go on when it succeeds: {error}"
        ) from error

    def check_writable(self) -> None:
        """Raise also ReadOnlyError, and what writing or the background has failed at."""
        self.check()
        if self.mode != "rw":
            raise ReadOnlyError(
                f'{self.path} is open with mode "{self.mode}"; only "rw" may change it'
            )
        self.raise_failure()
        self.raise_background()

    def raise_failure(self) -> None:
        """Raise ReadOnlyError where writing was given up."""
        if self.failure is not None:
            raise ReadOnlyError(
                f"{self.path} can no longer be written after {self.failure!r}; close it, check "
                "the disk and open it again"
            ) from self.failure

    @property
    def is_manifest_durable(self) -> bool:
        """Whether the manifest is known to survive a power cut."""
        return self.manifest_error is None

    def check_durable(self) -> None:
        """Refuse to acknowledge what a power cut may take, though it was made and counts."""
        if self.manifest_error is not None:
            if self.background_error is self.manifest_error:
                self.background_error = None  # It is told now.
            raise self.manifest_error

    def raise_background(self) -> None:
        """Raise, once, what the background has failed at."""
        error, self.background_error = self.background_error, None
        if error is not None:
            raise error

    def check_after(self) -> None:
        """Refuse to acknowledge a change that close() may have missed."""
        if self.closed:
            raise ClosedError(f"the store {self.path} was closed during the call")

    def check_reentry(self) -> None:
        """Raise where the handler of a signal has come here from within a call. Under the mutex."""
        self.barrier.settle()  # One that is logged is finished, and all is well.
        if self.is_logging:
            raise Error(
                f"{self.path} was used by the handler of a signal that came in the middle of a "
                "call; have it set a flag instead, and look at that between calls"
            )

    # --- the call log ----------------------------------------------------------------------

    def open_log(self) -> CallLogWriter | None:
        """Return the call log, begun if need be; None where calls are not logged."""
        if not self.settings.is_logged or self.mode != "rw":
            return None
        if self.log is None or self.log.is_closed:  # Ctrl-C may have raised behind its end.
            found, number = self.manifest, self.next_log
            is_ours = self.log_begun == number
            try:
                self.log = CallLogWriter(
                    self.path, found.uuid, number, found.lineage.epoch, replace=is_ours,
                    is_flushed_soon=self.settings.durability == "sync",
                )  # fmt: skip
            except FileExistsError:
                raise
            except BaseException:
                self.log_begun = number  # It may have its name by now, but it holds no call.
                raise
            self.next_log += 1
        return self.log

    def note_failure(self, log: CallLogWriter, error: BaseException) -> None:
        """Give up writing where the call log was given up: see `rescue`."""
        if log.is_failed and isinstance(error, Exception):
            self.failure = self.failure or error

    def roll_log(self) -> int:
        """End the call log; return the number that the next one will have."""
        self.check_reentry()
        log = self.log
        if log is None or not log.records:
            return self.next_log if log is None else log.number
        try:
            log.close(clean=True)
        except Exception as error:
            self.note_failure(log, error)
            raise
        self.log = None
        return self.next_log

    # --- calls that are not logged ---------------------------------------------------------

    def mark_unsealed(self) -> None:
        """Leave a mark that calls were made which only memory has: a crash loses them.

        Notes
        -----
        One flush after each seal or snapshot. It only makes the loss known, so that a call does not
        fail for it; the next call tries again.
        """
        with self.mutex:
            if self.is_marked or self.mode != "rw" or self.settings.is_logged:
                return
            with contextlib.suppress(OSError):
                marks.leave(self.path, self.mark_number)
                self.is_marked = True

    def next_mark(self) -> int:
        """Begin to mark anew; return the number of the mark before. Under the barrier."""
        self.is_marked = False
        self.mark_number += 1
        return self.mark_number - 1

    # --- tables ----------------------------------------------------------------------------

    def make_entry(self, table_id: int, schema: TableSchema) -> TableEntry:
        """Return a new, empty table of this schema."""
        core = TableCore(self.barrier, schema.core_slices(), self.seed ^ table_id)
        entry = TableEntry(table_id, schema, core)
        settle_core(core, schema, is_writer=self.mode == "rw")
        return entry

    def add_entry(self, entry: TableEntry) -> None:
        """Add a new table, with the next id."""
        self.next_table_id = entry.id + 1
        self.put_entry(entry)

    def put_entry(self, entry: TableEntry) -> None:
        """Add a table, or replace the one of the same name."""
        self.tables = {**self.tables, entry.schema.name: entry}

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Hold the mutex; where rows may be cold, while no seal or snapshot reads them."""
        with contextlib.ExitStack() as locks:
            if self.overflow is not None:
                locks.enter_context(self.snapshotting)
                locks.enter_context(self.files)
            locks.enter_context(self.mutex)
            yield

    def drop_entry(self, entry: TableEntry) -> None:
        """Take a table out; its handles are closed."""
        self.tables = {n: e for n, e in self.tables.items() if e is not entry}
        entry.dropped = True
        if self.overflow is not None:
            # Records that stay are in nobody's way: no other table gets its id.
            with contextlib.suppress(CorruptionError, OSError, StoreFullError):
                self.overflow.forget_table(entry.id)

    def change_schema(self, entry: TableEntry, schema: TableSchema) -> None:
        """Give a table new settings, between calls."""
        if entry.schema.core_slices() != schema.core_slices() and not entry.schema.same_kind(
            schema
        ):
            raise Error(f"table {schema.name}: rows of another kind")
        with self.barrier:
            settle_core(entry.core, schema, is_writer=self.mode == "rw", was=entry.schema)
            entry.schema = schema
            entry.rules += 1

    def tables_json(self) -> list[dict[str, Any]]:
        """Return all schemas with their ids, as files hold them."""
        return [e.to_json() for e in sorted(self.tables.values(), key=lambda e: e.id)]


def settle_core(
    core: TableCore, schema: TableSchema, *, is_writer: bool, was: TableSchema | None = None
) -> None:
    """Hand the settings of a schema to the data plane.

    Notes
    -----
    Readers and replicas count and expire nothing by themselves; a replica's gate keeps its counts
    for the day when it is promoted, so it has the same gate, which only pulls would use.
    """
    core.set_optimizers([part.optimizer.hyper() for part in schema.slices])
    core.set_initializers([settings[3:] for settings in schema.core_slices()])
    core.set_ttl(schema.ttl_default or 0, dict(schema.ttl_slots))
    if was is None or was.admission != schema.admission:
        gate = schema.admission
        core.set_gate(
            None
            if gate is None
            else (
                gate.default_threshold,
                gate.slot_thresholds,
                gate.capacity,
                gate.error,
                gate.window_s,
            )
        )


class Digested(Protocol):
    """A table whose rows have a digest."""

    @property
    def schema(self) -> TableSchema:
        """What the table is."""

    def digest(self) -> tuple[int, int]:
        """Return the order-independent hash of its rows, in two parts."""


class Summed(NamedTuple):
    """Stands for a table whose digest is known."""

    schema: TableSchema
    parts: tuple[int, int]

    def digest(self) -> tuple[int, int]:
        """Return it."""
        return self.parts


def store_digest(entries: Sequence[Digested]) -> str:
    """Return the order-independent hash of all records of these tables, in hexadecimal."""
    from hashlib import blake2b  # It loads OpenSSL: not before it is needed.

    hashed = blake2b(digest_size=16)
    for entry in sorted(entries, key=lambda entry: entry.schema.name):
        low, high = entry.digest()
        name = entry.schema.name.encode()
        hashed.update(len(name).to_bytes(2, "little") + name)
        hashed.update(entry.schema.dim.to_bytes(4, "little"))
        hashed.update(low.to_bytes(8, "little") + high.to_bytes(8, "little"))
    return hashed.hexdigest()
