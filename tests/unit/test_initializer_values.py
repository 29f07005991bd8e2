"""The initializers as values: what they accept and how they are stored."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from monolith_kv.errors import FormatVersionError
from monolith_kv.initializers import (
    Constant,
    Initializer,
    Normal,
    Uniform,
    Zeros,
    initializer_from_json,
)

SOME = [Zeros(), Constant(2), Uniform(), Normal(), Uniform(-1, 1, 2**64 - 1), Normal(1, 2, 3)]


@pytest.mark.parametrize(
    ("initializer", "kind", "parameters"),
    [
        (Zeros(), 0, (0.0, 0.0, 0)),
        (Constant(2), 1, (2.0, 0.0, 0)),
        (Uniform(), 2, (-0.05, 0.05, 0)),
        (Uniform(0, 1, seed=5), 2, (0.0, 1.0, 5)),
        (Normal(), 3, (0.0, 0.01, 0)),
        (Normal(1, 2, 3), 3, (1.0, 2.0, 3)),
    ],
)
def test_kinds_and_defaults_are_those_of_the_contract(initializer, kind, parameters):
    assert initializer.kind == kind
    assert initializer.parameters() == parameters


@pytest.mark.parametrize("initializer", SOME)
def test_an_initializer_is_a_frozen_value(initializer):
    assert pickle.loads(pickle.dumps(initializer)) == initializer
    assert hash(initializer) == hash(pickle.loads(pickle.dumps(initializer)))
    assert initializer_from_json(json.loads(json.dumps(initializer.to_json()))) == initializer
    with pytest.raises(dataclasses.FrozenInstanceError):
        initializer.value = 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "value must be finite"),
        (lambda: Constant(1e39), "value must be finite"),
        (lambda: Constant(-(10**400)), "value must be finite"),
        (lambda: Uniform(1, 0), "low must be at most high"),
        (lambda: Uniform(-math.inf, 0), "low must be finite"),
        (lambda: Uniform(-3e38, 3e38), "high - low must be finite"),
        (lambda: Uniform(seed=-1), r"seed must be 0\.\.2\*\*64-1, got -1"),
        (lambda: Uniform(seed=2**64), "seed must be"),
        (lambda: Normal(std=-1), "std must be at least 0"),
        (lambda: Normal(mean=math.inf), "mean must be finite"),
        (lambda: Normal(std=1e38), "mean and 10 std must be finite"),
    ],
)
def test_values_that_no_row_can_hold_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(None),
        lambda: Constant(True),
        lambda: Constant(np.zeros(2)),
        lambda: Uniform("0", 1),
        lambda: Uniform(seed=1.5),
        lambda: Normal(seed=True),
    ],
)
def test_parameters_of_the_wrong_type_are_refused(make):
    with pytest.raises(TypeError, match="must be a"):
        make()


@pytest.mark.parametrize(
    "data",
    [{}, {"kind": 4}, {"kind": 1}, {"kind": []}, {"kind": True}, {"kind": 2, "low": 1, "high": 0}],
)
def test_an_unknown_initializer_in_a_file_is_a_format_version_error(data):
    with pytest.raises(FormatVersionError, match="initializer"):
        initializer_from_json(data)


def test_the_base_class_is_none_by_itself():
    with pytest.raises(TypeError, match="abstract"):
        Initializer()
