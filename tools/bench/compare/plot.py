"""The comparison as a picture: how many times as long each contender takes."""

from collections.abc import Mapping
from pathlib import Path

from monolith_kv_tools.bench.compare.registry import OWN
from monolith_kv_tools.bench.compare.results import Outcome, label
from monolith_kv_tools.bench.compare.work import MEASURED

PICTURES = ("comparison.png", "comparison.svg")
SLOWER, FASTER = "#4878a8", "#d08030"


def draw(outcomes: Mapping[str, Outcome], machine: Mapping[str, str], output: Path) -> str:
    """Write the pictures; a sentence that says where, or what is missing for it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no picture: matplotlib is missing; pip install matplotlib"
    names = [name for name, o in outcomes.items() if not o.missing and name != OWN]
    height = 2.6 + 0.45 * max(1, len(names))
    figure, axes = pyplot.subplots(1, len(MEASURED), figsize=(14, height), sharey=True)
    for axis, (operation, traffic) in zip(axes, MEASURED, strict=True):
        values = [outcomes[name].ratio(label(operation, traffic)) or 1.0 for name in names]
        colors = [SLOWER if value >= 1.0 else FASTER for value in values]
        # Bars begin at 1: slower ones go to the right of the line, faster ones to the left.
        bars = axis.barh(names, [value - 1.0 for value in values], left=1.0, color=colors)
        axis.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=8, padding=3)
        axis.axvline(1.0, color="#303030", linewidth=1.2)
        axis.set_xscale("log")
        axis.set_xlim(0.2 * min([1.0, *values]), 4 * max([1.0, *values]))  # Room for figures.
        axis.set_title(label(operation, traffic), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle("Time of a call beside monolith_kv's: to the right of the line is slower")
    figure.text(0.5, 0.01, _small_print(outcomes, machine), ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    for name in PICTURES:
        figure.savefig(output / name, dpi=120)
    pyplot.close(figure)
    return f"written: {output}/{', '.join(PICTURES)}, comparison.md, comparison.json"


def _small_print(outcomes: Mapping[str, Outcome], machine: Mapping[str, str]) -> str:
    """Return the machine, the versions, and who is missing."""
    versions = dict.fromkeys(o.version for o in outcomes.values() if not o.missing)
    missing = ", ".join(name for name, o in outcomes.items() if o.missing) or "nobody"
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; missing: {missing}"
    return f"{machine['work']}\n{about}\n{'; '.join(versions)}"
