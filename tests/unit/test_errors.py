"""The errors: one root, a flat tree, attributes instead of parsing."""

import pickle

import pytest

from monolith_kv import errors

LEAVES = [
    *("StoreLockedError", "ReadOnlyError", "ClosedError", "ForkedError", "TableExistsError"),
    *("SchemaError", "ClockError", "CorruptionError", "FormatVersionError", "GapError"),
    *("FencedError", "StoreFullError"),
]


@pytest.mark.parametrize("name", LEAVES)
def test_every_error_is_directly_below_the_root(name):
    assert getattr(errors, name).__bases__ == (errors.Error,)


def test_data_loss_is_a_warning_for_users():
    assert issubclass(errors.DataLossWarning, UserWarning)


def test_corruption_names_file_and_offset_and_survives_pickling():
    error = pickle.loads(pickle.dumps(errors.CorruptionError("bad crc", path="a", offset=64)))
    assert (str(error), error.path, error.offset) == ("bad crc", "a", 64)


def test_a_gap_names_both_sequences_and_survives_pickling():
    error = pickle.loads(pickle.dumps(errors.GapError("gap", expected=4, found=6)))
    assert (str(error), error.expected, error.found) == ("gap", 4, 6)
