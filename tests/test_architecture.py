"""The layers, kept: who may import whom, who may touch the disk and the clock, and how long.

Ranks are lists from the bottom up. A file imports lower ranks only; files of one rank never import
each other. A new file needs a place in a list before anything else passes.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CYTHON_RANKS = [
    ["_types", "_finite", "_thread"],
    ["_frozen", "_hashing", "_row", "_buffer", "_lock", "_backing", "_helper"],
    ["_pages"],
    ["_batch", "_checksum", "_digest", "_arena", "_sketch", "_initializers", "_optimizers"],
    ["_codec", "_cuckoo"],
    ["_rowfile"],
    ["_shard"],
    ["_read", "_write", "_view", "_tier", "_clock", "_expiry"],
    ["_admission", "_pooling", "_change"],
    ["_core"],
    ["_check", "_records", "_steps"],
    ["_views"],
    ["_table"],
    ["_testing", "_yardsticks"],
]
# Modules that Python sees; all others are structs and functions without a Python object.
CYTHON_DOORS = {"_checksum", "_finite", "_core", "_records", "_views", "_table"}
CYTHON_DOORS |= {"_check", "_steps", "_testing", "_yardsticks"}

PYTHON_RANKS = [
    ["errors", "storage", "fids", "_checksum", "_finite"],
    ["units", "validation", "storage.files"],
    ["optimizers", "initializers", "policies", "lineage", "published", "storage.format"],
    ["storage.adopting", "storage.stream"],
    ["schema", "storage.framing"],
    ["storage.record_file", "storage.log_file", "storage.log_reader"],
    ["storage.cold_rows", "storage.contents", "storage.log_finish", "storage.scan"],
    [
        "storage.manifest",
        "storage.marks",
        "storage.delta_log",
        "storage.call_log",
        "storage.snapshot",
        "storage.sightings",
        "storage.dense",
    ],
    ["storage.inspect"],
    ["_core", "_table"],
    ["storage.row_files"],
    ["storage.overflow"],
    ["state"],
    ["refill", "catalog"],
    ["budget"],
    ["calls", "dense_parameters", "traffic"],
    ["settings", "compaction", "loading", "storage.tables"],
    ["table", "storage.replay"],
    ["storage.adopter", "storage.pending"],
    ["storage.recovery"],
    ["sealing", "stats", "verifying"],
    ["checkpoint", "delta_loading", "opening", "restoring"],
    ["applying", "maintenance", "salvaging"],
    ["store_handle"],
    ["store"],
    [""],
    ["replication.loop", "replication.folders", "replication.target"],
    ["replication.publisher"],
    ["replication.build"],
    ["replication.replica", "replication.position"],
    ["replication"],
]
# Applications of the engine: they stand on its public names, and on each other in this order.
APPLICATIONS = ["monolith_kv.trainer", "monolith_kv.server", "monolith_kv_tools"]
PUBLIC = ["monolith_kv", "monolith_kv.replication"]
# What the machine allows is measured by the engine's compiler, and by the benchmarks alone.
YARDSTICKS, BENCHMARKS = "_yardsticks", "monolith_kv_tools.bench."

DISK_CALLS = {"fsync", "fdatasync", "replace", "rename", "renames", "link", "sync"}
CLOCK_CALLS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "Thread", "Timer"}
MAY_CALL_DISK = {"monolith_kv.storage.files"}
MAY_CALL_CLOCK = {"monolith_kv.store", "monolith_kv.maintenance"}
# Its threads end with the call that began them.
MAY_CALL_CLOCK |= {"monolith_kv.loading"}

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LINE_COLUMNS_MAX = 100


def module_name(path: Path) -> str:
    """What a file is imported as."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts[0] = {"tools": "monolith_kv_tools"}.get(parts[0], parts[0])
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def below(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """Source files of these folders."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in found if path.suffix in suffixes)


CYTHON_FILES = below("cython_src", suffixes=(".pyx", ".pxd"))
PYTHON_FILES = {module_name(path): path for path in below("monolith_kv", "tools")}
APPLICATION_MODULES = [
    name for name in PYTHON_FILES if any(f"{name}.".startswith(f"{a}.") for a in APPLICATIONS)
]
ENGINE_MODULES = [name for name in PYTHON_FILES if name not in APPLICATION_MODULES]
ALL_FILES = [*CYTHON_FILES, *below("monolith_kv", "tools", "tests"), ROOT / "setup.py"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), relative(path))


def imports(name: str) -> Iterator[tuple[str, str]]:
    """(module, name out of it or "") of each import in a file, wherever it stands."""
    path = PYTHON_FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                module = ".".join([*parents[: len(parents) - node.level + 1], module]).strip(".")
            yield from ((module, alias.name) for alias in node.names)


def rank_of(ranks: list[list[str]], name: str) -> int:
    for rank, names in enumerate(ranks):
        if name in names:
            return rank
    pytest.fail(f"{name or '__init__'} has no rank: give it a place in {Path(__file__).name}")


def python_rank(name: str) -> int:
    return rank_of(PYTHON_RANKS, name.removeprefix("monolith_kv").removeprefix("."))


# --- imports go down ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", CYTHON_FILES, ids=relative)
def test_cython_imports_go_strictly_down(path):
    own = rank_of(CYTHON_RANKS, path.stem)
    found = re.findall(r"^\s*from monolith_kv\.(\w+) cimport", path.read_text(), re.MULTILINE)
    for imported in set(found) - {path.stem}:
        assert rank_of(CYTHON_RANKS, imported) < own, f"{path.stem} imports {imported}"


@pytest.mark.parametrize("name", ENGINE_MODULES)
def test_python_imports_go_strictly_down(name):
    own = python_rank(name)
    for module, part in imports(name):
        if module.partition(".")[0] != "monolith_kv":
            continue
        # `from package import module` names a module; of `from module import name`, only module.
        target = f"{module}.{part}" if f"{module}.{part}" in PYTHON_FILES else module
        assert python_rank(target) < own, f"{name} imports {target}"


def public_names(module: str) -> set[str]:
    for node in parsed(PYTHON_FILES[module]).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return {*ast.literal_eval(node.value), "__version__"}
    pytest.fail(f"{module} has no __all__")


@pytest.mark.parametrize("name", APPLICATION_MODULES)
def test_applications_use_public_names_only(name):
    own = max(a for a, prefix in enumerate(APPLICATIONS) if f"{name}.".startswith(f"{prefix}."))
    for module, part in imports(name):
        if module.partition(".")[0] not in ("monolith_kv", "monolith_kv_tools"):
            continue
        ranks = [a for a, p in enumerate(APPLICATIONS) if f"{module}.".startswith(f"{p}.")]
        if ranks:
            assert ranks[0] <= own, f"{name} imports {module}"
            continue
        assert module in PUBLIC, f"{name} imports {module}, which is not public"
        if part == YARDSTICKS and name.startswith(BENCHMARKS):
            continue
        if part and f"{module}.{part}" not in PUBLIC:
            assert part in public_names(module), f"{name} imports {part}, which is not public"


# --- the data plane -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [p for p in CYTHON_FILES if p.stem not in CYTHON_DOORS], ids=relative
)
def test_below_the_doors_there_is_no_python(path):
    code = code_of(path)
    for pattern, meaning in [
        (r"^\s*(async )?def ", "a Python function"),
        (r"\bcpdef\b", "cpdef"),
        (r"\bcdef class\b", "an extension type"),
        (r"\[[^\]\n]*::", "a memoryview"),
        (r"\bnumpy\b", "NumPy"),
        (r"\b(object|bytes|str|dict|list|tuple)\b\s+\w+\s*[,)=(]", "a Python object"),
    ]:
        match = re.search(pattern, code, re.MULTILINE)
        assert match is None, f"{relative(path)} has {meaning}: {match and match[0]}"


@pytest.mark.parametrize("path", CYTHON_FILES, ids=relative)
def test_every_c_function_says_how_it_fails(path):
    for signature in c_signatures(code_of(path)):
        says = "noexcept" in signature or re.search(r"\bexcept\b", signature)
        # One that returns a Python object reports by NULL, without a word.
        python = re.match(
            r"cdef (inline )?(object |bytes |list |dict |tuple |str )?\w+\(", signature
        )
        assert says or (python and path.stem in CYTHON_DOORS), f"{relative(path)}: {signature}"
        if path.stem not in CYTHON_DOORS:
            assert signature.rstrip(" :").endswith("noexcept nogil"), f"{path.name}: {signature}"


@cache
def code_of(path: Path) -> str:
    """A Cython file without comments and docstrings."""
    text = re.sub(r'"""[\s\S]*?"""', '""', path.read_text())
    return re.sub(r"#.*", "", text)


def c_signatures(code: str) -> Iterator[str]:
    """Each `cdef` function with a body or a declaration, on one line."""
    for match in re.finditer(r"^ *(cdef (?!class|struct|enum|extern|union)[^\n]*\()", code, re.M):
        end, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        rest = code[end : code.index("\n", end)]
        line = " ".join((code[match.start(1) : end] + rest).split())
        if not re.match(r"cdef [^(]*=", line):  # A variable with an initial value.
            yield line


# --- the disk and the clock ---------------------------------------------------------------------


def calls(name: str, modules: set[str], functions: set[str]) -> list[str]:
    """Calls such as os.fsync(...), and names imported to be called without their module."""
    found = []
    for node in ast.walk(parsed(PYTHON_FILES[name])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and node.attr in functions:
                found.append(f"{node.value.id}.{node.attr} in line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            found += [f"{node.module}.{a.name}" for a in node.names if a.name in functions]
    return found


@pytest.mark.parametrize("name", [n for n in ENGINE_MODULES if n not in MAY_CALL_DISK])
def test_only_files_makes_steps_durable(name):
    assert calls(name, {"os", "shutil"}, DISK_CALLS) == []


@pytest.mark.parametrize(
    "name",
    [n for n in ENGINE_MODULES if n not in MAY_CALL_CLOCK and ".replication" not in n],
)
def test_only_store_and_maintenance_read_the_clock_and_start_threads(name):
    assert calls(name, {"time", "threading"}, CLOCK_CALLS) == []


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL_FILES, ids=relative)
def test_files_and_lines_are_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES_MAX, f"{relative(path)} has {len(lines)} lines"
    long = [number for number, line in enumerate(lines, 1) if len(line) > LINE_COLUMNS_MAX]
    assert long == [], f"{relative(path)} is too wide in lines {long}"


@pytest.mark.parametrize("path", ALL_FILES, ids=relative)
def test_functions_are_short(path):
    lengths = python_lengths(path) if path.suffix == ".py" else cython_lengths(path)
    assert {name: lines for name, lines in lengths if lines > FUNCTION_LINES_MAX} == {}


def python_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of each function; its docstring, which is for its users, does not count."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                assert first.end_lineno is not None
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


def cython_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """The same by indentation: from its first line to the last one that is indented deeper."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"( *)(?:cdef|def) (?!class )[^=]*?(\w+)\(", line)
        if match is None or "cdef extern" in line:
            continue
        body = re.compile(rf"{match[1]}( +\S|\)|$)")
        end = number + 1
        while end < len(lines) and (body.match(lines[end]) or not lines[end].strip()):
            end += 1
        text = "\n".join(lines[number:end]).rstrip()
        yield match[2], len(re.sub(r'"""[\s\S]*?"""\n', "", text).splitlines())
