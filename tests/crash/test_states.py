"""The exploration of crash states in small, and that it finds what it is meant to find."""

from pathlib import Path

import pytest
from checks import WIDE
from crash import states, trace
from crash.states import Explorer, Limits
from crash.traced_bugs import BUGS
from crash.traced_scenarios import SCENARIOS, scenario_of

pytestmark = pytest.mark.timeout(600)

QUICK = Limits(moment=3, states=12, recoveries=1, recovery=2)
HUNT = Limits(moment=40, states=400, recoveries=0, recovery=0)
# For each bug a scenario in which it does harm, and a word of what is found.
HARM = {
    "leave_folders": ("seals-none-0", "promised"),
    "leave_data": ("pushes-sync-0", "CorruptionError"),
    "name_first": ("seals-interval-0", "CorruptionError"),
    "acknowledge_first": ("pushes-sync-0", "promised"),
    "delete_first": ("seals-sync-0", "promised"),
    "stay_in_epoch": ("unclean-none-0", "epoch"),
    "leave_no_mark": ("reopened-interval-0", "nothing says so"),
}


@pytest.fixture(autouse=True)
def strace() -> None:
    if lacking := trace.missing():
        pytest.skip(lacking)


@pytest.fixture
def base(folder: Path) -> Path:
    return folder.resolve()


def test_no_state_that_a_crash_leaves_breaks_a_promise() -> None:
    found = list(states.explore_all(states.SMALL if WIDE else QUICK, 1))
    violations = [(each.name, str(violation)) for each in found for violation in each.violations]
    assert violations == []
    assert {each.name for each in found} >= {scenario.name for scenario in SCENARIOS}
    assert sum(each.states for each in found) > (3_000 if WIDE else 500)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_put_in_on_purpose_is_found(base: Path, bug: str) -> None:
    name, word = HARM[bug]
    (found,) = Explorer(base, HUNT).explore([scenario_of(name)], bug)
    assert found.violations
    assert word in str(found.violations[0])


@pytest.mark.parametrize("name", sorted({name for name, _ in HARM.values()}))
def test_without_the_bug_there_is_nothing_to_find(base: Path, name: str) -> None:
    (found,) = Explorer(base, HUNT).explore([scenario_of(name)])
    assert found.violations == []
    assert found.states > 30
