"""The comparison as a picture: how many times as long each contender takes."""

from collections.abc import Mapping
from pathlib import Path

from monolith_kv_tools.bench.compare.registry import OWN
from monolith_kv_tools.bench.compare.results import Outcome, label, ratio
from monolith_kv_tools.bench.compare.work import MEASURED, Scope

PICTURES = ("comparison.png", "comparison.svg")


def draw(
    outcomes: Mapping[str, Outcome], scope: Scope, machine: Mapping[str, str], output: Path
) -> str:
    """Write the pictures; a sentence that says where, or what is missing for it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no picture: matplotlib is missing; pip install matplotlib"
    names = [name for name, o in outcomes.items() if not o.missing and name != OWN]
    height = 2.2 + 0.45 * max(1, len(names))
    figure, axes = pyplot.subplots(1, len(MEASURED), figsize=(14, height), sharey=True)
    for axis, (operation, traffic) in zip(axes, MEASURED, strict=True):
        values = [ratio(outcomes, name, label(operation, traffic)) for name in names]
        bars = axis.barh(names, [value or 0.0 for value in values], color="#4878a8")
        axis.bar_label(bars, [f" {v:.3g}" if v else " -" for v in values], fontsize=8)
        axis.axvline(1.0, color="#c03030", linewidth=1.2)
        axis.set_xscale("log")
        axis.set_xlim(0.5, 4 * max([1.0, *(value for value in values if value)]))
        axis.set_title(label(operation, traffic), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    missing = ", ".join(name for name, o in outcomes.items() if o.missing) or "nobody"
    figure.suptitle("Time of a call, in calls of monolith_kv (red line); longer bars are slower")
    figure.text(
        0.5,
        0.01,
        f"{machine['work']}; {machine['cpu']}, {machine['cores']} cores; missing: {missing}",
        ha="center",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    for name in PICTURES:
        figure.savefig(output / name, dpi=120)
    pyplot.close(figure)
    return f"written: {output}/{', '.join(PICTURES)}, comparison.md, comparison.json"
