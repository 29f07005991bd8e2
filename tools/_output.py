"""What the console tools have in common: exit codes, lines of output, progress, being stopped.

Standard output carries results, as text or as one JSON object a line; standard error carries one
line that says why a command has failed. Progress is drawn on a terminal only.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import monolith_kv as mkv
from monolith_kv.replication import Stopped

DONE = 0
DIFFERENT = 1  # Not in step, not equal, problems found.
USAGE = 2
REFUSED = 3  # Fenced, corrupt, locked, an emptier or older history; nothing was changed.
UNREACHABLE = 4  # Something cannot be read or written.

Progress = Callable[[int, int], None]


def exit_code(error: Exception) -> int:
    """Return the exit code that tells what kind of error it is."""
    if isinstance(error, mkv.GapError):
        return DIFFERENT
    if isinstance(error, (mkv.StoreFullError, OSError)) and not isinstance(error, FileExistsError):
        return UNREACHABLE
    return REFUSED


class Output:
    """Prints results and failures of one command."""

    def __init__(self, program: str, as_json: bool) -> None:
        self.program = program
        self.as_json = as_json

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """Print one result, as an object on a line or as text."""
        line = json.dumps(values, sort_keys=False) if self.as_json else text
        print(line, flush=True)

    def failure(self, error: Exception | str) -> None:
        """Say on one line of standard error what went wrong."""
        print(f"{self.program}: {one_line(error)}", file=sys.stderr, flush=True)
        if self.as_json and isinstance(error, Exception):
            self.result({"error": one_line(error), "kind": type(error).__name__}, "")


def one_line(error: Exception | str) -> str:
    """Return a message without line ends; an OSError's with the name of the file first."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def run(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse the arguments, run the command that they name, and return the exit code.

    Parameters
    ----------
    parser : ArgumentParser
        Its commands set `run`, called with the arguments and an Output.
    argv : list of str or None
        None: those of the process.
    """
    arguments = parser.parse_args(argv)
    output = Output(parser.prog, arguments.json)
    warnings.showwarning = lambda message, *rest, **more: print(
        f"{parser.prog}: warning: {one_line(str(message))}", file=sys.stderr, flush=True
    )
    try:
        code: int = arguments.run(arguments, output)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (mkv.Error, OSError) as error:
        output.failure(error)
        return exit_code(error)
    except Stopped:
        output.failure("stopped before the end; what was done so far is kept or was undone")
        return DIFFERENT
    return code


@contextlib.contextmanager
def stoppable() -> Iterator[tuple[threading.Event, Callable[[], None]]]:
    """Let SIGTERM and Ctrl-C set an event; yield it with a check that raises Stopped after it.

    Notes
    -----
    A handler that raised could do so in the middle of any step; a check is at chosen places.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop, check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(what: str, check: Callable[[], None] = lambda: None) -> Iterator[Progress]:
    """Yield a callable (done, total) that draws a bar where there is a terminal and rich."""
    if not sys.stderr.isatty():
        yield lambda done, total: check()
        return
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        yield lambda done, total: check()
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def draw(done: int, total: int) -> None:
            check()
            bar.update(task, completed=done, total=total, visible=done < total)

        yield draw


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that all commands have."""
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def size_text(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table_text(rows: list[list[str]]) -> str:
    """Return rows of cells in aligned columns, the first row being the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)
