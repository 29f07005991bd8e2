"""Pending sightings: there with every byte, or refused."""

from pathlib import Path

import pytest
import samples
from samples import EPOCH, SEQUENCE, UUID

import monolith_kv as mkv
from monolith_kv.storage import format, sightings


def test_they_come_back_by_table(folder: Path) -> None:
    stored = {3: b"a" * 10_000, 1: b"", 2: bytes(range(256))}
    name = sightings.store(str(folder), UUID, SEQUENCE, EPOCH, stored)
    assert sightings.load(str(folder), name) == stored
    assert sightings.names(str(folder)) == [name] == [format.sightings_name(SEQUENCE, EPOCH)]


def test_a_later_file_of_the_same_sequence_replaces_the_earlier(folder: Path) -> None:
    for data in (b"one", b"two"):
        name = sightings.store(str(folder), UUID, SEQUENCE, EPOCH, {1: data})
    assert sightings.load(str(folder), name) == {1: b"two"}


def test_a_name_out_of_the_store_is_refused(folder: Path) -> None:
    samples.write_sightings(folder)
    with pytest.raises(mkv.CorruptionError):
        sightings.load(str(folder), "../sightings/" + format.sightings_name(SEQUENCE, EPOCH))
