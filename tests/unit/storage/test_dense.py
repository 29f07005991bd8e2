"""Dense weights: the safetensors format, read strictly."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import monolith_kv as mkv
from monolith_kv.storage import dense

ARRAYS = hnp.arrays(
    st.sampled_from(list(dense.DTYPES.values())),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: "\0" not in name), ARRAYS))
def test_arrays_come_back_with_names_dtypes_and_shapes(arrays: dict[str, Any]) -> None:
    found = dense.unpack(dense.pack(arrays))
    assert list(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


def test_strides_byte_order_and_lists_are_taken(folder: Path) -> None:
    wide = np.arange(12, dtype=">f4").reshape(3, 4)
    found = dense.unpack(dense.pack({"t": wide.T, "s": wide[:, ::2], "l": [1.5, 2]}))
    assert np.array_equal(found["t"], wide.T)
    assert np.array_equal(found["s"], wide[:, ::2])
    assert found["t"].dtype == np.dtype("<f4")
    assert found["l"].dtype == np.float64


def test_data_is_aligned_to_its_items() -> None:
    arrays = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float64), "c": np.ones(1, np.float16)}
    packed = bytearray(dense.pack(arrays))
    assert (8 + struct.unpack("<Q", packed[:8])[0]) % 8 == 0
    assert all(array.flags.aligned for array in dense.unpack(bytes(packed)).values())


@pytest.mark.parametrize("value", [np.array([object()]), np.ones(1, complex), ["text"], [b"x"]])
def test_dtypes_without_a_place_in_the_format_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is not one of BOOL"):
        dense.pack({"a": value})


def test_names_that_mean_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="choose another"):
        dense.pack({"__metadata__": [1.0]})
    with pytest.raises(TypeError, match="must be a string"):
        dense.pack({1: [1.0]})  # type: ignore[dict-item]


def test_metadata_of_other_writers_is_skipped() -> None:
    data = file({"__metadata__": {"format": "pt"}, "a": entry(0, 2)}, b"xy")
    assert dense.unpack(data)["a"].tobytes() == b"xy"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        file(b"[]"),
        file(b"{"),
        file(b"[" * 100_000),
        file(b'{"a":1}'),
        file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":0}'),
        file({"a": entry(0, 2)}, b"x"),
        file({"a": entry(0, 2)}, b"xyz"),
        file({"a": entry(1, 2)}, b"xy"),
        file({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz"),
        file({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz"),
        file({"a": entry(0, 2, [3])}, b"xy"),
        file({"a": entry(0, 2, [-2, -1])}, b"xy"),
        file({"a": entry(0, 0, [2**40, 2**40])}, b""),
        file({"a": entry(0, 0, [0] * 33)}, b""),
        file({"a": entry(0, 4, [1], "F33")}, b"1234"),
        file({"a": entry(0, 4, [1], ["F32"])}, b"1234"),
        file({"a": entry(0, 2, [2.0])}, b"xy"),
        file({"a": entry(2, 0, [])}, b"xy"),
        file({"a": {**entry(0, 2), "extra": 1}}, b"xy"),
    ],
)
def test_what_is_not_exactly_the_format_is_refused(data: bytes) -> None:
    with pytest.raises(mkv.CorruptionError):
        dense.unpack(data)


def test_a_file_is_found_again_by_its_entry(folder: Path) -> None:
    data = dense.pack({"a": [1.0, 2.0]})
    entry = dense.store(str(folder), 3, data)
    assert entry["version"] == 3
    assert dense.load(str(folder), entry) == data
    assert dense.names(str(folder)) == [entry["name"]]
    assert dense.load(str(folder), {"version": 0, "name": None}) == b""


def test_a_file_of_another_version_under_the_name_is_refused(folder: Path) -> None:
    first = dense.store(str(folder), 3, dense.pack({"a": [1.0, 2.0]}))
    dense.store(str(folder), 3, dense.pack({"a": [1.0, 3.0]}))
    with pytest.raises(mkv.CorruptionError, match="the manifest says"):
        dense.load(str(folder), first)
