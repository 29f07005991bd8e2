"""Arguments, checked once at the door; below it arrays are of the right dtype, shape and order.

No silent casts: ids are 64-bit integers, rows are float32. What is not contiguous is copied, except
for arrays that the caller wants filled.
"""

import json
import operator
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monolith_kv._finite import is_finite
from monolith_kv.errors import FormatVersionError

CURSOR_BYTES_MAX = 1 << 20  # It is in every delta: offsets, not data.
_FID_MAX = 2**64
# A dtype is compared with another in a third of the time that it takes with a class of NumPy.
UINT64, INT64 = np.dtype(np.uint64), np.dtype(np.int64)
FLOAT32, BOOL = np.dtype(np.float32), np.dtype(np.bool_)

Ids = NDArray[np.uint64]
Rows = NDArray[np.float32]
Kind = TypeVar("Kind")


def as_ids(ids: ArrayLike) -> Ids:
    """Return ids as C-contiguous uint64 of shape (n,), the same 64 bits."""
    array = ids if type(ids) is np.ndarray else _array_of_ids(ids)
    dtype = array.dtype
    if dtype != UINT64:
        if dtype != INT64:
            raise TypeError(f"ids must be uint64 or int64, got {dtype}; convert them yourself")
        array = array.view(UINT64)
    if array.ndim != 1:
        raise ValueError(f"ids must have shape (n,), got {array.shape}")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _array_of_ids(ids: ArrayLike) -> NDArray[Any]:
    if isinstance(ids, (list, tuple)) and not ids:
        return np.empty(0, np.uint64)
    array = np.asarray(ids)
    if array.dtype.kind in "fO" and isinstance(ids, (list, tuple)) and all(map(_is_fid, ids)):
        # NumPy makes float64 of ints on both sides of 2**63.
        array = np.concatenate([as_fid(fid) for fid in ids])
    return array


def _is_fid(value: object) -> bool:
    if type(value) is not int and not isinstance(value, np.integer):
        return False
    return -_FID_MAX // 2 <= int(value) < _FID_MAX


def as_fid(fid: int) -> Ids:
    """Return one Python int of 64 bits, signed or not, as an array of one id."""
    if isinstance(fid, bool):
        raise TypeError("an id must be an int, got bool")
    try:
        value = operator.index(fid)
    except TypeError:
        raise TypeError(f"an id must be an int, got {type(fid).__name__}") from None
    if not -_FID_MAX // 2 <= value < _FID_MAX:
        raise ValueError(f"an id must have 64 bits, got {value}")
    return np.array([value % _FID_MAX], np.uint64)


def as_rows(rows: ArrayLike, count: int, dim: int, name: str) -> Rows:
    """Return rows as C-contiguous float32 of shape (count, dim).

    That they are finite is seen to by the core, without the GIL.
    """
    if isinstance(rows, (list, tuple)) and not rows:
        rows = np.empty((0, dim), np.float32)
    array = np.asarray(rows)
    if array.dtype != FLOAT32:
        raise TypeError(f"{name} must be float32, got {array.dtype}; convert them yourself")
    if array.shape != (count, dim):
        raise ValueError(f"{name} must have shape {(count, dim)}, got {array.shape}")
    return np.ascontiguousarray(array)


def check_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT32, name: str = "out"
) -> None:
    """Refuse an array that cannot be filled in place."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be an array of {dtype}, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    flags = out.flags
    if not flags.c_contiguous or not flags.writeable:
        raise ValueError(f"{name} must be C-contiguous and writable")


def as_offsets(offsets: ArrayLike, count: int, include_last: bool) -> NDArray[np.int64]:
    """Return where bags begin and the last one ends, as int64 of shape (bags + 1,)."""
    if isinstance(offsets, (list, tuple)) and not offsets:
        offsets = np.empty(0, np.int64)
    array = np.asarray(offsets)
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"offsets must have shape (bags,), got {array.shape}")
    if not len(array) and (include_last or count):
        raise ValueError("offsets must begin with 0, got none")
    ends = array.astype(np.int64)
    if not include_last:
        ends = np.append(ends, np.int64(count)) if len(ends) else np.zeros(1, np.int64)
    if ends[0] != 0:
        raise ValueError(f"offsets must begin with 0, got {ends[0]}")
    if (np.diff(ends) < 0).any() or ends[-1] > count or int(array.max(initial=0)) > count:
        raise ValueError(f"offsets must never fall nor pass the {count} ids there are")
    return np.ascontiguousarray(ends)


def as_weights(weights: ArrayLike | None, count: int, combiner: str) -> Rows | None:
    """Return finite weights as C-contiguous float32 of shape (count,)."""
    if weights is None:
        return None
    if combiner != "sum":
        raise ValueError(f'weights go with combiner "sum" only, got {combiner!r}')
    if isinstance(weights, (list, tuple)):
        with np.errstate(over="ignore"):  # Found below.
            weights = np.array(weights, np.float32)
    array = np.asarray(weights)
    if array.dtype != np.float32:
        raise TypeError(f"weights must be float32, got {array.dtype}; convert them yourself")
    if array.shape != (count,):
        raise ValueError(f"weights must have shape {(count,)}, got {array.shape}")
    array = np.ascontiguousarray(array)
    if not is_finite(array.reshape(-1)):
        raise ValueError("weights must be finite, got NaN or infinity")
    return array


def as_cursor(cursor: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cursor as the JSON object that it will be when it is read back."""
    if not isinstance(cursor, Mapping):
        raise TypeError(f"cursor must be a mapping, got {type(cursor).__name__}")
    for key in cursor:
        if not isinstance(key, str):
            raise TypeError(f"keys of a cursor must be strings, got {key!r}")
    try:
        text = json.dumps(dict(cursor), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"a cursor must be a JSON object: {error}") from None
    if len(text) > CURSOR_BYTES_MAX:
        raise ValueError(f"a cursor has {CURSOR_BYTES_MAX} bytes at most, got {len(text)}")
    found: dict[str, Any] = json.loads(text)
    return found


def as_sequence(sequence: int, name: str) -> int:
    """Return the sequence of a delta, 0 for none."""
    if isinstance(sequence, bool) or not isinstance(sequence, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(sequence).__name__}")
    if sequence < 0:
        raise ValueError(f"{name} must be 0 or more, got {sequence}")
    return int(sequence)


def as_path(path: str | os.PathLike[str], name: str = "path") -> str:
    """Return an absolute path."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str or a PathLike of str, got {type(text).__name__}")
    if not text:
        raise ValueError(f"{name} must not be empty; '.' is the current folder")
    return os.path.abspath(text)


def of_kind(what: str, kinds: Mapping[int, type[Kind]], data: Mapping[str, Any]) -> Kind:
    """Return what a JSON object describes: its class by "kind", its arguments by their names.

    Raises
    ------
    FormatVersionError
        Its kind or one of its arguments is unknown here.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    cls = kinds.get(kind) if type(kind) is int else None
    if cls is None:
        raise FormatVersionError(
            f"{what} kind must be 0..{len(kinds) - 1}, got {kind!r}; "
            "a newer version wrote this, upgrade monolith_kv"
        )
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise FormatVersionError(f"{what} {data!r} cannot be read: {error}") from error
