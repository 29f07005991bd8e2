"""Open, restore, salvage: how users come to a `Store`, with arguments checked.

This and maintenance.py are the only places that read a clock. Threads that outlive a call are begun
by maintenance.py, for the background, and by a call log, which ends its own when it is closed.
"""

import math
import time
from collections.abc import Callable, Sequence
from inspect import signature
from numbers import Real
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monolith_kv.opening import open_state, write_state
from monolith_kv.restoring import restore_files
from monolith_kv.salvaging import salvage_files
from monolith_kv.state import Mode, Settings, StoreState
from monolith_kv.store_handle import Duration, Path, Progress, Store
from monolith_kv.units import parse_duration, parse_size
from monolith_kv.validation import as_path

__all__ = ["Store", "open", "restore", "salvage"]

Size = int | str
Durability = Literal["none", "interval", "batch", "sync"]

MODES = ("rw", "r", "replica")
DURABILITIES = ("none", "interval", "batch", "sync")


def open(
    path: Path,
    mode: Mode = "rw",
    *,
    durability: Durability = "interval",
    delta_interval: Duration | None = "60s",
    delta_retention: Duration = "1d",
    snapshots_kept: int = 2,
    memory_limit: Size | None = None,
    overflow_limit: Size | None = None,
    clock: Callable[[], float] = time.time,
) -> "Store":
    """Open the store in a directory; "rw" and "replica" create it if it is not there.

    Parameters
    ----------
    path : path-like
        The directory.
    mode : {"rw", "r", "replica"}
        "rw": the one writer. "r": the last durable state, never modified; any number of readers,
        also beside a writer. "replica": changed only by `Store.apply`; a new one is empty and takes
        the identity of the first delta that it is given.
    durability : {"interval", "none", "batch", "sync"}
        What a crash may lose. "none": everything since the last seal or snapshot. "interval": at
        most `delta_interval` of updates. "batch": nothing on a killed process. "sync": nothing on
        a power cut; concurrent callers share one flush.
    delta_interval : duration or None
        A background thread seals this often and compacts in slices in between; None: no background
        work. What it fails at, the next call that changes rows raises; reads go on.
    delta_retention : duration
        How long sealed deltas stay for replicas that lag.
    snapshots_kept : int
        How many snapshots stay under the store; 1 or more.
    memory_limit : size, optional
        Bytes of rows, index and all else that the store keeps in memory (`stats` tells by kind),
        over all tables; colder records overflow to disk under the store and stay readable. What a
        call itself works on comes on top.
    overflow_limit : size, optional
        Bytes on disk for them, 1 MiB at the least; when they are used up a call that needs room for
        new ids raises StoreFullError.
    clock : callable
        Returns seconds since the epoch: for timestamps, TTL, retention. Nothing breaks when it
        jumps.

    Returns
    -------
    Store
        To be closed, or used in a `with` statement.

    Raises
    ------
    StoreLockedError
        Another handle, here or in another process, writes to it.
    CorruptionError, FormatVersionError
        Its files are damaged, or of a newer version.
    FileNotFoundError
        Mode "r", and there is no store.

    Notes
    -----
    A duration is in seconds, or such as "90s", "15m", "6h", "30d"; a size is in bytes, or such as
    "512MiB". After a crash the store recovers by itself to a prefix of the calls made, no shorter
    than `durability` promises; what is known to be lost is a DataLossWarning.

    Examples
    --------
    >>> import tempfile
    >>> import monolith_kv as mkv
    >>> with mkv.open(tempfile.mkdtemp(), durability="batch") as store:
    ...     store.mode, store.sequence, store.epoch
    ('rw', 0, 1)
    """
    folder = as_path(path)
    _one_of(mode, MODES, "mode")
    settings = _settings(
        durability, delta_interval, delta_retention, snapshots_kept, memory_limit, overflow_limit
    )
    clock = _checked_clock(clock)
    return Store(open_state(folder, mode, settings, clock, time.monotonic), open)


def restore(
    snapshots: Path | Sequence[Path],
    path: Path,
    *,
    mode: Literal["rw", "replica"] = "rw",
    progress: Progress | None = None,
    keep: Callable[[str, NDArray[np.uint64]], NDArray[np.bool_]] | None = None,
    **open_options: Any,
) -> "Store":
    """Create a store from a snapshot, or from several shards' snapshots, and open it.

    Parameters
    ----------
    snapshots : path-like, or sequence of path-like
        One: the store keeps its identity and takes the file over (see Notes). Several: a new store
        with new identity, sequence 0, empty cursor, the dense parameters of the first, and the
        gates added up.
    path : path-like
        Empty or absent; a failed restore leaves nothing there.
    mode : {"rw", "replica"}
        "rw" begins a new epoch; "replica" goes on with the next delta, and takes one snapshot.
    progress : callable, optional
        Called with (records read, records in all).
    keep : callable, optional
        keep(table name, ids) -> mask of the records to load: with a hash of the id it spreads N
        snapshots over any other number of shards.
    **open_options
        As for `open`.

    Returns
    -------
    Store
        Open.

    Raises
    ------
    FileExistsError
        `path` is not empty.
    ValueError
        An id is in two of the snapshots.
    CorruptionError, FormatVersionError
        A snapshot is damaged, or of a newer version.
    SchemaError
        Tables of one name differ between the snapshots.

    Notes
    -----
    One snapshot, without `keep`, is read once and not copied where that can be helped: the new
    store shares its file, by a clone or else by a hard link, which makes the file read-only. To
    remove it, or to replace it by renaming, does no harm to the store; root, whom the mode does
    not keep from writing over it, restores from a copy.

    Examples
    --------
    >>> import tempfile
    >>> import monolith_kv as mkv
    >>> folder = tempfile.mkdtemp()
    >>> with mkv.open(f"{folder}/a") as store:
    ...     snapshot = store.snapshot()
    >>> with mkv.restore(snapshot.path, f"{folder}/b") as copy:
    ...     copy.epoch
    2
    """
    folder = as_path(path)
    _one_of(mode, ("rw", "replica"), "mode")
    given = [snapshots] if isinstance(snapshots, (str, PathLike)) else snapshots
    sources = [as_path(source, "snapshots") for source in given]
    if not sources:
        raise ValueError("snapshots must be one at least, got none")
    if mode == "replica" and len(sources) > 1:
        raise ValueError(f'mode "replica" takes one snapshot, got {len(sources)}')
    clock = _checked_clock(open_options.pop("clock", time.time))
    if unknown := sorted(set(open_options) - set(signature(_settings).parameters)):
        raise TypeError(f"restore() got {unknown[0]!r}, which is none of its options nor of open's")
    state = StoreState(folder, mode, _settings(**open_options), clock, time.monotonic)
    base = restore_files(sources, state, progress, keep)
    return Store(write_state(state, base), open)


def salvage(path: Path, to: Path) -> list[str]:
    """Save what is provably good of a damaged store into a new one.

    Parameters
    ----------
    path : path-like
        The damaged store; only read.
    to : path-like
        Empty or absent.

    Returns
    -------
    list of str
        What could not be saved, in words; [] if nothing.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    FileExistsError
        `to` is not empty.
    """
    return salvage_files(as_path(path), as_path(to, "to"), clock=time.time)


def _settings(
    durability: str = "interval",
    delta_interval: Duration | None = "60s",
    delta_retention: Duration = "1d",
    snapshots_kept: int = 2,
    memory_limit: Size | None = None,
    overflow_limit: Size | None = None,
) -> Settings:
    _one_of(durability, DURABILITIES, "durability")
    return Settings(
        durability=durability,
        delta_interval_s=_interval(delta_interval),
        delta_retention_s=parse_duration(delta_retention, "delta_retention"),
        snapshots_kept=_count(snapshots_kept, "snapshots_kept"),
        memory_limit=_size(memory_limit, "memory_limit"),
        overflow_limit=_size(overflow_limit, "overflow_limit"),
    )


def _checked_clock(clock: Callable[[], float]) -> Callable[[], float]:
    # NaN or infinity would become times that no clock ever reaches.
    if not callable(clock):
        raise TypeError(f"clock must be callable, got {type(clock).__name__}")
    if clock is time.time:
        return clock

    def checked() -> float:
        now = clock()
        if not isinstance(now, Real) or not math.isfinite(now):
            raise ValueError(f"clock must return finite seconds since the epoch, got {now!r}")
        return float(now)

    return checked


def _one_of(value: Any, allowed: tuple[str, ...], name: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(allowed)}, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _interval(value: Duration | None) -> float | None:
    seconds = None if value is None else parse_duration(value, "delta_interval")
    if seconds == 0:
        raise ValueError("delta_interval must be above 0 seconds, or None for no background work")
    return seconds


def _size(value: Size | None, name: str) -> int | None:
    size = None if value is None else parse_size(value, name)
    if size == 0:
        raise ValueError(f"{name} must be above 0 bytes, or None for no limit")
    return size


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}")
    return value
