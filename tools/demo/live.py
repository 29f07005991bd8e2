"""The live part: trainer, mkv-replicate, serving process, and one SIGKILL in between."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from monolith_kv_tools.demo.display import Display
from monolith_kv_tools.demo.processes import Process, module_command, replicate_command
from monolith_kv_tools.demo.setting import Paths

from monolith_kv.server import Client

SILENCE_S = 60.0
CATCH_UP_S = 30.0
KILL_SHARE, KILL_SHARE_LATEST = 0.55, 0.7
PUSH_POLL_S = "0.03"


@dataclass
class Seen:
    """What was seen of the processes, to be judged later.

    Parameters
    ----------
    opened, resumed : dict
        What the trainer said when it opened the store, first and after the kill.
    before_kill, last : dict
        Its last progress before the kill, and before the end.
    ended : dict
        Its last line.
    served_while_down : dict
        Status of the serving process while there was no trainer.
    served : dict
        Status of the serving process at the end.
    aucs : list of float
        Progressive AUC of the first and of the second trainer process.
    """

    opened: dict[str, Any] = field(default_factory=dict)
    before_kill: dict[str, Any] = field(default_factory=dict)
    served_while_down: dict[str, Any] = field(default_factory=dict)
    resumed: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    verify_code: int = -1
    killed_s: float = 0.0

    def both(self, name: str) -> int:
        """Return a count of both lives of the trainer."""
        return int(self.before_kill[name]) + int(self.last[name])

    @property
    def lag_max(self) -> int:
        """Deltas that the replica was behind at most."""
        return max(int(self.before_kill["lag_max"]), int(self.last["lag_max"]))


def run_live(
    paths: Paths, total: int, seal_every_s: int, lag_max: int, log_folder: str, show: Display
) -> Seen:
    """Run the processes to the end of the stream.

    Parameters
    ----------
    paths : Paths
        With the events in place.
    total : int
        Events in the stream.
    seal_every_s : int
        Seconds of event time between seals.
    lag_max : int
        The stream waits for a replica that is further behind than this many deltas.
    log_folder : str
        For the processes' standard error.
    show : Display
        Where to show it.
    """
    seen = Seen()
    train = module_command(
        "train", paths.root, "--seal-every-s", str(seal_every_s), "--lag-max", str(lag_max)
    )
    with ExitStack() as stack:

        def start(name: str, command: list[str]) -> Process:
            return stack.enter_context(Process(name, command, log_folder))

        trainer = start("trainer", train)
        seen.opened = trainer.next_object(SILENCE_S)
        push = replicate_command("push", paths.store, paths.target, "--poll", PUSH_POLL_S, "--json")
        pusher = start("push", push)
        server = start("serve", module_command("serve", paths.root))
        show.note(
            f"trainer pid {trainer.pid}, mkv-replicate push pid {pusher.pid}, "
            f"serving process pid {server.pid}"
        )
        show.header()
        seen.before_kill = _watch(trainer, show, lambda state: is_mid_flight(state, total))
        show.state(seen.before_kill, is_last=True)
        trainer.kill()
        killed = time.monotonic()
        show.note(
            f"SIGKILL to the trainer, past event {seen.before_kill['position']:,}; the last seal "
            f"was at {seen.before_kill['sealed']:,}"
        )
        with Client(paths.address) as client:
            seen.served_while_down = client.status()
        trainer = start("trainer", train)
        seen.resumed = trainer.next_object(SILENCE_S)
        seen.killed_s = time.monotonic() - killed
        _show_recovery(seen, show)
        show.header()
        seen.last = _watch(trainer, show, lambda state: state["position"] == total)
        show.state(seen.last, is_last=True)
        seen.ended = trainer.next_object(SILENCE_S)
        trainer.wait(SILENCE_S)
        seen.served = _catch_up(paths, seen.ended["sequence"])
        for process in (pusher, server):
            if not process.is_running():
                raise RuntimeError(f"{process.name} ended early; {process.last_words()}")
        verify = start("verify", replicate_command("verify", paths.store, paths.replica))
        seen.verify_code = verify.wait(SILENCE_S)
    return seen


def is_mid_flight(state: dict[str, Any], total: int) -> bool:
    """Whether this is the moment to kill: far enough, and with events that are not sealed."""
    share = float(state["position"]) / total
    has_unsealed = bool(state["position"] > state["sealed"])
    return share >= KILL_SHARE and (has_unsealed or share >= KILL_SHARE_LATEST)


def _watch(
    trainer: Process, show: Display, is_enough: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Show the trainer's progress until it has come far enough; the last of it."""
    while True:
        state = trainer.next_object(SILENCE_S)
        if state["event"] != "progress":
            raise RuntimeError(f"the trainer ended before it came so far: {state}")
        show.state(state)
        if is_enough(state):
            return state


def _show_recovery(seen: Seen, show: Display) -> None:
    resumed = seen.resumed
    show.note(
        f"meanwhile the replica kept serving {sum(seen.served_while_down['rows'].values()):,} rows "
        f"at delta {seen.served_while_down['sequence']:,}"
    )
    show.note(
        f"reopened in {resumed['opened_s']:.2f} s: {resumed['rows']:,} rows, delta "
        f"{resumed['sequence']:,}, epoch {seen.opened['epoch']} -> {resumed['epoch']}, "
        f"cursor {resumed['cursor']}"
    )
    for loss in resumed["losses"]:
        show.note(f"DataLossWarning: {loss}")
    again = max(0, seen.before_kill["position"] - resumed["position"])
    show.note(
        f"the stream goes on from event {resumed['position']:,}: at least {again:,} events were "
        "trained on but not sealed; they are trained on again"
    )


def _catch_up(paths: Paths, sequence: int) -> dict[str, Any]:
    """Wait until the replica holds the last delta; its status."""
    begun = time.monotonic()
    with Client(paths.address) as client:
        while True:
            status = client.status()
            if status["sequence"] == sequence or time.monotonic() - begun > CATCH_UP_S:
                return status
            time.sleep(0.02)
