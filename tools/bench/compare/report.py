"""The comparison as a table, for terminals and for Markdown, with what is missing and why."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from monolith_kv_tools._output import table_text
from monolith_kv_tools.bench.compare.registry import ENTRIES
from monolith_kv_tools.bench.compare.results import Outcome, label, verdicts
from monolith_kv_tools.bench.compare.work import MEASURED, Scope

NONE = "-"
EXPLAINED = (
    "Time of a call on one batch, median; (x 12): in the same round it took twelve times as long "
    "as monolith_kv's. A row's memory and what is saved of it include Adagrad's state."
)


def machine(scope: Scope) -> dict[str, str]:
    """Name what the figures were taken on."""
    threads = str(scope.threads) if scope.threads else "each library's own choice of"
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "work": f"{scope.rows:,} rows of {scope.dim} float32, batches of {scope.batch:,} ids, "
        f"{threads} thread(s)",
    }


def cells(outcomes: Mapping[str, Outcome], rows: int) -> list[list[str]]:
    """Return head and lines of the table: who began, in the order of the entries."""
    head = ["", *(label(*each) for each in MEASURED)]
    head += ["memory a row", "saved a row", "save", "load", "longest pause"]
    lines = [head]
    for name, outcome in outcomes.items():
        if outcome.missing:
            continue
        line = [name]
        for operation, traffic in MEASURED:
            line.append(_call(outcome, label(operation, traffic)))
        values = outcome.values
        saved = values.get("saved_bytes")
        line += [
            _text(values.get("memory_bytes_a_row"), "{:.0f} B"),
            NONE if saved is None else f"{saved / rows:.0f} B",
            _text(values.get("save_s"), "{:.2f} s"),
            _text(values.get("load_s"), "{:.2f} s"),
            NONE if "pause_s" not in values else f"{values['pause_s'] * 1e3:.3g} ms",
        ]
        lines.append(line)
    return lines


def text(outcomes: Mapping[str, Outcome], scope: Scope) -> str:
    """Return the report for a terminal."""
    parts = ["\n".join(f"{what}: {value}" for what, value in machine(scope).items())]
    parts.append(EXPLAINED)
    parts.append(table_text(cells(outcomes, scope.rows)))
    parts += ["\n".join(part) for part in (_notes(outcomes), _goals(outcomes, scope)) if part]
    return "\n\n".join(parts)


def markdown(outcomes: Mapping[str, Outcome], scope: Scope) -> str:
    """Return the report as a page of Markdown."""
    head, *lines = cells(outcomes, scope.rows)
    table = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    table += [f"| {' | '.join(line)} |" for line in lines]
    facts = [f"- {what}: {value}" for what, value in machine(scope).items()]
    notes = [f"- {note}" for note in _notes(outcomes)]
    goals = [f"- {goal}" for goal in _goals(outcomes, scope)]
    blocks = ["# Comparison", "\n".join(facts), EXPLAINED, "\n".join(table)]
    blocks += ["\n".join(part) for part in (notes, goals) if part]
    return "\n\n".join(blocks) + "\n"


def _notes(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Versions, what a system has not, and who is missing, each with the reason."""
    notes = []
    for name, outcome in outcomes.items():
        if not outcome.missing:
            remark = ENTRIES[name].remark
            notes.append(f"{name}: {outcome.version}{f'; {remark}' if remark else ''}")
        notes += [f"{name}, no {what}: {why}" for what, why in outcome.unsupported.items()]
    notes += [f"missing: {name}: {o.missing}" for name, o in outcomes.items() if o.missing]
    return notes


def _goals(outcomes: Mapping[str, Outcome], scope: Scope) -> list[str]:
    return [f"{v.mark:<4} {v.text}" for v in verdicts(outcomes, scope.rows, scope.dim)]


def _call(outcome: Outcome, measurement: str) -> str:
    seconds = outcome.call_s(measurement)
    if seconds is None:
        return NONE
    times = outcome.ratio(measurement)
    shown = f"{seconds * 1e3:.3g} ms"
    return shown if times is None else f"{shown} (x {times:.3g})"


def _text(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _cpu() -> str:
    """Return the processor's own name; Linux keeps it in a file."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or "unknown"
