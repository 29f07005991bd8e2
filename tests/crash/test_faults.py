"""Faults at calls on files and at allocations, in small: see faults.py, memory.py and points.py.

The lines of the table of promises that are about errors have a test each; besides, some points of
every scenario are drawn.
"""

import pytest
from checks import WIDE
from crash.faults import attempts
from crash.shim import why_not

pytestmark = [
    pytest.mark.timeout(2_400),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "a shim can be had"),
]
SAMPLE, PICK = (8, 0) if WIDE else (2, 4)  # points of a scenario, scenarios


def hold(fault: str, *names: str, more: tuple[str, ...] = ()) -> None:
    """Try points of some scenarios under some kinds of fault."""
    options = ["--fault", fault, "--pick", str(PICK), *more]
    found = list(attempts(names, sample=SAMPLE, seed=fault, more=options))
    assert [wrong for each in found for wrong in each["wrong"]] == []
    assert sum(each["points"] for each in found) > 0


def test_a_killed_process_loses_what_its_mode_may_lose() -> None:
    hold("killed", "seals", "snapshots", "pushes")


def test_after_a_failed_flush_the_store_is_read_only_then_rescued() -> None:
    hold("every flush", "pushes (sync)", "rescue")


def test_a_short_write_is_continued() -> None:
    hold("short", "pushes (batch)", "seals (sync)", "restore of one")


def test_a_write_that_fails_is_cut_back_and_memory_is_unchanged() -> None:
    hold("nothing can be written", "pushes (batch)", "upserts (sync)")


@pytest.mark.parametrize("fault", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_on_a_full_disk_calls_raise_and_go_on_when_there_is_room(fault: str) -> None:
    hold(fault, "pushes (sync)", "seals (none)", "calls on two tiers (batch)")


def test_any_error_leaves_a_replica_as_it_was() -> None:
    hold("EIO", "apply", "resync")


def test_no_fault_at_any_call_on_files_breaks_a_promise() -> None:
    hold("")


def test_no_memory_at_any_allocation_breaks_a_promise() -> None:
    hold("no memory", more=("--memory",))
