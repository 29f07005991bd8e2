"""The admission gate and the TTL as values."""

import json
import math
import pickle

import numpy as np
import pytest

from monolith_kv.errors import FormatVersionError
from monolith_kv.policies import FrequencyGate, parse_ttl

GATES = [
    FrequencyGate(1),
    FrequencyGate(65_535, capacity=1, window=0.5, error=0.5),
    FrequencyGate({}),
    FrequencyGate({7: 3}),
    FrequencyGate({0: 2, 65_535: 4, None: 9}, capacity=10**6, window="1h", error=1e-6),
]


def test_defaults_are_those_of_the_contract():
    gate = FrequencyGate(3)
    assert (gate.default_threshold, gate.slot_thresholds) == (3, {})
    assert (gate.capacity, gate.window_s, gate.error) == (1_000_000, 604_800, 0.01)


def test_slots_not_covered_are_admitted_at_once():
    gate = FrequencyGate({7: 3})
    assert (gate.default_threshold, gate.slot_thresholds) == (1, {7: 3})


def test_none_stands_for_all_other_slots():
    gate = FrequencyGate({7: 3, None: 2})
    assert (gate.default_threshold, gate.slot_thresholds) == (2, {7: 3})
    assert gate.threshold == {7: 3, None: 2}


def test_a_window_is_rounded_up_to_whole_seconds():
    assert FrequencyGate(2, window=0.2).window_s == 1


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_a_frozen_value(gate):
    copy = pickle.loads(pickle.dumps(gate))
    assert copy == gate
    assert hash(copy) == hash(gate)
    assert eval(repr(gate)) == gate
    assert FrequencyGate.from_json(json.loads(json.dumps(gate.to_json()))) == gate
    with pytest.raises(AttributeError, match="does not change"):
        gate.capacity = 5
    with pytest.raises(AttributeError, match="does not change"):
        del gate.capacity


def test_changing_a_mapping_afterwards_changes_no_gate():
    thresholds = {7: 3}
    gate = FrequencyGate(thresholds)
    thresholds[7] = 9
    gate.slot_thresholds[7] = 9
    assert gate == FrequencyGate({7: 3})


def test_gates_that_differ_are_unequal():
    assert len(set(GATES)) == len(GATES) - 1  # {} admits at once, as 1 does
    assert FrequencyGate(2) != 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, r"threshold must be 1\.\.65535, got 0"),
        ({"threshold": 65_536}, r"threshold must be 1\.\.65535, got 65536"),
        ({"threshold": {7: 0}}, r"threshold must be 1\.\.65535, got 0"),
        ({"threshold": {-1: 2}}, r"slot of threshold must be 0\.\.65535, got -1"),
        ({"threshold": {65_536: 2}}, r"slot of threshold must be 0\.\.65535, got 65536"),
        ({"threshold": 2, "capacity": 0}, r"capacity must be 1\.\.\d+, got 0"),
        ({"threshold": 2, "capacity": 2**41}, r"capacity must be 1\.\.\d+, got"),
        ({"threshold": 2, "window": 0}, "window must be above 0 seconds, got 0"),
        ({"threshold": 2, "window": "7w"}, "window must be seconds, or"),
        ({"threshold": 2, "window": -1}, "window must be 0 to"),
        ({"threshold": 2, "error": 0}, "error must be between 0 and 1, got 0"),
        ({"threshold": 2, "error": 1}, "error must be between 0 and 1, got 1"),
        ({"threshold": 2, "error": math.nan}, "error must be between 0 and 1, got nan"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        FrequencyGate(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": None},
        {"threshold": "3"},
        {"threshold": 2.0},
        {"threshold": True},
        {"threshold": [1, 2]},
        {"threshold": {"7": 2}},
        {"threshold": {7: 2.5}},
        {"threshold": 2, "capacity": 1e6},
        {"threshold": 2, "window": None},
        {"threshold": 2, "error": "0.1"},
        {"threshold": 2, "error": True},
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments):
    with pytest.raises(TypeError, match="must be "):
        FrequencyGate(**arguments)


@pytest.mark.parametrize("data", [{}, [], {**FrequencyGate(2).to_json(), "default": 0}])
def test_an_unknown_gate_in_a_file_is_a_format_version_error(data):
    with pytest.raises(FormatVersionError, match="^gate "):
        FrequencyGate.from_json(data)


@pytest.mark.parametrize(
    ("ttl", "parsed"),
    [
        (None, (None, {})),
        ("30d", (2_592_000, {})),
        (0.2, (1, {})),
        (np.int64(5), (5, {})),
        ({}, (None, {})),
        ({7: "1h"}, (None, {7: 3600})),
        ({7: "1h", 65_535: 1.5, None: "1d"}, (86_400, {7: 3600, 65_535: 2})),
    ],
)
def test_a_ttl_is_whole_seconds_by_slot(ttl, parsed):
    assert parse_ttl(ttl) == parsed


@pytest.mark.parametrize("ttl", [0, "0s", -1, True, "", "5w", math.nan, {7: 0}, {70_000: "1h"}])
def test_a_ttl_that_cannot_be_is_refused(ttl):
    with pytest.raises(ValueError, match="ttl must be "):
        parse_ttl(ttl)


@pytest.mark.parametrize("ttl", [b"1h", ["1h"], {7: None}, {"7": "1h"}, {1.5: "1h"}])
def test_a_ttl_of_the_wrong_type_is_refused(ttl):
    with pytest.raises(TypeError, match="ttl must be "):
        parse_ttl(ttl)
