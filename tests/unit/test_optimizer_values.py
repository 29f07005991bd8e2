"""The optimizers as values: what they accept, what they say about a row, how they are stored."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from monolith_kv.errors import FormatVersionError
from monolith_kv.optimizers import (
    SGD,
    Adagrad,
    Adam,
    Ftrl,
    Momentum,
    Optimizer,
    RMSProp,
    RowWiseAdagrad,
    optimizer_from_json,
)

ALL = [SGD, Momentum, Adagrad, RowWiseAdagrad, RMSProp, Adam, Ftrl]
WITH_LR_OF_0 = [cls for cls in ALL if cls is not Ftrl]


def test_kinds_are_what_files_hold():
    assert [cls.kind for cls in ALL] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("optimizer", "hyper"),
    [
        (SGD(), (0.01,)),
        (Momentum(), (0.01, 0.9)),
        (Adagrad(), (0.05, 0.1, 0.0)),
        (RowWiseAdagrad(), (0.05, 0.1)),
        (RMSProp(), (0.01, 0.9, 1e-8)),
        (Adam(), (0.001, 0.9, 0.999, 1e-8, 0.0)),
        (Ftrl(), (0.05, 0.0, 0.0, 1.0, -0.5)),
    ],
)
def test_defaults_are_those_of_the_contract(optimizer, hyper):
    assert optimizer.hyper() == hyper


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (SGD(), []),
        (Momentum(), [("momentum", 6)]),
        (Adagrad(), [("accumulator", 6)]),
        (RowWiseAdagrad(), [("accumulator", 1)]),
        (RMSProp(), [("mean_square", 6)]),
        (Adam(), [("step", 1), ("m", 6), ("v", 6)]),
        (Ftrl(), [("z", 6), ("n", 6)]),
    ],
)
def test_state_slots_are_named_and_measured(optimizer, slots):
    assert optimizer.state_slots(6) == slots


@pytest.mark.parametrize("cls", ALL)
def test_an_optimizer_is_a_frozen_value(cls):
    optimizer = cls(lr=1)
    assert optimizer == cls(np.float64(1))
    assert optimizer != cls()
    assert hash(optimizer) == hash(cls(1.0))
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    assert repr(optimizer).startswith(f"{cls.__name__}(lr=1.0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.lr = 2.0


@pytest.mark.parametrize("cls", ALL)
def test_an_optimizer_survives_json(cls):
    optimizer = cls(lr=0.1)
    assert optimizer_from_json(json.loads(json.dumps(optimizer.to_json()))) == optimizer


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf, -math.inf, 1e39, 10**400])
def test_a_learning_rate_is_finite_and_not_negative(cls, lr):
    with pytest.raises(ValueError, match="^lr must be "):
        cls(lr=lr)


@pytest.mark.parametrize("cls", WITH_LR_OF_0)
def test_a_learning_rate_of_0_stands_still(cls):
    assert cls(lr=0).hyper()[0] == 0.0


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("lr", [None, "0.1", True, [0.1], 1j])
def test_a_learning_rate_is_a_number(cls, lr):
    with pytest.raises(TypeError, match=f"^lr must be a number, got {type(lr).__name__}$"):
        cls(lr=lr)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Momentum(momentum=1.0), "momentum"),
        (lambda: Momentum(momentum=-0.1), "momentum"),
        (lambda: Momentum(momentum=1 - 1e-12), "momentum"),  # 1 as a float32
        (lambda: Adagrad(initial_accumulator=0), "initial_accumulator"),
        (lambda: Adagrad(initial_accumulator=1e-60), "initial_accumulator"),  # 0 as a float32
        (lambda: Adagrad(weight_decay=-1), "weight_decay"),
        (lambda: RowWiseAdagrad(initial_accumulator=-0.1), "initial_accumulator"),
        (lambda: RMSProp(decay=1), "decay"),
        (lambda: RMSProp(epsilon=0), "epsilon"),
        (lambda: Adam(beta1=1), "beta1"),
        (lambda: Adam(beta2=1 - 1e-12), "beta2"),
        (lambda: Adam(epsilon=0), "epsilon"),
        (lambda: Adam(weight_decay=math.inf), "weight_decay"),
        (lambda: Ftrl(lr=0), "lr"),
        (lambda: Ftrl(l1=-1), "l1"),
        (lambda: Ftrl(l2=math.nan), "l2"),
        (lambda: Ftrl(beta=-1), "beta"),
        (lambda: Ftrl(lr_power=0.5), "lr_power"),
        (lambda: Ftrl(lr_power=-math.inf), "lr_power"),
    ],
)
def test_what_would_divide_by_zero_in_float32_is_refused(make, name):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        make()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": 7, "lr": 1.0},
        {"kind": 0, "lr": -1},
        {"kind": 0, "rate": 1},
        {"kind": None},
        {"kind": {}},
    ],
)
def test_an_unknown_optimizer_in_a_file_is_a_format_version_error(data):
    with pytest.raises(FormatVersionError, match="optimizer"):
        optimizer_from_json(data)


def test_the_base_class_is_none_by_itself():
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()
