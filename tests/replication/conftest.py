"""The world of the replication tests."""

from pathlib import Path

import pytest
from model import ManualClock
from replication.world import World


@pytest.fixture
def world(folder: Path, clock: ManualClock) -> World:
    """An empty folder for a store, a target and a replica, with a clock moved by hand."""
    return World(folder, clock)
