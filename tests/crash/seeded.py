"""Are the tests tested? Each bug of `crash.bugs` is put into a copy of the package, and caught.

The package has no switch for any of it: a copy is edited, put first on the path of a child process,
and the tests that ought to see the bug are run there until one fails. They pass in a copy without
a bug, which is tried first. Bugs in Cython are compiled once for all of them.

MONOLITH_KV_BUG=crc-skipped make crash CRASH_ARGS=seeded tries that one alone; name,name two at
once.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from checks import FAST_FOLDER, WIDE
from crash.bugs import BUGS, MASKING, PAIRS, Edit
from crash.figures import Figure

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = "MONOLITH_KV_BUG"
BUGS_MIN = 25
SAMPLE, SAMPLE_SEED = (12 if WIDE else 4), 4
TEST_SECONDS_MAX = 120
_LITTER = shutil.ignore_patterns("__pycache__", "*.so")


class Outcome(NamedTuple):
    """What became of a bug: the test that failed, "" if none did, and what it said."""

    caught_by: str
    said: str
    seconds: float


def apply_edits(root: Path, edits: Iterable[Edit]) -> None:
    """Edit the files below `root`; ValueError where a text is not there exactly once."""
    for edit in edits:
        path = root / edit.file
        text = path.read_text()
        if (count := text.count(edit.old)) != 1:
            raise ValueError(f"{edit.file} has this {count} times, expected once:\n{edit.old}")
        path.write_text(text.replace(edit.old, edit.new))


def edits_of(names: Sequence[str]) -> list[Edit]:
    """Return all edits of these bugs."""
    return [edit for name in names for edit in BUGS[name].edits]


def tests_of(names: Iterable[str]) -> list[str]:
    """Return the tests that have to catch these bugs, each once."""
    return list(dict.fromkeys(test for name in names for test in BUGS[name].caught_by))


class Workshop:
    """Makes copies of the package with bugs, and runs tests in them; removed when it is left."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mkv-bugs-", dir=FAST_FOLDER))
        self._compiled: Path | None = None

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def copy(self, names: Sequence[str]) -> Path:
        """Return a folder with the package, these bugs in it, and the tests."""
        copy = self.folder / ("+".join(names) or "none")
        shutil.copytree(ROOT / "monolith_kv", copy / "monolith_kv", ignore=_LITTER)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=_LITTER)
        shutil.copy(ROOT / "pyproject.toml", copy)
        edits = edits_of(names)
        apply_edits(copy, [edit for edit in edits if not is_cython(edit)])
        changed = {Path(edit.file).stem for edit in edits if is_cython(edit)}
        for built in (ROOT / "monolith_kv").glob("*.so"):
            is_changed = built.name.partition(".")[0] in changed
            source = self.compiled() / built.name if is_changed else built
            (copy / "monolith_kv" / built.name).symlink_to(source)
        return copy

    def compiled(self) -> Path:
        """Return the folder of extension modules with all bugs in Cython at once."""
        if self._compiled is None:
            build = self.folder / "build"
            for name in ("monolith_kv", "cython_src", "build"):
                if (ROOT / name).exists():  # With their times, so that little is compiled.
                    shutil.copytree(ROOT / name, build / name, symlinks=True)
            for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, build)
            (build / "tools").symlink_to(ROOT / "tools")
            # Where setuptools looks for what need not be compiled again.
            place = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            for built in (ROOT / "monolith_kv").glob("*.so"):
                made = build / "build" / place / "monolith_kv" / built.name
                made.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, made)
            apply_edits(build, [edit for edit in edits_of(list(BUGS)) if is_cython(edit)])
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            done = subprocess.run(command, cwd=build, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the bugs in Cython do not compile:\n{done.stderr}")
            self._compiled = build / "monolith_kv"
        return self._compiled

    def run(self, copy: Path, tests: Sequence[str]) -> Outcome:
        """Run tests until one fails."""
        started = time.monotonic()
        command = [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
            f"--timeout={TEST_SECONDS_MAX}", *tests,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(copy), VARIABLE: copy.name}
        environment.pop("MKV_CI", None)
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        if done.returncode == 0:
            return Outcome("", "", seconds)
        if done.returncode != 1:
            raise RuntimeError(f"{copy.name}: no tests were run:\n{done.stdout}{done.stderr}")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        said = re.search(r"^E +(.+)$", done.stdout, re.MULTILINE)
        name = failed[1] if failed else f"{tests[0]}, which did not end"
        return Outcome(name, said[1] if said else "", seconds)

    def try_bugs(self, names: Sequence[str], tests: Sequence[str] = ()) -> Outcome:
        """Put these bugs in and let the tests find them; those that the bugs name by default."""
        copy = self.copy(names)
        try:
            return self.run(copy, tests or tests_of(names))
        finally:
            shutil.rmtree(copy)

    def try_none(self, names: Iterable[str]) -> Outcome:
        """Run the tests of these bugs in a copy without any."""
        copy = self.copy([])
        code = "import monolith_kv; print(monolith_kv.__file__)"
        used = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(copy)},
            cwd=copy, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if not used.stdout.startswith(str(copy)):
            raise RuntimeError(f"expected the package in {copy}, Python took {used.stdout}")
        return self.run(copy, tests_of(names))


def is_cython(edit: Edit) -> bool:
    """Whether an edit's file has to be compiled."""
    return edit.file.startswith("cython_src/")


def measure(full: bool) -> Iterator[Figure]:
    """Yield a line for each bug and pair, and how many of all were caught."""
    if chosen := os.environ.get(VARIABLE):
        full, tries = False, [tuple(chosen.split(","))]
        if unknown := set(tries[0]) - BUGS.keys():
            raise ValueError(f"{VARIABLE}: {unknown} are no bugs, there are {', '.join(BUGS)}")
    elif full:
        tries = [*((name,) for name in BUGS), *PAIRS]
    else:
        dice = random.Random(SAMPLE_SEED)
        quick = [bug.name for bug in BUGS.values() if not any(map(is_cython, bug.edits))]
        tries = [(name,) for name in dice.sample(quick, SAMPLE)]
        tries.append(dice.choice(PAIRS))
    caught: dict[tuple[str, ...], bool] = {}
    with Workshop() as workshop:
        yield measure_clean(workshop, dict.fromkeys(name for names in tries for name in names))
        for names in tries:
            outcome = workshop.try_bugs(names)
            caught[names] = bool(outcome.caught_by)
            said = f"caught by {outcome.caught_by}" if caught[names] else "not caught"
            what = f"bug {' and '.join(names)}"
            yield Figure(what, said, "caught", caught[names], outcome.seconds)
        if full:
            for pair, test in MASKING.items():
                yield measure_masking(workshop, pair, test)
    singles = [is_caught for names, is_caught in caught.items() if len(names) == 1]
    pairs = [is_caught for names, is_caught in caught.items() if len(names) > 1]
    yield Figure(
        "seeded bugs caught",
        f"{sum(singles)} of {len(singles)}",
        f"all, of {BUGS_MIN} at least" if full else "all that were tried",
        all(singles) and (not full or len(singles) >= BUGS_MIN),
    )
    yield Figure("pairs of them caught", f"{sum(pairs)} of {len(pairs)}", "all", all(pairs))


def measure_clean(workshop: Workshop, names: Iterable[str]) -> Figure:
    """Try the tests without a bug: one that fails then catches nothing."""
    outcome = workshop.try_none(names)
    return Figure(
        "the tests that catch them, without a bug",
        f"{outcome.caught_by} fails" if outcome.caught_by else f"{len(tests_of(names))} pass",
        "all pass",
        not outcome.caught_by,
        outcome.seconds,
    )


def measure_masking(workshop: Workshop, pair: Sequence[str], test: str) -> Figure:
    """Try a test that sees two bugs only together, since each guard does the other's work, too."""
    outcomes = [workshop.try_bugs([name], [test]) for name in pair]
    seen = [name for name, outcome in zip(pair, outcomes, strict=True) if outcome.caught_by]
    both = workshop.try_bugs(pair, [test])
    return Figure(
        f"guards that mask each other: {' and '.join(pair)}",
        f"alone seen {len(seen)} of 2, together {'caught' if both.caught_by else 'not caught'} by "
        f"{test}",
        "caught together",
        bool(both.caught_by),
        both.seconds + sum(outcome.seconds for outcome in outcomes),
    )
