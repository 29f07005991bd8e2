"""Every parser of the engine behind one call on bytes, with checksums left out: targets to fuzz.

`checks_off()` lets each checksum agree and reads files from memory, in this process, until it is
left. Damage that a checksum finds never comes as far as this code: what is tried here is bytes that
are wrong and yet agree.
"""

import contextlib
import itertools
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from checks import FAST_FOLDER

import monolith_kv as mkv
from monolith_kv._table import Barrier, TableCore
from monolith_kv.lineage import Lineage
from monolith_kv.policies import FrequencyGate
from monolith_kv.replication import target as replication_target
from monolith_kv.schema import Slice, TableSchema, slices_of
from monolith_kv.state import Settings, StoreState, TableEntry, settle_core
from monolith_kv.storage import (
    call_log,
    cold_rows,
    delta_log,
    dense,
    files,
    format,
    framing,
    manifest,
    pending,
    recovery,
    replay,
    sightings,
    snapshot,
)
from monolith_kv.storage.framing import Damage
from monolith_kv.storage.overflow import DAMAGED, GOOD, OverflowTier, fids_of
from monolith_kv.storage.tables import read_schemas

ROOT = "/fuzzed"
REFUSED = (mkv.CorruptionError, mkv.FormatVersionError)
RENEW = 512  # Executions after which rows that were read into tables are forgotten.
SCHEMAS = {
    1: TableSchema("item", *slices_of(2), admission=FrequencyGate(3, capacity=1), ttl_default=60),
    2: TableSchema("user", (Slice("bias", 1, mkv.Ftrl()), Slice("v", 2, mkv.Adam())), True),
}


class Parser(NamedTuple):
    """One target: what it may raise, and how its input is built (see mutations.py)."""

    parse: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    shape: str


# --- without checksums, from memory ------------------------------------------------------------


class AnyChecksum(int):
    """A checksum that every other one is equal to."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Memory:
    """The one file there is, under every name."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzzed")

    def put(self, data: bytes) -> None:
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)

    def open(self, path: str) -> int:
        return os.dup(self.fd)


MEMORY = Memory()
AGREES = AnyChecksum(0)


@contextlib.contextmanager
def checks_off() -> Iterator[None]:
    """Let every checksum agree, and read files from memory."""
    with contextlib.ExitStack() as stack:
        for module in (framing, format):
            stack.enter_context(mock.patch.object(module, "crc32c", _agree))
        stack.enter_context(mock.patch.object(files, "open_readable", MEMORY.open))
        stack.enter_context(mock.patch.object(recovery, "store_digest", _agree))
        stack.enter_context(mock.patch.object(cold_rows, "crc32c_each", _agree_each))
        yield


def _agree(data: object, value: int = 0) -> AnyChecksum:
    return AGREES


def _agree_each(rows: object, size: int, value: int) -> AnyChecksum:
    return AGREES


# --- tables that what was read goes into -------------------------------------------------------


class Tables:
    """A state with the tables of SCHEMAS, made anew from time to time; it may have two tiers."""

    def __init__(self, *, has_overflow: bool = False) -> None:
        self._uses = itertools.count()
        self._has_overflow = has_overflow
        self._state = self._made()

    def _made(self) -> StoreState:
        state = StoreState(ROOT, "r", Settings(), lambda: 0.0, lambda: 0.0)
        for table_id, schema in SCHEMAS.items():
            state.put_entry(state.make_entry(table_id, schema))
        if self._has_overflow:
            folder = tempfile.mkdtemp(prefix="mkv-fuzz-", dir=FAST_FOLDER)
            state.overflow = OverflowTier(os.path.join(folder, "overflow"), None)
            weakref.finalize(state, _end, state.overflow, folder)
        return state

    def state(self) -> StoreState:
        """Return the state, without what the last use left but rows."""
        if next(self._uses) % RENEW == RENEW - 1:
            self._state = self._made()
        for entry in self._state.tables.values():
            entry.pending_sightings = []
        return self._state

    def entry(self, table_id: int = 1) -> TableEntry:
        return self.state().tables[SCHEMAS[table_id].name]

    def core(self) -> TableCore:
        return self.entry().core


def _end(overflow: OverflowTier, folder: str) -> None:
    overflow.close()
    os.rmdir(folder)


TABLES = Tables()
TIERED = Tables(has_overflow=True)


def _are_known(tables: Any) -> bool:
    """Whether META names the tables that are there: others are for the schema's own target."""
    return read_schemas(tables, ROOT) == SCHEMAS


# --- files -------------------------------------------------------------------------------------


def parse_manifest(data: bytes) -> None:
    MEMORY.put(data)
    manifest.load(ROOT)


def parse_delta(data: bytes) -> None:
    MEMORY.put(data)
    reader = delta_log.DeltaReader(f"{ROOT}/a.delta")
    if _are_known(reader.meta["tables"]):
        recovery.load_delta(TABLES.state(), reader)
    else:
        reader.verify()


def parse_snapshot(data: bytes) -> None:
    MEMORY.put(data)
    reader = snapshot.SnapshotReader(f"{ROOT}/a.snapshot")
    if _are_known(reader.meta["tables"]):
        state = TABLES.state()
        base = recovery.load_snapshot(state, reader)
        recovery._load_unsealed(state, base)
    else:
        reader.verify()


def parse_adopted(data: bytes) -> None:
    """A snapshot whose cold rows are not read, but stay where they are."""
    MEMORY.put(data)
    reader = snapshot.SnapshotReader(f"{ROOT}/a.snapshot")
    if not _are_known(reader.meta["tables"]):
        return
    state = TIERED.state()
    recovery.load_snapshot(state, reader)
    assert state.overflow is not None
    for entry in state.tables.values():
        if entry.core.cold_rows:
            cold = entry.core.cold(entry.core.walk(0)[0])
            state.overflow.read(entry.core, cold)  # Of checksums of places none agrees by chance.


def parse_calls(data: bytes) -> None:
    MEMORY.put(data)
    with call_log.read(f"{ROOT}/a.calls") as log:
        calls = list(log)
    state = TABLES.state()
    for call in calls:
        if isinstance(call, call_log.Create | call_log.Configure):
            TableSchema.from_json(call.settings)
        elif not isinstance(call, call_log.Drop):
            replay._replay_call(state, call, ROOT)


def parse_sightings(data: bytes) -> None:
    MEMORY.put(data)
    found = sightings.load(ROOT, format.sightings_name(1, 1))
    pending.load_pending(TABLES.state(), found)


def parse_target(data: bytes) -> None:
    MEMORY.put(data)
    replication_target.read_target(ROOT)


def parse_dense(data: bytes) -> None:
    for array in dense.unpack(data, ROOT).values():
        array.tobytes()


def _small_table() -> TableCore:
    core = TableCore(Barrier(), [(4, 0, (1.0,), 0, 0.0, 0.0, 0)], 1)
    core.upsert(COLD_IDS, np.ones((len(COLD_IDS), 4), np.float32), 1_000.0)
    return core


def row_file() -> bytes:
    """The file in which all rows of the table are good."""
    core = _small_table()
    return bytes(format.HEADER_BYTES) + core.checksummed(_records(core), 0).tobytes()


def _records(core: TableCore) -> np.ndarray:
    """Those of the rows that become cold, in the order of their ids."""
    return np.concatenate([core.pack(COLD_IDS[i : i + 1])[0] for i in range(len(COLD_IDS))])


def _cold_table() -> TableCore:
    """A table whose rows lie in the one file there is."""
    core = _small_table()
    core.begin_overflow(4)
    core.add_row_file(0, MEMORY.fd, 0, format.HEADER_BYTES)
    core.evict(_records(core), np.arange(len(COLD_IDS), dtype=np.uint32))
    return core


COLD_IDS = np.arange(3, 11, dtype=np.uint64)
COLD = _cold_table()


def parse_overflow(data: bytes) -> None:
    """A row file, whatever it holds: a record of it is good, or damaged."""
    MEMORY.put(data)
    records, outcomes = COLD.read_cold(COLD_IDS)
    assert ((outcomes == GOOD) | (outcomes == DAMAGED)).all()
    assert (fids_of(records)[outcomes == GOOD] == COLD_IDS[outcomes == GOOD]).all()


# --- payloads ----------------------------------------------------------------------------------


def parse_zstd(data: bytes) -> None:
    assert len(framing.decompress(memoryview(data))) <= format.RECORD_BYTES_MAX


def parse_gate(data: bytes) -> None:
    core = TABLES.core()
    core.gate_load(data[1:], bool(data[:1] > b"\x7f"))
    core.gate_state()


def parse_sighted(data: bytes) -> None:
    TABLES.core().see(data, False)


def parse_rows(data: bytes) -> None:
    core = TABLES.core()
    core.apply(np.frombuffer(data, np.uint8), np.empty(0, np.uint64))
    core.expired(0, 1.5e9)


def parse_lineage(data: bytes) -> None:
    found = framing.decode_json(memoryview(data), ROOT, 0)
    lineage = Lineage.from_json(found.get("lineage", []))
    assert Lineage.from_json(lineage.to_json()) == lineage
    assert lineage.covers(lineage, 5)


def parse_schema(data: bytes) -> None:
    schema = TableSchema.from_json(framing.decode_json(memoryview(data), ROOT, 0))
    assert TableSchema.from_json(schema.to_json()) == schema
    if schema.admission is None and len(data) % 16 == 0:  # A table takes a while to make.
        core = TableCore(TABLES.state().barrier, schema.core_slices(), 1)
        settle_core(core, schema, is_writer=False)


PARSERS = {
    "manifest": Parser(parse_manifest, REFUSED, "records"),
    "delta": Parser(parse_delta, REFUSED, "records"),
    "snapshot": Parser(parse_snapshot, REFUSED, "records"),
    "adopted": Parser(parse_adopted, REFUSED, "records"),
    "calls": Parser(parse_calls, REFUSED, "records"),
    "sightings": Parser(parse_sightings, REFUSED, "records"),
    "target": Parser(parse_target, REFUSED, "records"),
    "dense": Parser(parse_dense, REFUSED, "dense"),
    "overflow": Parser(parse_overflow, (), "bytes"),
    "zstd": Parser(parse_zstd, (Damage,), "bytes"),
    "gate": Parser(parse_gate, (ValueError,), "bytes"),
    "sighted": Parser(parse_sighted, (ValueError,), "bytes"),
    "rows": Parser(parse_rows, (ValueError,), "bytes"),
    "lineage": Parser(parse_lineage, REFUSED, "json"),
    "schema": Parser(parse_schema, REFUSED, "json"),
}
