"""What the demo must have shown, one claim a line, and the summary."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monolith_kv_tools.demo.intervals import Compared
from monolith_kv_tools.demo.live import Seen

import monolith_kv as mkv

MARGIN = 0.005  # AUC; seeds differ by 2e-4 on this data.


@dataclass(frozen=True)
class Claim:
    """Something that must hold, and the values that tell."""

    text: str
    holds: bool
    values: str


@dataclass(frozen=True)
class Restored:
    """A store that was restored from a snapshot and brought up to date with deltas."""

    snapshot_sequence: int
    deltas: int
    rows: int
    digest: str


def restore_newest(store_path: str, to: str) -> Restored:
    """Restore the newest snapshot of a store, apply the deltas after it, and digest the rows.

    Parameters
    ----------
    store_path : str
        A store that nobody has open for writing.
    to : str
        An absent folder.
    """
    with mkv.open(store_path, "r") as store:
        snapshot = store.snapshots()[-1]
        deltas = list(store.deltas(after=snapshot.sequence))
        with mkv.restore(snapshot.path, to, mode="replica") as restored:
            for delta in deltas:
                restored.apply(delta)
            rows = sum(len(table) for table in restored.tables.values())
            return Restored(snapshot.sequence, len(deltas), rows, restored.digest())


def judge(
    seen: Seen, restored: Restored, compared: Compared, lag_max: int, total: int
) -> list[Claim]:
    """Return everything that must hold."""
    resumed, killed, ended = seen.resumed, seen.before_kill, seen.ended
    aucs = compared.aucs
    names = list(aucs)
    fresh, stale = aucs[names[1]], aucs[names[-1]]
    digest = ended["digest"]
    return [
        Claim(
            "the gate admits and rejects, the TTL expires",
            min(seen.both("admitted"), seen.both("rejected"), seen.both("expired")) > 0,
            f"{seen.both('admitted'):,} admitted, {seen.both('rejected'):,} rejected, "
            f"{seen.both('expired'):,} expired",
        ),
        Claim(
            "the replica's lag stays bounded",
            seen.lag_max <= lag_max,
            f"{seen.lag_max} deltas at most, {lag_max} allowed",
        ),
        Claim(
            "after SIGKILL the stream goes on from the cursor",
            resumed["position"] == resumed["cursor"]["position"] > 0
            and resumed["sequence"] >= killed["sequence"]
            and ended["position"] == total,
            f"killed past {killed['position']:,}, resumed at {resumed['position']:,}, "
            f"ended at {ended['position']:,} of {total:,}",
        ),
        Claim(
            "the loss is reported and the epoch raised",
            # Nothing is lost where nothing came after the seal, which a kill can happen to hit.
            (bool(resumed["losses"]) or resumed["position"] >= killed["position"])
            and resumed["epoch"] == seen.opened["epoch"] + 1,
            f"{len(resumed['losses']) or 'nothing lost, no'} DataLossWarning, epoch "
            f"{seen.opened['epoch']} -> {resumed['epoch']}",
        ),
        Claim(
            "the replica kept serving while the trainer was down",
            sum(seen.served_while_down["rows"].values()) > 0,
            f"{sum(seen.served_while_down['rows'].values()):,} rows",
        ),
        Claim(
            "primary and serving replica end equal",
            seen.served["digest"] == digest
            and seen.served["sequence"] == ended["sequence"]
            and seen.verify_code == 0,
            f"delta {seen.served['sequence']:,}, {_short(seen.served['digest'])} and "
            f"{_short(digest)}, mkv-replicate verify exits with {seen.verify_code}",
        ),
        Claim(
            "snapshot + deltas restore the same rows",
            restored.digest == digest,
            f"snapshot at {restored.snapshot_sequence:,} + {restored.deltas} deltas: "
            f"{_short(restored.digest)}",
        ),
        Claim(
            "a run without the kill ends with the same rows",
            compared.digest == digest,
            f"{compared.rows:,} rows, {_short(compared.digest)}",
        ),
        Claim(
            "fresh embeddings predict better than stale ones",
            fresh >= stale + MARGIN and fresh >= aucs[names[-2]] - MARGIN / 5,
            f"every {names[1]} {fresh:.4f}, {names[-1]} {stale:.4f}",
        ),
    ]


def summary(claims: Sequence[Claim], compared: Compared, facts: Mapping[str, Any], png: str) -> str:
    """Return the summary table as text."""
    width = max(len(claim.text) for claim in claims)
    lines = ["", "what must hold".ljust(width) + "       what was seen", "-" * (width + 45)]
    lines += [f"{c.text:<{width}}  {'yes' if c.holds else 'NO '}  {c.values}" for c in claims]
    lines += ["", "AUC by sync interval (predicted before trained)", "-" * 48]
    best = next(iter(compared.aucs.values()))
    for name, value in compared.aucs.items():
        lines.append(f"{name:<12} {value:.4f}  {value - best:+.4f}")
    lines += ["", *(f"{name:<28} {value}" for name, value in facts.items())]
    lines.append(f"{'picture':<28} {os.path.relpath(png)}")
    return "\n".join(lines)


def complain(claims: Sequence[Claim]) -> int:
    """Name what does not hold on standard error; the exit code."""
    broken = [claim for claim in claims if not claim.holds]
    for claim in broken:
        print(f"demo: does not hold: {claim.text}; {claim.values}", file=sys.stderr)
    return 1 if broken else 0


def _short(digest: str) -> str:
    return digest[:12]
