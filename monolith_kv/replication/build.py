"""Build a replica from what a source publishes, verified as a whole, and decide when to.

What must hold: every byte that is used was compared with the source's catalogue and with its own
checksums, and the rows in the end with the digest that the store had; a replica is never given up
for an older or emptier history than its own.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import monolith_kv as mkv
from monolith_kv.errors import CorruptionError, Error, FencedError, GapError
from monolith_kv.replication.publisher import Progress
from monolith_kv.replication.target import Catalogue, Check, Entry, verify_entry
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.snapshot import SnapshotReader


def reason_to_resync(source: Catalogue, mine: Catalogue) -> str:
    """Return why no delta of the source leads on from the replica; "" if they do."""
    if not mine.uuid:
        # A snapshot even where all deltas are there: it is one file instead of many, and the
        # store may have begun with rows that no delta holds (one restored from several shards).
        return "the replica is empty" if source.snapshots or not source.reaches(0) else ""
    if source.uuid != mine.uuid:
        return f"the source belongs to another store, {source.uuid[:8]}"
    if not source.lineage.extends(mine.lineage, mine.sequence):
        return f"the history of the source parted from the replica's before delta {mine.sequence}"
    if source.sequence < mine.sequence:
        return f"the source ends with delta {source.sequence}, before the replica's"
    if not source.reaches(mine.sequence):
        missing = mine.sequence + len(source.chain(mine.sequence)) + 1
        return f"delta {missing} is no longer at the source"
    return ""


def refuse_older(source: Catalogue, mine: Catalogue) -> None:
    """Raise FencedError if the source's history is another store's, or older than the replica's."""
    if not mine.uuid:
        return
    if source.uuid != mine.uuid:
        raise FencedError(
            f"{source.folder} belongs to store {source.uuid[:8]}, {mine.folder} follows "
            f"{mine.uuid[:8]}; another store is followed only when forced (--force)"
        )
    if source.lineage.epoch < mine.lineage.epoch:
        raise FencedError(
            f"{source.folder} is in epoch {source.lineage.epoch}, older than epoch "
            f"{mine.lineage.epoch} of {mine.folder}; it goes back only when forced (--force)"
        )
    if source.sequence < mine.sequence and source.lineage.covers(mine.lineage, mine.sequence):
        raise FencedError(
            f"{source.folder} ends with delta {source.sequence}, {mine.folder} holds "
            f"{mine.sequence}; it goes back only when forced (--force)"
        )


def refuse_emptier(rows_new: int, rows: int, source: Catalogue) -> None:
    """Raise FencedError if the source would leave the replica with under half of its rows."""
    if 2 * rows_new < rows:
        raise FencedError(
            f"{source.folder} has {rows_new} rows, under half of the replica's {rows}; they are "
            "replaced only when forced (--force)"
        )


def rows_most(source: Catalogue) -> int:
    """Return a number of rows that a replica built from the source cannot exceed."""
    return max((s.rows for s in source.snapshots), default=0) + sum(d.rows for d in source.deltas)


def store_rows(store: mkv.Store) -> int:
    """Return the number of records in all tables."""
    return sum(len(table) for table in store.tables.values())


def bases(source: Catalogue) -> Iterator[Entry | None]:
    """Yield what a replica can be built from, best first; None: from the first delta on."""
    for snapshot in reversed(source.snapshots):
        if source.reaches(snapshot.sequence):
            yield snapshot
    if source.reaches(0):
        yield None


def build_replica(
    source: Catalogue,
    folder: str,
    options: Mapping[str, Any],
    check: Check,
    progress: Progress | None = None,
) -> mkv.Store:
    """Build a replica of the whole source in `folder` and return it, open and verified.

    Parameters
    ----------
    source : Catalogue
        What to build it from: its newest snapshot that is good, and the deltas after it.
    folder : str
        An absent or empty folder; after an error there is nothing in it.
    options : mapping
        For `monolith_kv.open`.
    check : callable
        Called between steps; whatever it raises ends the work.
    progress : callable, optional
        Called with (done, total) while a snapshot is loaded.

    Raises
    ------
    CorruptionError
        No snapshot is good, or the rows are not those that the store had.
    GapError
        The source has neither a snapshot that leads to its end nor all deltas from the first on.
    """
    first: Error | FileNotFoundError | None = None
    for base in bases(source):
        try:
            return _build_on(base, source, folder, options, check, progress)
        except (CorruptionError, GapError, FencedError, FileNotFoundError) as error:
            first = first or error
    raise first or GapError(
        f"{source.folder} has neither a snapshot from which deltas lead to {source.sequence} nor "
        "all of them from 1 on; take a snapshot of the store and push it",
        expected=source.sequence,
    )


def _build_on(
    base: Entry | None,
    source: Catalogue,
    folder: str,
    options: Mapping[str, Any],
    check: Check,
    progress: Progress | None,
) -> mkv.Store:
    try:
        if base is None:
            store = mkv.open(folder, "replica", **options)
        else:
            path = source.path(base)
            verify_entry(path, base, check)
            store = mkv.restore(path, folder, mode="replica", progress=progress, **options)
        try:
            if base is not None:
                expect_digest(store, source, base)
            for entry in source.chain(store.sequence):
                check()
                apply_entry(store, source, entry, check)
                expect_digest(store, source, entry)
        except BaseException:
            store.close()
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return store


def apply_entry(store: mkv.Store, source: Catalogue, entry: Entry, check: Check) -> None:
    """Apply one delta of the source, once its file was found to be what was published."""
    path = source.path(entry)
    verify_entry(path, entry, check)
    store.apply(path)


def expect_digest(store: mkv.Store, source: Catalogue, entry: Entry) -> None:
    """Raise CorruptionError unless the rows are those that the file's writer had."""
    path = source.path(entry)
    with SnapshotReader(path) if entry.is_snapshot else DeltaReader(path) as reader:
        expected = reader.end["digest"]
    if (found := store.digest()) != expected:
        raise CorruptionError(
            f"the rows after {path} have digest {found}, the store had {expected}; "
            "a new snapshot of the store, pushed, mends it",
            path,
        )


def without(source: Catalogue, entry: Entry) -> Catalogue:
    """Return the catalogue as if one file, found lost or damaged, was not there."""
    return replace(
        source,
        deltas=tuple(e for e in source.deltas if e is not entry),
        snapshots=tuple(e for e in source.snapshots if e is not entry),
    )
