"""Follow: keep a replica up to date from what a source publishes.

What must hold: the replica is readable at any time and only ever moves forward; every delta is
compared with the source's catalogue before and with the store's digest after it is applied; where
deltas do not lead on, a new replica is built beside it, verified as a whole, and put in its place
in one step; an older or emptier history never is, unless the caller forces it.
"""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import monolith_kv as mkv
from monolith_kv.errors import CorruptionError, Error, FencedError, GapError
from monolith_kv.opening import release
from monolith_kv.replication.build import (
    apply_entry,
    bases,
    build_replica,
    expect_digest,
    reason_to_resync,
    refuse_emptier,
    refuse_older,
    rows_most,
    store_rows,
    without,
)
from monolith_kv.replication.folders import WorkFolder, refuse_strange
from monolith_kv.replication.publisher import Progress
from monolith_kv.replication.target import (
    Catalogue,
    Check,
    read_catalogue,
    read_store,
)
from monolith_kv.storage.format import NO_UUID
from monolith_kv.validation import as_path

ATTEMPTS = 5  # Retention may prune the source under us; five times in one step it does not.


@dataclass(frozen=True)
class Followed:
    """What one step of a follower did, and where it left the replica.

    Parameters
    ----------
    sequence, epoch : int
        Of the replica.
    source_sequence : int
        Of the last delta that the source has published.
    applied : int
        Deltas applied one by one.
    resynced : str
        Why the replica was built anew from a snapshot; "" if it was not.
    error : Exception, optional
        What kept the step from its end; only from `Follower.poll`.
    """

    sequence: int
    epoch: int
    source_sequence: int
    applied: int = 0
    resynced: str = ""
    error: Exception | None = None

    @property
    def lag(self) -> int:
        """Published deltas that the replica does not hold yet."""
        return max(0, self.source_sequence - self.sequence)

    @property
    def in_step(self) -> bool:
        """Whether the replica holds exactly what the source has published."""
        return self.error is None and self.sequence == self.source_sequence


class Follower:
    """Keeps a replica up to date from a source; opens, and if need be creates it.

    Parameters
    ----------
    source : path
        A target folder; a store's own folder will do as well.
    replica_path : path
        The replica's folder. While resyncing, a hidden folder `.name.follow` beside it is used.
    **open_options
        For `monolith_kv.open`: memory_limit, clock and so on.

    Attributes
    ----------
    store : Store
        The open replica. A resync swaps it for a new one; the one before it stays readable until
        the next step begins, so take it anew for each request.
    progress : callable or None
        Called with (done, total) while a snapshot is loaded.
    check : callable
        Called between files and blocks; whatever it raises ends the step, which the next takes up.

    Raises
    ------
    StoreLockedError
        Another process has the replica open, or follows into it.
    FencedError
        The folder is a store of its own, or holds something else, and is no replica.
    ValueError
        `replica_path` is empty.

    Notes
    -----
    `store` may be read from any thread; steps are for one thread at a time.

    Examples
    --------
    >>> import tempfile, monolith_kv as mkv
    >>> from monolith_kv.replication import Publisher
    >>> folder = tempfile.mkdtemp()
    >>> with mkv.open(f"{folder}/store") as store:
    ...     _ = store.create_table("item", dim=4).pull([7])
    >>> _ = Publisher(f"{folder}/store", f"{folder}/target").run_once()
    >>> with Follower(f"{folder}/target", f"{folder}/replica") as follower:
    ...     follower.run_once().in_step, len(follower.store.table("item"))
    (True, 1)
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        replica_path: str | os.PathLike[str],
        **open_options: Any,
    ) -> None:
        self.source = os.fspath(source)
        self.path = os.path.realpath(as_path(replica_path, "replica_path"))
        self.progress: Progress | None = None
        self.check: Check = lambda: None
        self._options = open_options
        self._damage: CorruptionError | None = None
        self._store: mkv.Store | None = None
        self._retired: list[mkv.Store] = []
        self._is_checked = False  # Whether the rows were compared with their digest at this place.
        self._last_source_sequence = 0
        refuse_strange(self.path)  # Before a work folder is made beside it.
        self._work = WorkFolder(self.path)
        try:
            self._work.recover()
            refuse_primary(self.path)
            try:
                self._store = self._open()
            except CorruptionError as error:
                self._damage = error  # A resync can mend it; until then there is nothing to read.
        except BaseException:
            self._work.release()
            raise

    @property
    def store(self) -> mkv.Store:
        """The open replica.

        Raises
        ------
        CorruptionError
            It was found damaged when it was opened, and no resync has replaced it yet.
        """
        if self._store is None:
            raise self._damage or mkv.ClosedError(f"the follower of {self.path} is closed")
        return self._store

    def run_once(self, *, force: bool = False) -> Followed:
        """Bring the replica up to what the source has published by now.

        Parameters
        ----------
        force : bool
            Take over an older, emptier or other history, too.

        Raises
        ------
        FencedError
            The source's history is older or emptier than the replica's, or another store's.
        CorruptionError, FormatVersionError, SchemaError
            Something at the source is damaged or cannot be read, and no snapshot leads past it.
        GapError
            Deltas are missing at the source, and no snapshot leads past them.
        OSError, StoreFullError
            The source cannot be reached or the replica not be written. After any of these the
            replica is unchanged, but for the good deltas that came first, and readable.
        """
        self._close_retired()
        for attempt in range(1, ATTEMPTS + 1):
            source = read_catalogue(self.source)
            self._last_source_sequence = source.sequence
            try:
                return self._follow(source, force)
            except FileNotFoundError as error:
                if attempt == ATTEMPTS or read_catalogue(self.source) == source:
                    self._tell_lost(error, source)
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def poll(self) -> Followed:
        """Do one step as `run_once`; what goes wrong is in the result and tried again next time."""
        try:
            return self.run_once()
        except (Error, OSError) as error:
            sequence, epoch = (0, 0) if self._store is None else _position(self._store)
            return Followed(sequence, epoch, self._last_source_sequence, error=error)

    def close(self) -> None:
        """Close the replica and let others have it; again: nothing."""
        store, self._store = self._store, None
        try:
            self._close_retired()
        finally:
            try:
                if store is not None:
                    store.close()
            finally:
                self._work.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- one step ----------------------------------------------------------------------------

    def _follow(self, source: Catalogue, force: bool) -> Followed:
        mine = self._mine(source)
        if not force:
            refuse_older(source, mine)
        reason = reason_to_resync(source, mine)
        trouble: Exception | None = self._damage
        if trouble is not None:
            reason = f"the replica is damaged: {trouble}"
        applied = 0
        if not reason:
            applied, trouble, source = self._apply_chain(source, mine)
            reason = str(trouble or "")
        if reason:
            self._resync(source, mine, force, trouble)
        else:
            self._checkpoint(source, mine)
        sequence, epoch = _position(self.store)
        return Followed(sequence, epoch, self._last_source_sequence, applied, reason)

    def _apply_chain(
        self, source: Catalogue, mine: Catalogue
    ) -> tuple[int, Exception | None, Catalogue]:
        """Apply what leads on; return how many, what stopped it, and the source without that."""
        store = self.store
        applied = 0
        try:
            self._check_digest_once(mine)
        except CorruptionError as error:
            return 0, error, source
        for entry in source.chain(mine.sequence):
            self.check()
            try:
                apply_entry(store, source, entry, self.check)
            except FileNotFoundError:
                if read_catalogue(self.source) != source:
                    raise  # Retention ran: the new catalogue tells how to go on.
                lost = GapError(
                    f"{source.path(entry)} is published but not there; push again",
                    entry.sequence,
                )
                return applied, lost, without(source, entry)
            except CorruptionError as error:
                return applied, error, without(source, entry)
            except (GapError, FencedError) as error:
                return applied, error, source
            applied += 1
            try:
                expect_digest(store, source, entry)
            except CorruptionError as error:
                self._is_checked = False
                return applied, error, source
        return applied, None, source

    def _check_digest_once(self, mine: Catalogue) -> None:
        # A replica that stopped behind a delta can be compared with it again. One that stands at a
        # snapshot cannot: that may hold rows of the delta that comes next.
        if self._is_checked or any(s.sequence == mine.sequence for s in mine.snapshots):
            return
        for entry in mine.deltas:
            if entry.sequence == mine.sequence:
                expect_digest(self.store, mine, entry)
        self._is_checked = True

    def _resync(
        self, source: Catalogue, mine: Catalogue, force: bool, trouble: Exception | None
    ) -> None:
        """Build a new replica from the source and put it in the place of this one."""
        if trouble is not None and next(bases(source), self) is self:
            raise trouble
        rows = self._rows(mine)
        if not force:
            refuse_emptier(rows_most(source), rows, source)
        staged = build_replica(source, self._work.stage(), self._options, self.check, self.progress)
        try:
            with staged:
                if not force:
                    refuse_emptier(store_rows(staged), rows, source)
        except BaseException:
            self._work.clear()  # A refusal must not keep the disk space of a second replica.
            raise
        self._switch()
        self._is_checked = True

    def _checkpoint(self, source: Catalogue, mine: Catalogue) -> None:
        # As often as the primary: what a replica reads when it opens, and the deltas it keeps,
        # stay as little as the primary's.
        own = mine.snapshots[-1].sequence if mine.snapshots else 0
        if source.snapshots and own < source.snapshots[-1].sequence <= self.store.sequence:
            self.store.snapshot(progress=self.progress)

    def _switch(self) -> None:
        # The old store stays what `store` returns, and open, until the new one is.
        self._work.switch()
        try:
            opened = self._open()
        except BaseException:
            self._work.undo()
            raise
        if self._store is not None:
            self._retired.append(self._store)
        self._store, self._damage = opened, None
        self._work.clear()

    def _tell_lost(self, error: FileNotFoundError, source: Catalogue) -> None:
        """Raise GapError if the file that is not there is one that the source has published."""
        path = os.path.realpath(str(error.filename))
        own, its = (os.path.join(os.path.realpath(p), "") for p in (self.path, source.folder))
        if path.startswith(its) and not path.startswith(own):
            raise GapError(
                f"{error.filename} is published but not there; push again", source.sequence
            ) from error

    def _mine(self, source: Catalogue) -> Catalogue:
        try:
            found = read_store(self.path)
        except CorruptionError as error:
            raise self._damage or error from None
        return found or Catalogue("replica", self.path, NO_UUID, source.lineage, 0, (), ())

    def _rows(self, mine: Catalogue) -> int:
        if self._store is not None:
            return store_rows(self._store)
        return max((s.rows for s in mine.snapshots), default=0)

    def _open(self) -> mkv.Store:
        return mkv.open(self.path, "replica", **self._options)

    def _close_retired(self) -> None:
        while self._retired:
            let_go(self._retired.pop())


def refuse_primary(path: str) -> None:
    """Raise FencedError if the folder is a store of its own, which following would overwrite."""
    try:
        found = read_store(path)
    except CorruptionError:
        return  # Opening it tells more.
    if found is not None and found.kind != "replica":
        raise FencedError(
            f"{path} is a store of its own, not a replica; move it away or give another folder"
        )


def let_go(store: mkv.Store) -> None:
    """Close a store whose folder was replaced: what lies under its path is another's by now."""
    store._maintenance.stop()
    release(store._state)


def _position(store: mkv.Store) -> tuple[int, int]:
    return store.sequence, store.epoch
