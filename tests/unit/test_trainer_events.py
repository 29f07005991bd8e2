"""Events: fids carry their slot, batches depend on the stream alone."""

import itertools

import numpy as np
import pytest

from monolith_kv.trainer import EventClock, Events, batch_starts, make_fids


def test_the_slot_is_in_the_top_bits_and_the_value_below():
    fids = make_fids(65535, np.arange(1000))
    assert fids.dtype == np.uint64
    assert set((fids >> np.uint64(48)).tolist()) == {65535}
    assert len(np.unique(fids)) == 1000


def test_equal_values_have_equal_fids_in_every_integer_width():
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        assert make_fids(1, np.array([-1, 7], dtype)).tolist() == make_fids(1, [-1, 7]).tolist()
    assert make_fids(1, np.array([7], np.uint64))[0] == make_fids(1, [7])[0]


def test_a_value_has_another_fid_in_another_slot():
    assert make_fids(1, [7])[0] != make_fids(2, [7])[0]


def test_fids_never_change():
    # They are in every store that was ever trained: these values are for ever.
    assert make_fids(2, ["apple"]).tolist() == make_fids(2, np.array(["apple"], object)).tolist()
    assert hex(make_fids(2, ["apple"])[0]) == "0x2f547a0b50e96"
    assert hex(make_fids(2, [7])[0]) == "0x2e1e459320dd7"


def test_a_hundred_thousand_values_do_not_collide():
    assert len(np.unique(make_fids(3, np.arange(100_000) * 7919))) == 100_000
    assert len(np.unique(make_fids(3, [f"item {i}" for i in range(20_000)]))) == 20_000


@pytest.mark.parametrize(
    ("slot", "values", "error"),
    [
        (-1, [1], ValueError),
        (65536, [1], ValueError),
        (1, [[1]], ValueError),
        (1, [1.5], TypeError),
        (1, np.array([None, "a"], object), TypeError),
    ],
)
def test_what_cannot_be_a_fid_is_refused(slot, values, error):
    with pytest.raises(error):
        make_fids(slot, values)


def events_of(seconds):
    seconds = np.asarray(seconds, np.int64)
    fids = make_fids(1, np.arange(len(seconds)))[:, None]
    return Events(seconds, fids, np.zeros(len(seconds), np.float32))


def test_events_out_of_order_are_refused():
    with pytest.raises(ValueError, match="time order"):
        events_of([1, 0])


def test_events_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="seconds, fids and labels"):
        Events(np.arange(2), np.zeros((3, 1), np.uint64), np.zeros(2, np.float32))


def test_saved_events_are_loaded_unchanged(tmp_path):
    events = events_of([1, 2, 2])
    events.save(tmp_path / "events.npz")
    loaded = Events.load(tmp_path / "events.npz")
    np.testing.assert_array_equal(loaded.seconds, events.seconds)
    np.testing.assert_array_equal(loaded.fids, events.fids)
    np.testing.assert_array_equal(loaded.labels, events.labels)


def test_a_batch_never_splits_a_second_nor_crosses_a_border(rng):
    seconds = np.sort(rng.integers(0, 1000, 5000))
    starts = batch_starts(seconds, size=16, interval_s=60)
    assert starts[0] == 0
    assert starts[-1] == len(seconds)
    for first, last in itertools.pairwise(starts):
        assert first < last
        assert seconds[first] // 60 == seconds[last - 1] // 60
        assert last == len(seconds) or seconds[last - 1] < seconds[last]


def test_batches_are_full_where_seconds_allow_it():
    assert batch_starts(np.arange(10), 4, 3600).tolist() == [0, 4, 8, 10]


def test_no_events_make_no_batch():
    assert batch_starts(np.array([], np.int64), 4, 60).tolist() == [0]


@pytest.mark.parametrize(("size", "interval_s"), [(0, 60), (4, 0)])
def test_batches_of_nothing_are_refused(size, interval_s):
    with pytest.raises(ValueError, match="at least 1"):
        batch_starts(np.arange(3), size, interval_s)


def test_the_clock_shows_what_it_was_set_to():
    clock = EventClock(5.0)
    clock.now = 4.0
    assert clock() == 4.0
