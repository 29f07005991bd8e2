"""What a checkpoint costs: writing and restoring one beside plain code that moves the same bytes.

On the disk of TMPDIR, its cache emptied before each read. What reads as a yardstick passes the
page cache by, where the file system can; how fast the system reads ahead into that cache is printed
beside it, and how fast memory that the process has not used before can be written to: rows go
nowhere else, and the host of a virtual machine may give it more slowly than any disk its bytes.
"""

import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from monolith_kv_tools.bench.durability import Trainer
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import Compared, compare, resident_bytes, timed
from monolith_kv_tools.bench.scale import Scale

import monolith_kv as mkv

CHUNK = 8 << 20
DIRECT = getattr(os, "O_DIRECT", 0)  # Only Linux has it.
MIB = 1 << 20


def run(scale: Scale) -> Iterator[Figure]:
    """Measure all."""
    rows = scale.sizes[0]
    rounds = scale.rounds(9)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(f"{folder}/s", rows, durability="none")
        found, peak, size = snapshot(trainer.store, folder, rounds)
        yield Figure("snapshot speed", found.ratio, rows, detail(found, size))
        yield Figure("snapshot memory", peak / MIB, rows)
        found, peak, cached_s, touched_s = restore(trainer.store, folder, rounds)
        rates = f"{size / cached_s / 1e9:.2f} GB/s by way of the page cache"
        rates += f"; first touch {size / touched_s / 1e9:.2f} GB/s"
        yield Figure("restore speed", found.ratio, rows, f"{detail(found, size)}, {rates}")
        yield Figure("restore memory", peak / MIB, rows)
        trainer.close()


def detail(found: Compared, size: int) -> str:
    """Return quartiles, times and bytes a second, work first."""
    rates = f"{size / found.seconds / 1e9:.2f} : {size / found.yardstick_s / 1e9:.2f} GB/s"
    return f"{found.detail()}, {rates}"


def snapshot(store: mkv.Store, folder: str, rounds: int) -> tuple[Compared, int, int]:
    """Write checkpoints; the yardstick writes and flushes as many bytes. Also bytes of memory."""
    path, plain = f"{folder}/snapshot", f"{folder}/plain"
    size = store.snapshot(path).bytes
    chunk = np.random.default_rng(4).bytes(CHUNK)

    def before() -> None:
        for each in (path, plain):
            if os.path.exists(each):
                os.unlink(each)

    def yardstick() -> None:
        with open(plain, "wb", buffering=0) as file:
            for start in range(0, size, CHUNK):
                file.write(chunk[: size - start])
            os.fdatasync(file.fileno())

    found = compare(
        "snapshot", lambda: store.snapshot(path), yardstick, rounds=rounds, before=before, warm_up=1
    )
    before()
    resting = resident_bytes()
    peak = peak_bytes(lambda: store.snapshot(path))
    before()
    return found, peak - resting, size


def restore(store: mkv.Store, folder: str, rounds: int) -> tuple[Compared, int, float, float]:
    """Restore from a checkpoint; the yardstick reads it.

    Also memory, and the seconds of a reading by way of the page cache and of a touch.
    """
    taken = store.snapshot(f"{folder}/taken")
    paths = (f"{folder}/restored-{number}" for number in count())
    made: list[mkv.Store] = []
    cached: list[float] = []
    touched: list[float] = []

    def before() -> None:
        while made:
            made[-1].close()
            shutil.rmtree(made.pop().path)
        touched.append(first_touch_s(taken.bytes))
        evict(taken.path)
        cached.append(timed(lambda: read_whole(taken.path)))

    def work() -> None:
        made.append(mkv.restore(taken.path, next(paths), mode="replica"))

    def yardstick() -> None:
        evict(taken.path)
        read_whole(taken.path, DIRECT)

    def evicted_work() -> None:
        evict(taken.path)
        work()

    found = compare("restore", evicted_work, yardstick, rounds=rounds, before=before, warm_up=1)
    before()
    resident_bytes()  # What was freed before must not hide what this takes.
    peak = peak_bytes(work)
    beyond = peak - resident_bytes()
    before()
    os.unlink(taken.path)
    return found, beyond, statistics.median(cached), statistics.median(touched)


def evict(path: str) -> None:
    """Leave no page of a file in the cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read_whole(path: str, flags: int = 0) -> None:
    """Read a file from front to end, without those flags where the file system has them not."""
    try:
        fd = os.open(path, os.O_RDONLY | flags)
    except OSError:
        if not flags:
            raise
        fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(-1, CHUNK) as buffer:  # It begins with a page, as O_DIRECT asks for.
        while os.readv(fd, [buffer]):
            pass
    os.close(fd)


def first_touch_s(size: int) -> float:
    """Return the seconds that writing to so many bytes of new memory takes."""
    begun = time.perf_counter()
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, size, flags=private) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        pages = np.frombuffer(memory, np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages
    return time.perf_counter() - begun


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the largest resident set while something is done."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The high-water mark begins anew: man 5 proc.
    work()
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
