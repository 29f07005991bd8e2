"""Push: carry what a store has published to a target folder.

What must hold: only files that the store's manifest names are read, and no lock of the store is
taken; a file is complete and digested at the target before PUBLISHED names it; nothing is removed
before PUBLISHED has stopped naming it; a history that does not go on from the target's own is
refused, so that a primary that was replaced, or has lost its newest deltas, cannot overwrite it.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from monolith_kv.errors import CorruptionError, FencedError
from monolith_kv.replication.target import (
    DIGEST_BYTES,
    PUBLISHED_NAME,
    READ_BYTES,
    SNAPSHOT_FILE,
    Catalogue,
    Check,
    Entry,
    digest_file,
    entry_path,
    make_target,
    read_store,
    read_target,
    write_target,
)
from monolith_kv.storage import files
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.format import (
    DELTA_FOLDER,
    DELTA_PATTERN,
    SNAPSHOT_FOLDER,
)
from monolith_kv.storage.snapshot import SnapshotReader

ATTEMPTS = 5  # Retention may run while a push copies; five times in one push it does not.

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Published:
    """What one push did.

    Parameters
    ----------
    sequence, epoch : int
        Of the store's last delta that the target holds now.
    deltas, snapshots : int
        Files copied by this push.
    bytes : int
        Copied by this push.
    pruned : int
        Files that the target has stopped to hold.
    changed : bool
        False when the target held all of it before.
    """

    sequence: int
    epoch: int
    deltas: int = 0
    snapshots: int = 0
    bytes: int = 0
    pruned: int = 0
    changed: bool = False


class Publisher:
    """Publishes the sealed deltas and snapshots of a store to a target folder.

    Parameters
    ----------
    store_path : path
        A store, open for writing elsewhere or not; a replica will do as well.
    target : path
        An empty, a new or this store's own target folder.
    progress : callable, optional
        Called with (bytes done, bytes in all) while files are copied.
    check : callable, optional
        Called between blocks; whatever it raises ends the push, which the next one takes up.

    Examples
    --------
    >>> import tempfile, monolith_kv as mkv
    >>> folder = tempfile.mkdtemp()
    >>> with mkv.open(f"{folder}/store") as store:
    ...     _ = store.create_table("item", dim=4).pull([7])
    ...     _ = store.seal()
    ...     Publisher(f"{folder}/store", f"{folder}/target").run_once().deltas
    1
    """

    def __init__(
        self,
        store_path: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        check: Check | None = None,
    ) -> None:
        self.store_path = os.fspath(store_path)
        self.target = os.fspath(target)
        self._progress = progress or (lambda done, total: None)
        self._check = check or (lambda: None)

    def run_once(self) -> Published:
        """Bring the target up to what the store has published by now.

        Raises
        ------
        FencedError
            The target belongs to another store, or holds a newer epoch, another or a longer
            history than the store; or the folder is no target. It is unchanged.
        CorruptionError, FormatVersionError
            The store's manifest or one of its files is damaged, or the target's PUBLISHED is.
        StoreLockedError
            Another push to this target is running.
        OSError, StoreFullError
            The store cannot be read or the target not be written.
        """
        self._source()  # A missing store must not leave an empty target behind.
        files.make_folder(self.target)
        with files.FolderLock(self.target):
            make_target(self.target)
            for folder in (DELTA_FOLDER, SNAPSHOT_FOLDER):
                files.make_folder(os.path.join(self.target, folder))
            for attempt in range(1, ATTEMPTS + 1):
                source = self._source()
                try:
                    return self._publish(source)
                except (FileNotFoundError, CorruptionError):
                    # Retention removed a file under us, or a snapshot of the same sequence took
                    # the place of one: the manifest has moved on, and the next round with it.
                    if attempt == ATTEMPTS or self._source() == source:
                        raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _source(self) -> Catalogue:
        found = read_store(self.store_path)
        if found is None:
            raise FileNotFoundError(f"{self.store_path} is no store: it has no manifest")
        # The manifest may have been renamed an instant ago. What is shipped must survive a power
        # cut at the store first, or the store would give the same sequence to other rows.
        files.fsync_folder(self.store_path)
        return found

    def _publish(self, source: Catalogue) -> Published:
        held = read_target(self.target)
        if held is None:
            raise FileNotFoundError(f"{os.path.join(self.target, PUBLISHED_NAME)} has vanished")
        if not source.uuid:
            raise FileNotFoundError(f"{source.folder} is a replica that has not received anything")
        refuse_fork(source, held)
        before = {entry.name: entry for entry in held.entries}
        wanted = [entry for entry in source.entries if not self._is_held(entry, before)]
        shipped = self._ship_all(source, wanted, before)
        merged = merge(source, held, shipped)
        changed = merged != held
        if changed:
            write_target(merged)
        self._sweep(merged)
        names = {entry.name for entry in merged.entries}
        return Published(
            sequence=merged.sequence,
            epoch=merged.lineage.epoch,
            deltas=sum(not entry.is_snapshot for entry in wanted),
            snapshots=sum(entry.is_snapshot for entry in wanted),
            bytes=sum(entry.bytes for entry in wanted),
            pruned=len(before.keys() - names),
            changed=changed,
        )

    def _is_held(self, entry: Entry, before: dict[str, Entry]) -> bool:
        held = before.get(entry.name)
        if held is None or not held.is_same_file(entry):
            return False
        path = entry_path(self.target, held)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return False
        if status.st_size != held.bytes:
            return False
        # A file that someone has touched may have been damaged: one look at its content tells.
        return status.st_mtime_ns == held.modified_ns or (
            digest_file(path, self._check) == held.digest
        )

    def _ship_all(
        self, source: Catalogue, wanted: list[Entry], before: dict[str, Entry]
    ) -> dict[str, Entry]:
        total = sum(entry.bytes for entry in wanted)
        done = 0
        shipped = {}
        for entry in wanted:
            self._check()
            path = source.path(entry)
            with SnapshotReader(path) if entry.is_snapshot else DeltaReader(path) as reader:
                reader.verify()
            shipped[entry.name] = self._ship(path, entry, before.get(entry.name), done, total)
            done += entry.bytes
        return shipped

    def _ship(self, path: str, entry: Entry, held: Entry | None, done: int, total: int) -> Entry:
        """Copy one file and return its entry as the target's catalogue will hold it."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        size = 0
        with open(files.open_readable(path), "rb", buffering=0) as reader:
            fd, temporary = files.create_temporary(entry_path(self.target, entry))
            try:
                try:
                    with files.disk_errors(temporary):
                        while block := reader.read(READ_BYTES):
                            self._check()
                            digest.update(block)
                            size += files.write_all(fd, [block])
                            self._progress(done + size, total)
                        files.sync_file(fd)
                        modified_ns = os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
                if size != entry.bytes:
                    raise CorruptionError(
                        f"{path} has {size} bytes, the manifest says {entry.bytes}; run mkv verify",
                        path,
                        size,
                    )
                copied = replace(entry, digest=digest.hexdigest(), modified_ns=modified_ns)
                if held is not None and held.digest != copied.digest:
                    stem, suffix = os.path.splitext(entry.name)
                    copied = replace(copied, file=f"{stem}.{copied.digest[:8]}{suffix}")
                files.publish(temporary, entry_path(self.target, copied), replace=True)
            except BaseException:
                files.remove_quietly(temporary)
                raise
        return copied

    def _sweep(self, catalogue: Catalogue) -> None:
        """Remove what PUBLISHED does not name: pruned files and what a crash left."""
        files.remove_litter(self.target)
        names = {entry.file or entry.name for entry in catalogue.entries}
        for folder, pattern in (
            (DELTA_FOLDER, DELTA_PATTERN),
            (SNAPSHOT_FOLDER, SNAPSHOT_FILE),
        ):
            path = os.path.join(self.target, folder)
            files.remove_litter(path)
            for name in files.list_names(path):
                if pattern.fullmatch(name) and name not in names:
                    files.remove_durably(os.path.join(path, name))


def refuse_fork(source: Catalogue, held: Catalogue) -> None:
    """Raise FencedError unless the source's history goes on from the one that is held."""
    if not held.uuid:
        return
    if source.uuid != held.uuid:
        raise FencedError(
            f"{held.folder} belongs to store {held.uuid[:8]}, {source.folder} is "
            f"{source.uuid[:8]}; give each store a target of its own"
        )
    if source.lineage.epoch < held.lineage.epoch:
        raise FencedError(
            f"{held.folder} holds epoch {held.lineage.epoch}, {source.folder} is in the older "
            f"epoch {source.lineage.epoch}: another primary has taken over; stop this one"
        )
    if not source.lineage.extends(held.lineage, held.sequence):
        raise FencedError(
            f"{held.folder} goes to delta {held.sequence}, the history of {source.folder} parted "
            "from it before that; give the new history a target of its own"
        )
    if source.sequence < held.sequence:
        raise FencedError(
            f"{held.folder} goes to delta {held.sequence}, {source.folder} only to "
            f"{source.sequence}: it has lost deltas; give it a target of its own"
        )


def merge(source: Catalogue, held: Catalogue, shipped: dict[str, Entry]) -> Catalogue:
    """Return the catalogue that a target has to hold after a push.

    Notes
    -----
    What the store's retention dropped goes, but a target that has a snapshot always keeps one,
    with the deltas that lead on from it: it alone may serve a replica that starts late.
    """
    at_target = {entry.name: entry for entry in held.entries} | shipped
    deltas = tuple(at_target[entry.name] for entry in source.deltas)
    snapshots = tuple(at_target[entry.name] for entry in source.snapshots)
    if held.snapshots and not snapshots:
        newest = held.snapshots[-1]
        snapshots = (newest,)
        kept = {entry.sequence for entry in deltas}
        older = (e for e in held.deltas if e.sequence > newest.sequence and e.sequence not in kept)
        deltas = tuple(sorted((*older, *deltas), key=lambda entry: entry.sequence))
    return replace(
        held,
        uuid=source.uuid,
        lineage=source.lineage,
        sequence=source.sequence,
        deltas=deltas,
        snapshots=snapshots,
    )
