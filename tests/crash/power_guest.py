"""Process 1 of a kernel that is about to lose power: hand the store over, then go on calling.

It mounts the disk, which makes the file system replay its journal, copies the store as it is found
to the host, waits for a request, opens the store there and makes calls until the power is gone. A
line to the host tells each step: mounted, copied, settled, opened, then "a TIME" for each call that
returned, and "b TIME" and "e TIME" around each seal of the background.
"""

import ctypes
import json
import os
import platform
import shutil
import threading
import time
import traceback
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash.volatile_disk import attach
from crash.worker import Call, Clock, calls, make

NETWORK_BLOCK_DEVICE = f"/usr/lib/uml/modules/{platform.release()}/kernel/drivers/block/nbd.ko"
SYS_FINIT_MODULE = 313  # asm/unistd_64.h
CHANGES = ("create", "drop", "pull", "push", "upsert", "remove")
# A folder that every system has and nobody keeps a project in, as they do in /tmp and /mnt.
HERE = Path("/boot")
DISK, OUT = HERE / "disk", HERE / "out"
STORE = DISK / "store"
PAUSE_S = 0.002  # Between calls that only change rows: some hundreds a second.


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    call_libc("mount", source.encode(), target.encode(), kind.encode(), 0, options.encode())


def call_libc(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def load_module(path: str, options: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    call_libc("syscall", SYS_FINIT_MODULE, fd, options.encode(), 0)
    os.close(fd)


def copy_to_host(folder: str) -> None:
    """Copy the store, which nobody has open; the host's file system is not part of the trial."""
    mount("none", str(OUT), "hostfs", folder)
    if STORE.exists():
        shutil.copytree(STORE, OUT / "store")
    call_libc("umount", str(OUT).encode())


def write_back_at_once() -> None:
    """Let the kernel write what nobody flushes within centiseconds, not half a minute later.

    Then a power cut finds half of it on the disk, in an order of the kernel's own.
    """
    for name in ("dirty_writeback_centisecs", "dirty_expire_centisecs"):
        Path("/proc/sys/vm", name).write_text("1")
    # Its journal as well, each second; ext4 and btrfs are told when they are mounted.
    Path("/proc/sys/fs/xfs/xfssyncd_centisecs").write_text("100")


def open_store(request: dict[str, Any], clock: Clock) -> Any:
    import monolith_kv as mkv

    return mkv.open(
        str(STORE),
        durability=request["durability"],
        memory_limit=request["memory_limit"],
        delta_interval=request["delta_interval"],
        delta_retention="3650d",
        clock=clock,
    )


def made(request: dict[str, Any]) -> Iterator[Call]:
    """The calls that a request stands for, endless, the same here and in the oracle."""
    for call in calls(request["seed"], request["run"], request["tables"]):
        if not request["only_changes"] or call.kind in CHANGES:
            yield call


class Wire:
    """The line to the host."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)

    def say(self, text: str) -> None:
        os.write(self._fd, text.encode() + b"\n")

    def timed(self, kind: str) -> None:
        self.say(f"{kind} {time.monotonic():.6f}")

    def hear(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._fd, 4_096)
        return dict(json.loads(line))


def live(wire: Wire, request: dict[str, Any]) -> None:
    """Make calls until the power is gone."""
    clock = Clock(request["now"])
    # Opened and closed: what was recovered is sealed, as in the copy that the host has checked.
    open_store({**request, "delta_interval": None}, clock).close()
    wire.say("settled")
    store = open_store(request, clock)
    wire.say("opened")
    if request["threads"]:
        count_in_threads(wire, store, request["threads"])
    for call in made(request):
        if request["only_changes"]:
            time.sleep(PAUSE_S)
        if call.kind == "advance":
            clock.now += call.value
        elif call.kind == "reopen":
            store.close()
            store = open_store(request, clock)
        else:
            make(store, call)
        wire.timed("a")


def count_in_threads(wire: Wire, store: Any, count: int) -> None:
    """Each thread counts in a row of its own, all share the flushes."""
    import numpy as np

    import monolith_kv as mkv

    table = store.create_table("counts", 1, optimizer=mkv.SGD(), exist_ok=True)

    def go_on(fid: int) -> None:
        number = int(table.lookup([fid])[0, 0])
        while True:
            number += 1
            table.upsert([fid], np.full((1, 1), number, np.float32))
            wire.say(f"t {fid} {number}")

    threads = [threading.Thread(target=go_on, args=(fid,)) for fid in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tell_seals(wire: Wire) -> None:
    from monolith_kv import maintenance

    seal = maintenance.seal

    def told(*arguments: Any) -> Any:
        wire.timed("b")
        delta = seal(*arguments)
        wire.timed("e")
        return delta

    maintenance.seal = told


def leave_out(names: list[str]) -> None:
    """Break the engine on purpose, to see whether the experiment would notice."""
    from monolith_kv.storage import files

    for name in names:
        setattr(files, name, lambda *_, **__: None)


def main() -> None:
    mount("proc", "/proc", "proc")
    mount("none", str(HERE), "tmpfs")
    DISK.mkdir()
    OUT.mkdir()
    wire = Wire()
    # What goes wrong before the request is the trial's fault: the kernel panics, its log says why.
    load_module(NETWORK_BLOCK_DEVICE, "nbds_max=1 max_part=0")
    attach("/dev/nbd0", "/dev/ubda", int(os.environ["GUEST_SEED"]))
    system, options = os.environ["GUEST_SYSTEM"], os.environ.get("GUEST_OPTIONS", "")
    mount("/dev/nbd0", str(DISK), system, options)
    wire.say("mounted")
    copy_to_host(os.environ["GUEST_OUT"])
    wire.say("copied")
    request = wire.hear()
    if request["is_eager"]:
        write_back_at_once()
    leave_out(request["left_out"])
    tell_seals(wire)
    try:
        live(wire, request)
    except BaseException:
        wire.say("error " + json.dumps(traceback.format_exc()))
    threading.Event().wait()  # The kernel panics if process 1 ends.


if __name__ == "__main__":
    main()
