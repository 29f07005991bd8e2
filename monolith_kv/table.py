"""Table: what users call on one table. Checks arguments at the door, then hands arrays down.

Reads take no Python lock. A row that lies in overflow is read there; its place in the result comes
back from the data plane as a position.
"""

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monolith_kv import calls
from monolith_kv.budget import fill_cold, read_records
from monolith_kv.errors import ClosedError
from monolith_kv.optimizers import Optimizer
from monolith_kv.policies import FrequencyGate
from monolith_kv.settings import KEEP, configure, settings_changed
from monolith_kv.state import StoreState, TableEntry
from monolith_kv.validation import (
    BOOL,
    as_fid,
    as_ids,
    as_offsets,
    as_rows,
    as_weights,
    check_out,
)

Ids = NDArray[np.uint64]
Rows = NDArray[np.float32]
COMBINERS = {"sum": 0, "mean": 1, "sqrtn": 2}


class Table:
    """Map fids to embeddings (and optimizer state). Safe to call from any number of threads.

    Tables come from `Store.create_table`, `Store.table` and `Store.tables`. Ids are 1-D uint64;
    int64 is read as the same 64 bits, an empty list as no ids. With n ids and d = `dim`, rows are
    float32 of shape (n, d). A table pickles as the store's path and its name.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import monolith_kv as mkv
    >>> with mkv.open(tempfile.mkdtemp()) as store:
    ...     table = store.create_table("item", 2, initializer=mkv.Zeros())
    ...     table.upsert([7], np.ones((1, 2), np.float32))
    ...     table.lookup([7, 8]).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, owner: Any, state: StoreState, entry: TableEntry) -> None:
        self._dim = entry.schema.dim
        self._owner = owner  # The Store: pickled with the table.
        self._state = state
        self._entry = entry

    # By its ids 0, 1, 2 it would be a sequence to Python: there is `scan`.
    __iter__ = __reversed__ = None

    @property
    def name(self) -> str:
        """Of the table."""
        return self._entry.schema.name

    @property
    def dim(self) -> int:
        """Width of an embedding, over all slices."""
        return self._dim

    def __repr__(self) -> str:
        return f"<monolith_kv.Table {self.name!r} dim={self.dim} of {self._state.path!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _table_of, (self._owner, self.name)

    # --- reads that change nothing ---------------------------------------------------------

    def lookup(
        self,
        ids: ArrayLike,
        *,
        out: Rows | None = None,
        found: NDArray[np.bool_] | None = None,
    ) -> Rows:
        """Copy the embeddings of `ids`.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Duplicates are fine.
        out : ndarray of float32, shape (n, dim), C-contiguous, optional
            Filled in place and returned.
        found : ndarray of bool, shape (n,), C-contiguous, optional
            Filled with which ids have a row.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            The row of an absent id is zero.

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong dtype or shape; nothing is filled.
        ClosedError
            The store is closed or the table was dropped.

        Notes
        -----
        Releases the GIL unless it is short: 128 KiB of rows at most, some 20 us, that nobody
        changes for long. Creates no row, counts no sighting.
        """
        core = self._readable().core
        ids = as_ids(ids)
        if out is None:
            out = np.empty((len(ids), self._dim), np.float32)
        else:
            check_out(out, (len(ids), self._dim))
        flags = None
        if found is not None:
            check_out(found, (len(ids),), BOOL, "found")
            flags = found.view(np.uint8)
        cold = core.lookup(ids, out, flags)
        if cold is not None:
            fill_cold(self._state, self._entry, ids, cold, out, found)
        return out

    def lookup_pooled(
        self,
        ids: ArrayLike,
        offsets: ArrayLike,
        *,
        combiner: Literal["sum", "mean", "sqrtn"] = "sum",
        weights: ArrayLike | None = None,
        include_last_offset: bool = False,
        out: Rows | None = None,
    ) -> Rows:
        """Pool the embeddings of bags of ids, as torch.nn.EmbeddingBag does.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Those of all bags, one bag after the other.
        offsets : array_like of int, shape (bags,) or (bags + 1,)
            Where each bag begins; they begin with 0 and never fall. The last bag runs to the end.
        combiner : {"sum", "mean", "sqrtn"}
            "mean" divides by the number of ids of the bag, "sqrtn" by its square root; absent ids
            count, too.
        weights : array_like of float32, shape (n,), optional
            Factor of each row, with "sum" only.
        include_last_offset : bool
            The last offset is where the last bag ends.
        out : ndarray of float32, shape (bags, dim), C-contiguous, optional
            Filled in place and returned.

        Returns
        -------
        ndarray of float32, shape (bags, dim)
            An empty bag is zeros; an absent id adds zeros.

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong dtype, shape or value.

        Notes
        -----
        Releases the GIL.
        """
        core = self._readable().core
        ids = as_ids(ids)
        if combiner not in COMBINERS:
            raise ValueError(f"combiner must be one of {', '.join(COMBINERS)}, got {combiner!r}")
        ends = as_offsets(offsets, len(ids), include_last_offset)
        factors = as_weights(weights, len(ids), combiner)
        shape = (len(ends) - 1, self._dim)
        if out is None:
            out = np.empty(shape, np.float32)
        else:
            check_out(out, shape)
        cold = core.lookup_pooled(ids, ends, COMBINERS[combiner], factors, out)
        if cold is not None:
            self._pool(ids, ends, combiner, factors, out)
        return out

    def prefetch(self, ids: ArrayLike) -> None:
        """Bring ids in from overflow in the background, for a pull that comes soon.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Those that are absent or in memory are passed over.
        """
        entry = self._readable()
        ids = as_ids(ids)
        prefetch = self._state.prefetch
        if prefetch is not None and entry.core.cold_rows:
            prefetch(entry, ids.copy())

    def contains(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Tell which ids have a row.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Duplicates are fine.

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        core = self._readable().core
        ids = as_ids(ids)
        found = np.empty(len(ids), np.bool_)
        core.contains(ids, found.view(np.uint8))
        return found

    def state(self, ids: ArrayLike) -> dict[str, NDArray[np.float32]]:
        """Copy the optimizer state of `ids`.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Duplicates are fine.

        Returns
        -------
        dict of str to ndarray of float32, shape (n, k)
            By the names of the optimizer's class ("slice.name" where there are slices); zeros for
            absent ids; {} for SGD.
        """
        entry = self._readable()
        core = entry.core
        ids = as_ids(ids)
        values = np.zeros((len(ids), core.state_floats), np.float32)
        cold = core.state(ids, values)
        if cold is not None:
            fill_cold(self._state, self._entry, ids, cold, values, is_state=True)
        return {
            name: np.ascontiguousarray(values[:, offset : offset + width])
            for name, offset, width in entry.schema.state_layout()
        }

    def timestamps(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Tell when ids were last pushed, upserted or inserted.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Duplicates are fine.

        Returns
        -------
        ndarray of int64, shape (n,)
            Whole seconds since the epoch; -1 where absent.
        """
        core = self._readable().core
        ids = as_ids(ids)
        times = np.empty(len(ids), np.int64)
        core.timestamps(ids, times)
        return times

    def scan(self, batch: int = 65536) -> Iterator[tuple[Ids, Rows]]:
        """Iterate over every record once, in no order.

        Parameters
        ----------
        batch : int
            At most so many records at a time.

        Returns
        -------
        iterator of (ndarray of uint64, shape (n,), ndarray of float32, shape (n, dim))
            Records changed meanwhile appear old or new; those inserted or removed, or not.
        """
        entry = self._readable()
        if isinstance(batch, bool) or not isinstance(batch, Integral):
            raise TypeError(f"batch must be an int, got {type(batch).__name__}")
        if batch < 1:
            raise ValueError(f"batch must be 1 or more, got {batch}")
        return self._scan(entry, int(batch))

    def _scan(self, entry: TableEntry, batch: int) -> Iterator[tuple[Ids, Rows]]:
        core, cursor = entry.core, 0
        kept: list[NDArray[Any]] = []
        count = 0
        while cursor >= 0:
            self._readable()
            fids, cursor = core.walk(cursor)
            for start in range(0, len(fids), batch):
                records, cold = core.pack(fids[start : start + batch])
                kept.append(entry.rows_of(records))
                if len(cold):
                    kept.append(read_records(self._state, entry, cold))
                count = sum(map(len, kept))
                while count >= batch:
                    rows = np.concatenate(kept)
                    yield self._batch(rows[:batch])
                    kept, count = [rows[batch:]], count - batch
        if count:
            yield self._batch(np.concatenate(kept))

    def _batch(self, rows: NDArray[Any]) -> tuple[Ids, Rows]:
        return rows["fid"].astype(np.uint64), rows["row"][:, : self._dim].astype(np.float32)

    def __len__(self) -> int:
        return self._readable().core.rows

    def __contains__(self, fid: int) -> bool:
        return bool(self.contains(as_fid(fid))[0])

    def __getitem__(self, fid: int) -> Rows:
        found = np.empty(1, np.bool_)
        rows = self.lookup(as_fid(fid), found=found)
        if not found[0]:
            raise KeyError(fid)
        row: Rows = rows[0]
        return row

    # --- training --------------------------------------------------------------------------

    def pull(self, ids: ArrayLike, *, out: Rows | None = None) -> Rows:
        """Copy the embeddings of `ids` for training: count, admit and initialise absent ones.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Each distinct id counts once at the admission gate.
        out : ndarray of float32, shape (n, dim), C-contiguous, optional
            Filled in place and returned.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            An absent id that passes the gate is inserted with its initial value, which depends on
            the seed, the table's and slice's names and the id alone; one that does not reads as
            zeros. A row that is there is not renewed.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        StoreFullError
            There is no room for a new id; none was inserted.

        Notes
        -----
        Releases the GIL.
        """
        entry = self._writable()
        ids = as_ids(ids)
        if out is not None:
            check_out(out, (len(ids), self._dim))
        return calls.pull(self._state, entry, ids, out)

    def push(self, ids: ArrayLike, gradients: ArrayLike) -> None:
        """Take one optimizer step for each distinct id that has a row.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Those not in the table are ignored.
        gradients : array_like of float32, shape (n, dim)
            Finite. Those of one id are summed, in the order in which they are given.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        ValueError
            A gradient is not finite, or a sum overflows; nothing was applied.

        Notes
        -----
        Releases the GIL. A step is not checked: where gradients are so large (their squares, above
        some 1e19, or a step beyond 3e38) that the optimizer's formula overflows, rows or state are
        what it gives, infinity or NaN. Clip gradients.
        """
        entry = self._writable()
        ids = as_ids(ids)
        calls.push(self._state, entry, ids, as_rows(gradients, len(ids), self._dim, "gradients"))

    def upsert(self, ids: ArrayLike, rows: ArrayLike) -> None:
        """Set embeddings, past the gate.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Where an id is new, its optimizer state is fresh; elsewhere it stays.
        rows : array_like of float32, shape (n, dim)
            Finite. The last one of duplicates wins.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        StoreFullError
            There is no room for a new id; nothing was set.
        """
        entry = self._writable()
        ids = as_ids(ids)
        calls.upsert(self._state, entry, ids, as_rows(rows, len(ids), self._dim, "rows"))

    def remove(self, ids: ArrayLike) -> int:
        """Remove ids; return how many were there.

        Parameters
        ----------
        ids : array_like of uint64 or int64, shape (n,)
            Duplicates count once.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        """
        entry = self._writable()
        return calls.remove(self._state, entry, as_ids(ids))

    def configure(
        self,
        *,
        ttl: Any = KEEP,
        admission: FrequencyGate | None = KEEP,
        optimizer: Optimizer | Mapping[str, Optimizer] = KEEP,
    ) -> None:
        """Change what may change in a living table; what is left out stays.

        Parameters
        ----------
        ttl : duration, mapping of slot to duration, or None, optional
            As in `Store.create_table`.
        admission : FrequencyGate or None, optional
            Counts are kept where the sketch stays the same.
        optimizer : Optimizer, or mapping of slice name to Optimizer, optional
            Other hyper-parameters of the same kind: a learning-rate schedule.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        SchemaError
            The optimizer is of another kind.
        TypeError, ValueError
            A setting is bad, or a slice is not there; nothing was changed.
        """
        entry = self._writable()
        with self._state.mutex:
            schema = settings_changed(entry.schema, ttl, admission, optimizer)
            configure(self._state, entry, schema)

    # --- helpers ---------------------------------------------------------------------------

    def _readable(self) -> TableEntry:
        self._state.check()
        if self._entry.dropped:
            raise ClosedError(f"table {self.name} was dropped")
        return self._entry

    def _writable(self) -> TableEntry:
        self._state.admit_change()
        if self._entry.dropped:
            raise ClosedError(f"table {self.name} was dropped")
        return self._entry

    def _pool(
        self,
        ids: Ids,
        ends: NDArray[np.int64],
        combiner: str,
        weights: Rows | None,
        out: Rows,
    ) -> None:
        """Pool with rows in overflow among them: look all up, then add."""
        rows = self.lookup(ids[: ends[-1]])
        if weights is not None:
            rows *= weights[: ends[-1], None]
        counts = np.diff(ends)
        out[...] = 0.0
        filled = np.flatnonzero(counts)
        if len(filled):
            out[filled] = np.add.reduceat(rows, ends[filled], axis=0)
        if combiner != "sum":
            share = counts if combiner == "mean" else np.sqrt(counts)
            out[filled] /= share[filled, None].astype(np.float32)


def _table_of(owner: Any, name: str) -> Any:
    return owner.table(name)
