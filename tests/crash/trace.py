"""Record the calls on files that a process makes, by strace, as steps that can be made again.

`record` runs a command under strace and returns, for each folder below a base folder, the steps
made in it, in order. A step knows the file by a handle (one for each open), since names move; paths
are relative to the folder. What the process writes to a file `MARKS` in the folder is no step on
the disk but a mark in the trace: that is how calls are acknowledged.

Only calls that change something or make it durable are recorded. Reads are not: a position in a
file is known from writes and seeks, and `Disk.image` of all steps must equal the real folder, which
a recording checks. A call that is not understood is an error, never left out.
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MARKS = "MARKS"
CALLS = [
    "open", "openat", "creat", "close", "dup", "dup2", "dup3", "lseek", "write", "writev",
    "pwrite64", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate", "copy_file_range",
    "sendfile", "fsync", "fdatasync", "sync_file_range", "sync", "syncfs", "msync", "rename",
    "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat",
    "rmdir", "symlink", "symlinkat",
]  # fmt: skip
STRING_BYTES_MAX = 64 << 20  # None is cut: a write that is cut could not be made again.


class Step(NamedTuple):
    """One change: `kind` is open, write, cut, sync, link, bring, rename, unlink, folder or mark.

    "bring" links a file from elsewhere, with what is in it.
    """

    kind: str
    path: str = ""
    target: str = ""
    handle: int = -1
    offset: int = 0  # Of a write; the size after a cut.
    data: bytes = b""
    is_new: bool = False  # The file is created if it is not there.
    is_synced: bool = False  # Durable on return, as by O_DSYNC.


class NotRecordedError(Exception):
    """The trace has a call that this module does not understand."""


def missing() -> str:
    """What is not there that recording needs, in words; "" if nothing."""
    if shutil.which("strace") is None:
        return "strace is not there: install the Debian package strace"
    probe = [*_strace(os.devnull), "true"]
    made = subprocess.run(probe, capture_output=True, text=True)
    return "" if made.returncode == 0 else f"strace cannot trace here: {made.stderr.strip()}"


def record(
    command: Sequence[str], base: Path, given: str, environment: dict[str, str]
) -> dict[str, list[Step]]:
    """Run a command; return the steps that it and its children made in each folder below base.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    base : Path
        No link is in it.
    given : str
        What the command reads from standard input.
    environment : dict
        Of the command.
    """
    path = base / "trace"
    made = subprocess.run(
        [*_strace(str(path)), *command],
        input=given, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{made.stderr}")
    with open(path) as lines:
        steps = parse(lines, str(base))
    path.unlink()
    return steps


def _strace(output: str) -> list[str]:
    names = ",".join(f"?{name}" for name in CALLS)
    return [
        "strace", "-f", "-y", "-xx", "-s", str(STRING_BYTES_MAX), "-e", "signal=none",
        "--seccomp-bpf", "-e", f"trace={names}", "-o", output,
    ]  # fmt: skip


# --- from lines to steps -----------------------------------------------------------------------

LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+).*")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
FD = re.compile(r"(AT_FDCWD|-?\d+)(?:<([^>]*)>)?")
NUMBER = re.compile(r"-?\d+")
KINDS = {
    "unlink": "unlink", "rmdir": "unlink", "unlinkat": "unlink", "mkdir": "folder",
    "mkdirat": "folder", "link": "link", "linkat": "link", "rename": "rename",
    "renameat": "rename", "renameat2": "rename",
}  # fmt: skip


def parse(lines: Iterable[str], base: str) -> dict[str, list[Step]]:
    """Return the steps in a trace, by the folder below `base` in which they were made."""
    reader = _Reader(base.rstrip("/") + "/")
    for pid, name, arguments, result in _calls(lines):
        if result >= 0:
            reader.take(pid, name, arguments, result)
    return reader.steps


def _calls(lines: Iterable[str]) -> Iterator[tuple[int, str, str, int]]:
    """Each call with its process, also where another one came between its begin and its end."""
    begun: dict[str, str] = {}
    for text in lines:
        line = text.rstrip("\n")
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        if "resumed>" in line and pid in begun:
            line = begun.pop(pid) + line.split("resumed>", 1)[1]
        match = LINE.fullmatch(line)
        if match:
            yield int(match[1]), match[2], match[3], int(match[4])


@dataclass
class _Open:
    handle: int
    path: str
    position: int = 0
    is_appending: bool = False
    is_synced: bool = False


@dataclass
class _Reader:
    """What is open in each process; the steps so far."""

    base: str
    steps: dict[str, list[Step]] = field(default_factory=dict)
    opened: dict[tuple[int, int], _Open] = field(default_factory=dict)
    handles: int = 0
    # Folder and step, by the path elsewhere.
    brought: dict[str, tuple[str, Step]] = field(default_factory=dict)

    def take(self, pid: int, name: str, arguments: str, result: int) -> None:
        if name in ("open", "openat", "creat"):
            self._open(pid, name, arguments, result)
        elif name in KINDS:
            kind = "exchange" if "RENAME_EXCHANGE" in arguments else KINDS[name]
            self._name(kind, *self._paths(name, arguments))
        else:
            self._on_descriptor(pid, name, arguments, result)

    # --- names

    def _paths(self, name: str, arguments: str) -> list[str]:
        strings = [_text(match) for match in STRING.finditer(arguments)]
        folders = [_decoded(match[2]) for match in FD.finditer(arguments) if match[2]]
        if not name.endswith(("at", "at2")):
            folders = []
        paths = []
        for index, string in enumerate(strings):
            folder = folders[index] if index < len(folders) else os.getcwd()
            paths.append(os.path.normpath(os.path.join(folder, string)))
        return paths

    def _place(self, path: str) -> tuple[str, str] | None:
        """The folder below base in which a path lies, and the path in it, "" for itself."""
        if not path.startswith(self.base) or path == self.base:
            return None
        folder, _, inner = path.removeprefix(self.base).partition("/")
        return folder, inner

    def _name(self, kind: str, path: str, target: str = "") -> None:
        place = self._place(path)
        into = self._place(target) if target else place
        if kind == "link" and place is None and into is not None:
            self._bring(path, *into)
            return
        if (place is None) != (into is None) or (place and into and place[0] != into[0]):
            raise NotRecordedError(f"{kind} from {path} to {target}: out of the folder or into it")
        if place is not None and into is not None and place[1]:
            self._add(place[0], Step(kind, place[1], into[1] if target else ""))

    def _bring(self, path: str, folder: str, name: str) -> None:
        self.handles += 1
        step = Step("bring", name, handle=self.handles, data=Path(path).read_bytes())
        self.brought[path] = folder, step
        self._add(folder, step)

    def _add(self, folder: str, step: Step) -> None:
        self.steps.setdefault(folder, []).append(step)

    # --- open files

    def _open(self, pid: int, name: str, arguments: str, fd: int) -> None:
        path = self._paths(name, arguments)[0]
        place = self._place(path)
        self.opened.pop((pid, fd), None)
        if place is None:
            return
        self.handles += 1
        self.opened[pid, fd] = _Open(
            self.handles,
            path,
            is_appending="O_APPEND" in arguments,
            is_synced="O_DSYNC" in arguments or "O_SYNC" in arguments,
        )
        is_new = "O_CREAT" in arguments or name == "creat"
        if place[1] == MARKS:
            return
        self._add(place[0], Step("open", place[1], handle=self.handles, is_new=is_new))
        if "O_TRUNC" in arguments or name == "creat":
            self._add(place[0], Step("cut", place[1], handle=self.handles))

    def _on_descriptor(self, pid: int, name: str, arguments: str, result: int) -> None:
        match = FD.match(arguments)
        if match is None:
            raise NotRecordedError(f"{name}({arguments[:80]})")
        path = _decoded(match[2] or "").removesuffix(" (deleted)")
        key = (pid, -1 if match[1] == "AT_FDCWD" else int(match[1]))
        found = self.opened.get(key)
        place = self._place(found.path if found else path)
        if path in self.brought and name in ("fsync", "fdatasync"):
            folder, step = self.brought[path]
            self._add(folder, Step("sync", step.path, handle=step.handle))
        if place is None:
            return
        if name == "close":
            self.opened.pop(key, None)
            return
        if name == "lseek" and found is None:
            return  # A copy of the descriptor of a folder, for a listing.
        if found is None:
            raise NotRecordedError(f"{name} on {path}, which was opened before the trace began")
        numbers = [int(part) for part in arguments.split(", ") if NUMBER.fullmatch(part)]
        if name == "lseek":
            found.position = result
        elif name in ("fsync", "fdatasync"):
            self._add(place[0], Step("sync", place[1], handle=found.handle))
        elif name == "ftruncate":
            self._add(place[0], Step("cut", place[1], handle=found.handle, offset=numbers[-1]))
        elif name in ("write", "writev", "pwrite64", "pwritev"):
            data = b"".join(_bytes(match) for match in STRING.finditer(arguments))[:result]
            self._write(place, found, data, numbers[-1] if name.startswith("p") else None)
        else:
            raise NotRecordedError(f"{name} on {path}")

    def _write(self, place: tuple[str, str], found: _Open, data: bytes, offset: int | None) -> None:
        if place[1] == MARKS:
            self._add(place[0], Step("mark", data=data))
            return
        if found.is_appending:
            raise NotRecordedError(f"a write by O_APPEND on {found.path}")
        at = found.position if offset is None else offset
        if offset is None:
            found.position += len(data)
        step = Step("write", place[1], "", found.handle, at, data, is_synced=found.is_synced)
        self._add(place[0], step)


def _decoded(text: str) -> str:
    return os.fsdecode(ast.literal_eval(f'b"{text}"'))


def _bytes(match: re.Match[str]) -> bytes:
    if match[2]:
        raise NotRecordedError("strace has cut a string")
    return bytes.fromhex(match[1].replace("\\x", ""))


def _text(match: re.Match[str]) -> str:
    return os.fsdecode(_bytes(match))
