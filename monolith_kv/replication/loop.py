"""Repeat a step until told to stop; after a failure, wait longer and never in step with others."""

import random
import threading
from collections.abc import Callable

from monolith_kv.errors import Error

BACKOFF_MAX_S = 60.0


class Stopped(BaseException):
    """Ends a step early because the loop was told to stop; not an error that a step may handle."""


def repeat(
    step: Callable[[], None],
    stop: threading.Event,
    *,
    poll_s: float = 1.0,
    failed: Callable[[Exception], None] = lambda error: None,
) -> None:
    """Call `step` every `poll_s` seconds until `stop` is set.

    Parameters
    ----------
    step : callable
        One step of a Publisher or a Follower.
    stop : threading.Event
        Ends the loop, at once while it waits.
    poll_s : float
        Seconds from the end of a step to the next; after failures in a row it doubles up to a
        minute, and a random half of it is left out, so that many followers of one source that
        comes back do not all come at once.
    failed : callable
        Called with each Error or OSError of a step; any other exception ends the loop.

    Examples
    --------
    >>> stop = threading.Event()
    >>> repeat(stop.set, stop)
    """
    failures = 0
    while not stop.is_set():
        try:
            step()
            failures = 0
        except Stopped:
            return
        except (Error, OSError) as error:
            failures += 1
            failed(error)
        # Event.wait counts on the monotonic clock: a clock that is set back stalls nothing.
        stop.wait(delay_s(poll_s, failures, random.random()))


def delay_s(poll_s: float, failures: int, chance: float) -> float:
    """Return the seconds to wait after so many failures in a row; `chance` is in [0, 1)."""
    if not failures:
        return poll_s
    longest = min(poll_s * 2.0 ** min(failures, 32), max(poll_s, BACKOFF_MAX_S))
    return longest * (0.5 + 0.5 * chance)
