"""Training speed and hit rate by the share of rows that memory has room for, as table and picture.

    python -m monolith_kv_tools.bench.memory_share

One store for each share, all trained with the same batches by Zipf's law, in turns.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from monolith_kv_tools._output import size_text, table_text
from monolith_kv_tools.bench.compare.report import machine
from monolith_kv_tools.bench.compare.work import Scope
from monolith_kv_tools.bench.goals import MILLION
from monolith_kv_tools.bench.harness import no_collection
from monolith_kv_tools.bench.overflow_bed import Bed, Ids, scratch
from monolith_kv_tools.bench.tables import DIM
from monolith_kv_tools.bench.traffic import BATCH, zipf_ranks

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.3)  # Of the last, a part is room that stays free.
ZIPF = 1.05
WARM_IDS = 8  # For each row, until who is hot has settled.
STEPS = 16  # In a round.
ROUNDS = 25
ROWS_MIN = 50_000
INK, SPEED, HITS = "#808080", "#3b8bba", "#d08030"  # To be read on white and on black.


@dataclass(frozen=True)
class Point:
    """What one share gives.

    Parameters
    ----------
    share : float
        Of the rows, in memory.
    limit_bytes : int
        memory_limit.
    ids_per_s : float
        Pulled and pushed.
    hit_rate : float
        Share of the ids that were in memory when they were pulled.
    write_amplification : float or None
        None where no row left memory.
    """

    share: float
    limit_bytes: int
    ids_per_s: float
    hit_rate: float
    write_amplification: float | None


def measure(rows: int, rounds: int, folder: str) -> list[Point]:
    """Fill and warm a store for each share, then train them in turns."""
    beds = [Bed(f"{folder}/{number}", rows, share) for number, share in enumerate(SHARES)]
    rng = np.random.default_rng(12)
    gradients = 1e-3 * rng.standard_normal((BATCH, DIM), np.float32)
    out = np.empty_like(gradients)

    def train(bed: Bed, batches: Sequence[Ids]) -> float:
        begun = time.perf_counter()
        for ids in batches:
            bed.table.pull(ids, out=out)
            bed.table.push(ids, gradients)
        return time.perf_counter() - begun

    def batches(count: int) -> Iterator[list[Ids]]:
        for _ in range(count):
            ranks = zipf_ranks(rng, rows, STEPS * BATCH, ZIPF)
            yield list(beds[0].ids[ranks].reshape(STEPS, BATCH))

    for bed in beds:
        bed.fill()
    for few in batches(-(-WARM_IDS * rows // (STEPS * BATCH))):
        for bed in beds:
            train(bed, few)
    before = [traffic(bed) for bed in beds]
    times: list[list[float]] = [[] for _ in beds]
    with no_collection():
        for few in batches(rounds):
            for bed, taken in zip(beds, times, strict=True):
                taken.append(train(bed, few))
    speeds = [STEPS * BATCH / median(taken) for taken in times]
    points = [point(*each) for each in zip(beds, before, speeds, strict=True)]
    for bed in beds:
        bed.throw_away()
    return points


def traffic(bed: Bed) -> dict[str, int]:
    """Return what went between the tiers so far."""
    stats = bed.store.stats()["overflow"]
    names = ("promoted", "evicted_bytes", "written_bytes")
    return {"hits": bed.counters()["hits"], **{name: stats[name] for name in names}}


def point(bed: Bed, before: dict[str, int], ids_per_s: float) -> Point:
    """Return what was measured on a store."""
    found = {name: value - before[name] for name, value in traffic(bed).items()}
    evicted = found["evicted_bytes"]
    return Point(
        bed.resident() / len(bed.ids),
        bed.limit,
        ids_per_s,
        1 - found["promoted"] / found["hits"],
        found["written_bytes"] / evicted if evicted else None,
    )


def text(points: Sequence[Point]) -> str:
    """Return the table."""
    lines = [["in memory", "memory_limit", "M ids/s", "of all in memory", "hit rate", "written"]]
    for each in points:
        written = each.write_amplification
        lines.append(
            [
                f"{each.share:.0%}",
                size_text(each.limit_bytes),
                f"{each.ids_per_s / MILLION:.2f}",
                f"{each.ids_per_s / points[-1].ids_per_s:.2f}",
                f"{each.hit_rate:.3f}",
                "-" if written is None else f"x {written:.2f}",
            ]
        )
    return table_text(lines)


def draw(points: Sequence[Point], about: str, path: Path) -> str:
    """Write the picture; a sentence that says where, or what is missing for it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no picture: matplotlib is missing; pip install matplotlib"
    style = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK)
    style |= dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK)
    with pyplot.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": "memory"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6))
        shares = [100 * each.share for each in points]
        speeds = [each.ids_per_s / MILLION for each in points]
        hits = [each.hit_rate for each in points]
        for axis, values, color, title in (
            (panels[0], speeds, SPEED, "pull + push, million ids a second"),
            (panels[1], hits, HITS, "hit rate"),
        ):
            axis.plot(shares, values, "o-", color=color)
            for share, value in zip(shares, values, strict=True):
                axis.annotate(
                    f"{value:.3g}", (share, value), (-3, 5), textcoords="offset points",
                    fontsize=8, ha="right",
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xticks(shares, [f"{share:.0f} %" for share in shares])
            axis.minorticks_off()
            axis.set_xlabel("of the rows in memory")
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.3)
            axis.margins(0.12, 0.15)
            axis.set_facecolor("none")
        panels[0].set_ylim(bottom=0)
        figure.text(0.5, 0.01, about, ha="center", fontsize=7)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return f"written: {path}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.bench.memory_share", description=measure.__doc__
    )
    parser.add_argument(
        "--rows", type=lambda number: int(float(number)), default=MILLION, metavar="N",
        help="of each of six tables (default: 1e6, which takes 2 GB of memory and 3 of disk)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/memory-share.svg"), metavar="FILE",
        help="for the picture (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.rows < ROWS_MIN:
        parser.error(f"--rows must be at least {ROWS_MIN:,}, got {options.rows:,}")
    facts = machine(Scope(options.rows, DIM, BATCH, 1))
    about = (
        f"{options.rows:,} rows of {DIM} float32 and Adagrad's state, batches of {BATCH:,} ids by "
        f"Zipf {ZIPF}; {facts['cores']} cores, {facts['cpu']}"
    )
    with scratch() as folder:
        points = measure(options.rows, options.rounds, folder)
    print(f"{about}, {facts['system']}\n{text(points)}\n{draw(points, about, options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
