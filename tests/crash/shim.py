"""Let the n-th call on files, or the n-th allocation, fail: the compiler, the door and the faults.

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ...], env=preloaded(build(Path(folder))))

and in that process `Shim().arm(root, fault, at)`: calls below `root` are counted from here on, and
the `at`-th one that the fault is about fails; `disarm()` ends it. Linux with glibc, a C compiler.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("fault_shim.c")

# Classes of calls, as in fault_shim.c.
OPEN, CREATE, READ, WRITE, SYNC, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, LOCK, MAP = (
    1 << bit for bit in range(12)
)
MEMORY = 1 << 12  # Allocations of the data plane, which have nothing in common with files.
ALL = (1 << 12) - 1
ROOM = CREATE | WRITE | RENAME | LINK | MKDIR  # what a full disk refuses
COUNT, FAIL, SHORT, KILL, TORN, FULL = range(6)
NEVER = 1 << 60


class Fault(NamedTuple):
    """What happens to which calls; a sticky one stays until it is disarmed."""

    name: str
    classes: int
    action: int
    error: int = 0
    is_sticky: bool = False

    @property
    def is_kill(self) -> bool:
        return self.action in (KILL, TORN)

    @property
    def is_full(self) -> bool:
        """Whether it stands for a lack of room."""
        return self.error in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


FAULTS = [
    Fault("EIO once", ALL, FAIL, errno.EIO),
    Fault("EIO from there on", ALL, FAIL, errno.EIO, True),
    Fault("nothing can be written from there on", ROOM | SYNC | TRUNCATE, FAIL, errno.EIO, True),
    Fault("every flush fails from there on", SYNC, FAIL, errno.EIO, True),
    Fault("ENOSPC once", ROOM, FAIL, errno.ENOSPC),
    Fault("ENOSPC in the middle of a write, and from there on", ROOM, FULL, errno.ENOSPC, True),
    Fault("EDQUOT once", ROOM, FAIL, errno.EDQUOT),
    Fault("EDQUOT from there on", ROOM, FAIL, errno.EDQUOT, True),
    Fault("EFBIG once", WRITE, FAIL, errno.EFBIG),
    Fault("EFBIG from there on", WRITE, FULL, errno.EFBIG, True),
    Fault("short once", READ | WRITE, SHORT),
    Fault("short from there on", READ | WRITE, SHORT, 0, True),
    Fault("killed before the call", ALL, KILL),
    Fault("killed in the middle of a write", WRITE, TORN),
]
NO_MEMORY = [
    Fault("no memory once", MEMORY, FAIL, errno.ENOMEM),
    Fault("no memory from there on", MEMORY, FAIL, errno.ENOMEM, True),
]


def why_not() -> str:
    """What is missing for a shim; "" if nothing."""
    if not sys.platform.startswith("linux"):
        return "LD_PRELOAD of glibc is needed: this is no Linux"
    return "" if shutil.which("cc") else "a C compiler is needed: there is no cc"


def build(folder: Path) -> Path:
    """Compile the shim into the folder."""
    target = folder / "fault_shim.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(target), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return target


def preloaded(shim: Path) -> dict[str, str]:
    """The environment of a Python process with this shim, which imports what this one does."""
    tests = Path(__file__).parent.parent
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",  # a fork takes one thread along
        "OPENBLAS_NUM_THREADS": "1",
    }


class Shim:
    """The preloaded shim of this process."""

    current: "Shim | None" = None  # the one that is armed

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._fault = FAULTS[0]
        self._library.fault_log.restype = ctypes.c_char_p
        for name in ("fault_calls", "fault_fired", "fault_allocations"):
            getattr(self._library, name).restype = ctypes.c_long
        for begin, end in data_plane():
            self._library.fault_range(ctypes.c_void_p(begin), ctypes.c_void_p(end))

    def arm(self, root: Path, fault: Fault, at: int = NEVER) -> None:
        """Begin to count; the `at`-th call, from 0, has the fault."""
        self._fault = fault
        Shim.current = self
        if fault.classes == MEMORY:
            self._library.fault_arm_memory(ctypes.c_long(at), fault.is_sticky)
            return
        self._library.fault_arm(
            os.fsencode(root), fault.classes, ctypes.c_long(at), fault.action, fault.error,
            fault.is_sticky,
        )  # fmt: skip

    def disarm(self) -> None:
        """End it; what was counted stays."""
        Shim.current = None
        self._library.fault_disarm()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what the test itself does in between."""
        self._library.fault_disarm()
        try:
            yield
        finally:
            if Shim.current is self:  # Else it was over before.
                self._library.fault_resume(self._fault.classes == MEMORY)

    @property
    def calls(self) -> int:
        """Calls of the fault's classes since it was armed."""
        if self._fault.classes == MEMORY:
            return int(self._library.fault_allocations())
        return int(self._library.fault_calls())

    @property
    def fired(self) -> int:
        """How many of them failed."""
        return int(self._library.fault_fired())

    def log(self) -> list[tuple[int, str]]:
        """Class of each call counted, and its name with the path below the root."""
        if self._fault.classes == MEMORY:
            return [(MEMORY, "an allocation")] * self.calls
        log, class_of = self._library.fault_log, self._library.fault_class
        return [(class_of(number), log(number).decode()) for number in range(self.calls)]


def data_plane() -> list[tuple[int, int]]:
    """Where the code of the compiled modules lies in memory."""
    import monolith_kv

    folder = str(Path(monolith_kv.__file__).resolve().parent)
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, path = line.split()
        if "x" in rights and path.startswith(f"{folder}/_") and path.endswith(".so"):
            begin, end = (int(part, 16) for part in place.split("-"))
            found.append((begin, end))
    return found
