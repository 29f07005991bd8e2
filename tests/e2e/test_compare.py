"""The comparison, small: what it measures is checked, who is missing is named, who lies is out."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, LR, adagrad_step, summed
from monolith_kv_tools.bench.compare.contenders.lmdb_file import LmdbFile
from monolith_kv_tools.bench.compare.contenders.own import MonolithKv
from monolith_kv_tools.bench.compare.contenders.plain import PlainDict
from monolith_kv_tools.bench.compare.course import QUICK, Course
from monolith_kv_tools.bench.compare.environments import prepare
from monolith_kv_tools.bench.compare.process import FailedError, Process
from monolith_kv_tools.bench.compare.registry import ENTRIES, OWN, Entry
from monolith_kv_tools.bench.compare.results import Outcome, goals, verdicts
from monolith_kv_tools.bench.compare.work import (
    LOOKUP,
    MEASURED,
    NEW,
    STEP,
    UNIFORM,
    UPSERT,
    ZIPF,
    Scope,
    Work,
)
from monolith_kv_tools.bench.compare.worker import Session, answer

SMALL = Scope(rows=2000, dim=8, batch=512, threads=1)
COMMAND = [sys.executable, "-m", "monolith_kv_tools.bench.compare"]


def begun(contender, folder: Path) -> Session:
    folder.mkdir()
    session = Session(contender, folder, SMALL)
    assert "failed" not in answer(session, {"do": "begin"})
    return session


def turn(session: Session, operation: str, traffic: str) -> dict:
    request = {"do": "turn", "operation": operation, "traffic": traffic}
    return answer(session, request | {"first": 0, "calls": 2, "budget_s": 1.0})


# --- the command ------------------------------------------------------------------------------


def test_the_table_names_who_is_missing_and_why(store_dir):
    output = store_dir.parent / "out"
    arguments = ["--only", OWN, "dict", "lmdb", "redis", "--rows", "2000", "--quick"]
    done = subprocess.run(
        [*COMMAND, *arguments, "--out", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": ""},  # So there is no redis-server.
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in (OWN, "dict", "lmdb"):
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert " - " not in line, "everything is measured"
    assert (
        "missing: redis: redis-server is not on the PATH; apt-get install redis-server"
        in done.stdout
    )
    assert "missing: tfra: left out by --only" in done.stdout
    assert "not measured (left out by --only)" in done.stdout
    page = (output / "comparison.md").read_text()
    assert "redis-server is not on the PATH" in page
    assert "| dict |" in page
    values = json.loads((output / "comparison.json").read_text())
    assert values["contenders"]["dict"]["ratio"].keys() == {f"{o}, {t}" for o, t in MEASURED}
    if importlib.util.find_spec("matplotlib") is not None:
        assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (output / "comparison.svg").read_text()


def test_an_interrupt_ends_every_worker(store_dir):
    arguments = ["--only", "dict", "--rows", "100000", "--out", str(store_dir.parent / "out")]
    command = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert command.stderr is not None
    with command, command.stderr as said:
        next(line for line in said if "rounds" in line)
        workers = psutil.Process(command.pid).children()
        assert len(workers) == 2
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
    assert not [worker for worker in workers if worker.is_running()]


@pytest.mark.parametrize("arguments", [["--rows", "1"], ["--dim", "0"], ["--only", "nobody"]])
def test_wrong_usage_is_said_so(arguments):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2


# --- fast and wrong does not count ------------------------------------------------------------


@pytest.mark.parametrize("contender", [MonolithKv, PlainDict, LmdbFile])
def test_an_honest_contender_passes_every_check(contender, folder):
    session = begun(contender(), folder / "work")
    for operation, traffic in MEASURED:
        assert len(turn(session, operation, traffic)["seconds"]) == 2
    assert answer(session, {"do": "save"})["saved_bytes"] > 0
    assert answer(session, {"do": "grow"})["pause_s"] > 0
    assert answer(session, {"do": "end"}) == {}


class SwapsTwoRows(PlainDict):
    def lookup(self, ids):
        rows = super().lookup(ids)
        return rows[[1, 0, *range(2, len(rows))]]


class ForgetsUpserts(PlainDict):
    def insert(self, ids, rows):
        super().upsert(ids, rows)
        self._accumulators |= {fid: np.full(8, ACCUMULATOR, np.float32) for fid in ids.tolist()}

    def upsert(self, ids, rows):
        super().upsert(ids[:-1], rows[:-1])


class StepsForTheLastDuplicateOnly(PlainDict):
    def step(self, ids, gradients):
        places = {fid: place for place, fid in enumerate(ids.tolist())}
        kept = np.zeros_like(gradients)
        kept[list(places.values())] = gradients[list(places.values())]
        return super().step(ids, kept)


class SavesNoState(PlainDict):
    def load(self, path):
        super().load(path)
        self._rows = dict(list(self._rows.items())[:-1])


@pytest.mark.parametrize(
    ("contender", "operation", "traffic", "what"),
    [
        (SwapsTwoRows, LOOKUP, UNIFORM, "lookup: 2 of 512 rows differ"),
        (ForgetsUpserts, UPSERT, NEW, "lookup after upsert: 1 of 512 rows differ"),
        (StepsForTheLastDuplicateOnly, STEP, ZIPF, "lookup after a step"),
    ],
)
def test_wrong_rows_are_caught(contender, operation, traffic, what, folder):
    reply = turn(begun(contender(), folder / "work"), operation, traffic)
    assert reply["failed"].startswith(f"wrong rows: {what}")


def test_rows_lost_by_saving_are_caught(folder):
    session = begun(SavesNoState(), folder / "work")
    assert "failed" in answer(session, {"do": "save"})


def test_who_fails_is_named_and_the_others_go_on(folder, monkeypatch):
    monkeypatch.setattr(Course, "_worker", lambda self, name, python: Told(name))
    course = Course(["dict", "lmdb"], SMALL, QUICK, folder, folder, note=lambda line: None)
    outcomes = course.run()
    assert outcomes["dict"].missing == "wrong rows: all of them"
    assert outcomes["dict"].seconds == {}
    assert outcomes["lmdb"].missing == outcomes[OWN].missing == ""
    assert outcomes["lmdb"].ratios("step, uniform") == [2.0] * QUICK.write_rounds


def test_without_monolith_kv_nothing_is_measured(folder, monkeypatch):
    monkeypatch.setattr(Course, "_worker", lambda self, name, python: Told(name, fails=OWN))
    course = Course(["dict", "lmdb"], SMALL, QUICK, folder, folder, note=lambda line: None)
    outcomes = course.run()
    assert outcomes[OWN].missing == "wrong rows: all of them"
    assert outcomes["lmdb"].missing == "nothing to compare with: monolith_kv failed"


class Told:
    """In place of a worker: one of them is caught in its first upsert."""

    def __init__(self, name: str, fails: str = "dict") -> None:
        self._name = name
        self._fails = fails

    def ask(self, do: str, **arguments: object) -> dict[str, object]:
        if self._name == self._fails and arguments.get("operation") == UPSERT:
            raise FailedError("wrong rows: all of them")
        if do == "begin":
            return {"version": "1", "fingerprint": 7, "memory_bytes": 0}
        return {"seconds": [0.5 if self._name == OWN else 1.0]} if do == "turn" else {}

    def end(self, *, at_once: bool = False) -> None:
        pass


def test_the_work_is_the_same_in_every_process():
    assert Work(SMALL).fingerprint() == Work(SMALL).fingerprint()
    other = Scope(rows=2000, dim=8, batch=256, threads=1)
    assert Work(SMALL).fingerprint() != Work(other).fingerprint()


def test_adagrad_sums_duplicates_and_takes_one_step_for_each(rng):
    ids = np.array([7, 3, 7], np.uint64)
    gradients = rng.normal(size=(3, 4)).astype(np.float32)
    distinct, sums = summed(ids, gradients)
    assert distinct.tolist() == [3, 7]
    np.testing.assert_allclose(sums, [gradients[1], gradients[0] + gradients[2]])
    rows, state = np.zeros((2, 4), np.float32), np.full((2, 4), ACCUMULATOR, np.float32)
    adagrad_step(rows, state, sums)
    np.testing.assert_allclose(rows, -LR * sums / np.sqrt(ACCUMULATOR + sums**2), rtol=1e-6)


def test_what_cannot_be_installed_is_a_reason_with_the_installers_words(folder):
    entry = Entry("torch", "torch_table.TorchEmbedding", "torch", ("torch @ file:///nowhere.whl",))
    with pytest.raises(FailedError, match="cannot be installed: ERROR: .*nowhere.whl"):
        prepare(entry, folder, note=lambda line: None)
    assert "nowhere.whl" in (folder / "logs" / "torch-install.log").read_text()
    assert not (folder / "environments" / "torch" / "installed.txt").exists()


# --- what a worker may do to the command ------------------------------------------------------


def worker(code: str, log: Path, limit_s: float = 60.0) -> Process:
    return Process([sys.executable, "-c", code], {}, log, limit_s)


def test_a_worker_that_dies_is_named_with_its_last_words(folder):
    process = worker("import sys; sys.exit('out of memory')", folder / "log")
    with pytest.raises(FailedError, match="its process ended with 1: out of memory"):
        process.ask("begin")
    process.end(at_once=True)


def test_a_worker_that_does_not_answer_is_given_up(folder):
    process = worker("import sys; sys.stdin.read()", folder / "log", limit_s=0.1)
    with pytest.raises(FailedError, match="no answer to 'begin' within 0 s"):
        process.ask("begin")
    process.end(at_once=True)


# --- verdicts ---------------------------------------------------------------------------------


def measured(times: float) -> dict[str, Outcome]:
    """Outcomes in which everybody takes so many times as long as monolith_kv."""
    own = {goal.measurement: [1.0, 1.0] for goal in goals()}
    slower = {name: [times, times] for name in own}
    return {n: Outcome(n, seconds=slower, own_seconds=own) for n in ENTRIES if n != OWN}


def test_a_goal_is_missed_at_its_own_size_only():
    assert {v.mark for v in verdicts(measured(20.0), 1_000_000, 64)} == {"ok"}
    assert {v.mark for v in verdicts(measured(1.0), 1_000_000, 64)} == {"MISS"}
    assert {v.mark for v in verdicts(measured(1.0), 2000, 64)} == {"--"}
    assert {v.mark for v in verdicts(measured(1.0), 1_000_000, 16)} == {"--"}


def test_who_is_missing_misses_no_goal():
    outcomes = measured(20.0)
    outcomes["tfra"] = Outcome("tfra", missing="cannot be installed")
    about = [v for v in verdicts(outcomes, 1_000_000, 64) if "tfra" in v.text]
    assert {v.mark for v in about} == {"--"}
    assert all("not measured (cannot be installed)" in v.text for v in about)
