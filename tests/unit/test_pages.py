"""The memory pool of a table: every piece and every part has one owner, whatever is given back."""

import ctypes
import itertools
import random
from collections import Counter, defaultdict

from conftest import SEED

from monolith_kv._testing import PagesDoor

PIECE = PagesDoor.sizes(1)[0]
PARTS = range(1, 11)


class Pool:
    """A pool beside the simplest account of who has what."""

    def __init__(self) -> None:
        self.door = PagesDoor()
        self.pieces: set[int] = set()
        self.parts: dict[int, int] = {}  # By address: into how many its piece is cut.

    def take(self) -> None:
        piece = self.door.take()
        assert piece % PIECE == 0
        ctypes.memset(piece, 0xFF, PIECE)
        self.pieces.add(piece)

    def take_part(self, parts: int) -> None:
        part = self.door.take_part(parts)
        size = PagesDoor.sizes(parts)[1]
        assert part % 64 == 0
        assert 64 <= part % PIECE <= PIECE - size
        ctypes.memset(part, 0xFF, size)
        self.parts[part] = parts

    def give(self, piece: int) -> None:
        self.pieces.remove(piece)
        self.door.give(piece)

    def give_part(self, part: int) -> None:
        del self.parts[part]
        self.door.give_part(part)

    def check(self) -> None:
        used = Counter(part - part % PIECE for part in self.parts)
        cut = {part - part % PIECE: parts for part, parts in self.parts.items()}
        free = self.door.free()
        owned = [*free, *self.pieces, *used]
        total, dry = self.door.counts()
        assert len(set(owned)) == len(owned) == total
        assert self.door.spare_bytes() == (len(free) - dry) * PIECE
        with_room = defaultdict(set)
        for piece, parts in cut.items():
            if used[piece] < parts:
                with_room[parts].add(piece)
        for parts in PARTS:
            listed = self.door.partial(parts)
            pieces = [piece for piece, _ in listed]
            assert sorted(pieces) == sorted(with_room[parts])
            assert [before for _, before in listed] == [0, *pieces][: len(pieces)]
        for parts in set(cut.values()):
            size = PagesDoor.sizes(parts)[1]
            starts = sorted(part for part, its in self.parts.items() if its == parts)
            assert all(b - a >= size for a, b in itertools.pairwise(starts))


def test_every_part_has_one_owner_in_any_order_of_calls() -> None:
    rng = random.Random(SEED)
    pool = Pool()
    for step in range(4_000):
        # Growing and emptying by turns, so that pieces fill up and are given back.
        if rng.random() < (0.7 if step % 1_000 < 500 else 0.3):
            if rng.random() < 0.9:
                pool.take_part(rng.choice([1, 2, 5, 10]))
            else:
                pool.take()
        elif pool.parts and rng.random() < 0.9:
            pool.give_part(rng.choice(sorted(pool.parts)))
        elif pool.pieces:
            pool.give(rng.choice(sorted(pool.pieces)))
        pool.check()


def test_a_piece_from_the_middle_of_a_list_leaves_its_neighbours_linked() -> None:
    pool = Pool()
    for _ in range(9):
        pool.take_part(3)
    first, second, third = (sorted(pool.parts)[i : i + 3] for i in (0, 3, 6))
    for piece in (first, second, third):
        pool.give_part(piece[0])
    pool.check()
    for part in second[1:]:
        pool.give_part(part)
    pool.check()
    for part in (*first[1:], *third[1:]):
        pool.give_part(part)
        pool.check()
    assert not pool.door.partial(3)


def test_what_was_given_back_is_taken_again_before_more_is_mapped() -> None:
    pool = Pool()
    for parts in PARTS:
        pool.take_part(parts)
    mapped, _ = pool.door.counts()
    for _ in range(20):
        for part in sorted(pool.parts):
            pool.give_part(part)
        pool.check()
        for parts in PARTS:
            pool.take_part(parts)
        pool.check()
    assert pool.door.counts()[0] == mapped


def test_most_of_what_is_free_costs_no_memory() -> None:
    pool = Pool()
    for _ in range(64):
        pool.take()
    for piece in sorted(pool.pieces):
        pool.give(piece)
        pool.check()
    assert 0 < pool.door.spare_bytes() <= 64 * PIECE // 8
    for _ in range(64):
        pool.take()
        pool.check()
    assert pool.door.counts() == (64, 0)


def test_pieces_of_a_new_region_are_not_spare() -> None:
    # Else each piece given back would break a huge page of the newest region up.
    pool = Pool()
    for _ in range(200):
        pool.take()
    piece, *_ = sorted(pool.pieces)
    pool.give(piece)
    pool.take_part(2)
    assert pool.door.spare_bytes() == 0
    pool.take()
    total, dry = pool.door.counts()
    assert dry == len(pool.door.free()) == total - len(pool.pieces) - 1
