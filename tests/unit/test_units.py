"""Durations and sizes as people write them."""

import math

import numpy as np
import pytest

from monolith_kv.units import parse_duration, parse_size, whole_seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (2.5, 2.5),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        ("90s", 90.0),
        ("15m", 900.0),
        ("6h", 21_600.0),
        ("30d", 2_592_000.0),
        ("1.5h", 5_400.0),
        (2**53, 2.0**53),
    ],
)
def test_durations_are_seconds(given, seconds):
    assert parse_duration(given, "ttl") == seconds


@pytest.mark.parametrize(
    "given",
    [
        *(True, False, -1, -0.5, math.nan, math.inf, -math.inf, 2**53 + 2, 10**400),
        *("", "s", "15", "15 m", " 15m", "15m ", "-15m", "+15m", "1e3s", "15w", "15M", "1h30m"),
        *("nan", "inf", "infs", ".5h", "1.h", "٣s", "15m\n", "9" * 400 + "d"),
    ],
)
def test_what_is_no_duration_is_refused_by_name_and_value(given):
    with pytest.raises(ValueError, match="^window must be .*, got ") as caught:
        parse_duration(given, "window")
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [None, b"15m", [1], {}, 1j, object()])
def test_what_is_neither_number_nor_text_is_no_duration(given):
    with pytest.raises(TypeError, match=f"^ttl must be .*, got {type(given).__name__}$"):
        parse_duration(given, "ttl")


@pytest.mark.parametrize(
    ("given", "size_bytes"),
    [
        (0, 0),
        (4096, 4096),
        (np.uint64(8), 8),
        ("7B", 7),
        ("1KiB", 1024),
        ("512MiB", 2**29),
        ("8GiB", 2**33),
        ("1TiB", 2**40),
        ("1.5GiB", 3 * 2**29),
        (2**62, 2**62),
    ],
)
def test_sizes_are_bytes(given, size_bytes):
    size = parse_size(given, "memory_limit")
    assert size == size_bytes
    assert type(size) is int


@pytest.mark.parametrize(
    "given",
    [
        *(True, False, -1, 2**62 + 1, "", "8", "8GB", "8G", "8gib", " 8GiB", "8 GiB", "-8GiB"),
        *("0.3B", "1.0001KiB", "9" * 30 + "TiB", "9" * 400 + ".5B", "8GiB\n", "٣B"),
    ],
)
def test_what_is_no_size_is_refused_by_name_and_value(given):
    with pytest.raises(ValueError, match="^memory_limit must be .*, got ") as caught:
        parse_size(given, "memory_limit")
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [None, 1.5, b"8GiB", [8], object()])
def test_what_is_neither_whole_number_nor_text_is_no_size(given):
    with pytest.raises(TypeError, match=f"^memory_limit must be .*, got {type(given).__name__}$"):
        parse_size(given, "memory_limit")


@pytest.mark.parametrize(("seconds", "whole"), [(0.0, 0), (0.001, 1), (1.0, 1), (59.5, 60)])
def test_seconds_are_rounded_up(seconds, whole):
    assert whole_seconds(seconds) == whole
    assert type(whole_seconds(seconds)) is int
