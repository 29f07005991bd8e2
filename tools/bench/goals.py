"""What is to be reached, a line for each figure, and how a measurement is held against it.

A goal has a floor, below which it is missed, and mostly an aim, at which there is nothing left to
wish for. A figure that was taken on fewer rows than its goal names is only a hint: its verdict
stands in brackets and misses nothing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MILLION = 1_000_000
MISS, OK, AIM = "MISS", "ok", "AIM"


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Parameters
    ----------
    text : str
        What is measured.
    floor : float
        The least (or most) that will do.
    aim : float or None
        What to reach; None where the floor is all.
    unit : str
        "x" for a ratio, otherwise of both numbers.
    rows : int
        How large the table has to be for the figure to count; 0 if that does not matter.
    at_least : bool
        Whether more is better.
    """

    text: str
    floor: float
    aim: float | None = None
    unit: str = "x"
    rows: int = 0
    at_least: bool = True


@dataclass(frozen=True)
class Figure:
    """What was measured for one goal.

    Parameters
    ----------
    goal : str
        A key of GOALS.
    value : float
        In the goal's unit.
    rows : int
        How many the table had.
    detail : str
        Quartiles, absolute times and what else helps to read it.
    """

    goal: str
    value: float
    rows: int
    detail: str = ""


def _most(text: str, floor: float, aim: float | None, unit: str, rows: int = 0) -> Goal:
    return Goal(text, floor, aim, unit, rows, at_least=False)


SIZES = {"1M": MILLION, "20M": 20 * MILLION}

GOALS: dict[str, Goal] = {
    **{
        f"lookup uniform {size}": Goal(
            f"lookup(out=) of the limit, uniform, {size}", 0.60, 0.80, rows=rows
        )
        for size, rows in SIZES.items()
    },
    **{
        f"lookup zipf {size}": Goal(
            f"lookup(out=) of the limit, Zipf 1.05, {size}", 0.45, 0.65, rows=rows
        )
        for size, rows in SIZES.items()
    },
    "lookup dim16": Goal("the same, uniform, dim 16, 20M", 0.28, 0.40, rows=20 * MILLION),
    "lookup dim256": Goal("the same, uniform, dim 256, 7M", 0.80, 0.95, rows=7 * MILLION),
    "lookup take-out": Goal("lookup(out=) of np.take(out=), uniform", 0.5),
    "lookup take-out zipf": Goal("lookup(out=) of np.take(out=), Zipf 1.05", 0.5),
    "lookup take 1M": Goal("lookup(ids) of np.take(), 1M", 1.3, 1.6, rows=MILLION),
    "lookup take 20M": Goal("lookup(ids) of np.take(), 20M", 1.2, 1.5, rows=20 * MILLION),
    "lookup absent": Goal("lookup of absent ids, of present ones", 1.5, 3.0),
    "pull": Goal("pull, gate on, all present, of lookup", 0.9, 1.0),
    "push unique": Goal("push Adagrad, unique ids, of the limit", 0.5, 0.75),
    "push repeated": Goal("push Adagrad, 30 % duplicates, of the limit", 0.4, 0.6),
    "step dict uniform": Goal("pull + push of a dict of rows, uniform", 5.0),
    "step dict zipf": Goal("pull + push of a dict of rows, Zipf 1.05", 5.0),
    "step torch": Goal("pull + push of torch EmbeddingBag + Adagrad", 5.0, 8.0),
    "upsert 1M": Goal("upsert of present ids, of a[i] = rows, 1M", 2.0, 3.0, rows=MILLION),
    "upsert 20M": Goal("upsert of present ids, of a[i] = rows, 20M", 1.5, 2.0, rows=20 * MILLION),
    "insert": Goal("insert by pull, empty to 20M, of a first touch", 0.5, 0.8, rows=20 * MILLION),
    "longest pull": _most(
        "growth to 20M: longest CPU of a pull of 256", 5.0, 1.0, "ms", 20 * MILLION
    ),
    "pooled": Goal("lookup_pooled, bags of 20, of F.embedding_bag", 1.0, 1.5),
    "small batch": _most("lookup of 256 ids, beyond the copy", 8.0, 4.0, "us"),
    "threads lookup": Goal("two threads, lookup, of one", 1.7, 1.9),
    "threads push": Goal("two threads, push, of one", 1.6, 1.8),
    "p99 beside push": _most("a reader's p99 beside a pushing thread", 2.0, 1.3, "x"),
    "bytes steady": _most("bytes a row, gate and TTL, 20M: steady", 28.0, 18.0, "B", 20 * MILLION),
    "bytes worst": _most("the same, at worst while growing", 40.0, 26.0, "B", 20 * MILLION),
    "bytes 1M": _most("bytes a row at 1M, sealed", 32.0, None, "B", MILLION),
    "bytes 1M unsealed": _most("bytes a row at 1M, every row unsealed", 40.0, 26.0, "B", MILLION),
    "p99 expiry": _most("a reader's p99 beside the expiry of half", 2.0, 1.3, "x", 20 * MILLION),
    "memory expiry": _most("RSS after that, of before", 0.6, 0.55, "x", 20 * MILLION),
    "mode interval zipf 1.05": Goal('"interval", a seal a second, of "none"', 0.9),
    "mode interval zipf 0.82": Goal("the same with ids by Zipf 0.82, not 1.05", 0.9),
    "mode interval uniform": Goal("the same with ids that are all alike", 0.9),
    "mode batch": Goal('"batch", its log in warm memory, of "none"', 0.5, rows=MILLION),
    "mode sync": Goal('push in "sync", of append + fdatasync', 0.8),
    "mode sync slow": Goal("the same where a flush takes 3.7 ms", 0.8),
    "flushes": _most("fdatasyncs a call, 8 threads push in sync", 0.3, None, "x"),
    "beside seal": _most("a pull's p99.9 CPU beside a seal", 3.0, None, "x", 5 * MILLION),
    "beside snapshot": _most("a pull's p99.9 CPU beside a snapshot", 3.0, None, "x", 5 * MILLION),
    "snapshot speed": Goal("snapshot, of write + fdatasync", 0.8, rows=MILLION),
    "snapshot memory": _most("memory that a snapshot takes", 64.0, None, "MiB", MILLION),
    "restore speed": Goal("restore, of reading the file", 0.8, rows=MILLION),
    "restore memory": _most("memory that restore takes beyond the store", 64.0, None, "MiB"),
    "replay": Goal("M rows replayed a second", 1.0, None, "M/s", rows=MILLION),
    "overflow warm": Goal("lookup all in overflow, of raw LMDB", 0.7, 5.0, rows=10 * MILLION),
    "overflow cold": Goal("the same, page cache cold, of one at a time", 3.0, rows=10 * MILLION),
    "overflow zipf": Goal("lookup Zipf 1.05, of what hits allow", 0.8, rows=10 * MILLION),
    "overflow prefetch": Goal("pull + push with prefetch, of without", 1.5, rows=10 * MILLION),
    "overflow prefetch cold": Goal("the same, page cache cold", 1.5, rows=10 * MILLION),
    "overflow rocksdb": Goal("pull + push, of rocksdict within as much", 3.0, rows=10 * MILLION),
    "overflow p99": _most("a lookup's p99 beside misses", 2.0, None, "x", 10 * MILLION),
    "overflow eviction": Goal("M rows evicted a second", 0.3, None, "M/s", rows=10 * MILLION),
    "overflow writes": _most("bytes written a byte evicted", 3.0, None, "x", 10 * MILLION),
    "overflow disk": _most("disk a byte of rows in overflow", 1.35, None, "x", 10 * MILLION),
    "overflow open": _most("open() with overflow 10x, of without", 1.5, None, "x", 10 * MILLION),
    "hits zipf 0.82": Goal("hit rate, Zipf 0.82, of exact LRU's", 0.95, 1.0),
    "hits zipf 1.05": Goal("hit rate, Zipf 1.05, of exact LRU's", 0.95, 1.0),
    "hits retail": Goal("hit rate, completejourney, of exact LRU's", 0.95, 1.0),
    "import": _most("import of the package, NumPy included", 120.0, 80.0, "ms"),
}


def verdict(goal: Goal, value: float) -> str:
    """Return MISS, ok or AIM."""
    sign = 1.0 if goal.at_least else -1.0
    if not sign * value >= sign * goal.floor:  # So written, a NaN misses.
        return MISS
    return AIM if goal.aim is not None and sign * value >= sign * goal.aim else OK


def counts(goal: Goal, figure: Figure) -> bool:
    """Whether the table was as large as the goal asks."""
    return figure.rows >= goal.rows


def misses(figures: Iterable[Figure]) -> list[str]:
    """Return the goals that are missed by figures that count."""
    return [
        figure.goal
        for figure in figures
        if counts(GOALS[figure.goal], figure) and verdict(GOALS[figure.goal], figure.value) == MISS
    ]


def line(figure: Figure) -> str:
    """Return a figure as a line of the table."""
    goal = GOALS[figure.goal]
    mark = verdict(goal, figure.value)
    if not counts(goal, figure):
        mark = f"({mark})"
    aim = "" if goal.aim is None else f"{goal.aim:g}"
    unit = "" if goal.unit == "x" else f" {goal.unit}"
    rows = f"{figure.rows / MILLION:g}M" if figure.rows else ""
    return (
        f"  {mark:<6} {goal.text:<46} {rows:>4} {goal.floor:>5g} {aim:>5}  "
        f"{figure.value:>6.3g}{unit:<3}  {figure.detail}"
    ).rstrip()


HEAD = f"  {'':<6} {'':<46} rows {'floor':>5} {'aim':>5}  {'measured'}"


def table(figures: Sequence[Figure], *, whole: bool = True) -> str:
    """Return all figures in the order of the goals; of a whole run, what was not measured too."""
    order = list(GOALS)
    lines = [line(each) for each in sorted(figures, key=lambda each: order.index(each.goal))]
    measured = {each.goal for each in figures}
    missing = [GOALS[key].text for key in order if key not in measured] if whole else []
    absent = [f"  not measured: {'; '.join(missing)}"] if missing else []
    return "\n".join([HEAD, *lines, *absent])


def append(path: str | Path, figure: Figure) -> None:
    """Add a figure to a file of JSON lines."""
    with open(path, "a") as file:
        file.write(json.dumps(asdict(figure)) + "\n")


def read(path: str | Path) -> list[Figure]:
    """Return the figures of a file of JSON lines."""
    return [Figure(**json.loads(each)) for each in Path(path).read_text().splitlines()]
