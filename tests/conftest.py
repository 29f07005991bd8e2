"""What every test is handed: a clock it moves itself, a folder of its own, and seeds.

Tests take no time from the wall, no randomness from the system and no folder but these. With
MKV_CI=1 the property tests run with the continuous integration's counts.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from checks import FAST_FOLDER, WIDE
from model import ManualClock

SEED = 20_170_101

# Derandomized: a run that fails is a run that fails again. No deadline: the machine may be busy.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "print_blob": True,
}
hypothesis.settings.register_profile("quick", max_examples=60, **_COMMON)
hypothesis.settings.register_profile("ci", max_examples=500, **_COMMON)
hypothesis.settings.load_profile("ci" if WIDE else "quick")


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is moved: `clock.advance(seconds)`, or set `clock.now`."""
    return ManualClock()


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder of the test's own, in memory."""
    path = Path(tempfile.mkdtemp(prefix="mkv-test-", dir=FAST_FOLDER))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def store_dir(folder: Path) -> Path:
    """Where one store goes; it does not exist yet, the folder above it does."""
    return folder / "store"


@pytest.fixture
def seed() -> int:
    """The seed of all randomness of a test."""
    return SEED


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(seed)
