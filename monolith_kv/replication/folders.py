"""Replace one folder by another so that a crash at any point leaves one of them, whole.

A replica `name` has a work folder `.name.follow` beside it, which holds the follower's lock and, in
the course of a resync, `staging` (being built), `ready` (verified, about to take the place) and
`old` (what it replaces). Where the system can exchange two names in one step there is never a
moment without a replica; elsewhere `recover` finishes or undoes the two renames after a crash.
"""

import os
import shutil

from monolith_kv.errors import FencedError
from monolith_kv.restoring import remove_abandoned
from monolith_kv.storage import files, format

_OWN_FOLDERS = frozenset(
    {
        format.DELTA_FOLDER,
        format.SNAPSHOT_FOLDER,
        format.CALL_FOLDER,
        format.SIGHTINGS_FOLDER,
        format.DENSE_FOLDER,
        format.OVERFLOW_FOLDER,
    }
)
STAGING, READY, OLD = "staging", "ready", "old"


class WorkFolder:
    """The folder beside a replica in which its follower works; one follower at a time.

    Parameters
    ----------
    replica : str
        Path of the replica's folder, there or not.

    Raises
    ------
    StoreLockedError
        Another follower has it.
    """

    def __init__(self, replica: str) -> None:
        self.replica = os.path.realpath(replica)  # A link stays; what it names is replaced.
        parent, name = os.path.split(self.replica)
        self.path = os.path.join(parent, f".{name}.follow")
        files.make_folder(self.path)
        self._lock = files.FolderLock(self.path)

    def release(self) -> None:
        """Let another follower have it."""
        self._lock.release()

    def recover(self) -> None:
        """Finish or undo what a crash has left half done.

        Notes
        -----
        With a replica in its place, all else is either not yet or no longer needed: a new one that
        was ready is built again from the source, which costs time only. Without one, the crash fell
        between the two renames.
        """
        ready, old = self._path(READY), self._path(OLD)
        if not os.path.lexists(self.replica):
            if os.path.lexists(ready):
                files.move_folder(ready, self.replica)
            elif os.path.lexists(old):
                files.move_folder(old, self.replica)
        self.clear()

    def clear(self) -> None:
        """Remove everything that is being built or was replaced."""
        for name in (STAGING, READY, OLD):
            _remove(self._path(name))
        remove_abandoned(self._path(STAGING))

    def stage(self) -> str:
        """Return the path of a folder to build a replica in; what was there is gone."""
        _remove(self._path(STAGING))
        return self._path(STAGING)

    def switch(self) -> None:
        """Put the staged folder, closed and whole, in the place of the replica.

        Notes
        -----
        The replaced one stays in the work folder until `clear` or `recover`; `undo` puts it back.
        """
        staging, ready, old = (self._path(name) for name in (STAGING, READY, OLD))
        _remove(old)
        _remove(ready)
        files.move_folder(staging, ready)
        if not os.path.lexists(self.replica):
            files.move_folder(ready, self.replica)
        elif not files.exchange_folders(ready, self.replica):
            files.move_folder(self.replica, old)
            try:
                files.move_folder(ready, self.replica)
            except BaseException:
                files.move_folder(old, self.replica)
                raise

    def undo(self) -> None:
        """Put back what the last `switch` has replaced, if there was anything."""
        for replaced in (self._path(READY), self._path(OLD)):
            if os.path.lexists(replaced):
                if not files.exchange_folders(replaced, self.replica):
                    files.move_folder(self.replica, self._path(STAGING))
                    files.move_folder(replaced, self.replica)
                return

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)


def refuse_strange(path: str) -> None:
    """Raise FencedError if a folder without a manifest holds anything: a resync would remove it."""
    if not os.path.lexists(path) or os.path.lexists(os.path.join(path, format.MANIFEST_NAME)):
        return  # Whose it is opening it tells.
    for name in sorted(os.listdir(path)):
        is_litter = name.startswith(".") and name.endswith(files.TEMPORARY_SUFFIX)
        if name in format.HARMLESS_NAMES or is_litter:
            continue
        if name not in _OWN_FOLDERS or os.listdir(os.path.join(path, name)):
            raise FencedError(
                f"{path} holds {name} and is no replica; give an empty or a new folder"
            )


def _remove(path: str) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)
