"""SIGKILL at random instants, in small: see sigkill.py."""

from collections.abc import Iterator

import pytest
from checks import WIDE
from crash.sigkill import MODES, Killer, kill_many

pytestmark = pytest.mark.timeout(2_400)

KILLS = 1_000 if WIDE else 12


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.mark.parametrize("durability", MODES)
def test_a_killed_process_leaves_what_its_mode_promises(killer: Killer, durability: str) -> None:
    kill_many(killer, durability, KILLS)
