"""The dump of a file: readable for each type, complete, and honest about damage."""

from pathlib import Path

import pytest
import samples
from samples import SAMPLES

import monolith_kv as mkv
from monolith_kv.storage import dense, files
from monolith_kv.storage.inspect import describe


@pytest.mark.parametrize("name", SAMPLES)
def test_every_type_is_described_by_header_and_records(name: str, folder: Path) -> None:
    path = SAMPLES[name].write(folder)
    lines = list(describe(str(path)))
    records = len(list(samples.parts(path.read_bytes()))) - 1
    assert lines[0] == f"{path}: {path.stat().st_size} bytes"
    assert lines[1] == f"type: {name}, format 1.0"
    assert lines[3] == f"store: {samples.UUID}"
    assert lines[4] == f"epoch: {samples.EPOCH}"
    assert len(lines) == 7 + records + 1
    assert lines[-1].startswith("end: {")


def test_ids_and_times_of_calls_are_shown(folder: Path) -> None:
    text = "\n".join(describe(str(samples.write_calls(folder, clean=True))))
    first = int(samples.fids(1)[0])
    assert f"insert table 3 count 20, 168 bytes at 1.500: ids {first}, " in text
    assert "and 16 more" in text
    assert 'create table 3, 15 bytes {"name":"item"}' in text


def test_rows_of_a_delta_show_their_width_and_first_ids(folder: Path) -> None:
    text = "\n".join(describe(str(samples.write_delta(folder))))
    assert f"rows table 3 count 60, 2880 bytes, {samples.ROW_BYTES} a row: ids " in text
    assert "removed table 3 count 5" in text


def test_an_open_log_and_its_torn_tail_are_told(folder: Path) -> None:
    path = samples.write_calls(folder)
    assert list(describe(str(path)))[-1].startswith("no end record")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    last = list(samples.parts(data))[-1]
    size = len(data) - last.offset - 1
    lines = list(describe(str(path)))
    assert lines[-1] == f"torn tail at byte {last.offset}: {size} bytes, 1 records"
    torn = files.cut_tail(str(path), last.offset)
    assert "torn tail of a log" in list(describe(torn))[1]


def test_damage_ends_the_dump_after_what_is_good(folder: Path) -> None:
    path = samples.write_delta(folder)
    data = bytearray(path.read_bytes())
    parts = list(samples.parts(bytes(data)))
    data[parts[2].offset + 20] ^= 1
    path.write_bytes(data)
    lines = []
    with pytest.raises(mkv.CorruptionError) as caught:
        lines.extend(describe(str(path)))
    assert caught.value.offset == parts[2].offset


def test_dense_files_the_lock_and_reports_are_described_too(folder: Path) -> None:
    (folder / "w.safetensors").write_bytes(dense.pack({"w": [[1.0, 2.0]]}))
    assert list(describe(str(folder / "w.safetensors")))[-1] == "w: float64 [1, 2], 16 bytes"
    with files.FolderLock(str(folder)):
        assert "lock, last held by pid" in list(describe(str(folder / "LOCK")))[1]
    (folder / "traffic.json").write_text('{"format": 1}')
    assert list(describe(str(folder / "traffic.json")))[-1] == '{"format": 1}'


def test_a_file_of_others_is_refused(folder: Path) -> None:
    (folder / "x").write_bytes(b"hello")
    with pytest.raises(mkv.CorruptionError, match="no file of monolith_kv"):
        list(describe(str(folder / "x")))
