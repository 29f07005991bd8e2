"""A virtual environment for each contender that needs more than this interpreter has.

They stay, under the output folder, so that only the first run waits for pip. What cannot be
installed is the reason why a contender is missing, never an error of the comparison.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import monolith_kv_tools
from monolith_kv_tools.bench.compare.process import FailedError
from monolith_kv_tools.bench.compare.registry import Entry

INSTALL_LIMIT_S = 1800


def prepare(entry: Entry, folder: Path, note: Callable[[str], None]) -> str:
    """Return the interpreter for a contender; FailedError says what is missing."""
    if entry.program and shutil.which(entry.program) is None:
        raise FailedError(f"{entry.program} is not on the PATH; {entry.how}")
    if not entry.environment:
        return sys.executable
    home = folder / "environments" / entry.environment
    python = home / "bin" / "python"
    done = home / "installed.txt"
    wanted = "\n".join((sys.version, *entry.requirements))
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    note(f"{entry.name}: installing {' '.join(entry.requirements)}")
    log = folder / "logs" / f"{entry.environment}-install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(home)], log)
    quiet = ["--disable-pip-version-check", "--no-input", "-q"]
    _run([str(python), "-m", "pip", "install", *quiet, *entry.requirements], log)
    done.write_text(wanted)
    return str(python)


def import_path(folder: Path) -> Path:
    """Return a folder on which these tools can be imported without anything else of here."""
    view = folder / "view"
    view.mkdir(parents=True, exist_ok=True)
    link = view / "monolith_kv_tools"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(monolith_kv_tools.__path__[0]).resolve())
    return view


def _run(command: list[str], log: Path) -> None:
    """Run a step of an installation; FailedError with what it said last."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"installing took more than {INSTALL_LIMIT_S} s") from None
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["without a word"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise FailedError(f"cannot be installed: {errors[-1]}")
