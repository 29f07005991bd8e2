"""Store: what users call on the whole. Arguments are checked here; the work is done below."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from types import MappingProxyType, TracebackType
from typing import Any, Self

from monolith_kv.applying import apply_delta, promote_replica, refresh_reader
from monolith_kv.catalog import deltas_after, retire, snapshot_of
from monolith_kv.checkpoint import rescue, write_snapshot
from monolith_kv.compaction import Compactor
from monolith_kv.dense_parameters import DenseParameters
from monolith_kv.errors import ClockError, ReadOnlyError, TableExistsError
from monolith_kv.initializers import Initializer
from monolith_kv.maintenance import Maintenance
from monolith_kv.opening import close_state
from monolith_kv.optimizers import Optimizer
from monolith_kv.policies import FrequencyGate
from monolith_kv.published import Compaction, Delta, Snapshot
from monolith_kv.schema import Slice, check_name
from monolith_kv.sealing import seal
from monolith_kv.settings import KEEP, configure, create, drop, new_schema, same_schema
from monolith_kv.state import Mode, StoreState, TableEntry, store_digest
from monolith_kv.stats import store_stats
from monolith_kv.table import Table
from monolith_kv.units import parse_duration
from monolith_kv.validation import as_cursor, as_path, as_sequence
from monolith_kv.verifying import verify_store

Duration = float | int | str
Path = str | PathLike[str]
Progress = Callable[[int, int], None]


class Store:
    """A directory of embedding tables that share one log, one memory budget and one clock.

    Stores come from `open` and `restore`. A Store pickles as its path and opens there in mode "r";
    a Table likewise. In a forked child every call but `close` raises ForkedError. Safe to call
    from any number of threads.

    Examples
    --------
    >>> import tempfile
    >>> import monolith_kv as mkv
    >>> with mkv.open(tempfile.mkdtemp()) as store:
    ...     table = store.create_table("item", dim=8)
    ...     rows = table.pull([1, 2, 3])
    ...     store.seal(cursor={"offset": 3}).rows
    3
    """

    def __init__(self, state: StoreState, reopen: Callable[..., "Store"]) -> None:
        self._state = state
        self._reopen = reopen
        state.rescue = rescue
        self.path = state.path
        self.dense = DenseParameters(state)
        self._compactor = Compactor(state)
        self._maintenance = Maintenance(state, self._compactor)
        self._maintenance.start()

    def __repr__(self) -> str:
        return f"<monolith_kv.Store {self.path!r} mode={self._state.mode!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, (self.path, "r")

    def __enter__(self) -> Self:
        self._state.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Seal what is left, stop the background, unlock. Again: nothing.

        Raises
        ------
        Error, OSError
            What is left could not be sealed; the store is closed all the same, as by a crash.
        """
        state = self._state
        if state.pid != os.getpid() or state.closed:
            return
        state.closed = True
        self._maintenance.stop()
        close_state(state)
        state.raise_background()

    # --- where it stands -------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How it is open; `promote` changes it."""
        return self._checked().mode

    @property
    def sequence(self) -> int:
        """Of the last sealed (or, on a replica, applied) delta; 0 at first."""
        return self._checked().visible.sequence

    @property
    def epoch(self) -> int:
        """From 1; raised whenever history may fork. Deltas of older ones are fenced."""
        return max(1, self._checked().manifest.lineage.epoch)

    @property
    def cursor(self) -> Mapping[str, Any]:
        """As given to the last seal that is durable; {} before."""
        return MappingProxyType(as_cursor(self._checked().visible.cursor))

    @property
    def tables(self) -> Mapping[str, Table]:
        """All tables by name; a later change does not show in it."""
        entries = self._checked().tables
        return MappingProxyType({name: self._handle(entry) for name, entry in entries.items()})

    # --- tables ----------------------------------------------------------------------------

    def create_table(
        self,
        name: str,
        dim: int | Sequence[Slice],
        *,
        optimizer: Optimizer = KEEP,
        initializer: Initializer = KEEP,
        admission: FrequencyGate | None = KEEP,
        ttl: Duration | Mapping[int | None, Duration] | None = KEEP,
        exist_ok: bool = False,
    ) -> Table:
        """Create a table.

        Parameters
        ----------
        name : str
            1 to 64 of A-Z a-z 0-9 _ . -
        dim : int, or sequence of Slice
            1 to 4096. Slices give one record several parts, each with its own dim, optimizer and
            initializer, behind one index probe; the table's dim is then their sum.
        optimizer : Optimizer
            Adagrad() by default; with slices each has its own.
        initializer : Initializer
            Uniform() by default; with slices each has its own.
        admission : FrequencyGate, optional
            None: every id is admitted at once.
        ttl : duration, or mapping of slot to duration, optional
            How long a record lives after its last update. A mapping gives slots (the top 16 bits
            of the id) their own, None standing for all others; slots not covered never expire.
        exist_ok : bool
            Return the table of this name if there is one, with the settings given here; it keeps
            its own for those left out.

        Returns
        -------
        Table

        Raises
        ------
        TableExistsError
            There is a table of this name, and not `exist_ok`.
        SchemaError
            With `exist_ok`, the slices (names, dims, kinds of optimizer) differ.
        TypeError, ValueError
            An argument is bad; nothing was created.

        Notes
        -----
        Creating and dropping tables is part of the next delta.
        """
        state = self._writable()
        check_name(name, "table name")
        with state.mutex:
            known = state.tables.get(name)
            if known is not None and not exist_ok:
                raise TableExistsError(
                    f"there is a table {name}; take another name or exist_ok=True"
                )
            if known is not None:
                schema = same_schema(known.schema, dim, optimizer, initializer, admission, ttl)
                configure(state, known, schema)
                return self._handle(known)
            schema = new_schema(name, dim, optimizer, initializer, admission, ttl)
            return self._handle(create(state, schema))

    def table(self, name: str) -> Table:
        """Return a table.

        Parameters
        ----------
        name : str
            Of the table.

        Raises
        ------
        KeyError
            There is none; the message names those that there are.
        """
        return self._handle(self._entry(self._checked(), name))

    def drop_table(self, name: str) -> None:
        """Drop a table; its handles raise ClosedError from then on.

        Parameters
        ----------
        name : str
            Of the table.

        Raises
        ------
        KeyError
            There is none.
        """
        state = self._writable()
        with state.undisturbed():
            drop(state, self._entry(state, name))

    # --- minute deltas ---------------------------------------------------------------------

    def seal(self, *, cursor: Mapping[str, Any] | None = None) -> Delta | None:
        """Publish every row touched and every id removed since the last seal as one delta.

        Parameters
        ----------
        cursor : mapping, optional
            A small JSON object (stream offsets, say) that becomes durable together with the rows;
            left out, it stays as it was.

        Returns
        -------
        Delta or None
            None when nothing changed and no cursor is given.

        Raises
        ------
        StoreFullError
            There is no room; nothing was published, and nothing is lost.
        TypeError, ValueError
            The cursor is no JSON object.
        """
        state = self._writable()
        delta = seal(state, None if cursor is None else as_cursor(cursor))
        if delta is not None:
            state.check_durable()
        return delta

    def deltas(self, after: int = 0) -> Iterator[Delta]:
        """Return the published deltas with sequence > `after`, in order.

        Parameters
        ----------
        after : int
            The last sequence that is not wanted.

        Raises
        ------
        GapError
            Retention has already dropped one of them.
        """
        return deltas_after(self._checked(), as_sequence(after, "after"))

    def apply(self, delta: Delta | Path) -> bool:
        """Apply the next delta to a replica, all of it or nothing, readers going on meanwhile.

        Parameters
        ----------
        delta : Delta or path-like
            The file; it is copied.

        Returns
        -------
        bool
            False if this very delta was applied before, or is in the replica's snapshot.

        Raises
        ------
        GapError
            It is not the next one.
        FencedError
            It is of an older epoch, another history or another store.
        CorruptionError, SchemaError
            It is damaged, or does not fit the tables.
        ReadOnlyError
            The store is no replica.

        Notes
        -----
        After any error the replica is unchanged.
        """
        state = self._checked()
        if state.mode != "replica":
            raise ReadOnlyError(
                f'{self.path} is open "{state.mode}"; only a replica applies deltas'
            )
        state.raise_background()
        return apply_delta(
            state, delta.path if isinstance(delta, Delta) else as_path(delta, "delta")
        )

    def promote(self) -> None:
        """Make a replica the writer, in a new epoch.

        Raises
        ------
        ReadOnlyError
            The store is no replica, or has no identity yet.
        """
        state = self._checked()
        if state.mode != "replica":
            raise ReadOnlyError(f'{self.path} is open "{state.mode}"; only a replica is promoted')
        promote_replica(state)
        self._maintenance.start()

    def refresh(self) -> bool:
        """Move a store in mode "r" to the last durable state.

        Returns
        -------
        bool
            False if there is none newer.
        """
        state = self._checked()
        if state.mode != "r":
            raise ReadOnlyError(f'{self.path} is open "{state.mode}"; only "r" is refreshed')
        return refresh_reader(state)

    # --- daily checkpoints -----------------------------------------------------------------

    def snapshot(self, path: Path | None = None, *, progress: Progress | None = None) -> Snapshot:
        """Write a full, self-contained, checksummed checkpoint of one instant.

        Parameters
        ----------
        path : path-like, optional
            Of the file. By default it is under the store, and what it covers of the log is
            retired; one elsewhere retires nothing.
        progress : callable, optional
            Called with (records written, records in all).

        Returns
        -------
        Snapshot

        Raises
        ------
        FileExistsError
            `path` is taken.
        StoreFullError
            There is no room; nothing changed.

        Notes
        -----
        Reads and pushes go on meanwhile.
        """
        state = self._checked()
        if path is None and state.mode == "r":
            raise ReadOnlyError(f'{self.path} is open "r"; give a path elsewhere')
        if state.mode == "rw":
            state.admit()
        state.raise_background()
        made = write_snapshot(state, None if path is None else as_path(path), progress)
        if path is None:
            state.check_durable()
        return made

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots under the store, oldest first."""
        state = self._checked()
        return [snapshot_of(state, entry) for entry in state.manifest.snapshots]

    # --- care ------------------------------------------------------------------------------

    def compact(self, *, budget: Duration | None = None, force: bool = False) -> Compaction:
        """Remove expired records, those with now - timestamp >= ttl, and give their memory back.

        Parameters
        ----------
        budget : duration, optional
            Stop after about so long; call again to go on.
        force : bool
            Also where over half of a table (and over 1,000 records) would go.

        Returns
        -------
        Compaction

        Raises
        ------
        ClockError
            Without `force`, for such a table; the others were compacted.

        Notes
        -----
        Removals are in the next delta. A replica removes nothing by itself.
        """
        state = self._checked()
        budget_s = None if budget is None else parse_duration(budget, "budget")
        self._writable()
        done = self._compactor.run(budget_s, force=bool(force))
        with state.files:
            retire(state)
        if state.suspects and not force:
            raise ClockError("; ".join(state.suspects.values()))
        return done

    def digest(self, table: str | None = None) -> str:
        """Return an order-independent hash of all records' ids and embeddings.

        Parameters
        ----------
        table : str, optional
            Of this table alone.

        Returns
        -------
        str
            Hexadecimal; equal on a primary and a replica that hold the same rows.

        Notes
        -----
        Kept up as rows change: it costs no scan.
        """
        state = self._checked()
        entries = list(state.tables.values()) if table is None else [self._entry(state, table)]
        with state.barrier:
            return store_digest(entries)

    def verify(self) -> list[str]:
        """Read everything, check every checksum and invariant.

        Returns
        -------
        list of str
            The problems found, each naming its file; [] if there are none.
        """
        return verify_store(self._checked())

    def stats(self) -> dict[str, Any]:
        """Return figures about tables, tiers, files and the background.

        Returns
        -------
        dict
            "sequence", "epoch", "mode", "path", "uuid", "rows" (of all tables);
            "tables": by name, "rows", "cold_rows" (of them in overflow), "touched" (since the last
            seal), "memory" (bytes by kind: rows, index, sketch, touched), "gate" (admitted,
            rejected, fill, error_estimate), "counters" (inserted, expired, removed, evicted,
            promoted, lookups, hits, cold_hits: ids);
            "memory": "bytes" of tables, "kinds" (all, by kind), and "used", "limit", "is_full";
            "overflow": None, or "rows", "bytes", "dead_bytes", "limit", "corrupt", and of all since
            opening "evicted", "evicted_bytes", "written_bytes", "write_amplification", "promoted",
            "cold_hits" (ids read there), "hit_rate" of memory;
            "traffic": None, or what the store's writer reported last (docs/reference/cli.md);
            "files": "deltas", "delta_bytes", "snapshots", "snapshot_bytes", "call_log_bytes",
            "call_log_records"; "dense": "version", "bytes"; "calls_replayed": when it was opened;
            "lost": what the last recovery knew to be lost, "damaged": files it passed over;
            "suspects": tables that compaction leaves alone, and why;
            "background": "error" that the next call raises, "failure" that made it read-only.
        """
        return store_stats(self._checked())

    # --- helpers ---------------------------------------------------------------------------

    def _checked(self) -> StoreState:
        self._state.check()
        return self._state

    def _writable(self) -> StoreState:
        self._state.admit()
        return self._state

    def _entry(self, state: StoreState, name: str) -> TableEntry:
        entry = state.tables.get(name)
        if entry is None:
            names = ", ".join(sorted(state.tables)) or "none"
            raise KeyError(f"there is no table {name!r}; there are: {names}")
        return entry

    def _handle(self, entry: TableEntry) -> Table:
        if entry.handle is None:
            entry.handle = Table(self, self._state, entry)
        handle: Table = entry.handle
        return handle
