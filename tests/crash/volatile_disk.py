"""A disk with a volatile write cache, served to a kernel as a network block device.

What holds: a read sees every write. When the process dies, what was flushed is on the medium,
whole; of what was written since, some writes are there, some are not, and some in part, as the seed
has it. So a later write may be there and an earlier one not: all that a disk may do which tells the
truth about its flushes. A write is torn between units of `atomic_bytes`, never within one.

    disk = VolatileDisk(fd, seed)                # fd: any file or block device
    attach("/dev/nbd0", "/dev/ubda", seed)       # as root in the guest: needs the module nbd

Today's disks write 4 KiB in one, and file systems rely on it: torn by 512 bytes, a block of a
directory once failed its checksum after xfs had replayed its log.
"""

import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct
import time
from collections.abc import Iterable

SECTOR = 512
CHUNK_BYTES = 1 << 20

# linux/nbd.h
SET_SOCK, SET_BLKSIZE, DO_IT, SET_SIZE_BLOCKS, SET_FLAGS = 0xAB00, 0xAB01, 0xAB03, 0xAB07, 0xAB0A
HAS_FLAGS, SEND_FLUSH = 1, 4
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
REQUEST = struct.Struct(">IHH8sQI")
REPLY = struct.Struct(">II8s")
REPLY_MAGIC = 0x67446698
EIO = 5

PR_SET_IO_FLUSHER = 57  # linux/prctl.h: no memory for this process by writing through this process.


class VolatileDisk:
    """The medium behind `fd`, and what is not on it yet."""

    def __init__(self, fd: int, seed: int, atomic_bytes: int = SECTOR) -> None:
        self._fd = fd
        self._dice = random.Random(seed)
        self._unit = atomic_bytes // SECTOR
        self._held: dict[int, bytes] = {}
        # Aligned, for a medium that is opened with O_DIRECT.
        self._buffer = mmap.mmap(-1, CHUNK_BYTES)

    def write(self, offset: int, data: bytes) -> None:
        """Write whole sectors: to the medium at once, to the cache, or some here and some there."""
        fate = self._dice.randrange(3)
        sectors = range(offset // SECTOR, (offset + len(data)) // SECTOR)
        if fate == 0:
            self._put(offset, data)
            for sector in sectors if self._held else ():
                self._held.pop(sector, None)
            return
        for number, sector in enumerate(sectors):
            self._held[sector] = data[number * SECTOR : (number + 1) * SECTOR]
        if fate == 1:
            units = {sector // self._unit for sector in sectors}
            through = {unit for unit in sorted(units) if self._dice.randrange(2)}
            self._put_held(sector for sector in sectors if sector // self._unit in through)

    def read(self, offset: int, size: int) -> bytes:
        """Read whole sectors, those in the cache included."""
        data = bytearray(self._get(offset, size))
        for sector in range(offset // SECTOR, (offset + size) // SECTOR) if self._held else ():
            if sector in self._held:
                at = sector * SECTOR - offset
                data[at : at + SECTOR] = self._held[sector]
        return bytes(data)

    def flush(self) -> None:
        """Put all that is in the cache on the medium."""
        self._put_held(sorted(self._held))

    def _put_held(self, sectors: Iterable[int]) -> None:
        run: list[bytes] = []
        start = 0
        for sector in sectors:
            if run and sector != start + len(run):
                self._put(start * SECTOR, b"".join(run))
                run = []
            if not run:
                start = sector
            run.append(self._held.pop(sector))
        if run:
            self._put(start * SECTOR, b"".join(run))

    def _put(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            self._buffer[: len(piece)] = piece
            with memoryview(self._buffer) as view, view[: len(piece)] as part:
                if os.pwrite(self._fd, part, offset + start) != len(piece):
                    raise OSError(EIO, "short write on the medium")

    def _get(self, offset: int, size: int) -> bytes:
        pieces = []
        for start in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - start)
            with memoryview(self._buffer) as view, view[:count] as part:
                if os.preadv(self._fd, [part], offset + start) != count:
                    raise OSError(EIO, "short read on the medium")
                pieces.append(bytes(part))
        return b"".join(pieces)


def serve(disk: VolatileDisk, line: socket.socket) -> None:
    """Answer the kernel's requests, one after the other, until it disconnects."""
    stream = line.makefile("rb", buffering=CHUNK_BYTES)
    while len(head := stream.read(REQUEST.size)) == REQUEST.size:
        _, _, command, handle, offset, size = REQUEST.unpack(head)
        answer, error = b"", 0
        if command == DISCONNECT:
            return
        try:
            if command == WRITE:
                disk.write(offset, stream.read(size))
            elif command == READ:
                answer = disk.read(offset, size)
            elif command == FLUSH:
                disk.flush()
            else:
                error = EIO
        except OSError:
            error = EIO
        line.sendall(REPLY.pack(REPLY_MAGIC, error, handle) + answer)


def attach(device: str, medium: str, seed: int, atomic_bytes: int = 4096) -> None:
    """Make `device` a disk with a volatile cache before `medium`; two processes serve it."""
    fd = os.open(medium, os.O_RDWR | os.O_DIRECT)
    size = os.lseek(fd, 0, os.SEEK_END)
    ours, kernels = socket.socketpair()
    if os.fork() == 0:
        kernels.close()
        ctypes.CDLL(None).prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
        serve(VolatileDisk(fd, seed, atomic_bytes), ours)
        os._exit(0)
    block = os.open(device, os.O_RDWR)
    fcntl.ioctl(block, SET_BLKSIZE, SECTOR)
    fcntl.ioctl(block, SET_SIZE_BLOCKS, size // SECTOR)
    fcntl.ioctl(block, SET_FLAGS, HAS_FLAGS | SEND_FLUSH)
    fcntl.ioctl(block, SET_SOCK, kernels.fileno())
    if os.fork() == 0:
        ours.close()
        fcntl.ioctl(block, DO_IT)  # Returns when the line is cut.
        os._exit(0)
    for each in (block, fd):
        os.close(each)
    ours.close()
    kernels.close()
    _wait_for(device)


def _wait_for(device: str) -> None:
    end = time.monotonic() + 10
    while True:
        block = os.open(device, os.O_RDONLY)
        try:
            if os.pread(block, SECTOR, 0):
                return
        except OSError:
            if time.monotonic() > end:
                raise
        finally:
            os.close(block)
        time.sleep(0.01)
