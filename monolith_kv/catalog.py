"""What the store has published: the manifest and its changes, what may be deleted and when.

What must hold: a file is deleted only after a manifest that does not name it is durable; deltas
stay until a snapshot covers them (the oldest one that is kept, so that a damaged newer one can be
passed over) and they are older than `delta_retention`.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from monolith_kv.errors import Error, GapError, StoreFullError
from monolith_kv.published import Delta, Snapshot
from monolith_kv.state import StoreState
from monolith_kv.storage import (
    call_log,
    delta_log,
    dense,
    files,
    format,
    manifest,
    sightings,
    snapshot,
)


def commit(state: StoreState, **changes: Any) -> None:
    """Make a changed manifest the store's. Under files.

    Notes
    -----
    If it fails after the new manifest took its place, the change is made: it counts, and the error
    is kept for the next call. Nothing tells whether it would survive a power cut, so that nothing
    is deleted until a later manifest is known to be durable.
    """
    high = max(state.manifest.clock_high, float(state.clock()))
    changed = replace(state.manifest, clock_high=high, **changes)
    try:
        manifest.store(state.path, changed)
    except (OSError, StoreFullError) as error:
        try:
            is_made = manifest.load(state.path) == changed
        except (OSError, Error):
            is_made = False
        if not is_made:
            raise
        state.background_error = state.background_error or error
        state.manifest_error = error
    else:
        state.manifest_error = None
    state.manifest = changed


def delta_of(state: StoreState, entry: dict[str, Any]) -> Delta:
    """Return a delta that the manifest names."""
    return Delta(
        path=delta_log.path_of(state.path, entry["name"]),
        epoch=entry["epoch"],
        sequence=entry["sequence"],
        rows=entry["rows"],
        removals=entry["removals"],
        bytes=entry["bytes"],
        sealed_at=entry["sealed_at"],
    )


def snapshot_of(state: StoreState, entry: dict[str, Any]) -> Snapshot:
    """Return a snapshot that the manifest names."""
    return Snapshot(
        path=snapshot.path_of(state.path, entry["name"]),
        sequence=entry["sequence"],
        rows=entry["rows"],
        bytes=entry["bytes"],
        created_at=entry["created_at"],
    )


def deltas_after(state: StoreState, after: int) -> Iterator[Delta]:
    """Return the deltas with a higher sequence, in order; GapError if one is no longer there."""
    found = [entry for entry in state.manifest.deltas if entry["sequence"] > after]
    first = found[0]["sequence"] if found else state.manifest.sequence + 1
    if after < state.manifest.sequence and first != after + 1:
        raise GapError(
            f"delta {after + 1} of {state.path} is no longer there, the oldest is {first}; begin "
            "with a snapshot",
            expected=after + 1,
            found=first,
        )
    return iter([delta_of(state, entry) for entry in found])


# --- retention -----------------------------------------------------------------------------


def retire(state: StoreState) -> None:
    """Drop snapshots, deltas and logs that are no longer needed. Under files."""
    found = state.manifest
    kept = found.snapshots[-state.settings.snapshots_kept :]
    covered = min((entry["sequence"] for entry in kept), default=0)
    now, retention_s = state.clock(), state.settings.delta_retention_s
    deltas = list(found.deltas)
    # From the oldest on: never a hole, whatever the clock said when they were sealed.
    while (
        deltas and deltas[0]["sequence"] <= covered and now - deltas[0]["sealed_at"] >= retention_s
    ):
        deltas.pop(0)
    if len(deltas) != len(found.deltas) or len(kept) != len(found.snapshots):
        commit(state, snapshots=kept, deltas=deltas)
        names = {entry["name"] for entry in kept + deltas}
        for entry in found.deltas:
            if entry["name"] not in names:
                drop_file(state, delta_log.path_of(state.path, entry["name"]))
        for entry in found.snapshots:
            if entry["name"] not in names:
                drop_file(state, snapshot.path_of(state.path, entry["name"]))


def drop_call_logs(state: StoreState) -> None:
    """Delete call logs that the last delta covers. Under files."""
    for number in call_log.numbers(state.path):
        if number < state.manifest.first_call_log:
            drop_file(state, call_log.path_of(state.path, number))


def drop_file(state: StoreState, path: str) -> None:
    """Delete a file that no manifest names; one that stays is tried again at the next open."""
    if state.is_manifest_durable:
        with contextlib.suppress(OSError):
            files.remove_durably(path)


def remove_unnamed(state: StoreState) -> None:
    """Delete what a crash has left behind and no manifest names. Right after recovery."""
    found = state.manifest
    for folder in ("", *_FOLDERS):
        files.remove_litter(os.path.join(state.path, folder))
    named = {entry["name"] for entry in found.deltas + found.snapshots}
    named |= {found.dense.get("name"), found.sightings}
    for names, path_of in (
        (delta_log.names, delta_log.path_of),
        (snapshot.names, snapshot.path_of),
        (dense.names, dense.path_of),
        (sightings.names, sightings.path_of),
    ):
        for name in names(state.path):
            if name not in named:
                drop_file(state, path_of(state.path, name))
    drop_call_logs(state)


_FOLDERS = (
    format.DELTA_FOLDER,
    format.SNAPSHOT_FOLDER,
    format.CALL_FOLDER,
    format.SIGHTINGS_FOLDER,
    format.DENSE_FOLDER,
)
