"""Durations and sizes as people write them: seconds or "15m", bytes or "8GiB".

Every duration and size that a caller gives passes through here once; below, durations are seconds
and sizes are bytes.
"""

import math
import re
from numbers import Integral, Real

DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_UNITS_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
DURATION_MAX_S = 2**53  # Whole seconds up to here are exact in a float.
SIZE_MAX_BYTES = 2**62  # Sums of two sizes stay within a signed 64-bit integer.

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|TiB)", re.ASCII)


def parse_duration(value: float | int | str, name: str) -> float:
    """Return a duration in seconds.

    Parameters
    ----------
    value : int, float or str
        Seconds, or a number and one of the units s, m, h, d.
    name : str
        What the caller calls it, for the message.

    Returns
    -------
    float
        Seconds, finite and not negative.

    Raises
    ------
    TypeError
        `value` is neither a number nor a string.
    ValueError
        `value` is a bool, negative, not finite, too long or not written as above.

    Examples
    --------
    >>> parse_duration("15m", "ttl"), parse_duration(2.5, "ttl")
    (900.0, 2.5)
    """
    if isinstance(value, bool):
        raise ValueError(_duration_help(name, value))
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(_duration_help(name, value))
        seconds = float(match[1]) * DURATION_UNITS_S[match[2]]
    elif isinstance(value, Real):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    else:
        raise TypeError(
            f'{name} must be seconds or a string such as "15m", got {type(value).__name__}'
        )
    if not 0 <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{name} must be 0 to 2**53 seconds, got {value!r}")
    return seconds


def parse_size(value: int | str, name: str) -> int:
    """Return a size in bytes.

    Parameters
    ----------
    value : int or str
        Bytes, or a number and one of the units B, KiB, MiB, GiB, TiB.
    name : str
        What the caller calls it, for the message.

    Returns
    -------
    int
        Bytes, not negative.

    Raises
    ------
    TypeError
        `value` is neither a whole number nor a string.
    ValueError
        `value` is a bool, negative, too large or not written as above.

    Examples
    --------
    >>> parse_size("512MiB", "memory_limit"), parse_size(4096, "memory_limit")
    (536870912, 4096)
    """
    if isinstance(value, bool):
        raise ValueError(_size_help(name, value))
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(_size_help(name, value))
        number = float(match[1]) if "." in match[1] else int(match[1])
        size_bytes = number * SIZE_UNITS_BYTES[match[2]]
        if size_bytes <= SIZE_MAX_BYTES and size_bytes != int(size_bytes):
            raise ValueError(f"{name} must be a whole number of bytes, got {value!r}")
    elif isinstance(value, Integral):
        size_bytes = int(value)
    else:
        raise TypeError(
            f'{name} must be bytes or a string such as "512MiB", got {type(value).__name__}'
        )
    if not 0 <= size_bytes <= SIZE_MAX_BYTES:
        raise ValueError(f"{name} must be 0 to 2**62 bytes, got {value!r}")
    return int(size_bytes)


def whole_seconds(seconds: float) -> int:
    """Round up to whole seconds, the unit of every timestamp.

    Parameters
    ----------
    seconds : float
        A duration.

    Returns
    -------
    int
        The least whole number that is not below it: a rule never takes effect early.

    Examples
    --------
    >>> whole_seconds(0.2), whole_seconds(3.0)
    (1, 3)
    """
    return math.ceil(seconds)


def _duration_help(name: str, value: object) -> str:
    return f'{name} must be seconds, or a number and s, m, h or d such as "15m", got {value!r}'


def _size_help(name: str, value: object) -> str:
    return (
        f"{name} must be bytes, or a number and B, KiB, MiB, GiB or TiB "
        f'such as "512MiB", got {value!r}'
    )
