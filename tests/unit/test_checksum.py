"""CRC-32C: the published values, all lengths and alignments, chaining, what may be passed."""

import numpy as np
import pytest

from monolith_kv import _testing
from monolith_kv._checksum import crc32c

# RFC 3720, B.4, and the check value of every catalogue of CRCs.
PUBLISHED = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
]
# Around 8 bytes, around three short lanes and around three long ones.
LENGTHS = [*range(34), 383, 384, 385, 391, 767, 768, 6143, 6144, 6145, 6528, 6537, 20_011]


def bit_by_bit(data: bytes, value: int = 0) -> int:
    """The definition: a division of polynomials, one bit at a time."""
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "expected"), PUBLISHED)
def test_published_values_are_found(data, expected):
    assert crc32c(data) == expected
    assert _testing.crc32c_portable(data) == expected
    assert _testing.crc32c_fast(data) == expected


@pytest.mark.parametrize("length", LENGTHS)
def test_the_fast_way_and_the_tables_agree_with_the_definition(rng, length):
    data = rng.bytes(length)
    expected = bit_by_bit(data, 0x1234ABCD)
    assert crc32c(data, 0x1234ABCD) == expected
    assert _testing.crc32c_fast(data, 0x1234ABCD) == expected
    assert _testing.crc32c_portable(data, 0x1234ABCD) == expected


@pytest.mark.parametrize("offset", range(9))
def test_alignment_does_not_matter(rng, offset):
    data = np.frombuffer(rng.bytes(7_009), np.uint8)[offset:]
    assert crc32c(data) == _testing.crc32c_portable(data) == crc32c(data.tobytes())


def test_parts_chain_to_the_whole(rng):
    data = rng.bytes(30_000)
    for cut in (0, 1, 7, 8, 400, 6_144, 12_345, 29_999, 30_000):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_each_flipped_bit_is_seen(rng):
    data = bytearray(rng.bytes(600))
    intact = crc32c(data)
    for bit in range(0, 8 * len(data), 13):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(data) != intact
        data[bit // 8] ^= 1 << bit % 8


def test_any_contiguous_buffer_is_taken():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = crc32c(array.tobytes())
    assert crc32c(array) == expected
    assert crc32c(memoryview(array)) == expected
    assert crc32c(bytearray(array.tobytes())) == expected


def test_what_is_not_a_contiguous_buffer_is_refused():
    with pytest.raises(TypeError):
        crc32c("text")
    with pytest.raises((ValueError, BufferError)):
        crc32c(np.zeros((4, 4), np.uint8)[:, ::2])


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_value_out_of_range_is_refused(value):
    with pytest.raises(OverflowError):
        crc32c(b"x", value)
