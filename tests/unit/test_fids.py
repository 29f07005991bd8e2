"""Sets of ids are what NumPy's slow functions say they are."""

import numpy as np
import pytest
from checks import u64

from monolith_kv.fids import distinct, without

SOME = np.random.default_rng(0).integers(0, 50, 200, np.uint64)
CASES = [u64([]), u64([7]), u64([2**64 - 1, 0, 0]), SOME, SOME[:20] + np.uint64(25)]


@pytest.mark.parametrize("fids", CASES)
def test_distinct_is_each_id_once_and_sorted(fids):
    assert distinct(fids).tolist() == sorted(set(fids.tolist()))


@pytest.mark.parametrize("fids", CASES)
@pytest.mark.parametrize("others", CASES)
def test_without_is_the_difference_of_sets(fids, others):
    assert without(fids, others).tolist() == sorted(set(fids.tolist()) - set(others.tolist()))
