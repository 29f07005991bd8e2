"""Crash states: traced runs of small scenarios, and every folder that a power cut may leave.

The calls on files of each scenario are recorded; before each of them, and at the end, the images
are built that a power cut or a kill at this moment may leave. Each distinct one is written into a
folder in memory, and the store in it is opened, checked, let go of and opened again:

- what is recovered is the state after some number of the calls, no fewer than the mode promises,
  no more than had begun; dense parameters likewise; so no row is there that was never written;
- where acknowledged calls are lost, DataLossWarning and stats()["lost"] say so; not in "batch"
  after a power cut that kept whole records only, when nothing can tell that there were more;
- history goes on in a new epoch; verify() finds nothing; sealed sightings count; a snapshot
  elsewhere is there, whole;
- for a share a reader sees the same, opening again gives the same, and the store takes calls, seals
  and closes;
- for a share the recovery itself is traced and crashed in the same way, at its end, too.
"""

import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from checks import FAST_FOLDER
from crash import trace
from crash.disk import Disk, Image, materialise, read_image
from crash.figures import Figure
from crash.oracle import Call, Oracle, Promise
from crash.recovered import Checker, Violation
from crash.trace import Step
from crash.traced_scenarios import SCENARIOS, Scenario

SEED = 20_170_101
VIOLATIONS_MAX = 3  # Of a scenario: then it is left.
AT_ONCE = 60  # Scenarios that one process makes: their traces are in memory together.
GOAL_STATES, GOAL_STATES_SMALL, GOAL_SCENARIOS = 200_000, 1_000, 30


# --- traces ------------------------------------------------------------------------------------


def run(folders: Iterable[str], base: Path, given: Path, bug: str = "") -> dict[str, list[Step]]:
    """Make scenarios, or recover what is in their folders, traced; return the steps of each."""
    tests = Path(__file__).parent.parent
    paths = [str(tests.parent), str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    script = str(tests / "crash" / "traced_scenarios.py")
    command = [sys.executable, script, str(base), str(given), *filter(None, [bug])]
    return trace.record(command, base, "\n".join(folders), environment)


def is_moot(path: str) -> bool:
    """The lock's text is for people; the overflow tier is removed unread by each opening."""
    return path.endswith(("LOCK", ".mdb"))


def is_litter(name: str) -> bool:
    """A temporary file, which the next opening removes unread."""
    return name.startswith(".") and name.endswith(".tmp")


def check_recording(steps: Sequence[Step], root: Path, start: Image) -> None:
    """All steps made again must lead to the real folder: nothing was missed or misread."""
    disk = Disk(is_moot, is_litter, start)
    for step in steps:
        if step.kind != "mark":
            disk.take(step)
    made, real = disk.image(), read_image(root)
    real = tuple((path, content) for path, content in real if path != trace.MARKS)
    strip = [(path, None if is_moot(path) else content) for path, content in made]
    if strip != [(path, None if is_moot(path) else content) for path, content in real]:
        raise trace.NotRecordedError(f"the steps made again do not lead to what is in {root}")


# --- exploration -------------------------------------------------------------------------------


def images(
    steps: Iterable[Step], oracle: Oracle, limit: int, dice: random.Random,
    start: Image = (), *, is_handed_over: bool,
) -> dict[Image, Promise]:  # fmt: skip
    """Return each distinct image that a crash may leave, with what is promised of it."""
    disk = Disk(is_moot, is_litter, start)
    found: dict[Image, Promise] = {}
    since = oracle.moment()

    def look() -> None:
        # Just before the disk changes: then the promise for what is there is the strongest.
        now = oracle.moment()
        killed = disk.image()
        for image in (killed, *disk.images(limit, dice)):
            promise = found.get(image)
            if promise is None:
                promise = found[image] = Promise(since)
            promise.extend(now, is_kill=image is killed, is_handed_over=is_handed_over)

    for step in steps:
        if step.kind == "mark":
            oracle.read(step.data)
        elif step.kind != "open" or step.is_new:
            look()
            if disk.take(step):
                since = oracle.moment()
        else:
            disk.take(step)
    look()
    return found


class Found(NamedTuple):
    """What came of a scenario, or of recoveries of some of its states."""

    name: str
    states: int
    recoveries: int  # States of them in which a recovery was crashed.
    silent: int
    violations: list[Violation]


class Limits(NamedTuple):
    """At most so much is done."""

    moment: int  # Images that are built at one moment.
    states: int  # Of a scenario that are checked.
    recoveries: int  # Of a scenario that are traced and crashed themselves.
    recovery: int  # Images that are built at one moment of a recovery.


class Traced(NamedTuple):
    """A scenario that was explored: what it takes to crash recoveries in it."""

    scenario: Scenario
    oracle: Oracle
    chosen: dict[Image, Promise]


class Explorer:
    """Explores scenarios in an empty folder, best in memory."""

    def __init__(self, base: Path, limits: Limits) -> None:
        self.runs, self.given, self.work = base / "runs", base / "given", base / "work"
        for folder in (self.runs, self.given, self.work):
            folder.mkdir()
        self.limits = limits

    def explore(self, scenarios: Sequence[Scenario], bug: str = "") -> Iterator[Found]:
        """Trace scenarios, check every state that a crash may leave; then crash recoveries."""
        traces = run([scenario.name for scenario in scenarios], self.runs, self.given, bug)
        traced = []
        for scenario in scenarios:
            steps = traces.pop(scenario.name)
            check_recording(steps, self.runs / scenario.name, ())
            shutil.rmtree(self.runs / scenario.name)
            oracle, dice = Oracle(), random.Random(f"{SEED} {scenario.name}")
            is_batch = scenario.durability == "batch"
            found = images(steps, oracle, self.limits.moment, dice, is_handed_over=is_batch)
            found = _sample(found, self.limits.states, dice)
            checker = Checker(scenario, self.work, self.given / scenario.name, oracle)
            violations = [*map(Violation, oracle.forks()), *_check_all(checker, found)]
            yield Found(scenario.name, checker.checked, 0, checker.silent, violations)
            chosen = {} if violations else _sample(found, self.limits.recoveries, dice)
            traced.append(Traced(scenario, oracle, chosen))
        yield from self._crash_recoveries(traced)
        shutil.rmtree(self.given)
        self.given.mkdir()

    def _crash_recoveries(self, traced: Sequence[Traced]) -> Iterator[Found]:
        """Trace recoveries, and check every state that a crash in one of them leaves."""
        folders = []
        for scenario, _, chosen in traced:
            for number, image in enumerate(chosen, 1):
                folder = self.runs / f"{scenario.name}@{number}"
                folder.mkdir()
                materialise(image, folder)
                folders.append(folder.name)
        traces = run(folders, self.runs, self.given) if folders else {}
        for each in filter(lambda each: each.chosen, traced):
            yield self._crash_recoveries_of(each, traces)

    def _crash_recoveries_of(self, traced: Traced, traces: dict[str, list[Step]]) -> Found:
        scenario, oracle, chosen = traced
        known: set[Image] = set()
        checked = silent = 0
        violations: list[Violation] = []
        for number, (image, promise) in enumerate(chosen.items(), 1):
            folder = self.runs / f"{scenario.name}@{number}"
            steps = traces.pop(folder.name)
            check_recording(steps, folder, image)
            shutil.rmtree(folder)
            recovery, dice = recovery_oracle(oracle, promise, steps), random.Random(SEED)
            limit = self.limits.recovery
            found = images(steps, recovery, limit, dice, image, is_handed_over=False)
            fresh = {i: p for i, p in found.items() if i not in known and i != image}
            known.update(fresh)
            must_report = recovery.calls[1].is_lost
            given = self.given / scenario.name
            checker = Checker(scenario, self.work, given, recovery, must_report)
            violations += _check_all(checker, fresh)
            checked, silent = checked + checker.checked, silent + checker.silent
        return Found(f"{scenario.name}, its recoveries", checked, checked, silent, violations)


def _sample(found: dict[Image, Promise], count: int, dice: random.Random) -> dict[Image, Promise]:
    if len(found) <= count:
        return found
    return {image: found[image] for image in dice.sample(list(found), count)}


def _check_all(checker: Checker, found: dict[Image, Promise]) -> list[Violation]:
    violations = []
    gc.freeze()  # Thousands of images: not to be walked through again and again.
    for image, promise in found.items():
        try:
            checker.check(image, promise)
        except Violation as violation:
            violations.append(violation)
            if len(violations) == VIOLATIONS_MAX:
                break
    gc.unfreeze()
    return violations


def recovery_oracle(oracle: Oracle, promise: Promise, steps: Iterable[Step]) -> Oracle:
    """Whatever becomes of a recovery, the next one must lead to where this one did."""
    whole = Oracle()
    for step in steps:
        if step.kind == "mark":
            whole.read(step.data)
    admits = {fid for call in oracle.calls[: promise.durable + 1] for fid in call.admits}
    epoch = oracle.calls[promise.acknowledged].epoch
    before = Call("nothing", whole.calls[1].observed, epoch, True, tuple(admits))
    return Oracle([before])


# --- what make crash runs ----------------------------------------------------------------------

SEEDS = 5
FULL = Limits(moment=1_000, states=4_000, recoveries=6, recovery=60)
SMALL = Limits(moment=6, states=60, recoveries=1, recovery=4)


def scenarios(seeds: int) -> list[Scenario]:
    """Each scenario with so many seeds."""
    return [scenario._replace(seed=seed) for seed in range(seeds) for scenario in SCENARIOS]


def explore_all(limits: Limits, seeds: int) -> Iterator[Found]:
    """Explore all scenarios, some at a time."""
    todo = scenarios(seeds)
    with tempfile.TemporaryDirectory(prefix="mkv-states-", dir=FAST_FOLDER) as base:
        explorer = Explorer(Path(base).resolve(), limits)
        for start in range(0, len(todo), AT_ONCE):
            yield from explorer.explore(todo[start : start + AT_ONCE])


def measure(full: bool) -> Iterator[Figure]:
    """Explore all scenarios."""
    goal, seeds = (GOAL_STATES, SEEDS) if full else (GOAL_STATES_SMALL, 1)
    if lacking := trace.missing():
        yield Figure("crash states", lacking, f"{goal:,} distinct, 0 violations", False)
        return
    began = time.perf_counter()
    total = recoveries = silent = violations = 0
    for found in explore_all(FULL if full else SMALL, seeds):
        total, silent = total + found.states, silent + found.silent
        recoveries += found.recoveries
        violations += len(found.violations)
        print(f"  {found.name}: {found.states} states", file=sys.stderr, flush=True)
        for violation in found.violations[:1]:
            print(f"    {found.name}: {violation}", file=sys.stderr, flush=True)
    yield Figure(
        "distinct crash states checked",
        f"{total:,} ({recoveries:,} of crashed recoveries), {violations} violations; "
        f"{silent:,} in batch lost whole records, of which nothing tells",
        f"{goal:,}, 0 violations",
        total >= goal and not violations,
        time.perf_counter() - began,
    )
    yield Figure(
        "scenarios of crash states",
        f"{len(SCENARIOS)}, each with {seeds} seeds",
        f"{GOAL_SCENARIOS}",
        len(SCENARIOS) >= GOAL_SCENARIOS,
    )
