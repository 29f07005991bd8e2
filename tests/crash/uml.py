"""A Linux kernel in user mode whose power can be cut: boot it, talk to it, kill it.

    with Machine(folder, program) as machine:
        machine.format("ext4")
        machine.boot(GUEST_SYSTEM="ext4")
        while machine.line(timeout_s=60) != "mounted": ...
        machine.tell({"seed": 7})
        machine.cut()       # SIGKILL to all of the kernel: its page cache is gone
        machine.boot()      # the next kernel replays the file system's journal

The program runs as process 1 on the host's own files, read-only. Its environment has what `boot` is
given, and GUEST_OUT: the folder `out` of the host, which it may mount as "hostfs" and write to. It
talks to the host over /dev/ttyS0. Its disk is /dev/ubda, as the host's file `image`; since the host
survives, and this kernel forgets to pass flushes on, a trial of flushes mounts it behind a
`volatile_disk`.

Needs Debian's user-mode-linux, a C compiler and mkfs of the file systems; `missing()` names what is
not there.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

KERNELS = ("linux.uml", "linux")
MAKE_FILE_SYSTEM = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
DISK_BYTES = 320 << 20  # mkfs.xfs refuses less than 300 MiB.
MEMORY = "256M"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # Not in the path of every user.


def program(name: str) -> str | None:
    """Where a program is, those of the administrator included."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def kernel() -> str | None:
    """The kernel as a program."""
    return next(filter(None, map(program, KERNELS)), None)


def compiler() -> str | None:
    return program(os.environ.get("CC", "cc").split()[0])


def missing() -> list[str]:
    """The packages of Debian that have to be installed first."""
    packages = [PACKAGES[name] for name, make in MAKE_FILE_SYSTEM.items() if not program(make[0])]
    if kernel() is None:
        packages.insert(0, "user-mode-linux")
    if compiler() is None:
        packages.append("gcc")
    return packages


def build_registers(folder: Path) -> Path:
    """Compile what has to be preloaded."""
    library = folder / "uml_registers.so"
    source = Path(__file__).with_name("uml_registers.c")
    command = [compiler() or "cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source), "-ldl"], check=True)
    return library


class PowerError(Exception):
    """The machine did something else than lose power."""


class GuestError(Exception):
    """The guest said what went wrong there."""


class Machine:
    """One disk, and the kernels that run on it one after the other."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder, self.program = folder, program
        self.image, self.log = folder / "disk.img", folder / "console.log"
        self.out = folder / "out"
        self.out.mkdir()
        self._library = build_registers(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._wire_in = self._wire_out = -1
        self._rest = b""

    def format(self, system: str) -> None:
        """Make an empty file system on the disk."""
        with self.image.open("wb") as image:
            image.truncate(DISK_BYTES)
        make, *options = MAKE_FILE_SYSTEM[system]
        command = [str(program(make)), *options, str(self.image)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PowerError(f"{' '.join(command)}: {done.stderr}")

    def boot(self, **environment: str) -> None:
        """Switch the power on; returns at once. What an earlier boot left in `out` is gone."""
        shutil.rmtree(self.out)
        self.out.mkdir()
        self._close_wire()
        guest_in, self._wire_out = os.pipe()
        self._wire_in, guest_out = os.pipe()
        self._rest = b""
        adopt_orphans()
        command = [
            str(kernel()), f"mem={MEMORY}", "quiet", f"ubd0={self.image}",
            "rootfstype=hostfs", "root=/dev/root", "ro", "con=null", "con0=null,fd:1",
            f"ssl0=fd:{guest_in},fd:{guest_out}", f"uml_dir={self.folder}",
            f"GUEST_OUT={self.out}", *(f"{name}={value}" for name, value in environment.items()),
            f"init={sys.executable}", "--", str(self.program),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(guest_in, guest_out),
                env={**os.environ, "LD_PRELOAD": str(self._library), "TMPDIR": self._memory()},
                start_new_session=True,
            )
        os.close(guest_in)
        os.close(guest_out)

    def _memory(self) -> str:
        return "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(self.folder)

    def tell(self, message: Any) -> None:
        """Send one line of JSON."""
        os.write(self._wire_out, json.dumps(message).encode() + b"\n")

    def line(self, timeout_s: float) -> str | None:
        """The next whole line that the guest sent; None once the power is cut and all is read."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._wire_in], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise PowerError(f"no word for {timeout_s} s from {self._tail()}")
            piece = os.read(self._wire_in, 65_536)
            if not piece:
                if self._process is not None:
                    raise PowerError(f"the kernel ended: {self._tail()}")
                return None
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        text = line.decode()
        if text.startswith("error "):
            raise GuestError(f"in the guest: {json.loads(text[6:])}")
        return text

    def lines(self, timeout_s: float) -> Iterator[str]:
        """All lines until the power is cut."""
        while (line := self.line(timeout_s)) is not None:
            yield line

    def cut(self) -> None:
        """Cut the power: nothing of the kernel runs any more when this returns."""
        process, self._process = self._process, None
        if process is None:
            return
        # The kernel, its threads, and a process for each of the guest's, all of one group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)

    def close(self) -> None:
        self.cut()
        self._close_wire()

    def _close_wire(self) -> None:
        for fd in (self._wire_in, self._wire_out):
            if fd >= 0:
                os.close(fd)
        self._wire_in = self._wire_out = -1

    def _tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        # Lines of a kernel's stack have addresses in brackets, and tell us nothing.
        lines = [line for line in text.splitlines() if "[<" not in line]
        return "\n".join([str(self.log), *lines[-30:]])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def adopt_orphans() -> None:
    """Become the parent of what a killed kernel leaves, to wait until it is gone."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
