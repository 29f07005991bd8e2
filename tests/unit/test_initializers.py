"""Initial values: against the formulas in NumPy, what they depend on, how they are spread."""

import numpy as np
import pytest
from formulas import GOLDEN, hash_fids, mix

from monolith_kv import _testing

ZEROS, CONSTANT, UNIFORM, NORMAL = range(4)
F32 = np.float32
KEY = 0x0123456789ABCDEF


def words_of(key, fids, count):
    base = mix(hash_fids(fids) ^ np.uint64(key))
    return mix(base[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def uniform(low, high, key, fids, dim):
    unit = (words_of(key, fids, dim) >> np.uint64(40)).astype(np.float64) * 2.0**-24
    return (float(F32(low)) + (float(F32(high)) - float(F32(low))) * unit).astype(F32)


def normal(mean, std, key, fids, dim):
    words = words_of(key, fids, dim + dim % 2) >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((words[:, ::2] + np.uint64(1)) * 2.0**-53))
    angle = 2 * np.pi * (words[:, 1::2] * 2.0**-53)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return (float(F32(mean)) + float(F32(std)) * pairs.reshape(len(fids), -1)[:, :dim]).astype(F32)


@pytest.fixture
def fids(rng):
    return np.append(rng.integers(0, 2**64, 100, np.uint64), np.array([0, 2**64 - 1], np.uint64))


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 63, 64])
def test_uniform_values_equal_the_formula_bit_by_bit(fids, dim):
    found = _testing.initial_rows(UNIFORM, -0.05, 0.07, KEY, fids, dim)
    np.testing.assert_array_equal(found, uniform(-0.05, 0.07, KEY, fids, dim))


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 63, 64])
def test_normal_values_equal_the_formula_to_one_ulp(fids, dim):
    # log, sin and cos may differ between libraries in the last bit of float64.
    found = _testing.initial_rows(NORMAL, 0.25, 0.01, KEY, fids, dim)
    np.testing.assert_array_max_ulp(found, normal(0.25, 0.01, KEY, fids, dim), maxulp=1)


def test_zeros_and_constants_are_that(fids):
    assert (_testing.initial_rows(ZEROS, 9.0, 9.0, KEY, fids, 5) == 0).all()
    assert (_testing.initial_rows(CONSTANT, 1.5, 9.0, KEY, fids, 5) == 1.5).all()


@pytest.mark.parametrize("kind", [UNIFORM, NORMAL])
def test_a_value_depends_on_key_fid_and_place_alone(fids, kind):
    wide = _testing.initial_rows(kind, -1.0, 1.0, KEY, fids, 64)
    narrow = _testing.initial_rows(kind, -1.0, 1.0, KEY, fids[::-1].copy(), 9)
    np.testing.assert_array_equal(narrow[::-1], wide[:, :9])


@pytest.mark.parametrize("kind", [UNIFORM, NORMAL])
def test_another_key_or_fid_gives_other_values(kind):
    fids = np.arange(1_000, dtype=np.uint64)
    first = _testing.initial_rows(kind, -1.0, 1.0, 0, fids, 8)
    second = _testing.initial_rows(kind, -1.0, 1.0, 1, fids, 8)
    assert len(np.unique(np.append(first, second, axis=0), axis=0)) == 2_000


def test_uniform_values_fill_their_range_evenly():
    found = _testing.initial_rows(UNIFORM, -1.0, 3.0, KEY, np.arange(10_000, dtype=np.uint64), 20)
    counts, _ = np.histogram(found, bins=20, range=(-1, 3))
    assert counts.sum() == found.size
    # Five standard deviations of a bin's count.
    assert np.abs(counts - 10_000).max() < 5 * 100
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.05


def test_normal_values_have_mean_deviation_and_tails():
    found = _testing.initial_rows(NORMAL, 2.0, 0.5, KEY, np.arange(10_000, dtype=np.uint64), 20)
    scaled = (found.astype(np.float64) - 2.0) / 0.5
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.std() - 1) < 0.01
    # 0.27 % of a normal distribution lies beyond 3 deviations.
    assert 0.0024 < (np.abs(scaled) > 3).mean() < 0.0030
    assert np.isfinite(found).all()


def test_values_are_the_same_in_every_version():
    fid = np.array([42], np.uint64)
    assert _testing.initial_rows(UNIFORM, -1.0, 1.0, 1, fid, 3)[0].tolist() == [
        -0.577499270439148,
        -0.8002629280090332,
        0.379946231842041,
    ]
    found = _testing.initial_rows(NORMAL, 0.0, 1.0, 1, fid, 3)[0]
    np.testing.assert_array_max_ulp(
        found, np.array([1.4274396896362305, 1.035296082496643, -0.8603965640068054], F32), maxulp=1
    )
