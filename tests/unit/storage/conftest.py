"""What tests of single files and of the overflow tier are handed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tier_bed import Bed


@pytest.fixture
def bed(folder: Path) -> Iterator[Bed]:
    """A tier by itself, and tables over it."""
    bed = Bed(folder)
    yield bed
    bed.tier.close()
