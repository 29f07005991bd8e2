"""Events in time order, each a row of 64-bit feature ids and a label.

What must hold: times never fall; the slot of a fid is its top 16 bits; how a stream is cut into
batches depends on the stream alone, so that a trainer which resumes at any cut goes on with the
very batches it would have made without the stop.
"""

import os
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["EventClock", "Events", "batch_starts", "make_fids"]

SLOT_BITS = 16
VALUE_BITS = 64 - SLOT_BITS
SLOT_MAX = (1 << SLOT_BITS) - 1

# Finalizer of splitmix64 (Steele, Lea, Flood 2014): one to one on 64 bits, every bit moves.
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def make_fids(slot: int, values: ArrayLike) -> NDArray[np.uint64]:
    """Turn the values of one feature field into fids.

    Parameters
    ----------
    slot : int
        The field's number, 0 to 65535; it becomes the top 16 bits.
    values : array_like of int or str, shape (n,)
        The lower 48 bits are a hash of the value: two of a million values share a fid with a
        probability of 0.2 %.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Raises
    ------
    ValueError
        The slot is out of range, or `values` is not one-dimensional.
    TypeError
        The values are neither integers nor text.

    Examples
    --------
    >>> fids = make_fids(3, ["apple", "pear", "apple"])
    >>> [int(fid) >> 48 for fid in fids], bool(fids[0] == fids[2])
    ([3, 3, 3], True)
    """
    if not 0 <= slot <= SLOT_MAX:
        raise ValueError(f"slot must be 0..{SLOT_MAX}, got {slot}")
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"values must be one-dimensional, got {array.ndim} dimensions")
    if array.dtype.kind in "iu":
        # By way of int64, so that -1 is the same value in every width.
        wide = array.astype(np.int64) if array.dtype.kind == "i" else array
        hashed = _mix(wide.astype(np.uint64))
    elif array.dtype.kind == "U" or (
        array.dtype == object and all(isinstance(value, str) for value in array)
    ):
        hashed = _hash_text(array)
    else:
        raise TypeError(f"values must be integers or text, got {array.dtype}")
    low = hashed & np.uint64((1 << VALUE_BITS) - 1)
    return low | np.uint64(slot << VALUE_BITS)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed


def _hash_text(values: NDArray[np.str_] | NDArray[np.object_]) -> NDArray[np.uint64]:
    distinct, inverse = np.unique(values.astype(np.str_), return_inverse=True)
    hashes = [
        int.from_bytes(blake2b(str(text).encode(), digest_size=8).digest(), "little")
        for text in distinct
    ]
    return np.asarray(hashes, np.uint64)[inverse]


@dataclass(frozen=True)
class Events:
    """A stretch of a stream, in time order.

    Parameters
    ----------
    seconds : ndarray of int64, shape (n,)
        When each event happened, in seconds since the epoch; never falls.
    fids : ndarray of uint64, shape (n, fields), C-contiguous
        One fid for each field.
    labels : ndarray of float32, shape (n,)
        0 or 1.

    Raises
    ------
    ValueError
        Shapes, types or the order of time do not fit.

    Examples
    --------
    >>> events = Events(np.array([10, 11]), make_fids(1, [7, 8])[:, None], np.array([0, 1], "f4"))
    >>> len(events), events.fields
    (2, 1)
    """

    seconds: NDArray[np.int64]
    fids: NDArray[np.uint64]
    labels: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.seconds)
        if self.fids.ndim != 2 or self.fids.shape[0] != n or self.labels.shape != (n,):
            raise ValueError(
                f"seconds, fids and labels must be (n,), (n, fields), (n,), got "
                f"{self.seconds.shape}, {self.fids.shape}, {self.labels.shape}"
            )
        if self.fids.dtype != np.uint64 or self.labels.dtype != np.float32:
            raise ValueError(
                f"fids must be uint64 and labels float32, got {self.fids.dtype} and "
                f"{self.labels.dtype}"
            )
        if np.any(np.diff(self.seconds) < 0):
            raise ValueError("events must be in time order; sort them by their seconds, stably")

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def fields(self) -> int:
        """Fids of one event."""
        return int(self.fids.shape[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as one .npz file; `load` reads it.

        Parameters
        ----------
        path : path
            Replaced if it is there.
        """
        with open(path, "wb") as file:
            np.savez(file, seconds=self.seconds, fids=self.fids, labels=self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Events":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            The .npz file.
        """
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["seconds"], arrays["fids"], arrays["labels"])


class EventClock:
    """A clock that shows the time of the stream: give it to `monolith_kv.open(clock=...)`.

    Parameters
    ----------
    now : float
        Seconds since the epoch; the trainer moves it.

    Examples
    --------
    >>> clock = EventClock(60.0)
    >>> clock.now = 120.0
    >>> clock()
    120.0
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time that it shows."""
        return self.now


def batch_starts(seconds: NDArray[np.int64], size: int, interval_s: int) -> NDArray[np.int64]:
    """Cut a stream into micro batches.

    Parameters
    ----------
    seconds : ndarray of int64, shape (n,)
        Times of the events; they never fall.
    size : int
        Events of a batch. It takes more where that many share one second: what happened at once
        is scored at once, before any of it is trained on.
    interval_s : int
        A batch never crosses a multiple of this, so that a seal can fall exactly there.

    Returns
    -------
    ndarray of int64, shape (batches + 1,)
        Where batches begin, and the end of the last; (1,) for no events.

    Examples
    --------
    >>> batch_starts(np.array([0, 1, 1, 2, 60, 61]), size=2, interval_s=60).tolist()
    [0, 3, 4, 6]
    """
    if size < 1 or interval_s < 1:
        raise ValueError(f"size and interval_s must be at least 1, got {size} and {interval_s}")
    n = len(seconds)
    starts = [0]
    while (start := starts[-1]) < n:
        stop = min(start + size, n)
        # Only a second that began before the cut may be split by it: then it is taken whole.
        stop = int(np.searchsorted(seconds, seconds[stop - 1], side="right"))
        border = (int(seconds[start]) // interval_s + 1) * interval_s
        starts.append(min(stop, int(np.searchsorted(seconds, border, side="left"))))
    return np.asarray(starts, np.int64)
