"""The sketch: never late, seldom early, forgets, packs, adds up, grows its cells."""

import numpy as np
import pytest

from monolith_kv._testing import SketchDoor

OK, BAD_DATA = 0, 8
IDS = 20_000
HEADER_BYTES = 48


def uniform_stream(rng, threshold):
    """Draws of IDS ids, each about 0.7 times the threshold."""
    return rng.integers(0, IDS, int(0.7 * threshold * IDS))


def zipf_stream(rng, threshold):
    """A few ids seen thousands of times, most a few times, all of them at least once."""
    shares = 1.0 / np.arange(1, IDS + 1) ** 1.05
    draws = rng.choice(IDS, 4 * threshold * IDS, p=shares / shares.sum())
    return rng.permutation(np.append(draws, np.arange(IDS)))


def counts_so_far(places):
    """How many times each place has been seen, this time included."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty(len(places), np.int64)
    counts[order] = np.arange(len(places)) - first + 1
    return counts


@pytest.mark.parametrize("stream", [uniform_stream, zipf_stream])
@pytest.mark.parametrize("threshold", [2, 5, 20])
@pytest.mark.parametrize("error", [0.01, 0.001])
def test_no_id_is_late_and_few_are_early(rng, stream, threshold, error):
    places = stream(rng, threshold)
    fids = rng.integers(0, 2**64, IDS, np.uint64)
    sketch = SketchDoor(IDS, error, 1_000, threshold)
    # The window before is as full as this one, with other ids.
    sketch.see_all(rng.integers(0, 2**64, IDS, np.uint64), 0)
    estimates = sketch.see_all(fids[places], 1_000)
    counts = counts_so_far(places)
    assert (np.minimum(estimates, 255) >= np.minimum(counts, 255)).all()
    early = np.unique(places[(estimates >= threshold) & (counts < threshold)])
    assert len(early) / len(np.unique(places)) <= error


@pytest.mark.parametrize("capacity", [1, 10, 1_000, 100_000])
@pytest.mark.parametrize("error", [0.5, 0.01, 1e-6])
def test_error_estimate_is_within_the_error_at_capacity(rng, capacity, error):
    sketch = SketchDoor(capacity, error, 10, 2)
    for now in (0, 10):
        sketch.see_all(rng.integers(0, 2**64, capacity, np.uint64), now)
    assert 0 < sketch.fill() < 1
    assert 0 < sketch.error_estimate() <= error


def test_error_estimate_follows_overfilling(rng):
    sketch = SketchDoor(1_000, 0.01, 10, 2)
    assert sketch.error_estimate() == sketch.fill() == 0
    sketch.see_all(rng.integers(0, 2**64, 10_000, np.uint64), 0)
    over = sketch.see_all(rng.integers(0, 2**64, 2_000, np.uint64), 0) > 1
    assert 0.5 < sketch.error_estimate() < 1
    assert over.mean() == pytest.approx(sketch.error_estimate(), rel=0.1)


def test_occupied_counts_the_cells_in_use(rng):
    sketch = SketchDoor(500, 0.01, 10, 2)
    sketch.see_all(rng.integers(0, 2**64, 400, np.uint64), 0)
    sketch.see_all(rng.integers(0, 2**64, 300, np.uint64), 10)
    width = sketch.fields()[0]
    cells = np.frombuffer(sketch.pack(), np.uint8)[HEADER_BYTES:].reshape(2, 4, width)
    assert tuple(map(list, sketch.occupied())) == tuple(
        [int(np.count_nonzero(row)) for row in generation] for generation in cells
    )


# --- the window ---------------------------------------------------------------------------------


def test_a_sighting_counts_for_a_window_at_least_and_two_at_most():
    for start in (0, 5, -7):
        for seen in range(start, start + 10):
            for now in range(seen, start + 40):
                sketch = SketchDoor(100, 0.01, 10, 5)
                sketch.see(1, start)
                sketch.see(2, seen)
                count = sketch.see(2, now)
                if now - seen <= 10:
                    assert count == 2
                if now - seen >= 20:
                    assert count == 1


def test_generations_begin_whole_windows_after_the_first():
    sketch = SketchDoor(100, 0.01, 10, 5)
    sketch.advance(500)
    sketch.see(1, 3)
    for now, start in ((3, 3), (12, 3), (13, 13), (40, 33), (1_002, 993)):
        sketch.advance(now)
        assert sketch.fields()[3] == start


def test_nothing_is_left_after_two_windows(rng):
    sketch = SketchDoor(1_000, 0.01, 10, 5)
    sketch.see_all(rng.integers(0, 2**64, 1_000, np.uint64), 0)
    sketch.advance(20)
    assert sketch.fill() == 0
    assert not any(sketch.pack()[HEADER_BYTES:])


def test_a_clock_that_goes_back_forgets_nothing():
    sketch = SketchDoor(100, 0.01, 10, 5)
    sketch.see(1, 100)
    assert sketch.see(1, 95) == 2
    assert sketch.see(1, 80) == 3
    assert sketch.fields()[3] == 100
    assert sketch.see(1, 79) == 4
    assert sketch.fields()[3] == 79
    assert sketch.see(1, 90) == 5
    assert sketch.see(1, 99) == 2


@pytest.mark.parametrize("now", [2**63 - 1, -(2**63), 2**62])
def test_absurd_clocks_do_no_harm(now):
    sketch = SketchDoor(100, 0.01, 2**63 - 1, 5)
    assert [sketch.see(1, t) for t in (0, now, 0)] == [1, 2, 3]
    sketch = SketchDoor(100, 0.01, 10, 5)
    for t in (now, 0, now):
        sketch.see(1, t)
    sketch.see(2, 0)
    assert sketch.see(2, 5) == 2


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count_max", "limit"), [(255, 255), (256, 65_535), (65_535, 65_535)])
def test_counts_are_exact_up_to_the_largest_threshold_and_then_stand(count_max, limit):
    sketch = SketchDoor(100, 0.01, 10, count_max)
    estimates = sketch.see_all(np.full(limit + 10, 7, np.uint64), 0)
    assert estimates[:limit].tolist() == list(range(1, limit + 1))
    assert (estimates[limit:] == limit).all()
    assert sketch.estimate(7) == limit
    assert sketch.see(7, 10) == limit + 1


def test_widened_cells_keep_counts_and_full_ones_stay_full():
    sketch = SketchDoor(100, 0.01, 10, 20)
    sketch.see_all(np.full(7, 1, np.uint64), 0)
    sketch.see_all(np.full(300, 2, np.uint64), 0)
    sketch.see_all(np.full(3, 1, np.uint64), 10)
    before = sketch.occupied(), sketch.fields()[3]
    assert sketch.resize_counts(200) == OK
    assert sketch.fields()[1:3] == (1, 200)
    assert sketch.resize_counts(1_000) == OK
    assert sketch.fields()[1:3] == (2, 1_000)
    assert (sketch.occupied(), sketch.fields()[3]) == before
    assert sketch.estimate(1) == 10
    # Nobody knows whether it was 255 or 1,000: never late means that it was.
    assert sketch.estimate(2) >= 1_000
    assert sketch.see_all(np.full(500, 3, np.uint64), 10)[-1] == 500
    assert sketch.resize_counts(65_536) == BAD_DATA


def test_a_sketch_that_cannot_be_is_refused():
    with pytest.raises(MemoryError):
        SketchDoor(2**62, 0.01, 10, 2)
    with pytest.raises(MemoryError):
        SketchDoor(100, 0.01, 10, 65_536)


# --- bytes --------------------------------------------------------------------------------------


def filled(rng, now=0, count_max=20):
    sketch = SketchDoor(200, 0.01, 10, count_max)
    sketch.see_all(rng.integers(0, 300, 900).astype(np.uint64), now)
    sketch.see_all(rng.integers(0, 300, 500).astype(np.uint64), now + 11)
    return sketch


@pytest.mark.parametrize("count_max", [20, 300])
def test_packed_bytes_bring_everything_back(rng, count_max):
    sketch = filled(rng, count_max=count_max)
    other = filled(rng, now=77, count_max=count_max)
    assert other.unpack(sketch.pack()) == OK
    assert other.pack() == sketch.pack()
    assert other.occupied() == sketch.occupied()
    fids = np.arange(300, dtype=np.uint64)
    np.testing.assert_array_equal(other.see_all(fids, 25), sketch.see_all(fids, 25))


def test_a_sketch_that_has_seen_nothing_packs_and_replaces_too(rng):
    sketch = filled(rng)
    empty = SketchDoor(200, 0.01, 10, 20)
    assert sketch.unpack(empty.pack(), add=True) == OK
    assert sketch.fill() > 0
    assert sketch.unpack(empty.pack()) == OK
    assert sketch.pack() == empty.pack()
    assert sketch.see(1, 1_000) == 1


def test_packed_bytes_are_the_same_in_every_version():
    sketch = SketchDoor(3, 0.5, 10, 300)
    sketch.see_all(np.array([1, 2, 2], np.uint64), 1_000)
    sketch.see_all(np.array([3], np.uint64), 1_010)
    assert sketch.pack().hex() == (
        "4d4b534b01000000020000001600000003000000000000000a00000000000000"
        "f2030000000000002c01000001000000"
        "01000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "00000000000000000000000000000000000000000000000000000100000000000000000000000000"
        "00000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "00000000000000000100000000000000000001000000000000000000000000000000000000000000"
        "00000000000000000000000000000000010000000000000000000000000000000000000000000000"
        "00000000020000000000000000000000000000000000000000000000010000000000000000000000"
        "02000000000000000000000000000000000000000000000000000000000000000000020000000000"
        "00000000000001000000000000000000000000000000000000000000000000000000000000000000"
        "0000000000000200000000000000000000000000000000000000000001000000"
    )


@pytest.mark.parametrize(("source_max", "target_max"), [(20, 300), (300, 20)])
def test_cells_of_another_size_are_converted(rng, source_max, target_max):
    source = SketchDoor(200, 0.01, 10, source_max)
    source.see_all(rng.integers(0, 300, 900).astype(np.uint64), 0)
    source.see_all(np.full(400, 301, np.uint64), 0)
    target = SketchDoor(200, 0.01, 10, target_max)
    assert target.unpack(source.pack()) == OK
    for fid in range(300):
        assert target.estimate(fid) == source.estimate(fid)
    assert target.estimate(301) >= target_max


@pytest.mark.parametrize(("ahead", "kept"), [(0, (2, 2)), (4, (2, 2)), (12, (0, 2)), (25, (0, 0))])
@pytest.mark.parametrize("is_later_added", [False, True])
def test_sketches_of_other_times_are_aligned_before_they_are_added(ahead, kept, is_later_added):
    def two_generations(start):
        sketch = SketchDoor(1_000, 0.001, 10, 255)
        sketch.see_all(np.array([1, 1], np.uint64), start)
        sketch.see_all(np.array([2, 2], np.uint64), start + 10)
        return sketch

    early, late = two_generations(0), two_generations(ahead)
    source, target = (late, early) if is_later_added else (early, late)
    assert target.unpack(source.pack(), add=True) == OK
    assert target.fields()[3] == ahead + 10
    assert target.estimate(1) == kept[0] + 2
    assert target.estimate(2) == kept[1] + 2
    # What was in the current generation of the earlier one lives on exactly as long.
    target.advance(ahead + 20)
    assert target.estimate(1) == 0
    assert target.estimate(2) == (4 if ahead < 10 else 2)


def test_added_counts_stop_at_the_largest():
    sketch = SketchDoor(100, 0.01, 10, 255)
    sketch.see_all(np.full(200, 1, np.uint64), 0)
    assert sketch.unpack(sketch.pack(), add=True) == OK
    assert sketch.estimate(1) == 255


@pytest.mark.parametrize("geometry", [(201, 0.01, 10), (200, 0.02, 10), (200, 0.01, 11)])
def test_another_geometry_is_refused_and_nothing_changes(rng, geometry):
    sketch, other = filled(rng), SketchDoor(*geometry, 20)
    before = sketch.pack()
    other.see(1, 0)
    for add in (False, True):
        assert sketch.unpack(other.pack(), add=add) == BAD_DATA
        assert sketch.pack() == before


def test_damaged_bytes_are_refused_and_nothing_changes(rng):
    sketch = filled(rng)
    before = sketch.pack()
    damaged = [b"", before[:47], before[:-1], before + b"\0"]
    for offset in [*range(32), 39, 42, 43, 44, 45, 46, 47]:
        damaged.append(before[:offset] + bytes([before[offset] ^ 0x42]) + before[offset + 1 :])
    for data in damaged:
        assert sketch.unpack(data) == BAD_DATA
        assert sketch.unpack(data, add=True) == BAD_DATA
        assert sketch.pack() == before
