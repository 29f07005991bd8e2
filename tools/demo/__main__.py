"""The demo: a model learns online, a second process serves it fresh, nothing is lost in a crash.

On the last days of completejourney, real-pattern retail transactions (84.51°): a trainer process
streams the purchases in time order and seals deltas; mkv-replicate carries them; a serving process
follows and scores each purchase before it is trained on. The trainer is killed on the way and goes
on. A snapshot is restored. In the end: AUC by how often the serving side is brought up to date.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from monolith_kv_tools.demo.data import DAY_S, load_completejourney, make_synthetic
from monolith_kv_tools.demo.display import Display
from monolith_kv_tools.demo.intervals import Compared, compare, draw
from monolith_kv_tools.demo.live import Seen, run_live
from monolith_kv_tools.demo.setting import Paths
from monolith_kv_tools.demo.verdict import Claim, complain, judge, restore_newest, summary

import monolith_kv as mkv
from monolith_kv.trainer import Events

HOUR_S = 3600
SEAL_CHOICES_S = tuple(hours * HOUR_S for hours in (1, 2, 3, 4, 6, 12, 24))
# Of one delta from its seal to the last of its replicas, on two cores that others use as well.
DELTA_COST_S = 0.03
DELTA_FLUSHES = 40
FIXED_COST_S = 15.0  # Starting, reading, scoring, drawing.
ROOM_BYTES = 1 << 30
LAG_HOURS = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything it shows holds, 1 if not, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    os.makedirs(options.output, exist_ok=True)
    begun = time.monotonic()
    root = tempfile.mkdtemp(prefix="mkv-demo-", dir=fast_folder())
    try:
        seal_every_s = choose_interval(options.days, options.seconds, flush_s(root))
        events = _events(options)
        return _run(options, events, Paths(root), seal_every_s, begun)
    except ImportError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (mkv.Error, OSError, RuntimeError) as error:
        print(f"demo: failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


def fast_folder() -> str | None:
    """Return a folder in memory, where there is one with room; None for the system's own.

    A SIGKILL spares what is in the page cache, so the demo shows the same on either. It makes
    years of flushes in a minute, which a disk at other people's service does not.
    """
    folder = "/dev/shm"
    if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM_BYTES:
        return folder
    return None


def flush_s(folder: str) -> float:
    """Return what it takes to make a small file durable here, in seconds."""
    took_s = []
    for number in range(9):
        begun = time.monotonic()
        with open(os.path.join(folder, f"probe-{number}"), "wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        took_s.append(time.monotonic() - begun)
        os.unlink(os.path.join(folder, f"probe-{number}"))
    return statistics.median(took_s)


def choose_interval(days: int, budget_s: float, flush_s: float) -> int:
    """Return the shortest interval between seals whose deltas fit into the time.

    Parameters
    ----------
    days : int
        Of the stream.
    budget_s : float
        Time for the whole demo.
    flush_s : float
        What one flush takes.

    Returns
    -------
    int
        Seconds of event time.
    """
    cost_s = DELTA_COST_S + DELTA_FLUSHES * flush_s
    deltas = max(1.0, (budget_s - FIXED_COST_S) / cost_s)
    for interval_s in SEAL_CHOICES_S:
        if days * DAY_S / interval_s <= deltas:
            return interval_s
    return SEAL_CHOICES_S[-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--days", type=_at_least(4), default=60, help="of the stream (default: 60)")
    parser.add_argument(
        "--output",
        default=os.path.join("build", "demo"),
        metavar="DIR",
        help="for picture, summary and logs (default: build/demo)",
    )
    parser.add_argument(
        "--seconds",
        type=_at_least(10),
        default=90,
        help="time to take at most; with less, deltas are sealed less often (default: 90)",
    )
    parser.add_argument(
        "--synthetic", action="store_true", help="a small made-up stream instead of completejourney"
    )
    return parser


def _at_least(least: int) -> Any:
    def convert(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return convert


def _events(options: argparse.Namespace) -> Events:
    if options.synthetic:
        return make_synthetic(options.days, seed=1)
    return load_completejourney(options.days)


def _run(
    options: argparse.Namespace, events: Events, paths: Paths, seal_every_s: int, begun: float
) -> int:
    events.save(paths.events)
    lag_max = max(2, LAG_HOURS * HOUR_S // seal_every_s)
    with Display(len(events)) as show:
        what = "made-up" if options.synthetic else "real-pattern retail transactions (84.51°)"
        show.note(
            f"{len(events):,} purchase lines of {options.days} days, {what}; a delta every "
            f"{seal_every_s // HOUR_S} h of event time; stores under {paths.root}"
        )
        seen = run_live(paths, len(events), seal_every_s, lag_max, options.output, show)
        restored = restore_newest(paths.store, paths.restored)
        show.note(f"restored a snapshot and {restored.deltas} deltas: {restored.rows:,} rows")
        compared = _compare(events, paths, seal_every_s, show)
        png = os.path.join(options.output, "auc_by_sync_interval.png")
        draw(compared, png)
    took_s = time.monotonic() - begun
    claims = judge(seen, restored, compared, lag_max, len(events))
    claims.append(
        Claim(
            "it takes no longer than it was given",
            took_s <= options.seconds,
            f"{took_s:.0f} s of {options.seconds} s",
        )
    )
    text = summary(claims, compared, _facts(seen), png)
    print(text, flush=True)
    with open(os.path.join(options.output, "summary.txt"), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return complain(claims)


def _compare(events: Events, paths: Paths, seal_every_s: int, show: Display) -> Compared:
    noted = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal noted
        if time.monotonic() - noted > 5.0:
            noted = time.monotonic()
            show.note(f"comparing sync intervals: {done / total:.0%}")

    os.mkdir(paths.intervals)
    return compare(events, paths.intervals, seal_every_s, progress)


def _facts(seen: Seen) -> dict[str, str]:
    return {
        "rows at the end": f"{seen.ended['rows']:,}",
        "deltas": f"{seen.ended['sequence']:,}",
        "back after the kill": f"{seen.killed_s:.1f} s, opening {seen.resumed['opened_s']:.2f} s",
        "live AUC before, after kill": f"{seen.before_kill['auc']:.4f}, {seen.last['auc']:.4f}",
        "scored by the serving process": f"{seen.served['requests']:,} requests, "
        f"{seen.served['found'] / max(1, seen.served['fids']):.1%} of fids found",
    }


if __name__ == "__main__":
    sys.exit(main())
