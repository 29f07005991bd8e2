"""Mistakes that storage engines make when they are young, put into a traced run on purpose.

Each takes one precaution out of the engine, in this process only. The recovery that meets the
results is the good one.
"""

import os
from collections.abc import Callable
from typing import Any

from monolith_kv import sealing
from monolith_kv.lineage import Lineage
from monolith_kv.storage import call_log, files, marks
from monolith_kv.storage.log_file import LogWriter


def leave_folders() -> None:
    files.fsync_folder = lambda path: None


def leave_data() -> None:
    files.sync_file = lambda fd: None


def name_first() -> None:
    """Files are written under their final names."""

    def create(path: str) -> tuple[int, str]:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), path

    def publish(temporary: str, path: str, *, replace: bool) -> None:
        if temporary != path:  # A folder.
            os.rename(temporary, path)
        files.fsync_folder(os.path.dirname(path))

    files.create_temporary, files.publish = create, publish


def acknowledge_first() -> None:
    LogWriter.sync = lambda self, offset=None, **_: None  # type: ignore[method-assign]


def delete_first() -> None:
    """Call logs go before the manifest that makes them needless."""
    commit = sealing.commit

    def delete_and_commit(state: Any, **changes: Any) -> None:
        for number in call_log.numbers(state.path):
            if number < changes.get("first_call_log", 0):
                files.remove_durably(call_log.path_of(state.path, number))
        commit(state, **changes)

    sealing.commit = delete_and_commit


def stay_in_epoch() -> None:
    begin = Lineage.begin

    def begin_once(self: Lineage, after: int) -> Lineage:
        return self if self.epochs else begin(self, after)

    Lineage.begin = begin_once  # type: ignore[method-assign]


def leave_no_mark() -> None:
    marks.leave = lambda root, number: None


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        leave_folders, leave_data, name_first, acknowledge_first, delete_first, stay_in_epoch,
        leave_no_mark,
    )
}  # fmt: skip
