"""Let one step on files fail: an error of the disk, or a kill, at the n-th call of files.py."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monolith_kv.storage import files

STEPS = [
    "create_temporary",
    "write_all",
    "sync_file",
    "publish",
    "fsync_folder",
    "truncate_file",
    "remove_durably",
    "make_folder",
    "cut_tail",
]


class Killed(BaseException):
    """Stands for SIGKILL: no handler is meant to turn it into anything else."""


class Faults:
    """Counts steps and lets the chosen one fail; after a kill no step is made any more."""

    def __init__(self, at: int = -1, error: Callable[[], BaseException] = Killed) -> None:
        self.at, self.error = at, error
        self.count = 0
        self.is_dead = False

    def step(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.is_dead:
            raise Killed
        self.count += 1
        if self.count - 1 == self.at:
            error = self.error()
            self.is_dead = isinstance(error, Killed)
            raise error
        return call(*args, **options)


@contextlib.contextmanager
def faults(at: int = -1, error: Callable[[], BaseException] = Killed) -> Iterator[Faults]:
    """Make the `at`-th step from here on fail; -1: none, only count."""
    made = Faults(at, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            call = getattr(files, name)
            patch.setattr(files, name, lambda *a, _call=call, **o: made.step(_call, *a, **o))
        yield made


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_disk() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def steps_of(scenario: Callable[[Any], None], make: Callable[[], Any]) -> int:
    """How many steps a scenario takes when nothing fails."""
    subject = make()
    with faults() as made:
        scenario(subject)
    subject.close()
    return made.count
