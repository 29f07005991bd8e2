"""What the console tools have in common: exit codes, lines of output, progress, being stopped.

Standard output carries results, as text or as one JSON object a line; standard error carries one
line that says why a command has failed. Progress is drawn on a terminal only.
"""

import argparse
import contextlib
import io
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
        self.is_lost = False  # Whether a result could not be written.

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """Print one result, as an object on a line or as text."""
        self.text(json.dumps(values, sort_keys=False) if self.as_json else text)

    def text(self, text: str) -> None:
        """Print lines to standard output; the command goes on where it has gone or is full."""
        try:
            if sys.stdout is not None:
                print(text, flush=True)
        except OSError as error:
            # What is still in its buffer must not fail again, at the end of the interpreter say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):  # Whoever read it does not want more.
                self.is_lost = True
                self.complain(f"standard output: {one_line(error)}")

    def complain(self, text: str) -> None:
        """Say something on a line of standard error, if there is one."""
        with contextlib.suppress(OSError):
            if sys.stderr is not None:
                print(f"{self.program}: {text}", file=sys.stderr, flush=True)

    def failure(self, error: Exception | str) -> None:
        """Say on one line of standard error what went wrong."""
        self.complain(one_line(error))
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Names of files are not always of its encoding.
            stream.reconfigure(errors="backslashreplace")
    arguments = parser.parse_args(argv)
    output = Output(parser.prog, arguments.json)
    warnings.showwarning = lambda message, *rest, **more: output.complain(
        f"warning: {one_line(str(message))}"
    )
    with raising(signal.SIGTERM):
        code = run_command(arguments, output)
    return UNREACHABLE if output.is_lost and code == DONE else code


def run_command(arguments: argparse.Namespace, output: Output) -> int:
    """Run the command that arguments name, and return the exit code."""
    try:
        code: int = arguments.run(arguments, output)
        return code
    except (mkv.Error, OSError) as error:
        output.failure(error)
        return exit_code(error)
    except ValueError as error:
        output.failure(error)
        return USAGE
    except (Stopped, KeyboardInterrupt):
        output.failure("stopped before the end; what was done so far is kept or was undone")
        return DIFFERENT


@contextlib.contextmanager
def raising(number: signal.Signals) -> Iterator[None]:
    """Let a signal raise KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


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
    if sys.stderr is None or not sys.stderr.isatty():
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


def path_text(text: str) -> str:
    """Return the path that an argument names."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; . is the current folder")
    return text


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
