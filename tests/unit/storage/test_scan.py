"""What is good of a damaged file: all of it, and nothing that is not."""

from pathlib import Path

import samples

from monolith_kv.storage.format import FileType, RecordKind
from monolith_kv.storage.scan import good_records


def test_every_record_but_the_damaged_one_is_found(folder: Path) -> None:
    path = samples.write_delta(folder)
    data = path.read_bytes()
    parts = [p for p in samples.parts(data) if p.header.kind != RecordKind.END]
    for spoilt in parts:
        for at in (spoilt.offset, spoilt.offset + 8, spoilt.offset + 40):
            wrong = bytearray(data)
            wrong[at] ^= 4
            path.write_bytes(wrong)
            problems: list[str] = []
            found = [r.offset for r in good_records(str(path), FileType.DELTA, problems)]
            assert found == [p.offset for p in parts if p is not spoilt]
            assert len(problems) == 1
            assert f"bytes {spoilt.offset} to {spoilt.end} are damaged" in problems[0]


def test_a_cut_file_gives_what_is_before_the_cut(folder: Path) -> None:
    path = samples.write_delta(folder)
    data = path.read_bytes()
    parts = list(samples.parts(data))
    path.write_bytes(data[: parts[2].offset + 10])
    problems: list[str] = []
    found = list(good_records(str(path), FileType.DELTA, problems))
    assert [record.offset for record in found] == [part.offset for part in parts[:2]]
    assert problems
    assert "its end is missing" in problems[-1]


def test_a_good_file_has_no_problems(folder: Path) -> None:
    problems: list[str] = []
    path = samples.write_snapshot(folder)
    kinds = [r.kind for r in good_records(str(path), FileType.SNAPSHOT, problems)]
    assert kinds[0] == RecordKind.META
    assert len(kinds) == len(list(samples.parts(path.read_bytes()))) - 1
    assert problems == []
