"""Throw inputs at every parser, its checksums left out: it reads them or refuses them, no more.

    python -m crash.fuzz TARGET SECONDS      one target, in this process, lines of JSON
    make crash CRASH_ARGS=fuzz               all of them, in processes of their own

An input is a change of one in tests/crash/corpus/<target>; the same seed gives the same inputs. A
finding is any error but the documented ones, a dead process, an input that takes over a second of
processor time, or one that takes more memory than the caps allow. Coverage guides nothing here: see
guided.py for that, which needs atheris.
"""

import contextlib
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from checks import WIDE
from crash.figures import Figure
from crash.mutations import INPUT_BYTES_MAX, MUTATORS
from crash.parsers import PARSERS, Parser, checks_off

CORPUS = Path(__file__).with_name("corpus")
TESTS = Path(__file__).parent.parent
GOAL_EXECUTIONS = 10_000_000
SECONDS_FULL = 3_600.0  # At most: the goal ends it.
SECONDS_SMALL = 4.0 if WIDE else 1.0
HANG_S = 1.0  # Of processor time: the machine may be busy.
SILENT_S = 60.0  # Without a word from the process, whatever it is at: it hangs below Python.
# A record's payload is 16 MiB at most, before and after compression, and an input has some dozens
# of records at most; a table of 4,096 floats and its gate come on top.
MEMORY_BYTES = 1 << 30
FINDINGS_MAX = 20
REPORT_S = 5.0


class Finding(NamedTuple):
    """What a parser did that it must not do, and with which input."""

    what: str
    data: bytes


class Slow(BaseException):
    """One input took over a second; no handler of the engine's is meant to stop it."""


def corpus(target: str) -> list[bytes]:
    """Return the inputs to begin with, always in the same order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def seeds(target: str) -> list[bytes]:
    """Return the inputs to change: those of the corpus that are read as often as all others."""
    found = corpus(target)
    read = []
    for data in found:
        with contextlib.suppress(*PARSERS[target].refuses):
            PARSERS[target].parse(data)
            read.append(data)
    return found + read * (len(found) // max(1, len(read)))


# --- one input ---------------------------------------------------------------------------------


def run_one(parser: Parser, data: bytes) -> str | None:
    """Parse an input; None if it was read or refused as documented, else what happened instead."""
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        parser.parse(data)
    except parser.refuses:
        pass
    except Slow as error:
        return f"over {HANG_S:.0f} s at {_place(error)}"
    except Exception as error:
        return f"{type(error).__name__} at {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def _place(error: BaseException) -> str:
    """Where an error came from: the last lines of the engine, without their numbers' context."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Interrupt what takes too long."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def minimised(parser: Parser, finding: Finding, tries: int = 2_000) -> Finding:
    """Return a shorter input with the same finding."""
    data, step = finding.data, max(1, len(finding.data) // 2)
    while step and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter = data[:at] + data[at + step :]
            tries -= 1
            if run_one(parser, shorter) == finding.what:
                data = shorter
            else:
                at += step
        step //= 2
    return Finding(finding.what, data)


# --- one process -------------------------------------------------------------------------------


def fuzz(target: str, seconds: float, seed: int, last: memoryview) -> Iterator[dict[str, object]]:
    """Run a target for some time; yields how many inputs it had, and findings.

    Parameters
    ----------
    last : memoryview
        Takes each input before it is tried, behind its length: for whoever finds the process dead.
    """
    parser = PARSERS[target]
    mutate, dice = MUTATORS[parser.shape], random.Random(f"{target} {seed}")
    known: set[str] = set()
    done, begun = 0, time.perf_counter()
    told = begun
    with checks_off(), watched():
        bases = seeds(target)
        while (
            (now := time.perf_counter()) < begun + seconds
            and done < GOAL_EXECUTIONS
            and len(known) < FINDINGS_MAX
        ):
            for _ in range(64):
                data = mutate(dice, bases)
                last[:4] = len(data).to_bytes(4, "little")
                last[4 : 4 + len(data)] = data
                done += 1
                what = run_one(parser, data)
                if what is not None and what not in known:
                    known.add(what)
                    found = minimised(parser, Finding(what, data))
                    yield {"what": what, "data": found.data.hex()}
            if now > told + REPORT_S:
                told = now
                yield {"executions": done, "seconds": now - begun}
    yield {"executions": done, "seconds": time.perf_counter() - begun, "is_done": True}


def main(arguments: Sequence[str]) -> None:
    """Fuzz targets, one after the other, and tell of each in lines of JSON."""
    targets, seconds, seed, path = [*arguments, *("0", "")[len(arguments) - 2 :]]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    size = INPUT_BYTES_MAX + 4
    with open(path, "r+b") if path else tempfile.TemporaryFile() as file:
        file.truncate(size)
        last = memoryview(mmap.mmap(file.fileno(), size))
        for target in targets.split(","):
            for line in fuzz(target, float(seconds), int(seed), last):
                print(json.dumps({"target": target, **line}), flush=True)


# --- all of them -------------------------------------------------------------------------------


class Result(NamedTuple):
    """What came of one target."""

    target: str
    executions: int
    seconds: float
    findings: list[Finding]


def run_targets(targets: Sequence[str], seconds: float, seed: int = 0) -> Iterator[Result]:
    """Fuzz targets in a process of its own; what kills or hangs that is a finding, too."""
    left = list(targets)
    while left:
        for result in _run_process(left, seconds, seed):
            yield result
            left.remove(result.target)


def _run_process(targets: list[str], seconds: float, seed: int) -> Iterator[Result]:
    """Yield the results of one process; the last one is that of the target at which it ended."""
    executions, spent, at = 0, 0.0, 0
    findings: list[Finding] = []
    with tempfile.NamedTemporaryFile() as last:
        names = ",".join(targets)
        command = [sys.executable, "-m", "crash.fuzz", names, str(seconds), str(seed), last.name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            watchdog = _Watchdog(process)
            for text in process.stdout or ():
                watchdog.fed()
                line = json.loads(text)
                if "what" in line:
                    findings.append(Finding(line["what"], bytes.fromhex(line["data"])))
                    continue
                executions, spent = line["executions"], line["seconds"]
                if "is_done" in line:
                    yield Result(line["target"], executions, spent, findings)
                    executions, spent, findings, at = 0, 0.0, [], at + 1
            status = process.wait()
            watchdog.stop()
        if at < len(targets):
            data = Path(last.name).read_bytes()
            size = int.from_bytes(data[:4], "little")
            findings.append(Finding(f"the process ended with {status}", data[4 : 4 + size]))
            yield Result(targets[at], executions, spent, findings)


class _Watchdog:
    """Kills a process that says nothing for a while."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._fed = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._fed.wait(SILENT_S):
            self._fed.clear()
            if self._stopped:
                return
        self._process.kill()

    def fed(self) -> None:
        self._fed.set()

    def stop(self) -> None:
        self._stopped = True
        self._fed.set()
        self._thread.join()


def measure(full: bool) -> Iterator[Figure]:
    """Yield a figure for each target: executions, how fast, and findings."""
    for result in run_targets(list(PARSERS), SECONDS_FULL if full else SECONDS_SMALL):
        count, findings = result.executions, result.findings
        rate = count / max(result.seconds, 1e-9)
        told = "".join(f"; {each.what}: {each.data.hex()}" for each in findings)
        yield Figure(
            f"fuzzed: {result.target}",
            f"{count:,} executions, {rate:,.0f}/s, {len(findings)} findings{told}",
            f"{GOAL_EXECUTIONS:,} executions, 0 findings" if full else "0 findings",
            not findings and (not full or count >= GOAL_EXECUTIONS),
            result.seconds,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
