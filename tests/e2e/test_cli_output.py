"""Both tools where their output cannot be written, or they are stopped: the code tells what was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.tools import MODULES, TIMEOUT_S, Ran, call, command

import monolith_kv as mkv

FULL = Path("/dev/full")


@pytest.fixture
def stores(folder: Path) -> tuple[Path, Path]:
    """Two stores with different rows."""
    paths = folder / "a", folder / "b"
    for path in paths:
        with mkv.open(path, delta_interval=None) as store:
            ids = np.arange(10 * len(path.name), dtype=np.uint64)
            table = store.create_table(path.name, 4)
            table.upsert(ids, np.ones((len(ids), 4), np.float32))
    return paths


def call_with(stdout: Any, tool: str, *arguments: str | Path, **more: Any) -> Ran:
    done = subprocess.run(
        command(tool, *arguments), stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=TIMEOUT_S, check=False, **more,
    )  # fmt: skip
    return Ran(done.returncode, "", done.stderr)


def gone_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_reader_that_has_gone_does_not_change_the_code(stores: tuple[Path, Path]) -> None:
    a, b = stores
    for as_json in ([], ["--json"]):
        for code, arguments in ((0, ["verify", a, a]), (1, ["verify", a, b]), (0, ["status", a])):
            writer = gone_reader()
            try:
                ran = call_with(writer, "mkv-replicate", *arguments, *as_json)
            finally:
                os.close(writer)
            assert ran.code == code, ran
            assert "Traceback" not in ran.err


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_results_that_could_not_be_written_are_4_on_one_line(stores: tuple[Path, Path]) -> None:
    with FULL.open("w") as full:
        for arguments in (["verify", stores[0]], ["verify", stores[0], "--json"]):
            ran = call_with(full, "mkv", *arguments)
            assert ran.code == 4, ran
            [line] = ran.err.splitlines()
            assert line.startswith("mkv: standard output: ")


def test_closed_streams_are_no_errors(stores: tuple[Path, Path]) -> None:
    for closing in (">&-", "2>&-"):
        for path, code in ((stores[0], 0), (stores[0] / "nothing", 4)):
            shell = f'exec "$@" {closing}'
            arguments = ["sh", "-c", shell, "sh", *command("mkv", "stat", path, "--quick")]
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            assert done.returncode == code, done
            assert "Traceback" not in done.stderr
            assert "mkv:" not in done.stdout
    # What draws its progress there does without.
    target = stores[0].parent / "target"
    arguments = command("mkv-replicate", "push", stores[0], target, "--once")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert target.exists()


def test_names_that_the_encoding_has_not_are_printed_all_the_same(folder: Path) -> None:
    path = folder / "fée"
    mkv.open(path, delta_interval=None).close()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = call_with(subprocess.DEVNULL, "mkv", "stat", path, env=environment)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("tool", ["mkv", "mkv-replicate"])
def test_a_command_that_only_reads_ends_on_a_signal(
    folder: Path, tool: str, number: signal.Signals
) -> None:
    with mkv.open(folder / "s", delta_interval=None) as store:
        table = store.create_table("t", 64)
        rows = np.ones((1 << 16, 64), np.float32)
        for start_id in range(0, 1 << 20, len(rows)):
            table.upsert(np.arange(start_id, start_id + len(rows), dtype=np.uint64), rows)
    paths = [folder / "s"] * (2 if tool == "mkv-replicate" else 1)
    script = f"import sys, {MODULES[tool]} as m; print('begun', flush=True); sys.exit(m.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "verify", *map(str, paths)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    waited = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # It may have been done by then, on a fast machine.
        assert process.returncode == 1, err
        [line] = err.splitlines()
        assert "stopped" in line
    assert time.monotonic() - waited < 30


def test_wrong_values_are_2_on_one_line(stores: tuple[Path, Path]) -> None:
    for tool, arguments in (
        ("mkv-replicate", ["follow", stores[0], stores[0].parent / "r", "--memory-limit", "8GB"]),
        ("mkv-replicate", ["follow", stores[0], stores[0].parent / "r", "--poll", "1e10"]),
        ("mkv-replicate", ["follow", stores[0], ""]),
        ("mkv-replicate", ["push", "", "target"]),
        ("mkv", ["restore", "one", "two", stores[0].parent / "r", "--mode", "replica"]),
        ("mkv", ["stat", ""]),
    ):
        ran = call(tool, *arguments)
        assert ran.code == 2, ran
        assert "Traceback" not in ran.err
        assert ran.out == ""
