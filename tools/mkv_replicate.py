"""mkv-replicate: publish a store to a folder, follow it into a replica, see where each stands.

Exit codes: 0 done, 1 not in step or different, 2 wrong usage, 3 refused (the replica is unchanged),
4 the other side cannot be reached or written.
"""

import argparse
import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from monolith_kv_tools._output import (
    DIFFERENT,
    DONE,
    Output,
    add_json,
    exit_code,
    one_line,
    path_text,
    progress,
    run,
    size_text,
    stoppable,
    table_text,
)

import monolith_kv as mkv
from monolith_kv.replication import (
    Digests,
    Followed,
    Follower,
    Position,
    Published,
    Publisher,
    positions,
    read_digests,
    repeat,
)

POLL_MAX_S = 86_400

Step = Callable[[], int]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mkv-replicate",
        description="Carry what a store publishes to replicas, through a folder.",
        epilog="Exit codes: 0 done, 1 not in step or different, 2 wrong usage, 3 refused "
        "(fenced, corrupt, older or emptier history; the replica is unchanged), 4 the other side "
        "cannot be reached or written.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    push = commands.add_parser("push", help="publish deltas and snapshots of STORE to TARGET")
    push.add_argument("store", metavar="STORE", type=path_text)
    push.add_argument(
        "target", metavar="TARGET", type=path_text, help="a folder; made if it is not there"
    )
    push.set_defaults(run=run_push)
    follow = commands.add_parser("follow", help="keep REPLICA up to date from SOURCE")
    follow.add_argument(
        "source", metavar="SOURCE", type=path_text, help="a target folder, or a store's own"
    )
    follow.add_argument(
        "replica", metavar="REPLICA", type=path_text, help="made if it is not there"
    )
    follow.add_argument(
        "--force",
        action="store_true",
        help="take over an older, emptier or other history, once",
    )
    follow.add_argument("--memory-limit", metavar="SIZE", help='of the replica, "8GiB" say')
    follow.set_defaults(run=run_follow)
    for command in (push, follow):
        command.add_argument(
            "--once", action="store_true", help="do what there is to do and end (default: go on)"
        )
        command.add_argument(
            "--poll",
            metavar="SECONDS",
            type=poll_seconds,
            default=1.0,
            help="between two looks at the source (default: 1)",
        )
        add_json(command)
    status = commands.add_parser("status", help="positions, lag and sizes")
    status.add_argument(
        "paths", metavar="PATH", type=path_text, nargs="+", help="a store, target or replica"
    )
    status.set_defaults(run=run_status)
    verify = commands.add_parser("verify", help="do A and B hold the same rows?")
    verify.add_argument("a", metavar="A", type=path_text, help="a store, replica or target")
    verify.add_argument("b", metavar="B", type=path_text)
    verify.set_defaults(run=run_verify)
    for command in (status, verify):
        add_json(command)
    return parser


def poll_seconds(text: str) -> float:
    """Return the seconds that an argument names."""
    seconds = float(text)
    if not 0 < seconds <= POLL_MAX_S:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most {POLL_MAX_S}, got {text}")
    return seconds


# --- push ----------------------------------------------------------------------------------


def run_push(arguments: argparse.Namespace, output: Output) -> int:
    """Push once, or until stopped."""
    with stoppable() as (stop, check), progress("push", check) as draw:
        publisher = Publisher(arguments.store, arguments.target, progress=draw, check=check)
        is_first = True

        def step() -> int:
            nonlocal is_first
            done = publisher.run_once()
            if done.changed or is_first:
                report_push(arguments, output, done)
            is_first = False
            return DONE

        return once_or_on(step, arguments, output, stop)


def report_push(arguments: argparse.Namespace, output: Output, done: Published) -> None:
    """Print what one push did."""
    values = {"store": arguments.store, "target": arguments.target, **dataclasses.asdict(done)}
    what = "up to date"
    if done.changed:
        what = (
            f"{done.deltas} deltas, {done.snapshots} snapshots ({size_text(done.bytes)}), "
            f"{done.pruned} files pruned"
        )
    output.result(values, f"published up to delta {done.sequence} (epoch {done.epoch}): {what}")


# --- follow --------------------------------------------------------------------------------


def run_follow(arguments: argparse.Namespace, output: Output) -> int:
    """Follow once, or until stopped."""
    options: dict[str, Any] = {}
    if arguments.memory_limit is not None:
        options["memory_limit"] = arguments.memory_limit
    with stoppable() as (stop, check), progress("resync", check) as draw:
        following = Following(arguments, output, options, check, draw)
        try:
            return once_or_on(following.step, arguments, output, stop)
        finally:
            following.close()


class Following:
    """The steps of one `follow`: opens the replica with the first one that gets so far."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        output: Output,
        options: dict[str, Any],
        check: Callable[[], None],
        draw: Callable[[int, int], None],
    ) -> None:
        self._arguments = arguments
        self._output = output
        self._options = options
        self._check = check
        self._draw = draw
        self._force = arguments.force
        self._follower: Follower | None = None
        self._reported: Followed | None = None

    def step(self) -> int:
        """Do one step; report it if it changed anything."""
        if self._follower is None:
            # Looked for first, so that a mistyped source does not leave an empty replica behind.
            positions([self._arguments.source])
            self._follower = Follower(
                self._arguments.source, self._arguments.replica, **self._options
            )
            self._follower.check = self._check
            self._follower.progress = self._draw
        done = self._follower.run_once(force=self._force)
        self._force = False  # Meant for the state that its caller has seen, not for ever.
        if self._is_news(done):
            report_follow(self._arguments, self._output, done)
        self._reported = done
        return DONE if done.in_step else DIFFERENT

    def close(self) -> None:
        """Close the replica."""
        if self._follower is not None:
            self._follower.close()

    def _is_news(self, done: Followed) -> bool:
        before = self._reported
        return (
            before is None
            or bool(done.resynced)
            or (done.sequence, done.epoch, done.source_sequence)
            != (before.sequence, before.epoch, before.source_sequence)
        )


def report_follow(arguments: argparse.Namespace, output: Output, done: Followed) -> None:
    """Print where a step left the replica."""
    values = {
        "source": arguments.source,
        "replica": arguments.replica,
        "sequence": done.sequence,
        "epoch": done.epoch,
        "source_sequence": done.source_sequence,
        "lag": done.lag,
        "in_step": done.in_step,
        "applied": done.applied,
        "resynced": done.resynced or None,
    }
    state = "in step" if done.in_step else f"{done.lag} deltas behind"
    how = f"{done.applied} deltas applied"
    if done.resynced:
        how = f"built anew: {done.resynced}"
    output.result(values, f"at delta {done.sequence} (epoch {done.epoch}), {state}; {how}")


def once_or_on(
    step: Step, arguments: argparse.Namespace, output: Output, stop: threading.Event
) -> int:
    """Do one step and return its exit code, or go on until stopped and return 0."""
    if arguments.once:
        code = step()
        if code != DONE:
            output.failure("not in step with the source")
        return code
    last = ""

    def failed(error: Exception) -> None:
        nonlocal last
        # A trouble that goes on is told once, not every second.
        if one_line(error) != last:
            last = one_line(error)
            output.failure(error)

    def report() -> None:
        nonlocal last
        step()
        last = ""

    repeat(report, stop, poll_s=arguments.poll, failed=failed)
    return DONE


# --- status --------------------------------------------------------------------------------


def run_status(arguments: argparse.Namespace, output: Output) -> int:
    """Print where each path stands."""
    code = DONE
    good = []
    for path in arguments.paths:
        try:
            positions([path])
            good.append(path)
        except (mkv.Error, OSError) as error:
            output.failure(error)
            code = max(code, exit_code(error))
    now = time.time()
    found = positions(good)
    if output.as_json:
        for position in found:
            output.result(status_values(position, now), "")
    elif found:
        head = ["path", "kind", "store", "epoch", "delta", "rows", "size", "age", "lag"]
        output.text(table_text([head, *(status_cells(position, now) for position in found)]))
    return code


def status_values(position: Position, now: float) -> dict[str, Any]:
    """Return a position with what depends on the time of day."""
    age_s = None if position.sealed_at is None else max(0.0, now - position.sealed_at)
    return {**dataclasses.asdict(position), "age_s": age_s}


def status_cells(position: Position, now: float) -> list[str]:
    """Return a position as cells of the table."""
    age_s = status_values(position, now)["age_s"]
    lag = "forked" if position.lag is None else str(position.lag)
    if position.lag and position.lag_s is not None:
        lag += f" ({position.lag_s:.0f} s)"
    return [
        position.path,
        position.kind,
        position.uuid[:8] or "-",
        str(position.epoch),
        str(position.sequence),
        "-" if position.rows is None else str(position.rows),
        size_text(position.bytes),
        "-" if age_s is None else f"{age_s:.0f} s",
        lag,
    ]


# --- verify --------------------------------------------------------------------------------


def run_verify(arguments: argparse.Namespace, output: Output) -> int:
    """Compare the rows of two paths."""
    a, b = (digests_of(path) for path in (arguments.a, arguments.b))
    different = sorted(
        name for name in a.tables | b.tables if a.tables.get(name) != b.tables.get(name)
    )
    is_equal = a.digest == b.digest
    values = {
        "equal": is_equal,
        "different": different,
        "a": dataclasses.asdict(a),
        "b": dataclasses.asdict(b),
    }
    if is_equal:
        output.result(values, f"equal: {a.rows} rows, digest {a.digest}")
        return DONE
    if output.as_json:
        output.result(values, "")
    output.failure(f"different: {place(a)}; {place(b)}; tables {', '.join(different)}")
    return DIFFERENT


def digests_of(path: str) -> Digests:
    """Return the digests of one path."""
    if positions([path])[0].kind != "target":
        return read_digests(path)  # Only read: it may be ended anywhere.
    with stoppable() as (_, check), progress("verify", check) as draw:
        return read_digests(path, progress=draw)


def place(digests: Digests) -> str:
    """Return where one side of a comparison stands, in words."""
    return f"{digests.path} has {digests.rows} rows at delta {digests.sequence}"


if __name__ == "__main__":
    sys.exit(main())
