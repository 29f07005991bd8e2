"""Try every point of every scenario: let one call fail there, or the process die, and look.

What must hold at each point. A call that meets a fault raises what was promised and is in memory
and in the files wholly or not at all; reads go on; when the fault is over the same call succeeds;
killed there, the files hold what was acknowledged, less what the mode may lose; nothing hangs, no
descriptor is left open. What a store has to hold is known from a run without faults.

Run as a script, with the shim preloaded: it forks a child for each point and prints, for each
scenario, a JSON line with its points and violations.
"""

import argparse
import contextlib
import gc
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checks import open_files
from crash.scenarios import WRITERS
from crash.scenarios_replicas import OTHERS, Exited
from crash.shim import ALL, COUNT, FAULTS, MEMORY, NO_MEMORY, READ, Fault, Shim
from crash.world import NOTHING, Scenario, State, is_between, look_at_nothing

import monolith_kv as mkv

HANGS_AFTER_S = 60
TRIES_ARMED = 2  # calls while the fault goes on
TRIES_AFTER = 3  # an error may be kept for the next call; the one after that has to succeed
PROGRESS = mmap.mmap(-1, 8)  # shared with the children: steps acknowledged


class Reference(NamedTuple):
    """What a run without faults leads to."""

    first: State  # what a kill before the first step leaves
    states: list[State]  # before the first step, and after each
    closed: State  # at the end, closed and opened
    calls: list[tuple[int, str]]  # class and name
    durable: list[bool]  # of each step
    partial: list[bool]


class Point(NamedTuple):
    fault: Fault
    at: int


class Violation(AssertionError):
    """Something promised does not hold."""


# --- a child -----------------------------------------------------------------------------------


class Trial:
    """One run of a scenario, with or without a fault."""

    def __init__(self, root: Path, scenario: Scenario, shim: Shim) -> None:
        self.root, self.scenario, self.shim = root, scenario, shim
        self.files_before = open_files().items()
        self.world = scenario.world(root)
        self.steps = list(scenario.make(self.world))
        self.copies = 0

    def state(self) -> State:
        """What the store holds, read where it is open, or else by opening a copy."""
        return self.world.state() or self.look()

    def look(self) -> State:
        """What a process killed now would leave."""
        if self.scenario.look is look_at_nothing:
            return NOTHING
        self.copies += 1
        copy = self.root / f"copy-{self.copies}"
        if self.world.subject.exists():
            shutil.copytree(self.world.subject, copy, ignore=shutil.ignore_patterns("overflow*"))
        found = self.scenario.look(self.world, copy)
        shutil.rmtree(copy, ignore_errors=True)
        return found

    def end(self, kept: type[BaseException] | tuple[Any, ...] = ()) -> State:
        """Close everything, which may raise an error kept for the next call; what is there then."""
        if self.world.store is not None:
            with contextlib.suppress(kept):
                self.world.close()
        gc.collect()
        if left := open_files().items() - self.files_before:
            raise Violation(f"descriptors were left open: {sorted(left)}")
        return self.look()

    def reference(self, fault: Fault) -> Reference:
        first, states = self.look(), [self.state()]
        self.shim.arm(self.world.live, fault)
        for step in self.steps:
            step.run()
            with self.shim.paused():
                states.append(self.state())
        self.shim.disarm()
        closed = self.end()
        return Reference(
            first, states, closed, self.shim.log(),
            [step.is_durable for step in self.steps], [step.is_partial for step in self.steps],
        )  # fmt: skip


class Attempt:
    """A run with a fault, compared with the one without."""

    def __init__(self, trial: Trial, fault: Fault, reference: Reference) -> None:
        self.trial, self.fault, self.reference = trial, fault, reference
        self.states = reference.states
        self.at = 0  # steps that memory has
        self.acknowledged = 0
        self.is_over = False
        self.is_tiered = "memory_limit" in trial.scenario.options

    def run(self, at: int) -> None:
        trial, shim = self.trial, self.trial.shim
        compare(trial.state(), self.states[0], "before the fault")
        shim.arm(trial.world.live, self.fault, at)
        for step in trial.steps:
            if not self.do(step):
                break
        shim.disarm()
        if not shim.fired and not self.is_tiered:
            raise Violation("the call was not reached")
        if not self.is_over:
            if trial.world.store is not None and (
                problems := trial.world.problems(trial.world.store)
            ):
                raise Violation(f"verify found {problems}")
            found, expected = trial.end(self.promised()), self.reference.closed
            if self.states[-1].sequence <= found.sequence < expected.sequence:
                found = found._replace(sequence=expected.sequence)  # Closed as by a kill.
            compare(found, expected, "closed and opened again")

    def do(self, step: Any) -> bool:
        """Make one call until it succeeds; False: the end came, with a loss that is allowed."""
        shim, failed, failed_after = self.trial.shim, 0, 0
        while True:
            try:
                step.run()
            except Exception as error:
                self.check_error(step, error)
                last = error
            else:
                break
            self.check_files(step)
            if (is_done := self.look_round(step)) is not None:
                self.at += is_done
                return is_done
            failed += 1
            if not self.fault.is_sticky or failed > TRIES_ARMED:
                failed_after += 1
                shim.disarm()
            if failed_after > TRIES_AFTER:
                raise Violation(f"{step.name} fails after the fault is over") from last
        self.at += 1
        self.acknowledged = PROGRESS[0] = self.at
        if shim.fired:
            compare(self.now(), self.states[self.at], f"after {step.name}")
        return True

    def now(self) -> State:
        # Reads take memory, too: those of the test itself get it.
        if self.trial.world.store is not None and self.fault not in NO_MEMORY:
            try:
                return self.trial.state()  # The fault goes on: reads do, too.
            except OSError:
                # But for cold rows, on a disk that cannot be read either.
                if not (self.is_tiered and self.fault.classes & READ):
                    raise
        with self.trial.shim.paused():
            return self.trial.state()

    def check_error(self, step: Any, error: Exception) -> None:
        if not self.trial.shim.fired:
            raise Violation(f"{step.name} failed without a fault") from error
        if not isinstance(error, self.promised()) or isinstance(error, mkv.CorruptionError):
            raise Violation(f"{step.name} raised what was not promised") from error

    def promised(self) -> tuple[Any, ...]:
        """What a call that meets the fault may raise."""
        more = self.trial.scenario.raises
        if self.fault.is_full:
            return mkv.StoreFullError, Exited, *more
        if self.fault in NO_MEMORY:
            return MemoryError, mkv.StoreFullError, *more
        if self.fault.error:
            return mkv.Error, OSError, Exited, *more
        # LMDB does not continue a short write.
        return (OSError, mkv.StoreFullError) if self.is_tiered else ()

    def check_files(self, step: Any) -> None:
        """A kill right now must leave what one may leave."""
        with self.trial.shim.paused():
            found = self.trial.look()
        check_recovered(found, self.trial.scenario, self.reference, self.acknowledged, self.at)

    def look_round(self, step: Any) -> bool | None:
        """After a failure: True if the call was made all the same, None if not, else the end."""
        found, before, after = self.now(), self.states[self.at], self.states[self.at + 1]
        if found == before:
            return None
        if found == after:
            return True
        if step.is_partial and is_between(found, before, after):
            return None
        if self.trial.world.store is None:  # Closed: what a kill may leave, it may leave.
            self.is_over = True
            return False
        compare(found, before, f"after {step.name} has failed")
        return None


def check_recovered(
    found: State, scenario: Scenario, reference: Reference, acknowledged: int, at: int
) -> None:
    """Raise unless this is what a process may leave that is killed in its step `at`."""
    if scenario.look is look_at_nothing:
        return
    states = reference.states
    last = min(at + 1, len(states) - 1)
    durable = acknowledged
    while scenario.may_lose and durable and not reference.durable[durable - 1]:
        durable -= 1
    allowed = states[durable : last + 1]
    if scenario.may_lose and not durable:
        allowed = [reference.first, *allowed]
    is_partial = at < last and reference.partial[at] and is_between(found, states[at], states[last])
    if found.tables not in [state.tables for state in allowed] and not is_partial:
        raise Violation(
            f"recovered is {summary(found)}, which is none of {[summary(s) for s in allowed]}"
        )
    places = states[acknowledged : last + 1]
    if (found.sequence, found.cursor) not in [(s.sequence, s.cursor) for s in places]:
        raise Violation(f"recovered is sequence {found.sequence}, cursor {found.cursor}")
    if found.dense not in [state.dense for state in places]:
        raise Violation(f"recovered are the dense parameters {found.dense}")


def compare(found: State, expected: State, when: str) -> None:
    if found != expected:
        raise Violation(f"{when} there is {summary(found)}, expected {summary(expected)}")


def summary(state: State) -> str:
    tables = {name: f"{len(rows)} rows {hash_of(rows):06x}" for name, rows in state.tables.items()}
    return f"{tables} at {state.sequence}, cursor {state.cursor}, dense {state.dense[0]}"


def hash_of(rows: Any) -> int:
    return hash(frozenset(rows.items())) & 0xFFFFFF


# --- the parent --------------------------------------------------------------------------------


def in_child(call: Callable[[], Any]) -> tuple[int, Any]:
    """Call it in a fork; the exit status, and what it returned or what went wrong, in words."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.alarm(HANGS_AFTER_S)
        code = 0
        try:
            value = call()
        except BaseException:
            Shim().disarm()
            code, value = 1, traceback.format_exc()
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(value, pipe)
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, pickle.loads(data) if data else None


class Prober:
    """Tries the points of one scenario."""

    def __init__(self, folder: Path, scenario: Scenario, shim: Shim) -> None:
        self.folder, self.scenario, self.shim = folder, scenario, shim
        self.references: dict[bool, Reference] = {}  # by whether it is about memory
        self.count = 0

    def fresh(self) -> Path:
        self.count += 1
        path = self.folder / f"{self.count}"
        path.mkdir()
        return path

    def reference(self, fault: Fault) -> Reference:
        is_memory = fault in NO_MEMORY
        if is_memory not in self.references:
            root = self.fresh()
            harmless = Fault("none", MEMORY if is_memory else ALL, COUNT)
            code, found = in_child(
                lambda: Trial(root, self.scenario, self.shim).reference(harmless)
            )
            shutil.rmtree(root)
            if code:
                raise Violation(f"without a fault: {found}")
            self.references[is_memory] = found
        return self.references[is_memory]

    def calls(self, fault: Fault) -> list[str]:
        """The calls that a fault is about."""
        calls = self.reference(fault).calls
        return [name for number, name in calls if number & fault.classes]

    def points(self, faults: Sequence[Fault]) -> list[Point]:
        return [Point(fault, at) for fault in faults for at in range(len(self.calls(fault)))]

    def probe(self, point: Point) -> str:
        """Try one point; what is wrong, "" if nothing."""
        root, reference = self.fresh(), self.reference(point.fault)
        PROGRESS[0] = 0

        def attempt() -> None:
            trial = Trial(root, self.scenario, self.shim)
            Attempt(trial, point.fault, reference).run(point.at)

        code, wrong = in_child(attempt)
        if point.fault.is_kill and code == -signal.SIGKILL:
            code, wrong = in_child(lambda: self.check_killed(root, reference))
        if code == -signal.SIGALRM:
            wrong = f"it hung for {HANGS_AFTER_S} s"
        elif code and wrong is None:
            wrong = f"the process ended with {code}"
        shutil.rmtree(root, ignore_errors=True)
        if not code:
            return ""
        call = self.calls(point.fault)[point.at]
        return f"{self.scenario.name}, {point.fault.name}, call {point.at} ({call}): {wrong}"

    def check_killed(self, root: Path, reference: Reference) -> None:
        """Open what the killed process has left, in another one."""
        world = self.scenario.world(root / "after")
        found = self.scenario.look(world, root / "live" / "store")
        check_recovered(found, self.scenario, reference, PROGRESS[0], PROGRESS[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0, help="points of a scenario; 0: all")
    parser.add_argument("--pick", type=int, default=0, help="scenarios, drawn; 0: all")
    parser.add_argument("--seed", default="")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--fault", default="", help="of these alone, by a part of the name")
    parser.add_argument("--folder")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    shim = Shim()
    faults = NO_MEMORY if options.memory else FAULTS
    faults = [fault for fault in faults if options.fault in fault.name]
    scenarios = [
        each
        for each in [*WRITERS, *OTHERS]
        if not options.names or any(name in each.name for name in options.names)
    ]
    if 0 < options.pick < len(scenarios):
        scenarios = random.Random(options.seed).sample(scenarios, options.pick)
    for scenario in scenarios:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            prober = Prober(Path(folder), scenario, shim)
            points = prober.points(faults)
            if options.sample and len(points) > options.sample:
                points = random.Random(options.seed + scenario.name).sample(points, options.sample)
            wrong = [found for point in points if (found := prober.probe(point))]
            line = {"scenario": scenario.name, "points": len(points), "wrong": wrong}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
