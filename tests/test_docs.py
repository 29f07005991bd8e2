"""The documentation runs: its Python, its shell commands, and the examples of docstrings.

In README, tutorial and how-tos, blocks marked `python` are executed in order in one namespace,
`pycon` blocks are compared with what they print, and `sh` blocks are run by bash, all in one empty
folder a page. Blocks marked otherwise (`console`, `text`) are only shown.
"""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monolith_kv

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {"mkv": "monolith_kv_tools.mkv", "mkv-replicate": "monolith_kv_tools.mkv_replicate"}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHELL_TIMEOUT_S = 120


def test_tests_that_the_documentation_names_are_there():
    count = 0
    for page in (ROOT / "docs").rglob("*.md"):
        for file, name in re.findall(r"([\w/]+/test_\w+\.py)(?:::(\w+))?", page.read_text()):
            path = ROOT / "tests" / file.removeprefix("tests/")
            assert path.exists(), f"{page.name}: {file}"
            assert f"def {name}" in path.read_text(), f"{page.name}: {file}::{name}"
            count += 1
    assert count > 30


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working folder of one page, with the console commands in front of the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in COMMANDS.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)
    python = commands / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def run_python(code: str, where: str, names: dict[str, object]) -> None:
    tree = ast.parse(code, where)
    exec(compile(tree, where, "exec"), names)


def run_session(code: str, where: str, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(code, names, where, where, 0)
    test.globs = names  # The parser makes a copy; what a block defines is for the next ones.
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
    assert report == [], "".join(report)


def run_shell(code: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        capture_output=True,
        text=True,
        timeout=SHELL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page, empty_folder):
    names: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text()
    for match in BLOCK.finditer(text):
        language, code = match.groups()
        where = f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"
        if language == "python":
            run_python(code, where, names)
        elif language == "pycon":
            run_session(code, where, names)
        elif language == "sh":
            run_shell(code)


def modules() -> list[str]:
    """Modules with a source; of the compiled ones, tests call what they need."""
    sources = sorted((ROOT / "monolith_kv").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert report == [], "".join(report)


@pytest.mark.parametrize("name", monolith_kv.__all__)
def test_every_public_name_is_documented(name):
    documented = getattr(monolith_kv, name).__doc__ or ""
    assert documented.strip(), f"{name} has no docstring"
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert re.search(rf"\bmonolith_kv\.{name}\b|^   *{name}$", page, re.MULTILINE), (
        f"{name} is missing in docs/reference/api.md"
    )


@pytest.mark.parametrize(("command", "module"), COMMANDS.items())
def test_every_option_is_in_the_command_reference(command, module):
    parser = importlib.import_module(module).build_parser()
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    [subparsers] = [a for a in parser._actions if hasattr(a, "choices") and a.choices]
    for name, subparser in subparsers.choices.items():
        assert f"{command} {name}" in page
        for action in subparser._actions:
            for option in action.option_strings:
                assert f"`{option}" in page or option in ("-h", "--help"), f"{name} {option}"
