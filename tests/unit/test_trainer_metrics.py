"""AUC: against its definition, and the progressive one against the exact one."""

import numpy as np
import pytest

from monolith_kv.trainer import ProgressiveAuc, auc


def auc_by_definition(labels, scores):
    positives = [s for s, y in zip(scores, labels, strict=True) if y]
    negatives = [s for s, y in zip(scores, labels, strict=True) if not y]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def test_auc_is_the_share_of_pairs_in_order(rng):
    labels = rng.random(200) < 0.3
    scores = np.round(rng.random(200), 1)  # Many ties.
    assert auc(labels, scores) == pytest.approx(auc_by_definition(labels, scores), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_auc_of_one_class_is_nan(labels):
    assert np.isnan(auc(labels, np.zeros(len(labels))))


def test_progressive_auc_is_the_exact_one_to_a_bin(rng):
    labels = rng.random(20_000) < 0.4
    scores = np.clip(0.4 * labels + rng.random(20_000) * 0.6, 0, 1)
    metric = ProgressiveAuc()
    for start in range(0, 20_000, 77):
        metric.update(labels[start : start + 77], scores[start : start + 77])
    assert metric.count == 20_000
    assert metric.value == pytest.approx(auc(labels, scores), abs=1e-4)


def test_progressive_auc_takes_probabilities_of_zero_and_one():
    metric = ProgressiveAuc(bins=2)
    metric.update([0, 1], [0.0, 1.0])
    assert metric.value == 1.0


def test_progressive_auc_of_nothing_is_nan():
    assert np.isnan(ProgressiveAuc().value)


def test_one_bin_is_refused():
    with pytest.raises(ValueError, match="bins"):
        ProgressiveAuc(bins=1)
