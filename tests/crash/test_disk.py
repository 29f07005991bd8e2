"""The model of a disk, and the reader of traces: what may be left, and nothing that may not."""

import random
from pathlib import Path

import pytest
from crash.disk import SECTOR_BYTES, Disk, Image
from crash.trace import NotRecordedError, Step, parse

A, B, C = (bytes([letter]) * SECTOR_BYTES for letter in b"abc")
ZEROS = bytes(SECTOR_BYTES)


def left(*steps: Step, durable: Image = ()) -> set[Image]:
    """All that a power cut after these steps may leave."""
    disk = Disk(lambda path: path == "LOCK", lambda name: name.endswith(".tmp"), durable)
    for step in steps:
        disk.take(step)
    found = set(disk.images(100_000, random.Random(1)))
    assert disk.image() in found
    return found


def contents(found: set[Image], path: str) -> set[bytes | None]:
    """What the file may hold; None: it may be absent."""
    return {dict(image).get(path) for image in found}


def opened(path: str, handle: int = 1, is_new: bool = True) -> Step:
    return Step("open", path, handle=handle, is_new=is_new)


def write(data: bytes, offset: int = 0, is_synced: bool = False) -> Step:
    return Step("write", handle=1, offset=offset, data=data, is_synced=is_synced)


SYNC = Step("sync", handle=1)
SYNC_ROOT = (Step("open", "", handle=9), Step("sync", handle=9))
KEPT: Image = (("f", A + B),)
AGAIN = opened("f", is_new=False)


def test_a_new_file_may_be_absent_until_its_folder_is_flushed() -> None:
    assert contents(left(opened("f"), write(A), SYNC), "f") == {None, A}
    assert contents(left(opened("f"), write(A), SYNC, *SYNC_ROOT), "f") == {A}


def test_a_flush_of_the_folder_leaves_the_data_loose() -> None:
    assert contents(left(opened("f"), write(A), *SYNC_ROOT), "f") == {b"", ZEROS, A}


def test_each_sector_of_a_write_may_be_missing_by_itself() -> None:
    found = contents(left(AGAIN, write(C + C), durable=KEPT), "f")
    assert found == {A + B, C + B, A + C, C + C}


def test_a_sector_may_have_any_version_since_the_last_flush() -> None:
    found = contents(left(AGAIN, write(C), SYNC, write(b"1"), write(b"2", 1), durable=KEPT), "f")
    assert found == {C + B, b"1" + C[1:] + B, b"12" + C[2:] + B}


def test_a_file_may_have_grown_without_its_data() -> None:
    found = contents(left(AGAIN, write(C, 2 * SECTOR_BYTES), durable=KEPT), "f")
    assert found == {A + B, A + B + ZEROS, A + B + C}


def test_a_file_may_have_grown_by_a_part_of_a_write() -> None:
    found = contents(left(AGAIN, write(C + b"x", 2 * SECTOR_BYTES), durable=KEPT), "f")
    grown = {A + B + C, A + B + C + b"x", A + B + ZEROS, A + B + C + b"\0", A + B + ZEROS + b"x"}
    assert found == {A + B, *grown, A + B + ZEROS + b"\0"}


def test_a_cut_is_made_wholly_or_not_at_all() -> None:
    cut = Step("cut", handle=1, offset=10)
    assert contents(left(AGAIN, cut, durable=KEPT), "f") == {A + B, A[:10]}
    assert contents(left(AGAIN, cut, SYNC, durable=KEPT), "f") == {A[:10]}


def test_what_was_cut_off_does_not_come_back() -> None:
    cut = Step("cut", handle=1, offset=10)
    grown = write(b"x", SECTOR_BYTES - 1)
    found = contents(left(AGAIN, cut, grown, durable=KEPT), "f")
    assert A[:10].ljust(SECTOR_BYTES - 1, b"\0") + b"x" in found
    assert not any(content and content[:11] == A[:11] and len(content) == 512 for content in found)


def test_a_synchronous_write_is_durable_at_once() -> None:
    assert contents(left(AGAIN, write(C, is_synced=True), durable=KEPT), "f") == {C + B}


def test_a_rename_is_made_wholly_or_not_at_all() -> None:
    rename = Step("rename", "f", "g")
    both = {tuple(path for path, _ in image) for image in left(rename, durable=KEPT)}
    assert both == {("f",), ("g",)}
    assert left(rename, *SYNC_ROOT, durable=KEPT) == {(("g", A + B),)}


def test_an_exchange_is_made_wholly_or_not_at_all() -> None:
    two: Image = (("f", A), ("g", B))
    found = left(Step("exchange", "f", "g"), durable=two)
    assert found == {two, (("f", B), ("g", A))}


def test_names_change_in_any_order_until_their_folder_is_flushed() -> None:
    steps = Step("link", "f", "g"), Step("unlink", "f")
    found = {tuple(path for path, _ in image) for image in left(*steps, durable=KEPT)}
    assert found == {("f",), ("f", "g"), ("g",), ()}


def test_what_is_in_a_folder_is_there_only_with_the_folder() -> None:
    steps = Step("folder", "d"), opened("d/f"), write(A), SYNC
    into = Step("open", "d", handle=2), Step("sync", handle=2)
    found = left(*steps, *into)
    assert found == {(), (("d", None), ("d/f", A))}


def test_litter_and_what_is_moot_make_no_states() -> None:
    litter = opened("f.tmp"), write(A + B)
    assert contents(left(*litter), "f.tmp") == {None, A + B}
    lock = opened("LOCK"), write(b"pid 1")
    assert left(*lock) == {(("LOCK", b""),)}


def test_litter_counts_in_full_once_it_has_a_name() -> None:
    steps = opened("f.tmp"), write(A), *SYNC_ROOT, Step("rename", "f.tmp", "f")
    assert contents(left(*steps), "f") == {None, b"", ZEROS, A}


def test_a_sample_has_nothing_and_everything_and_no_more_than_was_asked_for() -> None:
    disk = Disk(lambda path: False, lambda name: False, (("f", b""),))
    disk.take(AGAIN)
    disk.take(write(bytes(range(1, 251)) * 100))
    found = list(disk.images(50, random.Random(1)))
    assert len(found) == 50
    assert {found[0], found[1]} == {disk.image(), (("f", b""),)}


# --- traces ------------------------------------------------------------------------------------


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def line(call: str, pid: int = 7) -> str:
    """A line of strace with the texts in it as strace -xx has them."""
    parts = call.split("'")
    return f"{pid} " + "".join(hexed(p) if i % 2 else p for i, p in enumerate(parts)) + "\n"


def test_a_trace_becomes_steps_with_places_in_files() -> None:
    steps = parse(
        [
            line("openat(AT_FDCWD<'/'>, \"'/b/x/f'\", O_RDWR|O_CREAT, 0600) = 3<'/b/x/f'>"),
            line(
                "writev(3<'/b/x/f'>, [{iov_base=\"'ab'\", iov_len=2}, {iov_base=\"'c'\"}], 2) = 2"
            ),
            line("write(3<'/b/x/f'>, \"'d, 1) = 5'\", 8 <unfinished ...>"),
            line("fsync(4<'/elsewhere'>) = 0", 8),
            line("<... write resumed>) = 8"),
            line("rename(\"'/b/x/f'\", \"'/b/x/g'\") = -1 ENOENT (No such file or directory)"),
            line("rename(\"'/b/x/f'\", \"'/b/x/g'\") = 0"),
            line("pwrite64(3<'/b/x/g'>, \"'e'\", 1, 1) = 1"),
            line("fdatasync(3<'/b/x/g'>) = 0"),
        ],
        "/b",
    )
    assert steps == {
        "x": [
            Step("open", "f", handle=1, is_new=True),
            Step("write", "f", handle=1, data=b"ab"),
            Step("write", "f", handle=1, offset=2, data=b"d, 1) = 5"[:8]),
            Step("rename", "f", "g"),
            Step("write", "f", handle=1, offset=1, data=b"e"),
            Step("sync", "f", handle=1),
        ]
    }


def test_a_call_that_is_not_understood_is_never_left_out() -> None:
    begin = line("openat(AT_FDCWD<'/'>, \"'/b/x/f'\", O_RDWR|O_CREAT, 0600) = 3<'/b/x/f'>")
    with pytest.raises(NotRecordedError, match="fallocate"):
        parse([begin, line("fallocate(3<'/b/x/f'>, 0, 0, 100) = 0")], "/b")


def test_a_file_linked_from_elsewhere_is_loose_until_it_is_flushed_there(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.write_bytes(A)
    lines = [
        line(f"link(\"'{elsewhere}'\", \"'/b/x/f'\") = 0"),
        line(f"fdatasync(5<'{elsewhere}'>) = 0"),
    ]
    bring, sync = parse(lines, "/b")["x"]
    assert contents(left(bring, *SYNC_ROOT), "f") == {b"", ZEROS, A}
    assert contents(left(bring, sync, *SYNC_ROOT), "f") == {A}
