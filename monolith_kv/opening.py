"""Open and close a store: lock, manifest, recovery, a new epoch after an unclean end.

What must hold: nothing is written before the state was recovered wholly; the new epoch and the mark
that the store is in use are durable before the first call; a clean close leaves nothing that is in
memory only.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable

from monolith_kv.budget import Budget
from monolith_kv.catalog import commit, drop_call_logs, remove_unnamed
from monolith_kv.errors import CorruptionError, DataLossWarning, Error
from monolith_kv.lineage import Lineage
from monolith_kv.sealing import seal
from monolith_kv.state import Mode, Settings, StoreState
from monolith_kv.storage import files, manifest, marks
from monolith_kv.storage.format import OVERFLOW_FOLDER
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.overflow import OverflowTier
from monolith_kv.storage.recovery import Base, position, recover

READ_ATTEMPTS = 20


def open_state(
    path: str,
    mode: Mode,
    settings: Settings,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
) -> StoreState:
    """Return the recovered state of the store at `path`, ready for calls.

    Raises
    ------
    StoreLockedError, CorruptionError, FormatVersionError, FileNotFoundError
        As `monolith_kv.open`.
    """
    if mode == "r":
        return read_state(path, settings, clock, monotonic)
    return write_state(StoreState(path, mode, settings, clock, monotonic))


def write_state(state: StoreState, base: Base | None = None) -> StoreState:
    """Recover a state that will be written to.

    Parameters
    ----------
    state : StoreState
        Empty; or filled from `base`, the only snapshot of the store that its manifest describes.
    """
    path, mode = state.path, state.mode
    # Before anything is created: a folder with data but no manifest is damaged, not new.
    manifest.load(path, to_write=True)
    files.make_folder(path)
    state.lock = files.FolderLock(path)
    try:
        found = manifest.load(path, to_write=True)
        if found is None:
            # Whoever made the folder, or was killed making it, may not have synced its name. One
            # below a folder that we may not read was not made by us.
            with contextlib.suppress(PermissionError):
                files.fsync_folder(os.path.dirname(os.path.abspath(path)))
            found = _first(mode)
        _check_mode(path, mode, found)
        if base is not None and found != state.manifest:
            raise Error(f"{path} was opened by somebody else while it was restored; open it again")
        open_overflow(state, os.path.join(path, OVERFLOW_FOLDER))
        recover(state, found, base)
        _begin(state, found)
    except BaseException:
        release(state)
        raise
    return state


def _first(mode: str) -> Manifest:
    """Return the manifest of a new store; a replica takes its identity from what it is given."""
    if mode == "replica":
        return Manifest(mode=mode)
    return Manifest(uuid=os.urandom(16).hex(), lineage=Lineage().begin(after=0))


def _check_mode(path: str, mode: str, found: Manifest) -> None:
    if found.mode == mode:
        return
    if mode == "rw":
        raise Error(
            f'{path} is a replica; open it with mode "replica" and promote() it to write to it'
        )
    raise Error(
        f'{path} is written to by itself, it is no replica; open it with mode "rw" or "r", or '
        'restore a snapshot of it with mode "replica" elsewhere'
    )


def open_overflow(state: StoreState, folder: str) -> None:
    """Give the state an overflow tier and a budget if it has a memory limit."""
    settings = state.settings
    if settings.memory_limit is not None:
        state.overflow = OverflowTier(folder, settings.overflow_limit)
        state.budget = Budget(state, settings.memory_limit)


def _begin(state: StoreState, found: Manifest) -> None:
    """Mark the store as in use, durably; in a new epoch if the last end was not clean."""
    lineage = found.lineage
    if state.mode == "rw" and not found.clean:
        # Calls after the last durable state may have been seen by others: history may fork here.
        lineage = lineage.begin(after=found.sequence)
        if marks.numbers(state.path):
            state.lost.append(
                {
                    "what": f"calls made after delta {found.sequence}, or a snapshot after it",
                    "path": state.path,
                    "after_sequence": found.sequence,
                    "calls": None,
                }
            )
    commit(state, lineage=lineage, clean=False)
    state.check_durable()
    remove_unnamed(state)
    try:
        report_losses(state)
    finally:
        marks.remove(state.path, sys.maxsize)  # Last: a kill before leaves it to the next opening.


def report_losses(state: StoreState) -> None:
    """Warn about what is known to be lost."""
    for loss in state.lost:
        if "calls" in loss:
            count = "their number is not known"
            if loss["calls"] is not None:
                count = f"at least {loss['calls']}, kept aside as *.torn"
            warnings.warn(
                f"{loss['path']} was not closed cleanly, lost are: {loss['what']} ({count})",
                DataLossWarning,
                stacklevel=5,
            )


# --- to read -------------------------------------------------------------------------------


def read_state(
    path: str,
    settings: Settings,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
) -> StoreState:
    """Return the last durable state of a store, which may be open for writing elsewhere."""
    for attempt in range(READ_ATTEMPTS):
        state = StoreState(path, "r", settings, clock, monotonic)
        found = manifest.load(path)
        if found is None:
            raise FileNotFoundError(f"there is no store at {path}")
        try:
            if settings.memory_limit is not None:
                folder = tempfile.mkdtemp(prefix="monolith-kv-")
                open_overflow(state, os.path.join(folder, OVERFLOW_FOLDER))
            state.read_position = position(path, found)
            recover(state, found)
            # A log may have gone, with its calls in a delta that this manifest does not name.
            if attempt == READ_ATTEMPTS - 1 or manifest.load(path) == found:
                return state
            release(state)
        except (CorruptionError, FileNotFoundError):
            release(state)
            # The writer goes on: files that the manifest named may be gone by now.
            if attempt == READ_ATTEMPTS - 1 or manifest.load(path) == found:
                raise
        except BaseException:
            release(state)
            raise
    raise AssertionError


# --- the end -------------------------------------------------------------------------------


def close_state(state: StoreState) -> None:
    """Seal what is left and mark the store as closed cleanly; unlock in any case."""
    try:
        if state.mode != "r":
            with state.snapshotting, state.files, state.mutex:
                if state.mode == "rw" and state.failure is None:
                    _finish(state)
                elif state.mode == "replica":
                    commit(state, clean=True)
    finally:
        release(state)


def _finish(state: StoreState) -> None:
    seal(state, None)
    if state.log is not None:
        state.log.close(clean=True)
        state.log = None
    commit(
        state,
        clean=True,
        tables=state.tables_json(),
        next_table_id=state.next_table_id,
        first_call_log=max(state.next_log, state.manifest.first_call_log),
    )
    drop_call_logs(state)


def release(state: StoreState) -> None:
    """Let go of files and locks; in a forked child of nothing."""
    if state.pid != os.getpid():
        return
    state.closed = True
    log, state.log = state.log, None
    state.helper = None  # Its thread ends.
    overflow, state.overflow = state.overflow, None
    lock, state.lock = state.lock, None
    with contextlib.ExitStack() as steps:  # From the last one on; none keeps another from it.
        if lock is not None:
            steps.callback(lock.release)
        if overflow is not None and state.mode == "r":
            steps.callback(shutil.rmtree, os.path.dirname(overflow.folder), ignore_errors=True)
        if overflow is not None:
            steps.callback(overflow.close)
        if log is not None:
            steps.callback(log.close, clean=False)
