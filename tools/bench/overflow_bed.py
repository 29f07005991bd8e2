"""A store that is larger than its memory, and what its tier is held against: LMDB, and plain reads.

Everything lies on the disk of TMPDIR. The files of the tier are found by looking into the store's
folder: what they are is the engine's affair.
"""

import contextlib
import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from monolith_kv_tools.bench.tables import ACCUMULATOR, DIM, LR
from monolith_kv_tools.bench.traffic import BATCH, scrambled_ids
from numpy.typing import NDArray

import monolith_kv as mkv

Ids = NDArray[np.uint64]
RECORD_BYTES = 16 + 4 * 2 * DIM  # Id and time, embedding, Adagrad's accumulators.
INDEX_BYTES = 40  # A row in the index, at worst, and its header and dead ones in overflow.
MEMORY_SHARE = 0.1
YARDSTICK_ROWS = 1_000_000  # More would only push the tier out of the page cache.


class Bed:
    """A store whose memory holds a part of its rows.

    Parameters
    ----------
    folder : str
        For the store; absent.
    rows : int
        That `fill` inserts.
    share : float
        Of the rows for which memory has room.

    Attributes
    ----------
    ids : ndarray of uint64, shape (rows,)
        In the order in which they are inserted.
    """

    def __init__(self, folder: str, rows: int, share: float = MEMORY_SHARE) -> None:
        self.folder = folder
        self.ids = scrambled_ids(rows)
        self.limit = int(share * rows) * RECORD_BYTES + rows * INDEX_BYTES
        self.store = self.open()
        self.table = self.store.create_table("item", DIM, optimizer=mkv.Adagrad(LR, ACCUMULATOR))

    def open(self) -> mkv.Store:
        """Open the store; its background works, but no seal falls into a measurement."""
        return mkv.open(
            self.folder, durability="none", delta_interval="1d", memory_limit=self.limit
        )

    def fill(self) -> None:
        """Insert all ids."""
        rng = np.random.default_rng(3)
        rows = rng.random((BATCH, DIM), dtype=np.float32)
        for start in range(0, len(self.ids), BATCH):
            part = self.ids[start : start + BATCH]
            self.table.upsert(part, rows[: len(part)])

    def counters(self) -> dict[str, int]:
        """Return the table's counters."""
        counters: dict[str, int] = self.store.stats()["tables"]["item"]["counters"]
        return counters

    def resident(self) -> int:
        """Return how many rows memory holds."""
        table = self.store.stats()["tables"]["item"]
        return int(table["rows"] - table["cold_rows"])

    def files(self) -> list[Path]:
        """Return the files of the tier."""
        return [path for path in Path(self.folder, "overflow").rglob("*") if path.is_file()]

    def disk_bytes(self) -> int:
        """Return what they take on disk."""
        return sum(path.stat().st_blocks * 512 for path in self.files())

    def evict_cache(self) -> None:
        """Leave no page of the tier's files in the page cache."""
        for path in self.files():
            with contextlib.suppress(FileNotFoundError):  # The tier has emptied it meanwhile.
                evict(path)

    def throw_away(self) -> None:
        """Close without sealing, which would write all rows out."""
        self.store.drop_table("item")
        self.store.close()


def evict(path: Path) -> None:
    """Leave no page of a file in the page cache, nor in a map of this process."""
    for first, length in mapped(path):
        # The cache keeps what is mapped. Of a shared map this gives no byte up: man 2 madvise.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED
        )
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def mapped(path: Path) -> list[tuple[int, int]]:
    """Return the first address and the length of each map of a file in this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] == str(path) and parts[1][3] == "s":
            first, last = (int(number, 16) for number in parts[0].split("-"))
            found.append((first, last - first))
    return found


def written_bytes() -> int:
    """Return what this process has sent towards the disk so far."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


# --- yardsticks --------------------------------------------------------------------------------


class RawLmdb:
    """The same values in LMDB: what a batch of them costs without an engine around.

    Parameters
    ----------
    folder : str
        For the environment; absent.
    ids : ndarray of uint64
        Keys of values of RECORD_BYTES.
    """

    def __init__(self, folder: str, ids: Ids) -> None:
        import lmdb

        os.mkdir(folder)
        self.path = Path(folder, "data.mdb")
        self._env = lmdb.open(folder, map_size=1 << 40, lock=False, sync=False, readahead=False)
        values = np.random.default_rng(4).bytes(RECORD_BYTES + BATCH)
        ordered = np.sort(ids)
        for start in range(0, len(ordered), BATCH):
            keys = keys_of(ordered[start : start + BATCH])
            pairs = [(key, values[at : at + RECORD_BYTES]) for at, key in enumerate(keys)]
            with self._env.begin(write=True) as txn:
                txn.cursor().putmulti(pairs, append=True)
        self._env.sync(True)

    def read(self, ids: Ids) -> int:
        """Read a batch in the order of keys, all values copied into one array."""
        keys = keys_of(np.sort(ids))
        with self._env.begin(buffers=True) as txn:
            values = b"".join(value for _, value in txn.cursor().getmulti(keys))
        return len(values)

    def close(self) -> None:
        """Close it."""
        self._env.close()


def keys_of(ids: Ids) -> list[bytes]:
    """Return keys that sort as the ids do."""
    keys: list[bytes] = ids.astype(">u8").view("V8").tolist()
    return keys


class OneByOne:
    """The same values in a plain file, read by one `pread` after the other.

    Parameters
    ----------
    path : str
        Of the file; absent.
    rows : int
        Values in it.
    """

    def __init__(self, path: str, rows: int) -> None:
        self.path = Path(path)
        block = np.random.default_rng(5).bytes(BATCH * RECORD_BYTES)
        with open(path, "wb", buffering=0) as file:
            for start in range(0, rows, BATCH):
                file.write(block[: min(BATCH, rows - start) * RECORD_BYTES])
            os.fsync(file.fileno())
        self._fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, positions: NDArray[np.int64]) -> None:
        """Read the values at these positions."""
        for offset in (positions * RECORD_BYTES).tolist():
            os.pread(self._fd, RECORD_BYTES, offset)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """Yield a folder on the disk of TMPDIR."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder
