"""Call logs: each kind of call comes back as it was made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from samples import EPOCH, UUID

import monolith_kv as mkv
from monolith_kv.storage import call_log, format
from monolith_kv.storage.call_log import (
    CallLogWriter,
    Configure,
    Create,
    Drop,
    Insert,
    Mark,
    Push,
    Remove,
    Upsert,
)
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.framing import Record


def plain(call: Any) -> Any:
    """The values of a call, arrays as lists."""
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(call).items()
    }
    return type(call), values


def test_every_kind_of_call_comes_back_as_it_was_made(folder: Path) -> None:
    log = CallLogWriter(str(folder), UUID, 4, EPOCH)
    fids = np.array([0, 5, 2**64 - 1], np.uint64)
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    log.create(1, {"name": "a"})
    log.insert(1, 1.25, fids)
    log.push(1, -2.5, fids, values)
    log.upsert(1, 3e9, fids, values)
    log.remove(1, fids)
    log.configure(1, {"ttl": None})
    log.mark({"snapshot": "ab"})
    log.drop(1)
    log.close()
    ids, rows = fids.tolist(), values.tolist()
    with call_log.read(log.path, must_be_closed=True) as reader:
        assert [plain(call) for call in reader] == [
            (Create, {"table": 1, "settings": {"name": "a"}}),
            (Insert, {"table": 1, "now": 1.25, "fids": ids}),
            (Push, {"table": 1, "now": -2.5, "fids": ids, "gradients": rows}),
            (Upsert, {"table": 1, "now": 3e9, "fids": ids, "rows": rows}),
            (Remove, {"table": 1, "fids": ids}),
            (Configure, {"table": 1, "settings": {"ttl": None}}),
            (Mark, {"table": 0, "settings": {"snapshot": "ab"}}),
            (Drop, {"table": 1}),
        ]
        assert reader.is_closed
        assert reader.torn is None
        assert reader.header.identity == format.FileIdentity(UUID, EPOCH, 4)


def test_calls_without_ids_and_strided_arrays_are_logged_too(folder: Path) -> None:
    log = CallLogWriter(str(folder), UUID, 4, EPOCH)
    none = np.empty(0, np.uint64)
    log.push(1, 1.0, none, np.empty((0, 8), np.float32))
    log.remove(1, none)
    every_other = np.arange(10, dtype=np.uint64)[::2]
    log.remove(1, every_other)
    log.close()
    push, empty, strided = samples.read_calls(Path(log.path))
    assert len(push.fids) == len(push.gradients) == len(empty.fids) == 0
    assert np.array_equal(strided.fids, every_other)


def test_arrays_are_ready_for_use(folder: Path) -> None:
    log = CallLogWriter(str(folder), UUID, 4, EPOCH)
    log.push(1, 1.0, samples.fids(3), np.ones((3, 5), np.float32))
    log.close()
    (call,) = samples.read_calls(Path(log.path))
    assert call.fids.dtype == np.uint64
    assert call.gradients.dtype == np.float32
    assert call.gradients.shape == (3, 5)
    assert call.fids.flags.c_contiguous
    assert call.fids.flags.aligned
    assert call.gradients.flags.c_contiguous
    assert call.gradients.flags.aligned


def test_a_call_past_the_record_cap_is_one_call(folder: Path) -> None:
    log = CallLogWriter(str(folder), UUID, 4, EPOCH)
    gradients = np.random.default_rng(0).random((90_000, 64), np.float32)
    log.push(1, 1.0, samples.fids(90_000), gradients)
    assert log.records == 2
    log.close()
    (call,) = samples.read_calls(Path(log.path))
    assert np.array_equal(call.gradients, gradients)


def test_numbers_are_listed_in_order(folder: Path) -> None:
    for number in (10, 9, 100):
        CallLogWriter(str(folder), UUID, number, EPOCH).close()
    (folder / "calls" / (format.calls_name(9) + ".torn")).write_bytes(b"kept aside")
    assert call_log.numbers(str(folder)) == [9, 10, 100]
    assert call_log.numbers(str(folder / "none")) == []


def test_a_log_under_the_name_of_another_is_refused(folder: Path) -> None:
    path = samples.write_calls(folder)
    other = path.with_name(format.calls_name(10))
    path.rename(other)
    with pytest.raises(mkv.CorruptionError, match="this is call log 9"):
        call_log.read(str(other))


@pytest.mark.parametrize(
    ("kind", "count", "payload"),
    [
        (RecordKind.INSERT, 1, bytes(8)),
        (RecordKind.INSERT, 1, bytes(17)),
        (RecordKind.INSERT, 2**61, bytes(16)),
        (RecordKind.INSERT, 0, b""),
        (RecordKind.PUSH, 1, bytes(8 + 8 + 3)),
        (RecordKind.PUSH, 2, bytes(8 + 16 + 4)),
        (RecordKind.PUSH, 0, bytes(8 + 4)),
        (RecordKind.REMOVE, 1, bytes(9)),
        (RecordKind.DROP, 0, b"x"),
        (RecordKind.CREATE, 0, b"[]"),
        (RecordKind.MARK, 0, b""),
        (RecordKind.ROWS, 1, bytes(8)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind: int, count: int, payload: bytes) -> None:
    with pytest.raises(mkv.CorruptionError) as caught:
        call_log.unpack_call(Record(kind, 1, count, memoryview(payload), 64), "x")
    assert (caught.value.path, caught.value.offset) == ("x", 64)
