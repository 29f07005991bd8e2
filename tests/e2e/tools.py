"""Run the console tools as an operator does: in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

MODULES = {"mkv": "monolith_kv_tools.mkv", "mkv-replicate": "monolith_kv_tools.mkv_replicate"}
TIMEOUT_S = 120


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def lines(self) -> list[dict[str, Any]]:
        """The objects that it printed."""
        return [json.loads(line) for line in self.out.splitlines()]


def command(tool: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", MODULES[tool], *map(os.fspath, arguments)]


def call(tool: str, *arguments: str | Path) -> Ran:
    done = subprocess.run(
        command(tool, *arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def start(tool: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(tool, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
