"""mkv: look at, check, snapshot and restore stores.

Exit codes: 0 done, 1 problems found, 2 wrong usage, 3 refused (locked, corrupt, name taken), 4 a
file cannot be reached or written.
"""

import argparse
import contextlib
import os
import sys
import time
from typing import Any, Literal

from monolith_kv_tools._output import (
    DIFFERENT,
    DONE,
    REFUSED,
    USAGE,
    Output,
    add_json,
    path_text,
    progress,
    run,
    size_text,
    stoppable,
    table_text,
)

import monolith_kv as mkv
from monolith_kv.replication import Position, describe, positions

LATE_PERIODS = 3  # A report that is older than so many: no other is to be expected.


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mkv",
        description="Look at, check, snapshot and restore stores of monolith_kv.",
        epilog="Exit codes: 0 done, 1 problems found, 2 wrong usage, 3 refused (locked, corrupt, "
        "name taken), 4 a file cannot be reached or written.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stat = commands.add_parser("stat", help="position, tables, rows and sizes of a store")
    stat.add_argument("store", metavar="STORE", type=path_text)
    stat.add_argument("--quick", action="store_true", help="load no rows: not what only they tell")
    stat.set_defaults(run=run_stat)
    inspect = commands.add_parser("inspect", help="what is in a file of a store or a target")
    inspect.add_argument("file", metavar="FILE", type=path_text)
    inspect.set_defaults(run=run_inspect)
    verify = commands.add_parser("verify", help="check every checksum and invariant")
    verify.add_argument("store", metavar="STORE", type=path_text)
    verify.add_argument(
        "--salvage",
        metavar="DIR",
        type=path_text,
        help="save what is good of a damaged store into a new one",
    )
    verify.set_defaults(run=run_verify)
    snapshot = commands.add_parser("snapshot", help="write a full checkpoint")
    snapshot.add_argument(
        "store", metavar="STORE", type=path_text, help="not open for writing elsewhere"
    )
    snapshot.add_argument(
        "path", metavar="PATH", type=path_text, nargs="?", help="default: under the store"
    )
    snapshot.set_defaults(run=run_snapshot)
    restore = commands.add_parser("restore", help="make a store from snapshots")
    restore.add_argument("snapshots", metavar="SNAPSHOT", type=path_text, nargs="+")
    restore.add_argument("store", metavar="STORE", type=path_text, help="empty or absent")
    restore.add_argument("--mode", choices=("rw", "replica"), default="rw")
    restore.set_defaults(run=run_restore)
    for command in (stat, inspect, verify, snapshot, restore):
        add_json(command)
    return parser


# --- looking -------------------------------------------------------------------------------


def run_stat(arguments: argparse.Namespace, output: Output) -> int:
    """Print what a store holds."""
    values = position_values(store_position(arguments.store))
    if not arguments.quick:
        with mkv.open(arguments.store, "r") as store:
            values |= stat_values(store)
    output.result(values, stat_text(values))
    return DONE


def store_position(path: str) -> Position:
    """Return where a store or replica stands; a target is a FencedError."""
    [position] = positions([path])
    if position.kind == "target":
        raise mkv.FencedError(
            f"{path} is a target, not a store; see mkv-replicate status, or mkv restore one of "
            "its snapshots"
        )
    return position


def position_values(position: Position) -> dict[str, Any]:
    """Return what `stat` finds without loading rows."""
    traffic = position.traffic
    if traffic is not None:
        traffic = {"age_s": max(0.0, time.time() - traffic["at"]), **traffic}
    return {
        "path": position.path,
        "kind": position.kind,
        "uuid": position.uuid,
        "epoch": position.epoch,
        "sequence": position.sequence,
        "snapshots": position.snapshots,
        "deltas": position.deltas,
        "bytes": position.bytes,
        "overflow_bytes": overflow_bytes(position.path),
        "traffic": traffic,
    }


def stat_values(store: mkv.Store) -> dict[str, Any]:
    """Return what `stat` prints of the rows."""
    tables = [
        {"name": name, "dim": table.dim, "rows": len(table), "digest": store.digest(name)}
        for name, table in sorted(store.tables.items())
    ]
    return {
        "epoch": store.epoch,
        "sequence": store.sequence,
        "rows": sum(table["rows"] for table in tables),
        "digest": store.digest(),
        "cursor": dict(store.cursor),
        "dense_version": store.dense.version,
        "memory": store.stats()["memory"]["kinds"],
        "tables": tables,
    }


def overflow_bytes(path: str) -> int:
    """Return what the overflow tier of whoever has the store open takes on disk."""
    total = 0
    for folder, _, names in os.walk(os.path.join(path, "overflow")):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # It comes and goes with its rows.
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


def stat_text(values: dict[str, Any]) -> str:
    """Return the same for people."""
    lines = [
        f"{values['path']}: {values['kind']} {values['uuid'][:8]}, epoch {values['epoch']}, "
        f"delta {values['sequence']}",
        f"{values['snapshots']} snapshots, {values['deltas']} deltas, "
        f"{size_text(values['bytes'])} published, in its writer's overflow "
        f"{size_text(values['overflow_bytes'])}",
        traffic_text(values["traffic"]),
    ]
    if "tables" in values:
        lines += [
            f"{values['rows']} rows, in memory {size_text(sum(values['memory'].values()))}",
            f"cursor {values['cursor']}, dense parameters version {values['dense_version']}",
            f"digest {values['digest']}",
        ]
        rows = [[t["name"], str(t["dim"]), str(t["rows"])] for t in values["tables"]]
        lines += [table_text([["table", "dim", "rows"], *rows])] * bool(rows)
    return "\n".join(lines)


def traffic_text(report: dict[str, Any] | None) -> str:
    """Return tiers and rates of a writer for people."""
    if report is None:
        return (
            "no figures from a writer: none with memory_limit runs, or it began some seconds ago, "
            "or without a background"
        )
    memory, overflow = report["memory"], report["overflow"]
    late = report["age_s"] > LATE_PERIODS * report["period_s"]
    age = f"{report['age_s']:.0f} s ago" + late * ", and nothing since: it has gone, or hangs"
    limit = "" if overflow["limit"] is None else f" of {size_text(overflow['limit'])}"
    lines = [
        f"its writer said, {age}:",
        f"  memory: {memory['rows']} rows, {size_text(memory['bytes'])} of "
        f"{size_text(memory['limit'])} in all",
        f"  overflow: {overflow['rows']} rows, {size_text(overflow['bytes'])}{limit}, "
        f"{size_text(overflow['dead_bytes'])} of it dead",
    ]
    for key in ("lately", "since_opening"):
        found = report[key]
        lines.append(
            f"  {key.replace('_', ' ')}, {found['seconds']:.0f} s: hit rate "
            f"{share_text(found['hit_rate'])}, {found['promoted_per_s']:.0f} rows/s promoted, "
            f"{found['evicted_per_s']:.0f} evicted, write amplification "
            f"{share_text(found['write_amplification'])}"
        )
    return "\n".join(lines)


def share_text(share: float | None) -> str:
    """Return a ratio for people."""
    return "-" if share is None else f"{share:.3f}"


def run_inspect(arguments: argparse.Namespace, output: Output) -> int:
    """Print what is in one file, up to the damage if there is any."""
    for line in describe(arguments.file):
        output.result({"text": line}, line)
    return DONE


# --- checking ------------------------------------------------------------------------------


def run_verify(arguments: argparse.Namespace, output: Output) -> int:
    """Check a store; with --salvage save what is good of one that has problems."""
    problems = find_problems(arguments.store)
    for problem in problems:
        output.result({"problem": problem}, problem)
    if not problems:
        output.result({"good": True}, f"{arguments.store}: good")
        return DONE
    if arguments.salvage is None:
        output.failure(f"{len(problems)} problems; mkv verify --salvage DIR saves what is good")
        return DIFFERENT
    lost = mkv.salvage(arguments.store, arguments.salvage)
    for what in lost:
        output.result({"lost": what}, f"lost: {what}")
    output.result(
        {"salvaged": arguments.salvage, "lost": len(lost)},
        f"saved into {arguments.salvage}; {len(lost)} things could not be",
    )
    output.failure(f"{len(problems)} problems; what is good is in {arguments.salvage}")
    return DIFFERENT


def find_problems(path: str) -> list[str]:
    """Return what is wrong with a store, also where it does not even open."""
    try:
        store_position(path)
        with mkv.open(path, "r") as store:
            return store.verify()
    except mkv.CorruptionError as error:
        return [str(error)]


# --- snapshots -----------------------------------------------------------------------------


def run_snapshot(arguments: argparse.Namespace, output: Output) -> int:
    """Write a snapshot of a store that nobody else has open for writing."""
    mode: Literal["rw", "replica"] = "rw"
    if store_position(arguments.store).kind == "replica":
        mode = "replica"
    with (
        stoppable() as (_, check),
        progress("snapshot", check) as draw,
        mkv.open(arguments.store, mode, delta_interval=None) as store,
    ):
        done = store.snapshot(arguments.path, progress=draw)
    values = {
        "path": done.path,
        "sequence": done.sequence,
        "rows": done.rows,
        "bytes": done.bytes,
        "created_at": done.created_at,
    }
    output.result(
        values,
        f"{done.path}: {done.rows} rows, {size_text(done.bytes)}, at delta {done.sequence}",
    )
    return DONE


def run_restore(arguments: argparse.Namespace, output: Output) -> int:
    """Make a store from the snapshot of one store, or from those of several shards."""
    if arguments.mode == "replica" and len(arguments.snapshots) > 1:
        output.failure(f"--mode replica takes one snapshot, got {len(arguments.snapshots)}")
        return USAGE
    try:
        values = restored(arguments)
    except ValueError as error:  # The same ids in two of them.
        output.failure(error)
        return REFUSED
    output.result(
        values,
        f"{arguments.store}: {values['rows']} rows, at delta {values['sequence']}, epoch "
        f"{values['epoch']}",
    )
    return DONE


def restored(arguments: argparse.Namespace) -> dict[str, Any]:
    """Restore and close the store; return what it holds."""
    with (
        stoppable() as (_, check),
        progress("restore", check) as draw,
        mkv.restore(
            arguments.snapshots,
            arguments.store,
            mode=arguments.mode,
            progress=draw,
        ) as store,
    ):
        values = {
            "path": arguments.store,
            "sequence": store.sequence,
            "epoch": store.epoch,
            "rows": sum(len(table) for table in store.tables.values()),
            "digest": store.digest(),
        }
    # Closing has sealed what the snapshot was ahead of its last delta.
    values["sequence"] = store_position(arguments.store).sequence
    return values


if __name__ == "__main__":
    sys.exit(main())
