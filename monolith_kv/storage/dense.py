"""Dense weights as safetensors: a JSON header with name, dtype, shape and place, then the data.

What must hold: little endian; arrays lie in order, without hole or overlap, to the last byte; no
name is there twice; nothing is allocated before the sizes were found to fit. The format has no
checksum, so the manifest keeps one for each file.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monolith_kv._checksum import crc32c
from monolith_kv.errors import CorruptionError
from monolith_kv.storage import files, format
from monolith_kv.storage.format import DENSE_FOLDER, DENSE_PATTERN

LENGTH = struct.Struct("<Q")
HEADER_BYTES_MAX = 16 << 20
DIMS_MAX = 32
METADATA_NAME = "__metadata__"
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def pack(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Return named arrays as the bytes of a safetensors file.

    Parameters
    ----------
    arrays : mapping of str to array-like
        Of bool, integer, float16, float32 or float64; any shape, strides and byte order.

    Raises
    ------
    TypeError
        A name is no string, or a dtype has no place in the format.
    ValueError
        A name is reserved, or there are too many of them.

    Examples
    --------
    >>> unpack(pack({"bias": np.float32([1, 2])}))["bias"]
    array([1., 2.], dtype=float32)
    """
    ready = {name: _little_endian(name, value) for name, value in arrays.items()}
    # Wide items first, as the format's own writer does: each array is aligned to its items.
    order = sorted(ready, key=lambda name: (-ready[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + ready[name].nbytes
        header[name] = {
            "dtype": _NAMES[ready[name].dtype],
            "shape": list(ready[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES_MAX:
        raise ValueError(f"the header takes {len(text)} bytes, at most {HEADER_BYTES_MAX}")
    return b"".join([LENGTH.pack(len(text)), text, *(ready[name].tobytes() for name in order)])


def unpack(data: bytes | memoryview, path: str = "dense parameters") -> dict[str, NDArray[Any]]:
    """Return the arrays in the bytes of a safetensors file, sorted by name.

    Parameters
    ----------
    data : bytes-like
        The whole file.
    path : str
        For messages.

    Returns
    -------
    dict of str to ndarray
        Read-only views of `data`.

    Raises
    ------
    CorruptionError
        The bytes are no safetensors file of the dtypes in `DTYPES`.
    """
    view = memoryview(data).cast("B").toreadonly()
    if len(view) < LENGTH.size:
        raise _damage(path, 0, f"{len(view)} bytes are no safetensors file")
    (length,) = LENGTH.unpack(view[: LENGTH.size])
    if length > min(HEADER_BYTES_MAX, len(view) - LENGTH.size):
        raise _damage(path, 0, f"a header of {length} bytes does not fit")
    begin = LENGTH.size + length
    try:
        header = json.loads(bytes(view[LENGTH.size : begin]), object_pairs_hook=_unique)
        entries = [_entry(name, value) for name, value in _items(header)]
        _check_places(entries, len(view) - begin)
    except (ValueError, RecursionError) as error:
        raise _damage(path, LENGTH.size, str(error)) from error
    arrays = {}
    for name, dtype, shape, start, end in sorted(entries, key=lambda entry: entry[0]):
        arrays[name] = np.frombuffer(view[begin + start : begin + end], dtype).reshape(shape)
    return arrays


# --- files under the store -----------------------------------------------------------------


def path_of(root: str, name: str) -> str:
    """Return the path of the dense file `name` of the store at `root`; refuse any other name."""
    return format.join_checked(root, DENSE_FOLDER, name, DENSE_PATTERN)


def names(root: str) -> list[str]:
    """Return the names of all dense files of the store, sorted by version."""
    found = files.list_names(os.path.join(root, DENSE_FOLDER))
    return [name for name in found if DENSE_PATTERN.fullmatch(name)]


def store(root: str, version: int, data: bytes) -> dict[str, Any]:
    """Write one version of the dense parameters durably; return its entry for the manifest."""
    name = format.dense_name(version)
    files.make_folder(os.path.join(root, DENSE_FOLDER))
    files.write_durably(path_of(root, name), data)
    return {"version": version, "name": name, "bytes": len(data), "crc32c": crc32c(data)}


def load(root: str, entry: Mapping[str, Any]) -> bytes:
    """Return the bytes of the dense file in a manifest's entry, b"" if it has none.

    Raises
    ------
    CorruptionError
        The file is not the one that was written.
    """
    if entry.get("name") is None:
        return b""
    path, size, crc = path_of(root, entry["name"]), entry["bytes"], entry["crc32c"]
    with open(files.open_readable(path), "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise _damage(path, 0, f"{found} bytes, the manifest says {size}")
        data = file.read(size)
    if (len(data), crc32c(data)) != (size, crc):
        raise _damage(path, 0, f"crc {crc32c(data):08x}, the manifest says {crc:08x}")
    return data


# --- helpers -------------------------------------------------------------------------------


def _little_endian(name: object, value: ArrayLike) -> NDArray[Any]:
    if not isinstance(name, str):
        raise TypeError(f"the name of an array must be a string, got {name!r}")
    if name == METADATA_NAME or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of an array; choose another")
    array = np.asarray(value)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise TypeError(f"{name}: dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    if array.ndim > DIMS_MAX:
        raise ValueError(f"{name}: {array.ndim} dimensions, at most {DIMS_MAX}")
    # ascontiguousarray would make a scalar 1-D.
    return np.asarray(array, dtype=dtype, order="C")


Entry = tuple[str, np.dtype[Any], tuple[int, ...], int, int]


def _items(header: Any) -> list[tuple[str, Any]]:
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    return [(name, value) for name, value in header.items() if name != METADATA_NAME]


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} must have dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name}: dtype {value['dtype']!r} is not one of {', '.join(DTYPES)}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not (_are_counts(shape) and len(shape) <= DIMS_MAX):
        raise ValueError(f"{name}: {shape!r} is no shape")
    if not (_are_counts(offsets) and len(offsets) == 2):
        raise ValueError(f"{name}: {offsets!r} are no offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: shape {shape} and offsets {offsets} do not agree")
    return name, dtype, tuple(shape), offsets[0], offsets[1]


def _check_places(entries: list[Entry], size: int) -> None:
    at = 0
    for name, _, _, start, end in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if start != at:
            raise ValueError(f"{name} starts at {start}, the array before it ends at {at}")
        at = end
    if at != size:
        raise ValueError(f"the arrays end at {at}, the data at {size}")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value


def _damage(path: str, offset: int, what: str) -> CorruptionError:
    return CorruptionError(f"{path} at byte {offset}: {what}; run mkv verify", path, offset)
