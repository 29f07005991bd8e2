"""When an id gets a row and when it loses it: the admission gate and the TTL.

Both may differ by slot, the top 16 bits of an id. The rules are values; counting and expiring are
the data plane's work.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from monolith_kv.errors import FormatVersionError
from monolith_kv.units import parse_duration, whole_seconds

__all__ = ["FrequencyGate", "parse_ttl"]

SLOT_MAX = 2**16 - 1
THRESHOLD_MAX = 2**16 - 1  # Cells of the sketch count to here.
CAPACITY_MAX = 2**40


class FrequencyGate:
    """Admit an id at its `threshold`-th sighting within `window`.

    Sightings are counted in a count-min sketch sized for `capacity` distinct ids: an id is never
    admitted late, and at most a share `error` of the ids is admitted early (past `capacity`, more;
    `Store.stats` estimates it). Sightings older than twice the window count for nothing.

    Parameters
    ----------
    threshold : int or mapping of int to int
        1 to 65,535 sightings; 1 admits at once. A mapping gives slots (the top 16 bits of the id)
        their own, None standing for all others; slots not covered are admitted at once.
    capacity : int
        Distinct ids expected within a window.
    window : int, float or str
        A duration above 0, in seconds or as "7d"; rounded up to whole seconds.
    error : float
        Between 0 and 1, both excluded.

    Attributes
    ----------
    threshold : int or dict
        As given.
    default_threshold : int
        Of all slots that have none of their own.
    slot_thresholds : dict
        Slot to threshold.
    capacity : int
        As given.
    window_s : int
        The window in whole seconds.
    error : float
        As given.

    References
    ----------
    Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and
    its applications", J. Algorithms 55, 2005.

    Examples
    --------
    >>> FrequencyGate(3)
    FrequencyGate(3, capacity=1000000, window=604800, error=0.01)
    >>> FrequencyGate({7: 5, None: 2}).default_threshold
    2
    """

    __slots__ = ("_slots", "capacity", "default_threshold", "error", "is_mapping", "window_s")

    capacity: int
    default_threshold: int
    error: float
    is_mapping: bool
    window_s: int
    _slots: tuple[tuple[int, int], ...]

    def __init__(
        self,
        threshold: int | Mapping[int | None, int],
        *,
        capacity: int = 1_000_000,
        window: float | int | str = "7d",
        error: float = 0.01,
    ) -> None:
        default, slots = 1, {}
        if isinstance(threshold, Mapping):
            for slot, value in threshold.items():
                if slot is None:
                    default = _check_threshold(value)
                else:
                    slots[_check_slot(slot, "threshold")] = _check_threshold(value)
        else:
            default = _check_threshold(threshold)
        seconds = parse_duration(window, "window")
        if seconds == 0:
            raise ValueError(f"window must be above 0 seconds, got {window!r}")
        if isinstance(error, bool) or not isinstance(error, Real):
            raise TypeError(f"error must be a number, got {type(error).__name__}")
        if not 0 < error < 1:
            raise ValueError(f"error must be between 0 and 1, got {error!r}")
        values = {
            "capacity": _check_int(capacity, "capacity", 1, CAPACITY_MAX),
            "default_threshold": default,
            "error": float(error),
            "is_mapping": isinstance(threshold, Mapping),
            "window_s": whole_seconds(seconds),
            "_slots": tuple(sorted(slots.items())),
        }
        for name, checked in values.items():
            object.__setattr__(self, name, checked)

    @property
    def slot_thresholds(self) -> dict[int, int]:
        """Slot to threshold, of those slots that have their own."""
        return dict(self._slots)

    @property
    def threshold(self) -> int | dict[int | None, int]:
        """The threshold in the form in which it was given."""
        if not self.is_mapping:
            return self.default_threshold
        mapping: dict[int | None, int] = dict(self._slots)
        if self.default_threshold != 1:
            mapping[None] = self.default_threshold
        return mapping

    def to_json(self) -> dict[str, Any]:
        """Return this gate as a JSON object; `from_json` reads it."""
        return {
            "default": self.default_threshold,
            "slots": None
            if not self.is_mapping
            else {str(slot): threshold for slot, threshold in self._slots},
            "capacity": self.capacity,
            "window_s": self.window_s,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FrequencyGate":
        """Return the gate that `to_json` wrote.

        Parameters
        ----------
        data : dict
            A JSON object.

        Raises
        ------
        FormatVersionError
            It is not what this version writes.

        Examples
        --------
        >>> FrequencyGate.from_json(FrequencyGate(2).to_json()) == FrequencyGate(2)
        True
        """
        try:
            threshold: int | dict[int | None, int] = data["default"]
            if data["slots"] is not None:
                threshold = {int(slot): value for slot, value in data["slots"].items()}
                threshold[None] = data["default"]
            return cls(
                threshold,
                capacity=data["capacity"],
                window=data["window_s"],
                error=data["error"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatVersionError(f"gate {data!r} cannot be read: {error!r}") from error

    def _values(self) -> tuple[object, ...]:
        return self.default_threshold, self._slots, self.capacity, self.window_s, self.error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrequencyGate):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return (
            f"FrequencyGate({self.threshold!r}, capacity={self.capacity}, "
            f"window={self.window_s}, error={self.error!r})"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a FrequencyGate does not change, make a new one to set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a FrequencyGate does not change, {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return FrequencyGate.from_json, (self.to_json(),)


def parse_ttl(
    ttl: float | int | str | Mapping[int | None, float | int | str] | None,
) -> tuple[int | None, dict[int, int]]:
    """Return the default time to live and those of single slots.

    Parameters
    ----------
    ttl : duration, mapping of slot to duration, or None
        None: nothing expires. In a mapping the key None stands for all slots not named; without
        it they never expire.

    Returns
    -------
    default : int or None
        Whole seconds, rounded up: no record expires early.
    slots : dict
        Slot to whole seconds.

    Raises
    ------
    TypeError, ValueError
        A duration is not above 0, or a slot is not 0..65535.

    Examples
    --------
    >>> parse_ttl("30d")
    (2592000, {})
    >>> parse_ttl({7: "1h", None: "1d"})
    (86400, {7: 3600})
    """
    if ttl is None:
        return None, {}
    if not isinstance(ttl, Mapping):
        return _check_ttl(ttl), {}
    default, slots = None, {}
    for slot, value in ttl.items():
        if slot is None:
            default = _check_ttl(value)
        else:
            slots[_check_slot(slot, "ttl")] = _check_ttl(value)
    return default, slots


def _check_ttl(value: float | int | str) -> int:
    seconds = parse_duration(value, "ttl")
    if seconds == 0:
        raise ValueError(f"ttl must be above 0 seconds, got {value!r}; use None for never")
    return whole_seconds(seconds)


def _check_threshold(value: int) -> int:
    return _check_int(value, "threshold", 1, THRESHOLD_MAX)


def _check_slot(slot: int, name: str) -> int:
    return _check_int(slot, f"slot of {name}", 0, SLOT_MAX)


def _check_int(value: int, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low}..{high}, got {value}")
    return int(value)
