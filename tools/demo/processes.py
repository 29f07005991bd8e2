"""Start processes, read what they print, and end those, and only those, by their pid."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

END_S = 10.0


class Process:
    """A child process whose lines can be waited for; ended when the `with` block is.

    Parameters
    ----------
    name : str
        For messages; its standard error goes to `name`.log in `log_folder`.
    command : sequence of str
        Program and arguments.
    log_folder : str
        A folder that is there.
    """

    def __init__(self, name: str, command: Sequence[str], log_folder: str) -> None:
        self.name = name
        self.log_path = os.path.join(log_folder, f"{name}.log")
        self._lines: queue.Queue[str | None] = queue.Queue()
        # One thread of linear algebra each: batches are small, and there are several processes.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with open(self.log_path, "a") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.pid = self._child.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def next_line(self, timeout_s: float) -> str | None:
        """Return its next line; None when it has ended. TimeoutError if it says nothing."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(
                f"{self.name} (pid {self.pid}) has said nothing for {timeout_s} s; "
                f"{self.last_words()}"
            ) from None

    def next_object(self, timeout_s: float) -> dict[str, Any]:
        """Return its next line, a JSON object; RuntimeError when it has ended instead."""
        line = self.next_line(timeout_s)
        if line is None:
            raise RuntimeError(
                f"{self.name} (pid {self.pid}) ended with exit code {self._child.wait()}; "
                f"{self.last_words()}"
            )
        value: dict[str, Any] = json.loads(line)
        return value

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def kill(self) -> None:
        """End it at once, with SIGKILL: it gets no chance to write anything."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        if self.is_running():
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._child.returncode

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return its exit code."""
        return self._child.wait(timeout_s)

    def last_words(self) -> str:
        """Return the end of its standard error, on one line."""
        with contextlib.suppress(OSError), open(self.log_path, errors="replace") as log:
            lines = log.read()[-2000:].strip().splitlines()
            if lines:
                return f"its last words: {lines[-1]}"
        return "it wrote nothing on standard error"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._reader.join(END_S)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _read(self) -> None:
        if self._child.stdout is not None:
            for line in self._child.stdout:
                self._lines.put(line)
        self._lines.put(None)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the demo in this interpreter."""
    return [sys.executable, "-m", f"monolith_kv_tools.demo.{module}", *arguments]


def replicate_command(*arguments: str) -> list[str]:
    """Return the command that runs mkv-replicate, as installed beside this interpreter."""
    installed = shutil.which("mkv-replicate", path=os.path.dirname(sys.executable))
    if installed is not None:
        return [installed, *arguments]
    return [sys.executable, "-m", "monolith_kv_tools.mkv_replicate", *arguments]
