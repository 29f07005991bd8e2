"""Scripts in each durability mode, how their stores are opened, and opened again after a crash.

Run as a script it is the process that is traced: it makes the scenarios that standard input names.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from crash import traced_scripts as scripts
from crash.traced_bugs import BUGS
from crash.witness import Witness

import monolith_kv as mkv
from monolith_kv.opening import release
from monolith_kv.replication import Follower

MODES = ("none", "interval", "batch", "sync")
MEMORY_LIMIT = 4_096  # Less than the rows of the script that overflows.
RECOVERED_AT = 2_000_000.0  # By the clock: later than any call.


class Scenario(NamedTuple):
    """A script, how its store is opened, and how it is opened again after a crash."""

    script: Callable[[Witness], None]
    durability: str
    mode: str = "rw"
    is_followed: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.script.__name__}-{self.durability}-{self.seed}"

    @property
    def options(self) -> dict[str, Any]:
        if self.script is scripts.retention:
            return {"snapshots_kept": 1, "delta_retention": 20}
        return {"memory_limit": MEMORY_LIMIT} if self.script is scripts.overflow else {}

    def make(self, root: Path, given: Path) -> None:
        """Make all calls, in a new folder `root`."""
        for folder in (root, given):
            folder.mkdir()
        self.script(Witness(root, given, self.durability, self.options, self.seed))

    @contextlib.contextmanager
    def recover(self, root: Path, given: Path, clock: Callable[[], float]) -> Iterator[mkv.Store]:
        """Open the store as after a crash; in the end let go of it, as in another crash."""
        options = {"durability": self.durability, "delta_interval": None, **self.options}
        options |= {"clock": clock}
        path = root / "store"
        if self.is_followed:
            follower = Follower(given / "later", path, **options)
            store, work = follower.store, follower._work
        else:
            store, work = self._open(path, options), None
        try:
            yield store
        finally:
            # A crash closes nothing; but this process goes on, so that it gives locks back.
            release(store._state)
            if work is not None:
                work.release()

    def _open(self, path: Path, options: dict[str, Any]) -> mkv.Store:
        try:
            return mkv.open(path, self.mode, **options)
        except mkv.Error as error:
            if self.script is not scripts.promoted or "replica" not in str(error):
                raise
            return mkv.open(path, "rw", **options)  # The promotion was durable.


WRITERS = [
    scripts.pushes,
    scripts.seals,
    scripts.snapshots,
    scripts.snapshots_elsewhere,
    scripts.tables,
    scripts.dense,
    scripts.removals,
    scripts.retention,
    scripts.sightings,
    scripts.reopened,
    scripts.unclean,
    scripts.overflow,
    scripts.mixed,
]
SCENARIOS = [
    *(Scenario(script, mode) for script in WRITERS for mode in MODES),
    *(Scenario(scripts.helped, mode) for mode in ("batch", "sync")),
    *(Scenario(scripts.promoted, mode, "replica") for mode in MODES),
    *(Scenario(scripts.restored, mode) for mode in MODES),
    Scenario(scripts.apply, "interval", "replica"),
    Scenario(scripts.resynced, "interval", "replica", is_followed=True),
]


def scenario_of(name: str) -> Scenario:
    """The scenario of a name, with any seed."""
    script, durability, seed = name.rsplit("-", 2)
    found = {(s.script.__name__, s.durability): s for s in SCENARIOS}
    return found[script, durability]._replace(seed=int(seed))


# --- the process that is traced ----------------------------------------------------------------


def recover(name: str, root: Path, given: Path) -> None:
    """Recover the store in a folder, in a process of its own."""
    scenario = scenario_of(name)
    w = Witness(root, given, scenario.durability, scenario.options)
    w.clock.now = RECOVERED_AT

    def life() -> None:
        w.mark(begin="open")
        with scenario.recover(w.root, w.given, w.clock) as w.store:
            w.acknowledge("open")

    w.life(life)


def main(base: str, given: str, bug: str = "") -> None:
    """Make the scenarios that standard input names, or recover what is in their folders."""
    if bug:
        BUGS[bug]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)  # A life that ended uncleanly.
        for folder in sys.stdin.read().split():
            name, _, number = folder.partition("@")
            if number:
                recover(name, Path(base, folder), Path(given, name))
            else:
                scenario_of(name).make(Path(base, name), Path(given, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
