"""The host's side of the power cuts: the disk that forgets, what the guest tells, the oracle.

The cuts themselves need a kernel in user mode: make powercut.
"""

import os
import platform
import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import power
from crash.power import AHEAD, Life, Seen, check_counts, need
from crash.power_guest import made
from crash.uml import build_registers, compiler
from crash.volatile_disk import (
    FLUSH,
    READ,
    REPLY,
    REQUEST,
    SECTOR,
    WRITE,
    VolatileDisk,
    serve,
)  # fmt: skip
from crash.worker import Clock, make, open_store
from model import StoreModel

import monolith_kv as mkv

SECTORS = 64


# --- the disk ----------------------------------------------------------------------------------


@pytest.fixture
def medium(folder: Path) -> Iterator[int]:
    fd = os.open(folder / "medium", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SECTORS * SECTOR)
    yield fd
    os.close(fd)


def sectors_of(data: bytes) -> list[bytes]:
    return [data[start : start + SECTOR] for start in range(0, len(data), SECTOR)]


def some_write(dice: random.Random) -> tuple[int, bytes]:
    start = dice.randrange(SECTORS)
    count = dice.randrange(1, SECTORS - start + 1)
    return start * SECTOR, dice.randbytes(count * SECTOR)


def test_a_read_sees_every_write_flushed_or_not(medium: int, seed: int) -> None:
    dice, disk, expected = random.Random(seed), VolatileDisk(medium, seed), bytearray(
        SECTORS * SECTOR
    )  # fmt: skip
    for number in range(300):
        offset, data = some_write(dice)
        disk.write(offset, data)
        expected[offset : offset + len(data)] = data
        if number % 7 == 0:
            disk.flush()
        assert disk.read(0, len(expected)) == expected
        assert disk.read(offset, len(data)) == data


def test_what_was_flushed_is_on_the_medium_whole(medium: int, seed: int) -> None:
    dice, disk = random.Random(seed), VolatileDisk(medium, seed)
    for _ in range(50):
        disk.write(*some_write(dice))
    expected = disk.read(0, SECTORS * SECTOR)
    assert os.pread(medium, SECTORS * SECTOR, 0) != expected
    disk.flush()
    assert os.pread(medium, SECTORS * SECTOR, 0) == expected


def test_of_what_was_not_flushed_any_part_is_on_the_medium(medium: int) -> None:
    old, new = bytes(8 * SECTOR), b"n" * 8 * SECTOR
    fates = set()
    for seed in range(60):
        os.pwrite(medium, old, 0)
        VolatileDisk(medium, seed).write(0, new)
        there = [sector == b"n" * SECTOR for sector in sectors_of(os.pread(medium, 8 * SECTOR, 0))]
        fates.add("all" if all(there) else "some" if any(there) else "none")
    assert fates == {"all", "some", "none"}


def test_a_unit_that_is_atomic_is_never_torn(medium: int, seed: int) -> None:
    dice, new = random.Random(seed), b"n" * SECTOR
    for number in range(60):
        os.pwrite(medium, bytes(SECTORS * SECTOR), 0)
        offset, data = some_write(dice)
        VolatileDisk(medium, number, atomic_bytes=4 * SECTOR).write(offset, b"n" * len(data))
        written = range(offset // SECTOR, (offset + len(data)) // SECTOR)
        there = [s == new for s in sectors_of(os.pread(medium, SECTORS * SECTOR, 0))]
        for unit in range(0, SECTORS, 4):
            of_unit = [there[sector] for sector in range(unit, unit + 4) if sector in written]
            assert all(of_unit) or not any(of_unit)


def test_a_later_write_may_be_there_without_an_earlier_one(medium: int) -> None:
    orders = set()
    for seed in range(60):
        os.pwrite(medium, bytes(2 * SECTOR), 0)
        disk = VolatileDisk(medium, seed)
        disk.write(0, b"a" * SECTOR)
        disk.write(SECTOR, b"b" * SECTOR)
        orders.add(tuple(s[:1] for s in sectors_of(os.pread(medium, 2 * SECTOR, 0))))
    assert (b"\0", b"b") in orders
    assert (b"a", b"\0") in orders


def test_the_kernels_requests_are_answered(medium: int) -> None:
    ours, kernels = socket.socketpair()
    server = threading.Thread(target=serve, args=(VolatileDisk(medium, 1), ours))
    server.start()

    def ask(command: int, offset: int = 0, size: int = 0, data: bytes = b"") -> tuple[int, bytes]:
        request = REQUEST.pack(0x25609513, 0, command, b"handle 1", offset, size or len(data))
        kernels.sendall(request + data)
        reply = kernels.recv(REPLY.size, socket.MSG_WAITALL)
        _, error, handle = REPLY.unpack(reply)
        assert handle == b"handle 1"
        answer = kernels.recv(size, socket.MSG_WAITALL) if size and not error else b""
        return error, answer

    data = struct.pack("<128I", *range(128))
    assert ask(WRITE, SECTOR, data=data) == (0, b"")
    assert ask(READ, SECTOR, SECTOR) == (0, data)
    assert ask(FLUSH) == (0, b"")
    assert os.pread(medium, SECTOR, SECTOR) == data
    assert ask(99)[0] != 0
    kernels.close()
    server.join()
    ours.close()


# --- what the guest tells ----------------------------------------------------------------------


def test_what_interval_may_lose_follows_from_what_the_guest_told() -> None:
    seen = Seen()
    told = "settled|a 1.0|b 1.5|a 1.6|e 1.7|a 2.0|b 2.1|a 2.4|a 2.6"
    for line in told.split("|"):
        seen.hear(line)
    assert seen.is_settled
    assert seen.returned == 5
    assert seen.sealed == 1  # The second call returned after the seal had begun.
    assert seen.loss_s(recovered=1) == pytest.approx(2.6 - 1.6)
    assert seen.loss_s(recovered=5) == 0.0
    # The seal under way has taken 0.5 s when the power is cut, the one before 0.2 s.
    assert seen.allowed_loss_s(interval_s=0.6, pause_s=0.03) == pytest.approx(0.6 + 0.03 + 0.5)


def test_threads_are_held_to_what_each_counted(store_dir: Path) -> None:
    seen = Seen()
    for line in ["t 0 1", "t 1 1", "t 0 2"]:
        seen.hear(line)
    assert seen.returned == 3
    with mkv.open(store_dir) as store:
        table = store.create_table("counts", 1, optimizer=mkv.SGD())
        table.upsert([0, 1], np.full((2, 1), 2, np.float32))
        check_counts(store, seen.counts)  # One more than was told may have been made.
        table.upsert([0], np.ones((1, 1), np.float32))
        with pytest.raises(AssertionError, match="thread 0 had 2, the store has 1"):
            check_counts(store, seen.counts)


# --- the oracle --------------------------------------------------------------------------------


def a_request(durability: str, path: Path, delta_interval: float | None = None) -> dict[str, Any]:
    return {
        "durability": durability, "delta_interval": delta_interval, "memory_limit": None,
        "seed": 5, "run": 0, "tables": [], "now": 1_000_000.0, "path": str(path),
        "only_changes": durability == "interval",
    }  # fmt: skip


def store_after(request: dict[str, Any], count: int) -> mkv.Store:
    """A store on which so many of the calls were made."""
    clock = Clock(request["now"])
    store = open_store(request, clock)
    stream = made(request)
    for _ in range(count):
        call = next(stream)
        if call.kind == "advance":
            clock.now += call.value
        elif call.kind == "reopen":
            store.close()
            store = open_store(request, clock)
        else:
            make(store, call)
    return store


def seen_after(count: int) -> Seen:
    return Seen(True, [1.0 + number / 100 for number in range(count)])


@pytest.mark.parametrize("made_more", [0, 1, AHEAD // 2])
def test_sync_accepts_all_calls_that_returned_and_more(store_dir: Path, made_more: int) -> None:
    request = a_request("sync", store_dir)
    life = Life(StoreModel(), request, seen_after(40))
    with store_after(request, 40 + made_more) as store:
        life.check(store)
        assert life.recovered >= 40


def last_change(request: dict[str, Any], count: int) -> int:
    """The last of so many calls that changes rows of a table for certain, counted from 1."""
    stream = made(request)
    kinds = [next(stream).kind for _ in range(count)]
    return max(number for number, kind in enumerate(kinds, 1) if kind == "upsert")


@pytest.mark.parametrize("durability", ["sync", "batch", "none"])
def test_a_lost_call_is_noticed_in_sync_alone(store_dir: Path, durability: str) -> None:
    request = a_request(durability, store_dir)
    returned = last_change(request, 40)
    life = Life(StoreModel(), request, seen_after(returned))
    assert life.durable == returned if durability == "sync" else life.durable < returned
    with store_after(request, returned - 1) as store:
        if durability == "sync":
            with pytest.raises(AssertionError, match=f"{returned} of them have to be there"):
                life.check(store)
        else:
            life.check(store)
            assert life.recovered == returned - 1


def test_a_hole_is_noticed_in_every_mode(store_dir: Path) -> None:
    request = a_request("none", store_dir)
    life = Life(StoreModel(), request, seen_after(60))
    with store_after(request, 30) as store:
        store.table("plain").upsert([3], np.full((1, 3), 77, np.float32))  # No call of the stream.
        with pytest.raises(AssertionError, match="in no state from there on"):
            life.check(store)


def test_a_seal_that_returned_is_missed_even_if_the_rows_are_there(store_dir: Path) -> None:
    request = a_request("sync", store_dir)
    all_calls = Life(StoreModel(), request, seen_after(100))
    sequences = [state.model.sequence for state in all_calls.states]
    seal = next(n for n in range(60, 100) if sequences[n] > sequences[n - 1])
    assert all_calls.calls[seal - 1].kind == "seal"
    life = Life(StoreModel(), request, seen_after(seal))
    with store_after(request, seal - 1) as store:
        with pytest.raises(AssertionError, match="a seal that returned is lost"):
            life.check(store)


def test_interval_has_to_hold_what_a_seal_covered_that_ended(store_dir: Path) -> None:
    request = a_request("interval", store_dir, delta_interval=0.3)
    seen = seen_after(60)
    number = last_change(request, 40)
    seen.begun, seen.ended = [seen.acknowledged[number - 1] + 0.001], [1.9]
    life = Life(StoreModel(), request, seen)
    assert life.durable == number
    with store_after({**request, "path": str(store_dir / "all")}, number) as store:
        life.check(store)
    with store_after({**request, "path": str(store_dir / "less")}, number - 1) as store:
        with pytest.raises(AssertionError, match=f"{number} of them have to be there"):
            life.check(store)


# --- what it needs -----------------------------------------------------------------------------


def test_without_a_kernel_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(power, "missing", lambda: ["user-mode-linux", "xfsprogs"])
    with pytest.raises(SystemExit) as left:
        need()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "apt-get install user-mode-linux xfsprogs" in said


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or compiler() is None,
    reason="needs Linux on x86-64 and a C compiler",
)
def test_what_is_preloaded_into_the_kernel_compiles(folder: Path) -> None:
    assert build_registers(folder).exists()
