"""Verify: read everything, check every checksum and invariant, tell the problems in words."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from monolith_kv.errors import Error
from monolith_kv.state import StoreState
from monolith_kv.storage import call_log, delta_log, dense, manifest, sightings, snapshot
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.pending import split_pieces
from monolith_kv.storage.recovery import check_identity

ATTEMPTS = 3


def verify_store(state: StoreState) -> list[str]:
    """Return the problems of an open store, files and memory; [] if there are none.

    Notes
    -----
    A writer's files stay as they are meanwhile: seals wait. A reader looks again where the writer
    has moved on.
    """
    problems: list[str] = []
    for _attempt in range(ATTEMPTS):
        with state.files:
            found = state.manifest if state.mode != "r" else manifest.load(state.path)
            if found is None:
                return [f"{state.path}: there is no manifest any more"]
            problems = verify_files(state, found)
            if not problems or state.mode != "r" or manifest.load(state.path) == found:
                break
    problems += _verify_overflow(state)
    for name, entry in state.tables.items():
        problems += [f"{state.path}: table {name}: {text}" for text in entry.core.check()]
    return problems


def verify_files(state: StoreState, found: Manifest) -> list[str]:
    """Return the problems of the files that a manifest names."""
    root = state.path
    problems: list[str] = []

    def check(path: str, read: Callable[[], Any]) -> None:
        try:
            read()
        except FileNotFoundError:
            problems.append(f"{path}: missing, the manifest names it")
        except (Error, OSError) as error:
            text = str(error)
            problems.append(text if path in text else f"{path}: {text}")

    def published(path: str, made: Callable[[str], Any]) -> Callable[[], None]:
        def read() -> None:
            reader = made(path)
            check_identity(path, reader, found)
            reader.verify()

        return read

    check(os.path.join(root, "MANIFEST"), lambda: manifest.load(root))
    for entry in found.snapshots:
        path = snapshot.path_of(root, entry["name"])
        check(path, published(path, snapshot.SnapshotReader))
    for entry in found.deltas:
        path = delta_log.path_of(root, entry["name"])
        check(path, published(path, delta_log.DeltaReader))
    if found.dense.get("name") is not None:
        path = dense.path_of(root, found.dense["name"])
        check(path, lambda: dense.unpack(dense.load(root, found.dense), path))
    if found.sightings is not None:
        name = found.sightings
        path = sightings.path_of(root, name)
        check(path, lambda: [split_pieces(p) for p in sightings.load(root, name).values()])
    with state.mutex:  # No call is being appended.
        numbers = [n for n in call_log.numbers(root) if n >= found.first_call_log]
        for number in numbers:
            path = call_log.path_of(root, number)
            check(path, partial(_read_calls, path, number == numbers[-1]))
    return problems


def _read_calls(path: str, is_last: bool) -> None:
    with call_log.read(path, must_be_closed=not is_last) as log:
        for _ in log:
            pass


def _verify_overflow(state: StoreState) -> list[str]:
    """Read every record of the tier: each cold id must have a good one."""
    overflow = state.overflow
    problems: list[str] = []
    for name, entry in state.tables.items() if overflow is not None else ():
        assert overflow is not None
        bad = cursor = 0
        while cursor >= 0 and entry.core.cold_rows:
            with state.mutex:
                fids, cursor = entry.core.walk(cursor)
                cold = entry.core.cold(fids)
                bad += len(cold) - len(overflow.read(entry.core, cold)[1])
        if bad:
            problems.append(
                f"{overflow.folder}: table {name} has {bad} damaged records in overflow, or in the "
                "snapshot that the store was opened from; close the store and open it again"
            )
    return problems
