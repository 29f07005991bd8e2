"""Where stores, targets and replicas stand, and whether two of them hold the same rows."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import monolith_kv as mkv
from monolith_kv.replication.build import build_replica
from monolith_kv.replication.publisher import Progress
from monolith_kv.replication.target import Catalogue, Kind, read_catalogue
from monolith_kv.traffic import read_report


@dataclass(frozen=True)
class Position:
    """How far a folder goes, read from its manifest, and what whoever has it open reports.

    Parameters
    ----------
    path : str
        The folder.
    kind : {"store", "target", "replica"}
        What it is.
    uuid : str
        Of the store whose history it holds; "" for a replica that has received nothing.
    epoch, sequence : int
        Of its last delta.
    rows : int or None
        Records of its newest snapshot; None where there is none.
    snapshots, deltas : int
        Published files.
    bytes : int
        Their size.
    sealed_at : float or None
        When the newest delta (or, without any, snapshot) was made, by the store's clock.
    lag : int or None
        Deltas behind the farthest of the positions it was compared with; None where its history
        is another one than that one's.
    lag_s : float or None
        Seconds between that one's newest delta and its own.
    traffic : dict or None
        What went between memory and overflow, as in `Store.stats`.
    """

    path: str
    kind: Kind
    uuid: str
    epoch: int
    sequence: int
    rows: int | None
    snapshots: int
    deltas: int
    bytes: int
    sealed_at: float | None
    lag: int | None = 0
    lag_s: float | None = 0.0
    traffic: dict[str, Any] | None = None


def positions(paths: Sequence[str | os.PathLike[str]]) -> list[Position]:
    """Return where folders stand, and how far each lags behind the farthest of them.

    Parameters
    ----------
    paths : sequence of path
        Stores, targets and replicas; no lock is taken and nothing is loaded.

    Raises
    ------
    FileNotFoundError
        One of them is neither.
    CorruptionError, FormatVersionError
        A manifest is damaged or of a newer version.

    Examples
    --------
    >>> import tempfile, monolith_kv as mkv
    >>> folder = tempfile.mkdtemp()
    >>> with mkv.open(folder) as store:
    ...     _ = store.create_table("item", dim=4)
    >>> [(p.kind, p.lag) for p in positions([folder])]
    [('store', 0)]
    """
    catalogues = [read_catalogue(os.fspath(path)) for path in paths]
    # The newest epoch leads: a fork may have a longer, abandoned history.
    leader = max(catalogues, key=lambda c: (c.lineage.epoch, c.sequence), default=None)
    return [_lagging(_position(c), c, leader) for c in catalogues if leader is not None]


def _position(catalogue: Catalogue) -> Position:
    newest = (*catalogue.snapshots, *catalogue.deltas)[-1:]
    return Position(
        catalogue.folder,
        catalogue.kind,
        catalogue.uuid,
        catalogue.lineage.epoch,
        catalogue.sequence,
        catalogue.snapshots[-1].rows if catalogue.snapshots else None,
        len(catalogue.snapshots),
        len(catalogue.deltas),
        catalogue.bytes,
        newest[0].made_at if newest else None,
        traffic=read_report(catalogue.folder),
    )


def _lagging(position: Position, mine: Catalogue, leader: Catalogue) -> Position:
    if mine is leader:
        return position
    is_same = not mine.uuid or (
        mine.uuid == leader.uuid and leader.lineage.extends(mine.lineage, mine.sequence)
    )
    if not is_same:
        return replace(position, lag=None, lag_s=None)
    lag = max(0, leader.sequence - mine.sequence)
    end = _position(leader).sealed_at
    lag_s: float | None = 0.0
    if lag:
        known = end is not None and position.sealed_at is not None
        lag_s = max(0.0, (end or 0.0) - (position.sealed_at or 0.0)) if known else None
    return replace(position, lag=lag, lag_s=lag_s)


@dataclass(frozen=True)
class Digests:
    """Digest of all rows, and of each table's, at one sequence."""

    path: str
    kind: Kind
    sequence: int
    rows: int
    digest: str
    tables: dict[str, str]


def read_digests(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Digests:
    """Return the digests of a store, a replica, or what a target leads to.

    Parameters
    ----------
    path : path
        A store or replica is opened "r" beside whoever has it open; of a target the newest
        snapshot and the deltas after it are loaded into a temporary replica.
    progress : callable, optional
        Called with (done, total) while a snapshot is loaded.

    Raises
    ------
    FileNotFoundError
        It is neither.
    CorruptionError, FormatVersionError
        A file is damaged or of a newer version.
    GapError
        The target's files do not lead to its end.
    """
    catalogue = read_catalogue(os.fspath(path))
    if catalogue.kind != "target":
        with mkv.open(catalogue.folder, "r") as store:
            return _digests(catalogue, store)
    with tempfile.TemporaryDirectory(prefix="mkv-verify-") as folder:
        build_at = os.path.join(folder, "replica")
        with build_replica(catalogue, build_at, {}, lambda: None, progress) as store:
            return _digests(catalogue, store)


def _digests(catalogue: Catalogue, store: mkv.Store) -> Digests:
    tables = {name: store.digest(name) for name in sorted(store.tables)}
    rows = sum(len(table) for table in store.tables.values())
    return Digests(catalogue.folder, catalogue.kind, store.sequence, rows, store.digest(), tables)
