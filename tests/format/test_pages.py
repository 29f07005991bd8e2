"""The format pages say what the code does: fields, kinds, names, keys and worked examples."""

import dataclasses
import re
from pathlib import Path

import golden_files
import pytest

from monolith_kv.replication import target
from monolith_kv.storage import delta_log, dense, format, manifest, snapshot

PAGES = Path(__file__).parents[2] / "docs" / "reference" / "format"
EXAMPLES = {
    "record-file": "sightings",
    "manifest": "manifest",
    "delta": "delta",
    "snapshot": "snapshot",
    "call-log": "calls",
    "dense": "dense",
    "overflow": "overflow",
    "target": "target",
}
ALL = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")


def tables(page: str, *heads: str) -> list[tuple[str, ...]]:
    """The cells of the one table on the page whose first columns have these heads."""
    text = (PAGES / f"{page}.md").read_text()
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [tuple(line.strip("| ").split(" | ")) for line in block.splitlines()]
        if rows[0][: len(heads)] == heads and "offset" not in rows[0]:
            found.append(rows[2:])
    assert len(found) == 1, f"{len(found)} tables {heads} on {page}"
    return found[0]


def test_the_fields_of_header_and_record_are_those_of_the_code() -> None:
    text = (PAGES / "record-file.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    found = [(name, int(offset), int(size)) for offset, size, name in rows]
    assert found == [*format.HEADER_FIELDS, *format.RECORD_FIELDS]
    assert f"## Header: {format.HEADER_BYTES} bytes" in text
    assert f"## Record: {format.RECORD_HEADER_BYTES} bytes" in text


def test_types_kinds_and_flags_are_those_of_the_code() -> None:
    kinds = {name: int(number) for number, name, *_ in tables("record-file", "kind", "name")}
    assert kinds == {kind.name: kind.value for kind in format.RecordKind}
    flags = {name: int(number) for number, name, *_ in tables("record-file", "flag", "name")}
    assert flags == {flag.name: flag.value for flag in format.RecordFlag}
    types = {name: letter.strip("`") for letter, name in tables("record-file", "type", "file")}
    assert types == {t.name.lower(): t.value.decode() for t in format.FileType}


def test_kinds_of_a_file_are_those_that_its_reader_takes() -> None:
    for page, kinds in (("delta", delta_log.KINDS), ("snapshot", snapshot.KINDS)):
        names = {kind.name for kind in kinds} | {"META", "END"}
        assert {cells[0] for cells in records(page)} == names
        places = tables("record-file", "kind", "name")
        assert {name for _, name, where in places if re.match(rf"all|.*\b{page}\b", where)} == names


def records(page: str) -> list[tuple[str, ...]]:
    return tables(page, "kind", "table", "count")


def test_keys_of_json_are_those_of_the_code() -> None:
    keys = [cells[0].strip("`") for cells in tables("manifest", "key", "type")]
    assert keys == list(manifest.Manifest().to_json())
    entry = [cells[0].strip("`") for cells in tables("target", "key of an entry", "type")]
    assert entry == [field.name for field in dataclasses.fields(target.Entry)]
    for page, module in (("delta", delta_log), ("snapshot", snapshot)):
        rows = {cells[0]: cells[3] for cells in records(page)}
        assert set(re.findall(r"`(\w+)`", rows["META"])) == {
            *module.META_KEYS,
            *module.META_OPTIONAL,
        }
        ends = {*module.END_KEYS, *getattr(module, "END_OPTIONAL", ())}
        assert set(re.findall(r"`(\w+)`", rows["END"])) == ends


def test_dtypes_of_dense_parameters_are_those_of_the_code() -> None:
    found = {name: int(size) for name, size in tables("dense", "dtype", "bytes")}
    assert found == {name: dtype.itemsize for name, dtype in dense.DTYPES.items()}


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_worked_example_is_what_the_code_writes(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text()
    section = text.split("## Worked example\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows == golden_files.example(EXAMPLES[page])


@pytest.mark.parametrize("page", ALL)
def test_a_page_has_every_section_and_is_in_the_index(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ["Grammar", "Invariants", "Worked example"]
    wanted += ["What a reader does with damage", "Versions"]
    assert [head for head in heads if head in wanted] == wanted
    assert f"({page}.md)" in (PAGES / "index.md").read_text()


def test_the_names_of_files_are_those_of_the_code() -> None:
    text = (PAGES / "index.md").read_text()
    for name in (
        format.MANIFEST_NAME,
        f"{format.DELTA_FOLDER}/<sequence>-<epoch>.delta",
        f"{format.SNAPSHOT_FOLDER}/<sequence>-<epoch>.snapshot",
        f"{format.CALL_FOLDER}/<number>.calls",
        f"{format.SIGHTINGS_FOLDER}/<sequence>-<epoch>.sightings",
        f"{format.DENSE_FOLDER}/<version>.safetensors",
        f"{format.OVERFLOW_FOLDER}/",
    ):
        assert f"| `{name}` |" in text
