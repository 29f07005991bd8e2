"""The initial values of a row, as frozen values.

The value that a row starts with depends on the seed, the names of the table and the slice, and the
id alone: two stores, two runs and two replicas agree on it without talking to each other.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar

from monolith_kv.validation import of_kind

__all__ = [
    "Constant",
    "Initializer",
    "Normal",
    "Uniform",
    "Zeros",
    "initializer_from_json",
]

FLOAT32_MAX = 3.4028234663852886e38
# No sample is further than this from the mean: sqrt(-2 log 2^-64) is 9.4.
NORMAL_STDS_MAX = 10


@dataclass(frozen=True)
class Initializer(ABC):
    """Base of the initializers.

    Examples
    --------
    >>> Uniform(-1, 1).parameters()
    (-1.0, 1.0, 0)
    """

    # On disk: never renumber.
    kind: ClassVar[int]

    @abstractmethod
    def parameters(self) -> tuple[float, float, int]:
        """Return the two numbers and the seed; 0 where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Return this initializer as a JSON object; `initializer_from_json` reads it."""
        names = [field.name for field in fields(self)]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= FLOAT32_MAX:
            raise ValueError(f"{name} must be finite as a float32, got {value!r}")
        object.__setattr__(self, name, number)

    def _check_seed(self, seed: object) -> None:
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise TypeError(f"seed must be a whole number, got {type(seed).__name__}")
        if not 0 <= int(seed) < 2**64:
            raise ValueError(f"seed must be 0..2**64-1, got {seed}")
        object.__setattr__(self, "seed", int(seed))


@dataclass(frozen=True)
class Zeros(Initializer):
    """Every value is 0.

    Examples
    --------
    >>> Zeros()
    Zeros()
    """

    kind: ClassVar[int] = 0

    def parameters(self) -> tuple[float, float, int]:
        """Return zeros."""
        return 0.0, 0.0, 0


@dataclass(frozen=True)
class Constant(Initializer):
    """Every value is `value`.

    Parameters
    ----------
    value : float
        Finite as a float32.

    Examples
    --------
    >>> Constant(0.5)
    Constant(value=0.5)
    """

    value: float
    kind: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._check_number("value")

    def parameters(self) -> tuple[float, float, int]:
        """Return the value."""
        return self.value, 0.0, 0


@dataclass(frozen=True)
class Uniform(Initializer):
    """Values are uniform between `low` and `high`.

    Parameters
    ----------
    low, high : float
        Finite as float32, as their difference is; `low` is at most `high`.
    seed : int
        0 to 2**64 - 1.

    Examples
    --------
    >>> Uniform(seed=7)
    Uniform(low=-0.05, high=0.05, seed=7)
    """

    low: float = -0.05
    high: float = 0.05
    seed: int = 0
    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check_number("low")
        self._check_number("high")
        self._check_seed(self.seed)
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low!r} and {self.high!r}")
        if self.high - self.low > FLOAT32_MAX:
            raise ValueError("high - low must be finite as a float32, choose a narrower range")

    def parameters(self) -> tuple[float, float, int]:
        """Return both bounds and the seed."""
        return self.low, self.high, self.seed


@dataclass(frozen=True)
class Normal(Initializer):
    """Values are normally distributed.

    Parameters
    ----------
    mean : float
        Finite as a float32.
    std : float
        At least 0; mean and 10 std together are finite as a float32.
    seed : int
        0 to 2**64 - 1.

    Examples
    --------
    >>> Normal(std=0.1)
    Normal(mean=0.0, std=0.1, seed=0)
    """

    mean: float = 0.0
    std: float = 0.01
    seed: int = 0
    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        self._check_number("mean")
        self._check_number("std")
        self._check_seed(self.seed)
        if self.std < 0:
            raise ValueError(f"std must be at least 0, got {self.std!r}")
        if abs(self.mean) + NORMAL_STDS_MAX * self.std > FLOAT32_MAX:
            raise ValueError("mean and 10 std must be finite as a float32, choose smaller ones")

    def parameters(self) -> tuple[float, float, int]:
        """Return mean, standard deviation and the seed."""
        return self.mean, self.std, self.seed


_KINDS: dict[int, type[Initializer]] = {cls.kind: cls for cls in (Zeros, Constant, Uniform, Normal)}


def initializer_from_json(data: dict[str, Any]) -> Initializer:
    """Return the initializer that `Initializer.to_json` wrote.

    Parameters
    ----------
    data : dict
        A JSON object.

    Raises
    ------
    FormatVersionError
        Its kind or one of its parameters is unknown here.

    Examples
    --------
    >>> initializer_from_json(Constant(2).to_json())
    Constant(value=2.0)
    """
    return of_kind("initializer", _KINDS, data)
