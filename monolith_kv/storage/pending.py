"""Sightings that no delta holds yet: in files, at gates, and not counted twice."""

from collections.abc import Iterable, Mapping

from monolith_kv.errors import CorruptionError
from monolith_kv.state import StoreState, TableEntry


def await_sightings(state: StoreState) -> dict[int, list[bytes]]:
    """Hand over the sightings that the next delta has, and that are counted, by table id."""
    awaited = {entry.id: entry.pending_sightings for entry in state.tables.values()}
    for entry in state.tables.values():
        entry.pending_sightings = []
    return awaited


def load_sightings(
    entry: TableEntry, data: bytes, path: str, awaited: Mapping[int, list[bytes]]
) -> None:
    """Count sightings in a delta at a table's gate, but for those that a snapshot's gate counts."""
    counted = awaited.get(entry.id)
    if counted and counted[0] == data:
        counted.pop(0)
        return
    count_sightings(entry, data, path)


def check_sightings(entry: TableEntry, data: bytes, path: str) -> None:
    """Raise CorruptionError where sightings could not be counted; nothing is."""
    try:
        entry.core.check_sightings(data)
    except ValueError as error:
        raise _bad_sightings(entry, path, error) from error


def _bad_sightings(entry: TableEntry, path: str, error: ValueError) -> CorruptionError:
    return CorruptionError(f"{path}: sightings of table {entry.schema.name}: {error}", path)


def count_sightings(entry: TableEntry, data: bytes, path: str) -> None:
    """Count sightings that a file holds at a table's gate."""
    try:
        entry.core.see(data, False)
    except ValueError as error:
        raise _bad_sightings(entry, path, error) from error


def load_pending(state: StoreState, by_table: Mapping[int, bytes]) -> None:
    """Count sightings that no delta holds yet, but for those that a snapshot's gate includes."""
    for entry in state.tables.values():
        pieces = split_pieces(by_table.get(entry.id, b""))
        # The snapshot has the first ones of the same list.
        for piece in pieces[len(entry.pending_sightings) :]:
            count_sightings(entry, piece, state.path)
            entry.pending_sightings.append(piece)


def join_pieces(pieces: Iterable[bytes]) -> bytes:
    """Return pieces as one, each behind its length as u64."""
    return b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)


def split_pieces(data: bytes) -> list[bytes]:
    """Return what `join_pieces` joined; CorruptionError for anything else."""
    pieces, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + size
        # None is empty: 16 MiB of zeros, some hundred bytes in a file, are not 2 M pieces.
        if not size or end > len(data):
            raise CorruptionError(
                f"a piece of sightings has {size} bytes at byte {at} of {len(data)}; run mkv verify"
            )
        pieces.append(data[at + 8 : end])
        at = end
    return pieces
