"""The oracle: what a store holds by the rules of the contract, as a dict of NumPy rows.

Nothing here is clever: each rule of the contract is one method. Where the contract leaves the
engine a choice the model names the bounds (`Verdict`, `Sealing`) and the test settles it by what it
observed. Arrays in rows are never written in place, so copies are shallow.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from formulas import Floats, Kernel, State, fresh_state, initial_value, step
from numpy.typing import NDArray

__all__ = ["Delta", "Gate", "ManualClock", "Part", "Row", "Snapshot", "StoreModel", "TableModel"]

Ids = Sequence[int]
_tokens = itertools.count(1)


class ManualClock:
    """Seconds since the epoch, moved by hand; remembers how far it was and how far it went."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = self.high = now
        self.travelled = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.travelled += abs(seconds)
        self.high = max(self.high, self.now)


# --- a table -----------------------------------------------------------------------------------


class Part(NamedTuple):
    """A slice; the only one of a table without slices is named ""."""

    name: str
    dim: int
    optimizer: Kernel
    initializer: Kernel


class Gate(NamedTuple):
    """The arguments of a FrequencyGate; a mapping of thresholds as its items."""

    threshold: int | tuple[tuple[int | None, int], ...]
    window: int
    capacity: int = 5_000
    error: float = 1e-5

    def of(self, fid: int) -> int:
        if isinstance(self.threshold, int):
            return self.threshold
        thresholds = dict(self.threshold)
        return thresholds.get(fid >> 48, thresholds.get(None, 1))

    def make(self, package: Any) -> Any:
        given = self.threshold if isinstance(self.threshold, int) else dict(self.threshold)
        return package.FrequencyGate(
            given, window=self.window, capacity=self.capacity, error=self.error
        )


Ttl = None | int | tuple[tuple[int | None, int], ...]


class Row(NamedTuple):
    embedding: Floats
    state: State
    timestamp: int


class Sighting(NamedTuple):
    high: float  # of the clock then
    travelled: float
    certain: bool  # False: it may count, or may have been forgotten


class Verdict(NamedTuple):
    """Bounds of what the gate may do with a sighting; equal but near the edges of the window."""

    must: bool
    may: bool


class TableModel:
    def __init__(
        self, name: str, parts: Sequence[Part], gate: Gate | None = None, ttl: Ttl = None
    ) -> None:
        self.name, self.parts, self.gate, self.ttl = name, tuple(parts), gate, ttl
        self.rows: dict[int, Row] = {}
        self.touched: set[int] = set()  # since the last seal, like `removed`
        self.removed: set[int] = set()
        self.seen: dict[int, list[Sighting]] = {}

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    def copy(self) -> "TableModel":
        other = TableModel(self.name, self.parts, self.gate, self.ttl)
        other.rows = dict(self.rows)
        other.touched, other.removed = set(self.touched), set(self.removed)
        other.seen = {fid: list(seen) for fid, seen in self.seen.items()}
        return other

    def sealed(self) -> "TableModel":
        other = self.copy()
        other.touched, other.removed = set(), set()
        return other

    def put(self, fid: int, row: Row) -> None:
        self.rows[fid] = row
        self.touched.add(fid)
        self.removed.discard(fid)

    def erase(self, fid: int) -> None:
        del self.rows[fid]
        self.touched.discard(fid)
        self.removed.add(fid)

    # --- reads

    def lookup(self, ids: Ids) -> tuple[Floats, NDArray[np.bool_]]:
        rows = np.zeros((len(ids), self.dim), np.float32)
        for position, fid in enumerate(ids):
            if fid in self.rows:
                rows[position] = self.rows[fid].embedding
        return rows, np.array([fid in self.rows for fid in ids], bool)

    def lookup_pooled(
        self, ids: Ids, ends: Sequence[int], combiner: str, weights: Sequence[float] | None
    ) -> Floats:
        """Bags as (start, end) pairs taken from consecutive `ends`, which begin at 0."""
        rows = self.lookup(ids)[0].astype(np.float64)
        if weights is not None:
            rows = rows * np.asarray(weights, np.float64)[:, None]
        bags = [rows[start:end] for start, end in itertools.pairwise(ends)]
        divide = {"sum": lambda n: 1.0, "mean": float, "sqrtn": np.sqrt}[combiner]
        sums = [bag.sum(axis=0) / divide(max(len(bag), 1)) for bag in bags]
        return np.array(sums, np.float32).reshape(len(bags), self.dim)

    def state_widths(self) -> dict[str, int]:
        return {name: len(values) for name, values in self.fresh().items()}

    def state(self, ids: Ids) -> State:
        return {
            name: np.array(
                [self.rows[f].state[name] if f in self.rows else np.zeros(width) for f in ids],
                np.float32,
            ).reshape(len(ids), width)
            for name, width in self.state_widths().items()
        }

    def timestamps(self, ids: Ids) -> list[int]:
        return [self.rows[fid].timestamp if fid in self.rows else -1 for fid in ids]

    # --- admission

    def see(self, ids: Iterable[int], clock: ManualClock) -> dict[int, Verdict]:
        """Count a pull of `ids`; what the gate says to those of them that are absent."""
        verdicts = {}
        for fid in dict.fromkeys(ids):
            if fid in self.rows:
                continue  # Not a sighting: docs/decisions/0006-sightings-of-absent-ids.md.
            sighting = Sighting(clock.high, clock.travelled, True)
            self.seen.setdefault(fid, []).append(sighting)
            verdicts[fid] = self.verdict(fid, clock)
        return verdicts

    def verdict(self, fid: int, clock: ManualClock) -> Verdict:
        threshold = 1 if self.gate is None else self.gate.of(fid)
        if threshold == 1:
            return Verdict(True, True)
        window, seen = self.gate.window, self.seen[fid]
        # A clock that jumps makes ages uncertain: at least what it has gained on its highest
        # point, at most the whole way that it went.
        young = sum(s.certain and clock.travelled - s.travelled < window for s in seen)
        alive = sum(clock.now - s.high <= 2 * window for s in seen)
        return Verdict(young >= threshold, alive >= threshold)

    def doubt_sightings(self) -> None:
        for seen in self.seen.values():
            seen[:] = [s._replace(certain=False) for s in seen]

    # --- changes

    def fresh(self) -> State:
        return {
            f"{part.name}.{name}" if part.name else name: values
            for part in self.parts
            for name, values in fresh_state(part.optimizer, part.dim).items()
        }

    def insert(self, fid: int, now: float) -> None:
        first = [initial_value(p.initializer, self.name, p.name, p.dim, fid) for p in self.parts]
        self.put(fid, Row(np.concatenate(first), self.fresh(), int(now)))

    def push(self, ids: Ids, gradients: Floats, now: float) -> list[int]:
        """One step for each distinct id that is there; returns them."""
        sums: dict[int, Floats] = {}
        for fid, gradient in zip(ids, gradients, strict=True):
            if fid in self.rows:
                sums[fid] = sums[fid] + gradient if fid in sums else gradient
        for fid, gradient in sums.items():
            self.put(fid, self.stepped(self.rows[fid], gradient, now))
        return list(sums)

    def stepped(self, row: Row, gradient: Floats, now: float) -> Row:
        embedding, state, start = [], {}, 0
        for part in self.parts:
            prefix = f"{part.name}." if part.name else ""
            own = {k.removeprefix(prefix): v for k, v in row.state.items() if k.startswith(prefix)}
            own = {k: own[k] for k in fresh_state(part.optimizer, part.dim)}
            span = slice(start, start + part.dim)
            w, own = step(part.optimizer, row.embedding[span], own, gradient[span])
            embedding.append(w)
            state |= {prefix + k: v for k, v in own.items()}
            start += part.dim
        return Row(np.concatenate(embedding), state, max(row.timestamp, int(now)))

    def upsert(self, ids: Ids, rows: Floats, now: float) -> None:
        for fid, embedding in zip(ids, rows, strict=True):
            old = self.rows.get(fid, Row(embedding, self.fresh(), int(now)))
            timestamp = max(old.timestamp, int(now))
            self.put(fid, Row(np.array(embedding, np.float32), old.state, timestamp))

    def remove(self, ids: Ids) -> int:
        gone = [fid for fid in dict.fromkeys(ids) if fid in self.rows]
        for fid in gone:
            self.erase(fid)
        return len(gone)

    def ttl_of(self, fid: int) -> int | None:
        if isinstance(self.ttl, tuple):
            times = dict(self.ttl)
            return times.get(fid >> 48, times.get(None))
        return self.ttl

    def expired(self, now: float) -> list[int]:
        times = {fid: self.ttl_of(fid) for fid in self.rows}
        return [f for f, t in times.items() if t and int(now) - self.rows[f].timestamp >= t]

    def set_optimizer(self, name: str, optimizer: Kernel) -> None:
        self.parts = tuple(
            part._replace(optimizer=optimizer) if part.name == name else part for part in self.parts
        )


# --- a store -----------------------------------------------------------------------------------


class Epoch(NamedTuple):
    number: int
    token: int  # tells two epochs of one number apart
    after: int  # its first delta is after + 1


class Sealing(NamedTuple):
    """What a seal has to publish."""

    must: bool  # there is something
    may: bool  # False: there is nothing, and no delta may come of it
    rows: int
    removals: int
    exact: bool  # False: a crash may have added ids that had been published


class StoreModel:
    def __init__(self) -> None:
        self.identity = next(_tokens)
        self.epochs: tuple[Epoch, ...] = (Epoch(1, next(_tokens), 0),)
        self.sequence = 0
        self.cursor: dict[str, Any] = {}
        self.tables: dict[str, TableModel] = {}
        self.dense: dict[str, NDArray[Any]] = {}
        self.dense_version = 0
        self.dense_pending = False
        self.created: set[str] = set()  # since the last seal
        self.dropped: set[str] = set()  # of those that some delta has
        self.settings_pending = False
        self.exact = True
        self.is_ahead = False  # a replica whose snapshot held more than its deltas had

    @property
    def epoch(self) -> int:
        return self.epochs[-1].number

    def copy(self) -> "StoreModel":
        other = StoreModel.__new__(StoreModel)
        other.__dict__ = dict(self.__dict__)
        other.tables = {name: table.copy() for name, table in self.tables.items()}
        other.created, other.dropped = set(self.created), set(self.dropped)
        return other

    def begin_epoch(self) -> None:
        """History may fork here: an unclean open, a restore, a promotion."""
        self.epochs = (*self.epochs, Epoch(self.epoch + 1, next(_tokens), self.sequence))

    def create_table(self, table: TableModel) -> None:
        self.tables[table.name] = table
        self.created.add(table.name)

    def drop_table(self, name: str) -> None:
        del self.tables[name]
        if name in self.created:
            self.created.discard(name)
            self.settings_pending = True  # created and dropped: something or nothing
        else:
            self.dropped.add(name)

    def publish_dense(self, arrays: Mapping[str, NDArray[Any]], version: int) -> None:
        self.dense, self.dense_version, self.dense_pending = dict(arrays), version, True

    def sealing(self, cursor: Mapping[str, Any] | None = None) -> Sealing:
        rows = sum(len(table.touched) for table in self.tables.values())
        removals = sum(len(table.removed) for table in self.tables.values())
        schema = bool(self.created or self.dropped)
        must = bool(rows or removals or schema or self.dense_pending or cursor is not None)
        may = must or self.settings_pending or not self.exact
        return Sealing(must, may, rows, removals, self.exact)

    def seal(self, cursor: Mapping[str, Any] | None = None) -> "Delta":
        self.sequence += 1
        if cursor is not None:
            self.cursor = dict(cursor)
        self.tables = {name: table.sealed() for name, table in self.tables.items()}
        self.created, self.dropped = set(), set()
        self.dense_pending = self.settings_pending = False
        self.exact = True
        return Delta(self.identity, self.epochs, self.sequence, self.copy())

    def crashed(self) -> "StoreModel":
        """The state that an unclean open recovers, given that it is this one."""
        other = self.copy()
        other.begin_epoch()
        other.exact = False
        return other

    def doubt_sightings(self) -> None:
        for table in self.tables.values():
            table.doubt_sightings()

    # --- replicas

    @classmethod
    def empty_replica(cls) -> "StoreModel":
        replica = cls()
        replica.identity, replica.epochs = 0, ()
        return replica

    def judge(self, delta: "Delta") -> set[str]:
        """What apply() may answer: "apply", "again" (False), "gap" or "fenced"."""
        if self.identity not in (0, delta.identity):
            return {"fenced"}
        if delta.sequence <= self.sequence:
            same = _at(self.epochs, delta.sequence) == _at(delta.epochs, delta.sequence)
            return {"again"} if same else {"fenced"}
        held, further = delta.epochs[: len(self.epochs)], delta.epochs[len(self.epochs) :]
        is_next = delta.sequence == self.sequence + 1
        if held != self.epochs or any(epoch.after < self.sequence for epoch in further):
            return {"fenced"} if is_next else {"fenced", "gap"}
        if not is_next:
            return {"gap"}
        # What a crash took from the writer a snapshot may have: then this is no next delta.
        return {"apply", "fenced"} if self.is_ahead and further else {"apply"}

    def applied(self, delta: "Delta") -> "StoreModel":
        """The replica after `delta`: just what the primary held when it was sealed."""
        after = delta.content.copy()
        after.is_ahead = False
        after.doubt_sightings()
        return after

    # --- snapshots

    def restored(self, mode: str) -> "StoreModel":
        other = self.copy()
        other.exact = False
        if mode == "rw":
            other.begin_epoch()
        else:
            other.is_ahead = self.sealing().may
        return other

    @classmethod
    def merged(cls, shards: Sequence["StoreModel"]) -> "StoreModel":
        """A new store of several snapshots, whose ids must be disjoint."""
        whole = cls()
        whole.dense, whole.dense_version = shards[0].dense, shards[0].dense_version
        whole.exact = False
        for shard in shards:
            for name, table in shard.tables.items():
                if name not in whole.tables:
                    whole.create_table(TableModel(name, table.parts, table.gate, table.ttl))
                for fid, row in table.rows.items():
                    whole.tables[name].put(fid, row)
                for fid, seen in table.seen.items():
                    whole.tables[name].seen.setdefault(fid, []).extend(seen)
        return whole


class Delta(NamedTuple):
    identity: int
    epochs: tuple[Epoch, ...]
    sequence: int
    content: StoreModel


class Snapshot(NamedTuple):
    path: str
    content: StoreModel


def _at(epochs: Sequence[Epoch], sequence: int) -> Epoch:
    return next(epoch for epoch in reversed(epochs) if epoch.after < sequence)
