"""Which deltas belong to one and the same past."""

import json

import pytest

from monolith_kv.errors import FormatVersionError
from monolith_kv.lineage import Epoch, Lineage

A, B, C = Epoch(1, 11, 0), Epoch(2, 22, 10), Epoch(3, 33, 20)
OTHER_B = Epoch(2, 99, 10)


def test_a_store_without_identity_is_in_no_epoch():
    assert Lineage().epoch == 0


def test_epochs_are_numbered_from_1_with_random_identities():
    first, second = Lineage().begin(after=0), Lineage().begin(after=0)
    assert first.epoch == second.epoch == 1
    assert first != second
    assert 0 <= first.epochs[0].identity < 2**63
    assert first.begin(after=7).epochs[1].after == 7


@pytest.mark.parametrize(
    "epochs", [(B,), (A, C), (A, A), (Epoch(1, 11, 5), Epoch(2, 22, 4)), (Epoch(1, 11, -1),)]
)
def test_epochs_out_of_order_are_refused(epochs):
    with pytest.raises(ValueError, match="^epoch . must have number"):
        Lineage(epochs)


@pytest.mark.parametrize(
    ("sequence", "epoch"), [(1, A), (10, A), (11, B), (20, B), (21, C), (10**9, C)]
)
def test_a_delta_belongs_to_the_last_epoch_begun_before_it(sequence, epoch):
    assert Lineage((A, B, C)).at(sequence) == epoch


def test_an_epoch_that_wrote_nothing_owns_nothing():
    empty = Epoch(2, 22, 10)
    assert Lineage((A, empty, Epoch(3, 33, 10))).at(11).number == 3


def test_no_delta_is_older_than_the_first_epoch():
    for lineage in (Lineage(), Lineage((A,))):
        with pytest.raises(ValueError, match="^sequence must be above 0"):
            lineage.at(0)


@pytest.mark.parametrize(("sequence", "count"), [(1, 1), (10, 1), (11, 2), (21, 3)])
def test_truncating_leaves_the_epochs_begun_before(sequence, count):
    assert Lineage((A, B, C)).truncated(sequence) == Lineage((A, B, C)[:count])


def test_histories_agree_up_to_where_they_fork():
    ours, theirs = Lineage((A, B)), Lineage((A, OTHER_B))
    assert ours.covers(theirs, 0)
    assert ours.covers(theirs, 10)
    assert not ours.covers(theirs, 11)


@pytest.mark.parametrize(
    ("delta", "replica", "applied", "extends"),
    [
        ((A,), (A,), 5, True),
        ((A, B), (A,), 5, True),
        ((A, B), (A,), 10, True),
        ((A, B), (A,), 11, False),  # what the replica holds was given up
        ((A,), (A, B), 12, False),  # the delta is from before
        ((A, OTHER_B), (A, B), 12, False),
        ((A, B, C), (A,), 10, True),
        ((A, B, C), (A, B), 21, False),
        ((A, B), (), 0, True),
        ((A, B), (), 1, False),
    ],
)
def test_a_history_extends_what_it_gave_up_nothing_of(delta, replica, applied, extends):
    assert Lineage(delta).extends(Lineage(replica), applied) is extends


def test_a_lineage_survives_json():
    lineage = Lineage((A, B, C))
    assert Lineage.from_json(json.loads(json.dumps(lineage.to_json()))) == lineage


@pytest.mark.parametrize(
    "data", [None, [[1, 2]], [[1, 2, 3, 4]], [[1, 2, "0"]], [[2, 2, 0]], [[1, 2**63, 0]], [7]]
)
def test_an_unknown_lineage_in_a_file_is_a_format_version_error(data):
    with pytest.raises(FormatVersionError, match="^lineage "):
        Lineage.from_json(data)
