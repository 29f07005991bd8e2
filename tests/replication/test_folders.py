"""Switching folders: whatever the crash, one replica is there afterwards, old or new, whole."""

from pathlib import Path

import pytest
from replication.faults import Crash, Faults

import monolith_kv as mkv
from monolith_kv.replication.folders import WorkFolder
from monolith_kv.restoring import remove_abandoned
from monolith_kv.storage import files


def put(path: Path, content: str) -> None:
    path.mkdir(parents=True)
    for name in ("first", "second"):
        (path / name).write_text(content)


def content_of(path: Path) -> set[str]:
    return {(path / name).read_text() for name in ("first", "second")}


@pytest.fixture(params=["exchange", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(files, "exchange_folders", lambda first, second: False)
    return str(request.param)


def test_a_switch_puts_the_staged_folder_in_place(folder: Path, exchange: str) -> None:
    put(folder / "replica", "old")
    work = WorkFolder(str(folder / "replica"))
    put(Path(work.stage()), "new")
    work.switch()
    assert content_of(folder / "replica") == {"new"}
    work.undo()
    assert content_of(folder / "replica") == {"old"}
    work.clear()
    assert [p.name for p in Path(work.path).iterdir()] == ["LOCK"]
    work.release()


def test_a_switch_works_where_there_was_no_replica(folder: Path, exchange: str) -> None:
    work = WorkFolder(str(folder / "replica"))
    put(Path(work.stage()), "new")
    work.switch()
    assert content_of(folder / "replica") == {"new"}
    work.release()


def test_a_switch_that_fails_leaves_the_replica_where_it_was(
    folder: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder / "replica", "old")
    work = WorkFolder(str(folder / "replica"))
    flush, at, calls = files.fsync_folder, 0, 1

    def fail_at(path: str) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(5, "broken")
        flush(path)

    monkeypatch.setattr(files, "fsync_folder", fail_at)
    while calls >= at:  # Whoever has a store open there writes to that name.
        put(Path(work.stage()), "new")
        at, calls = at + 1, 0
        try:
            work.switch()
        except OSError:
            assert content_of(folder / "replica") == {"old"}
    assert at > 4
    assert content_of(folder / "replica") == {"new"}
    work.release()


def test_a_crash_at_any_step_of_a_switch_leaves_a_whole_replica(
    folder: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    seen = set()
    at, is_done = 0, False
    while not is_done:
        at += 1
        replica = folder / f"{at}" / "replica"
        put(replica, "old")
        work = WorkFolder(str(replica))
        put(Path(work.stage()), "new")
        try:
            with faults.crashing(at):
                work.switch()
                work.clear()
            is_done = True
        except Crash:
            if exchange == "exchange":
                assert len(content_of(replica)) == 1, "there is always one under its name"
        work.release()
        recover_under_crashes(replica, faults, at)
        assert [p.name for p in Path(work.path).iterdir()] == ["LOCK"]
        [content] = content_of(replica)
        seen.add(content)
    assert seen == {"old", "new"}
    assert at > 5


def test_a_crash_at_any_step_of_an_undo_leaves_a_whole_replica(
    folder: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    at, is_done = 0, False
    while not is_done:
        at += 1
        replica = folder / f"{at}" / "replica"
        put(replica, "old")
        work = WorkFolder(str(replica))
        put(Path(work.stage()), "new")
        work.switch()
        try:
            with faults.crashing(at):
                work.undo()
                work.clear()
            is_done = True
        except Crash:
            pass
        work.release()
        recover_under_crashes(replica, faults, at)
        assert len(content_of(replica)) == 1
    assert content_of(replica) == {"old"}


def recover_under_crashes(replica: Path, faults: Faults, seed: int) -> None:
    """Recover, crashing in its course a few times at other places each time."""
    for at in range(1 + seed % 3, 8, 2):
        work = WorkFolder(str(replica))
        try:
            with faults.crashing(at):
                work.recover()
        except Crash:
            continue
        finally:
            work.release()
    work = WorkFolder(str(replica))
    work.recover()
    work.release()


def test_what_killed_builders_have_left_goes_and_what_is_being_built_stays(folder: Path) -> None:
    abandoned, being_built, others = (
        folder / f".new.{digit * 16}.tmp"
        if digit != "x"
        else folder / ".newer.0000000000000000.tmp"
        for digit in "01x"
    )
    for path in (abandoned, being_built, others):
        put(path, "rows")
        (path / "LOCK").touch()
    just_made = folder / ".new.2222222222222222.tmp"
    just_made.mkdir()
    with files.FolderLock(str(being_built)):
        remove_abandoned(str(folder / "new"))
        assert not abandoned.exists()
        assert being_built.exists()
    remove_abandoned(str(folder / "new"))
    assert {path.name for path in folder.iterdir()} == {others.name, just_made.name}


def test_a_follower_removes_what_one_that_was_killed_was_building(folder: Path) -> None:
    work = WorkFolder(str(folder / "replica"))
    left = Path(work.path) / ".staging.0123456789abcdef.tmp"
    put(left, "rows")
    (left / "LOCK").touch()
    work.recover()
    assert [p.name for p in Path(work.path).iterdir()] == ["LOCK"]
    work.release()


def test_a_second_follower_of_one_replica_is_refused(folder: Path) -> None:
    work = WorkFolder(str(folder / "replica"))
    with pytest.raises(mkv.StoreLockedError, match="pid"):
        WorkFolder(str(folder / "replica"))
    work.release()
    WorkFolder(str(folder / "replica")).release()


def test_a_link_stays_and_what_it_names_is_replaced(folder: Path) -> None:
    put(folder / "real", "old")
    (folder / "replica").symlink_to("real")
    work = WorkFolder(str(folder / "replica"))
    put(Path(work.stage()), "new")
    work.switch()
    assert (folder / "replica").is_symlink()
    assert content_of(folder / "real") == {"new"}
    work.release()
