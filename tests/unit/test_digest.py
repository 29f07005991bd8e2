"""Row digests: against NH in NumPy, the bits they see, the sums they make."""

import numpy as np
import pytest
from formulas import GOLDEN, hash_fids, mix

from monolith_kv import _testing

KEYS = mix(np.arange(1, 4099, dtype=np.uint64) * GOLDEN)


def nh(words, keys):
    """Sum of (first half + keys) * (second half + keys), an odd word paired with 0."""
    n, half = len(words), len(words) // 2
    first = (words[:half] + keys[:half]).astype(np.uint64)
    second = (words[half : 2 * half] + keys[half : 2 * half]).astype(np.uint64)
    odd = (words[2 * half :] + keys[2 * half : n]).astype(np.uint64) * keys[n].astype(np.uint64)
    return np.append(first * second, odd).sum(dtype=np.uint64)


def digests(fids, rows):
    """The formula, row by row."""
    low_keys = KEYS.astype(np.uint32)
    high_keys = (KEYS >> np.uint64(32)).astype(np.uint32)
    mixed = hash_fids(fids)
    low = np.array([nh(row.view(np.uint32), low_keys) for row in rows])
    high = np.array([nh(row.view(np.uint32), high_keys) for row in rows])
    high += mixed * np.uint64(0x9FB21C651E98DF25)
    return np.stack([mix(low ^ mixed), mix(high)], axis=1)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 64, 65, 127, 4095, 4096])
def test_digests_follow_the_formula(rng, dim):
    fids = rng.integers(0, 2**64, 5, np.uint64)
    rows = rng.normal(size=(5, dim)).astype(np.float32)
    np.testing.assert_array_equal(_testing.digest_rows(fids, rows), digests(fids, rows))


def test_digests_are_the_same_in_every_version():
    rows = np.linspace(-1, 1, 5, dtype=np.float32)[None]
    low, high = _testing.digest_rows(np.array([42], np.uint64), rows)[0]
    assert (int(low), int(high)) == (0x551BD6DB34EE3909, 0x335E0489DDE19340)


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_each_flipped_bit_changes_both_words(rng, dim):
    row = rng.normal(size=(1, dim)).astype(np.float32)
    fid = np.array([7], np.uint64)
    before = _testing.digest_rows(fid, row)[0]
    for bit in range(32 * dim):
        changed = row.copy()
        changed.view(np.uint32)[0, bit // 32] ^= np.uint32(1 << bit % 32)
        assert (_testing.digest_rows(fid, changed)[0] != before).all()


def test_zero_and_minus_zero_differ():
    fids = np.array([7, 7], np.uint64)
    first, second = _testing.digest_rows(fids, np.array([[0.0], [-0.0]], np.float32))
    assert (first != second).all()


def test_fids_that_trade_rows_change_the_total(rng):
    fids = np.array([0, 2**64 - 1], np.uint64)
    rows = rng.normal(size=(2, 64)).astype(np.float32)
    none = np.empty((0, 2), np.uint64)
    total = _testing.digest_total(_testing.digest_rows(fids, rows), none)
    traded = _testing.digest_total(_testing.digest_rows(fids, rows[::-1].copy()), none)
    assert total[0] != traded[0]
    assert total[1] != traded[1]


def test_no_two_of_many_rows_share_a_word(rng):
    rows = np.repeat(rng.normal(size=(1, 16)).astype(np.float32), 100_000, axis=0)
    found = _testing.digest_rows(np.arange(100_000, dtype=np.uint64), rows)
    assert len(np.unique(found[:, 0])) == len(np.unique(found[:, 1])) == 100_000


def test_totals_do_not_depend_on_order_and_rows_can_be_taken_out(rng):
    fids = rng.integers(0, 2**64, 50, np.uint64)
    found = _testing.digest_rows(fids, rng.normal(size=(50, 8)).astype(np.float32))
    none = np.empty((0, 2), np.uint64)
    total = _testing.digest_total(found, none)
    assert total == _testing.digest_total(found[rng.permutation(50)], none)
    assert _testing.digest_total(found, found[:20].copy()) == _testing.digest_total(
        found[20:].copy(), none
    )
    assert _testing.digest_total(found, found) == (0, 0)
