"""The model: its gradients against finite differences, its dense weights across a crash."""

import numpy as np
import pytest

from monolith_kv.trainer import DenseWeights, FactorizationMachine

FIELDS, DIM, EVENTS = 3, 4, 6


@pytest.fixture
def model():
    return FactorizationMachine(FIELDS, DIM)


@pytest.fixture
def rows(rng, model):
    return rng.normal(0, 0.3, (EVENTS, FIELDS, model.row_dim)).astype(np.float32)


@pytest.fixture
def weights(rng):
    weights = DenseWeights.start(FIELDS)
    weights.intercept += np.float32(0.2)
    weights.field_weight += rng.normal(0, 0.1, FIELDS).astype(np.float32)
    return weights


def log_loss(rows, labels, intercept, field_weight):
    """The definition in float64, with all pairs of fields written out."""
    log_odds = intercept + rows[:, :, 0] @ field_weight
    for f in range(FIELDS):
        for g in range(f + 1, FIELDS):
            log_odds = log_odds + (rows[:, f, 1:] * rows[:, g, 1:]).sum(axis=1)
    p = 1 / (1 + np.exp(-log_odds))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum()


def slope(function, values, step=1e-5):
    """Central differences of a function of one array."""
    result = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        up, down = values.copy(), values.copy()
        up[place] += step
        down[place] -= step
        result[place] = (function(up) - function(down)) / (2 * step)
    return result


def test_gradients_of_rows_are_the_slopes_of_the_loss(model, rows, weights, rng):
    labels = (rng.random(EVENTS) < 0.5).astype(np.float32)
    gradients, _, _ = model.gradients(rows, labels, weights)
    b, w = weights.intercept.astype(float), weights.field_weight.astype(float)
    expected = slope(lambda r: log_loss(r, labels, b, w), rows.astype(float))
    np.testing.assert_allclose(gradients, expected, atol=1e-5)


def test_gradients_of_dense_weights_are_the_slopes_of_the_loss(model, rows, weights, rng):
    labels = (rng.random(EVENTS) < 0.5).astype(np.float32)
    _, dense, _ = model.gradients(rows, labels, weights)
    whole = np.concatenate([weights.intercept, weights.field_weight]).astype(float)
    expected = slope(lambda d: log_loss(rows.astype(float), labels, d[:1], d[1:]), whole)
    np.testing.assert_allclose(dense, expected, atol=1e-5)


def test_what_is_served_predicts_what_the_trainer_predicts(model, rows, weights):
    _, _, predicted = model.gradients(rows, np.zeros(EVENTS, np.float32), weights)
    np.testing.assert_array_equal(model.score(rows, weights.arrays(0)), predicted)


def test_an_event_of_absent_fids_has_the_intercept_alone(model, weights):
    score = model.score(np.zeros((1, FIELDS, model.row_dim), np.float32), weights.arrays(0))
    assert score[0] == pytest.approx(1 / (1 + np.exp(-weights.intercept[0])))


def test_scores_stay_finite_where_the_exponential_would_not(model, weights):
    rows = np.full((1, FIELDS, model.row_dim), 1e4, np.float32)
    with np.errstate(all="raise"):
        assert model.score(rows, weights.arrays(0))[0] == pytest.approx(1.0)


def test_a_step_is_one_of_adagrad(weights):
    before = np.concatenate([weights.intercept, weights.field_weight])
    gradient = np.array([1, -2, 0, 3], np.float32)
    weights.step(gradient, lr=0.5)
    after = np.concatenate([weights.intercept, weights.field_weight])
    expected = before - 0.5 * gradient / np.sqrt(0.1 + gradient**2)
    np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_weights_of_either_generation_are_found_by_their_position(weights):
    weights.arrays(position=64)
    at_64 = weights.intercept.copy()
    weights.step(np.ones(1 + FIELDS, np.float32), lr=0.1)
    published = weights.arrays(position=128)
    # The crash fell between this publication and its seal: the rows stand at 64.
    assert DenseWeights.at(published, 64).intercept == at_64
    assert DenseWeights.at(published, 128).intercept == weights.intercept


def test_weights_of_another_place_are_refused(weights):
    with pytest.raises(ValueError, match="must stand at position 7"):
        DenseWeights.at(weights.arrays(position=64), 7)
