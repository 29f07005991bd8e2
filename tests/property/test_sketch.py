"""The sketch against an exact count: every sighting kept, with its time, in a dict."""

from collections import defaultdict

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from monolith_kv._testing import SketchDoor

OK = 0
WINDOW = 10
FIDS = st.integers(0, 40)
STEPS = st.lists(st.tuples(st.integers(0, 9) | st.integers(0, 45), FIDS), max_size=120)


class Exact:
    """Sightings by generation, without collisions."""

    def __init__(self):
        self.times = defaultdict(list)
        self.first = None

    def see(self, fid, now):
        self.first = now if self.first is None else self.first
        self.times[fid].append(now)

    def within(self, fid, now, seconds):
        """Sightings that are at most so old."""
        return sum(now - time <= seconds for time in self.times[fid])

    def generations(self, fid, now):
        """Sightings in the generation that `now` is in and the one before."""
        current = (now - self.first) // WINDOW
        return sum((time - self.first) // WINDOW >= current - 1 for time in self.times[fid])


def times_of(steps, start=1_000):
    """(now, fid) with the gaps summed up."""
    now = start
    for gap, fid in steps:
        now += gap
        yield now, fid


@given(steps=STEPS, capacity=st.integers(1, 4))
def test_a_crowded_sketch_is_never_late(steps, capacity):
    sketch, exact = SketchDoor(capacity, 0.5, WINDOW, 255), Exact()
    for now, fid in times_of(steps):
        exact.see(fid, now)
        assert sketch.see(fid, now) >= exact.within(fid, now, WINDOW)
        for other in exact.times:
            assert sketch.estimate(other) >= exact.within(other, now, WINDOW)


@given(steps=STEPS)
def test_a_roomy_sketch_counts_two_generations_exactly(steps):
    sketch, exact = SketchDoor(1_000, 1e-9, WINDOW, 255), Exact()
    for now, fid in times_of(steps):
        exact.see(fid, now)
        found = sketch.see(fid, now)
        assert found == exact.generations(fid, now)
        assert found <= exact.within(fid, now, 2 * WINDOW - 1)


@given(steps=st.lists(st.tuples(st.integers(-2 * WINDOW, WINDOW), FIDS), max_size=120))
def test_a_clock_that_goes_back_makes_no_id_late(steps):
    sketch, exact = SketchDoor(2, 0.5, WINDOW, 255), Exact()
    latest = 1_000
    for gap, fid in steps:
        # No further back than two windows: beyond it the window begins anew.
        now = max(latest + gap, latest - 2 * WINDOW)
        latest = max(latest, now)
        exact.see(fid, now)
        assert sketch.see(fid, now) >= exact.within(fid, latest, WINDOW)


@given(steps=STEPS, extra=STEPS)
def test_a_sketch_goes_on_from_its_bytes_as_if_nothing_had_happened(steps, extra):
    sketch = SketchDoor(5, 0.5, WINDOW, 255)
    now = 1_000
    for now, fid in times_of(steps):
        sketch.see(fid, now)
    other = SketchDoor(5, 0.5, WINDOW, 255)
    assert other.unpack(sketch.pack()) == OK
    for later, fid in times_of(extra, now):
        assert other.see(fid, later) == sketch.see(fid, later)
    assert other.pack() == sketch.pack()


@given(steps=STEPS, others=STEPS, offset=st.integers(-3 * WINDOW, 3 * WINDOW))
def test_the_sum_of_two_sketches_is_late_for_neither(steps, others, offset):
    exact = Exact()
    sketches = []
    latest = 0
    for part, start in ((steps, 1_000), (others, 1_000 + offset)):
        sketches.append(SketchDoor(5, 0.5, WINDOW, 255))
        for now, fid in times_of(part, start):
            sketches[-1].see(fid, now)
            exact.see(fid, now)
            latest = max(latest, now)
    assert sketches[0].unpack(sketches[1].pack(), add=True) == OK
    # A whole window more, while the sum ages as one sketch.
    for now in range(latest, latest + WINDOW + 1):
        sketches[0].advance(now)
        for fid in list(exact.times):
            assert sketches[0].estimate(fid) >= exact.within(fid, now, WINDOW)


@given(fids=st.lists(FIDS, max_size=400), cut=st.integers(0, 400))
def test_widening_cells_changes_no_estimate(fids, cut):
    narrow, wide = SketchDoor(5, 0.5, WINDOW, 255), SketchDoor(5, 0.5, WINDOW, 300)
    ids = np.array(fids, np.uint64)
    np.testing.assert_array_equal(narrow.see_all(ids[:cut], 0), wide.see_all(ids[:cut], 0))
    assert narrow.resize_counts(300) == OK
    assert (narrow.see_all(ids[cut:], 5) >= wide.see_all(ids[cut:], 5)).all()
    assert narrow.fields() == wide.fields()


BLOCK = 512
READ, RESIZE, MERGE = "read", "resize", "merge"
AFTER = st.lists(
    st.tuples(st.integers(0, 9) | st.integers(0, 45), FIDS)
    | st.sampled_from([READ, RESIZE, MERGE]),
    max_size=60,
)


@given(steps=STEPS, after=AFTER)
def test_a_frozen_sketch_reads_as_it_was_while_counting_goes_on(steps, after):
    sketch, now = SketchDoor(1_000, 0.01, WINDOW, 255), 1_000
    for now, fid in times_of(steps):
        sketch.see(fid, now)
    expected = sketch.pack()
    header, size = sketch.freeze()
    left = [(age, start) for age in (0, 1) for start in range(0, size, BLOCK)]
    assert len(left) > 20
    parts = {}

    def read(count):
        for age, start in [left.pop() for _ in range(min(count, len(left)))]:
            parts[age, start] = sketch.frozen(age, start, min(BLOCK, size - start))

    for action in after:
        if action == READ:
            read(5)
        elif action == RESIZE:
            sketch.resize_counts(1_000)
        elif action == MERGE:
            assert sketch.unpack(sketch.pack(), add=True) == OK
        else:
            now += action[0]
            sketch.see(action[1], now)
    read(len(left))
    assert header + b"".join(parts[place] for place in sorted(parts)) == expected
