"""Kernels against the published formulas in NumPy, and against torch's own optimizers.

Tolerance: both sides round each float32 operation in the same order, so most must be equal bit by
bit. RowWiseAdagrad's mean and Ftrl's powers may differ in the last bit of an intermediate value;
ULPS of the larger operand is what that can grow to over the steps taken here.
"""

import warnings

import numpy as np
import pytest
from formulas import OPTIMIZER_DEFAULTS, fresh_state, kernel, step

from monolith_kv import _testing

F32 = np.float32
KINDS = {name: kind for kind, name in enumerate(OPTIMIZER_DEFAULTS)}
EXACT = [
    kernel("SGD", lr=0.1),
    kernel("Momentum", lr=0.03, momentum=0.8),
    kernel("Adagrad", lr=0.05),
    kernel("Adagrad", lr=0.1, initial_accumulator=0.01, weight_decay=0.02),
    kernel("RMSProp", lr=0.01, decay=0.95),
    kernel("Adam", lr=0.01),
    kernel("Adam", lr=0.1, beta1=0.5, beta2=0.75, epsilon=1e-3, weight_decay=0.1),
]
CLOSE = [
    kernel("RowWiseAdagrad", lr=0.05),
    kernel("Ftrl", lr=0.1),
    kernel("Ftrl", lr=0.1, l1=0.5, l2=0.1, beta=0.5),
    kernel("Ftrl", lr=0.1, l1=0.1, beta=1.0, lr_power=-0.7),
    kernel("Ftrl", lr=0.1, lr_power=0.0),
]
ULPS = 64


def hyper(optimizer):
    given = OPTIMIZER_DEFAULTS[optimizer.name] | dict(optimizer.arguments)
    return tuple(given[name] for name in OPTIMIZER_DEFAULTS[optimizer.name])


def initial_states(optimizer, rows, dim):
    """State of new rows; a column that nothing may touch follows."""
    state = _testing.optimizer_state(KINDS[optimizer.name], hyper(optimizer), dim)
    return np.tile(np.append(state, F32(123)), (rows, 1))


def run_kernel(optimizer, embeddings, gradients):
    """The rows and their states after a step for each of the gradients."""
    dim = embeddings.shape[1]
    embeddings = embeddings.copy()
    states = initial_states(optimizer, *embeddings.shape)
    for gradient in gradients:
        _testing.optimizer_step(
            KINDS[optimizer.name], hyper(optimizer), embeddings, states, gradient, dim
        )
    assert (states[:, -1] == 123).all()
    return embeddings, states[:, :-1]


def run_formula(optimizer, embeddings, gradients):
    """The same, row by row, with the formulas in NumPy."""
    rows, parts = [], []
    for i, row in enumerate(embeddings):
        state = fresh_state(optimizer, len(row))
        for gradient in gradients:
            row, state = step(optimizer, row, state, gradient[i])
        rows.append(row)
        parts.append(np.concatenate([np.empty(0, F32), *state.values()]))
    return np.array(rows), np.array(parts)


def random_steps(rng, rows, dim, steps):
    """Rows, and gradients of many sizes with zeros among them."""
    embeddings = rng.normal(size=(rows, dim)).astype(F32)
    scales = 10.0 ** rng.integers(-6, 3, size=(steps, rows, dim))
    gradients = (rng.normal(size=(steps, rows, dim)) * scales).astype(F32)
    gradients[rng.random(gradients.shape) < 0.1] = 0
    return embeddings, gradients


def assert_close(found, expected, reach):
    """Equal to ULPS of float32 at the magnitude that intermediate values had."""
    assert (np.abs(found - expected) <= ULPS * np.spacing(np.abs(reach).astype(F32))).all()


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 64, 65])
@pytest.mark.parametrize("optimizer", EXACT, ids=str)
def test_kernels_equal_the_formula_bit_by_bit(rng, optimizer, dim):
    embeddings, gradients = random_steps(rng, rows=20, dim=dim, steps=12)
    found = run_kernel(optimizer, embeddings, gradients)
    expected = run_formula(optimizer, embeddings, gradients)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 64, 65])
@pytest.mark.parametrize("optimizer", CLOSE, ids=str)
def test_kernels_with_means_and_powers_are_ulps_from_the_formula(rng, optimizer, dim):
    embeddings, gradients = random_steps(rng, rows=20, dim=dim, steps=12)
    found = run_kernel(optimizer, embeddings, gradients)
    expected = run_formula(optimizer, embeddings, gradients)
    # Ftrl's z is a sum that cancels: what it is exact to is the size of what was added.
    reach = np.abs(gradients).max(axis=0) + np.abs(expected[0]) + 1
    if optimizer.name == "Ftrl":
        assert_close(found[1][:, :dim], expected[1][:, :dim], reach * 100)
        assert_close(found[1][:, dim:], expected[1][:, dim:], expected[1][:, dim:])
    else:
        assert_close(found[1], expected[1], expected[1])
    assert_close(found[0], expected[0], reach)


@pytest.mark.parametrize("optimizer", EXACT + CLOSE, ids=str)
def test_new_rows_have_the_state_of_the_contract(optimizer):
    found = _testing.optimizer_state(KINDS[optimizer.name], hyper(optimizer), 5)
    expected = np.concatenate([np.empty(0, F32), *fresh_state(optimizer, 5).values()])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("optimizer", EXACT + CLOSE, ids=str)
def test_a_slice_leaves_the_rest_of_the_row_alone(rng, optimizer):
    rows, dim, before, after = 6, 5, 3, 2
    whole = rng.normal(size=(rows, before + dim + after)).astype(F32)
    gradients = rng.normal(size=whole.shape).astype(F32)
    own = initial_states(optimizer, rows, dim)[:, :-1]
    states = rng.normal(size=(rows, 4 + own.shape[1] + 1)).astype(F32)
    states[:, 4 : 4 + own.shape[1]] = own
    new, new_states = whole.copy(), states.copy()
    _testing.optimizer_step(
        KINDS[optimizer.name], hyper(optimizer), new, new_states, gradients, dim, before, 4
    )
    middle = slice(before, before + dim)
    expected = run_kernel(optimizer, whole[:, middle].copy(), gradients[None, :, middle].copy())
    np.testing.assert_array_equal(new[:, middle], expected[0])
    np.testing.assert_array_equal(new_states[:, 4 : 4 + own.shape[1]], expected[1])
    np.testing.assert_array_equal(new[:, :before], whole[:, :before])
    np.testing.assert_array_equal(new[:, before + dim :], whole[:, before + dim :])
    np.testing.assert_array_equal(new_states[:, :4], states[:, :4])
    np.testing.assert_array_equal(new_states[:, -1], states[:, -1])


@pytest.mark.parametrize("optimizer", EXACT + CLOSE, ids=str)
def test_zero_gradients_from_the_start_leave_finite_rows(optimizer):
    embeddings, states = run_kernel(optimizer, np.full((2, 9), 0.5, F32), np.zeros((3, 2, 9), F32))
    assert np.isfinite(embeddings).all()
    assert np.isfinite(states).all()


def test_ftrl_keeps_weights_at_zero_until_l1_is_passed():
    optimizer = kernel("Ftrl", lr=0.1, l1=1.0)
    embeddings = np.zeros((1, 2), F32)
    rows, _ = run_kernel(optimizer, embeddings, np.array([[[0.9, -1.1]]], F32))
    assert rows[0, 0] == 0
    assert rows[0, 1] > 0


def test_adam_counts_steps_by_row():
    optimizer = kernel("Adam", lr=0.1)
    embeddings, states = np.zeros((2, 3), F32), initial_states(optimizer, 2, 3)
    ones = np.ones((2, 3), F32)
    arguments = KINDS["Adam"], hyper(optimizer)
    _testing.optimizer_step(*arguments, embeddings, states, ones, 3)
    _testing.optimizer_step(*arguments, embeddings[:1], states[:1], ones[:1], 3)
    assert states[:, 0].tolist() == [2.0, 1.0]


def test_adam_survives_more_steps_than_float32_counts():
    optimizer = kernel("Adam", lr=0.1)
    states = initial_states(optimizer, 1, 4)
    states[0, 0] = 2.0**24
    embeddings = np.zeros((1, 4), F32)
    _testing.optimizer_step(
        KINDS["Adam"], hyper(optimizer), embeddings, states, np.ones((1, 4), F32), 4
    )
    assert states[0, 0] == 2.0**24
    assert np.isfinite(embeddings).all()


# --- torch --------------------------------------------------------------------------------------

# Hyper-parameters that float32 holds exactly: torch keeps them in float64, a kernel cannot.
TORCH_PAIRS = [
    (kernel("SGD", lr=0.125), "SGD", {"lr": 0.125}),
    (
        kernel("Momentum", lr=0.125, momentum=0.875),
        "SGD",
        {"lr": 0.125, "momentum": 0.875},
    ),
    (
        kernel("Adagrad", lr=0.125, initial_accumulator=0.25, weight_decay=0.0625),
        "Adagrad",
        {"lr": 0.125, "initial_accumulator_value": 0.25, "weight_decay": 0.0625, "eps": 0.0},
    ),
    (
        kernel("RMSProp", lr=0.125, decay=0.875, epsilon=2.0**-20),
        "RMSprop",
        {"lr": 0.125, "alpha": 0.875, "eps": 2.0**-20},
    ),
    (
        kernel("Adam", lr=0.125, beta1=0.875, beta2=0.96875, epsilon=2.0**-20),
        "Adam",
        {"lr": 0.125, "betas": (0.875, 0.96875), "eps": 2.0**-20},
    ),
    (
        kernel("Adam", lr=0.125, beta1=0.875, beta2=0.96875, epsilon=2.0**-20, weight_decay=0.125),
        "AdamW",
        {"lr": 0.125, "betas": (0.875, 0.96875), "eps": 2.0**-20, "weight_decay": 0.125},
    ),
]


@pytest.mark.parametrize(("optimizer", "name", "options"), TORCH_PAIRS, ids=str)
def test_kernels_equal_torch(rng, optimizer, name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="torch is not installed: extra 'torch'")
        embeddings = rng.normal(size=(10, 33)).astype(F32)
        gradients = rng.normal(size=(20, 10, 33)).astype(F32)
        weight = torch.nn.Parameter(torch.tensor(embeddings))
        other = getattr(torch.optim, name)([weight], **options)
        for gradient in gradients:
            weight.grad = torch.tensor(gradient)
            other.step()
    found, _ = run_kernel(optimizer, embeddings, gradients)
    # torch orders some operations otherwise: a few ulp a step.
    np.testing.assert_allclose(found, weight.detach().numpy(), rtol=2e-6, atol=4e-6)
