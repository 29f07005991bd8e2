"""A worker as seen from the command that compares: start it, ask it, end it.

A worker has a session of its own, so that an interrupt reaches the command alone, which then ends
every worker with all that it has started.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

END_S = 10.0
LOG_LINES = 3


class FailedError(Exception):
    """A contender cannot go on; the message says why."""


class UnsupportedError(Exception):
    """A contender does not offer what was asked for; the message says why."""


class Process:
    """A worker process.

    Parameters
    ----------
    command : list of str
        To start it.
    environment : mapping of str to str
        Added to this process's own.
    log : Path
        Where its standard error goes.
    limit_s : float
        Longest time for one answer.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Path, limit_s: float
    ) -> None:
        self._log = log
        self._limit_s = limit_s
        self._rest = b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request; FailedError or UnsupportedError in place of one."""
        assert self._process.stdin is not None
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(do))
        except BrokenPipeError:
            raise FailedError(self._why_it_ended()) from None
        if "failed" in reply:
            raise FailedError(reply["failed"])
        if "unsupported" in reply:
            raise UnsupportedError(reply["unsupported"])
        return reply

    def end(self, *, at_once: bool = False) -> None:
        """Let it end by itself, or make it; again: nothing."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if not at_once:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        # The group, for what a worker has started; it is gone already after a good end.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
                break
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self, what: str) -> bytes:
        """Return the next line of its output."""
        assert self._process.stdout is not None
        until = time.monotonic() + self._limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise FailedError(f"no answer to {what!r} within {self._limit_s:.0f} s")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise FailedError(self._why_it_ended())
                self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
        return f"its process ended with {code}: {' / '.join(lines) or 'without a word'}"
