"""The optimizers of a table, as frozen values: kind, hyper-parameters, state in a row.

The arithmetic itself is in the data plane; here it is stated. One step is taken for one id, g being
the sum of its gradients in the call, element by element in float32. Values are checked as the
float32 numbers that the kernels will see, so that no division by zero can be configured.
"""

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, SupportsFloat

from monolith_kv.validation import of_kind

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Ftrl",
    "Momentum",
    "Optimizer",
    "RMSProp",
    "RowWiseAdagrad",
    "optimizer_from_json",
]


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of the optimizers: one step for one id, g being the sum of its gradients in the call.

    Examples
    --------
    >>> Adagrad(lr=0.1).state_slots(dim=8)
    [('accumulator', 8)]
    """

    # On disk: never renumber.
    kind: ClassVar[int]

    def hyper(self) -> tuple[float, ...]:
        """Return the hyper-parameters, in the order of the constructor."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @abstractmethod
    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return name and width of each optimizer slot, in the order in which a row holds them.

        Parameters
        ----------
        dim : int
            Width of the slice.

        Returns
        -------
        list of (str, int)
            Widths in float32.
        """

    def to_json(self) -> dict[str, Any]:
        """Return this optimizer as a JSON object; `optimizer_from_json` reads it."""
        names = [field.name for field in fields(self)]
        return {"kind": self.kind, **dict(zip(names, self.hyper(), strict=True))}

    def _check(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        """Store attribute `name` as a float after checking low <= it < high (low < it if above)."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        number = as_float32(value)
        if not low <= number < high or (above and number == low):
            bounds = f"{'above' if above else 'at least'} {low:g}"
            bounds += " and finite" if high == _INFINITY else f" and below {high:g}"
            raise ValueError(f"{name} must be {bounds} as a float32, got {value!r}")
        object.__setattr__(self, name, float(value))


_INFINITY = float("inf")


def as_float32(value: SupportsFloat) -> float:
    """Round to the nearest float32; what is too large, even for a float, becomes infinite."""
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", float(value)))[0]
    except OverflowError:
        return _INFINITY if value > 0 else -_INFINITY  # type: ignore[operator]  # Real numbers.
    return rounded


@dataclass(frozen=True)
class SGD(Optimizer):
    """Plain gradient descent: ``w -= lr g``.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.

    Examples
    --------
    >>> SGD(lr=0.1)
    SGD(lr=0.1)
    """

    lr: float = 0.01
    kind: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return no slots: it keeps no state."""
        return []


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball: ``m = momentum m + g; w -= lr m``; the state m is called momentum.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    momentum : float
        0 to below 1.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.

    Examples
    --------
    >>> Momentum().state_slots(dim=4)
    [('momentum', 4)]
    """

    lr: float = 0.01
    momentum: float = 0.9
    kind: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)
        self._check("momentum", 0, 1)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return the one slot, as wide as the slice."""
        return [("momentum", dim)]


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """``g += weight_decay w; accumulator += g^2; w -= lr g / sqrt(accumulator)``.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    initial_accumulator : float
        Above 0: it stands in for an epsilon.
    weight_decay : float
        At least 0; added to the gradient.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization", JMLR 12, 2011.

    Examples
    --------
    >>> Adagrad(lr=0.1)
    Adagrad(lr=0.1, initial_accumulator=0.1, weight_decay=0.0)
    """

    lr: float = 0.05
    initial_accumulator: float = 0.1
    weight_decay: float = 0.0
    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)
        self._check("initial_accumulator", 0, _INFINITY, above=True)
        self._check("weight_decay", 0, _INFINITY)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return the one slot, as wide as the slice."""
        return [("accumulator", dim)]


@dataclass(frozen=True)
class RowWiseAdagrad(Optimizer):
    """``accumulator += mean(g^2)``, one number a row; ``w -= lr g / sqrt(accumulator)``.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    initial_accumulator : float
        Above 0: it stands in for an epsilon.

    References
    ----------
    Naumov et al., "Deep learning recommendation model for personalization and
    recommendation systems", arXiv:1906.00091, 2019.

    Examples
    --------
    >>> RowWiseAdagrad().state_slots(dim=64)
    [('accumulator', 1)]
    """

    lr: float = 0.05
    initial_accumulator: float = 0.1
    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)
        self._check("initial_accumulator", 0, _INFINITY, above=True)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return the one slot, a single number."""
        return [("accumulator", 1)]


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """``mean_square = decay mean_square + (1 - decay) g^2``, from 0, then a scaled step.

    The step is ``w -= lr g / (sqrt(mean_square) + epsilon)``.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    decay : float
        0 to below 1.
    epsilon : float
        Above 0.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera, 2012.

    Examples
    --------
    >>> RMSProp().state_slots(dim=4)
    [('mean_square', 4)]
    """

    lr: float = 0.01
    decay: float = 0.9
    epsilon: float = 1e-8
    kind: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)
        self._check("decay", 0, 1)
        self._check("epsilon", 0, _INFINITY, above=True)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return the one slot, as wide as the slice."""
        return [("mean_square", dim)]


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with decoupled weight decay and a step count of the row's own.

    ``step += 1; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;``
    ``w -= lr (m/(1-beta1^step) / (sqrt(v/(1-beta2^step)) + epsilon) + weight_decay w)``.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    beta1, beta2 : float
        0 to below 1.
    epsilon : float
        Above 0.
    weight_decay : float
        At least 0.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> Adam().state_slots(dim=4)
    [('step', 1), ('m', 4), ('v', 4)]
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    kind: ClassVar[int] = 5

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY)
        self._check("beta1", 0, 1)
        self._check("beta2", 0, 1)
        self._check("epsilon", 0, _INFINITY, above=True)
        self._check("weight_decay", 0, _INFINITY)

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return the step count, then both moments, each as wide as the slice."""
        return [("step", 1), ("m", dim), ("v", dim)]


@dataclass(frozen=True)
class Ftrl(Optimizer):
    """Follow the regularised leader, proximal; p = lr_power, state z and n from 0.

    ``n' = n + g^2; z += g - (n'^-p - n^-p)/lr w;``
    ``w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + n'^-p)/lr + l2)``.

    Parameters
    ----------
    lr : float
        Learning rate, above 0.
    l1, l2 : float
        Strength of the penalties, at least 0.
    beta : float
        At least 0.
    lr_power : float
        At most 0; -0.5 is the square root of the paper.

    References
    ----------
    McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, algorithm 1.

    Examples
    --------
    >>> Ftrl(l1=1.0).state_slots(dim=1)
    [('z', 1), ('n', 1)]
    """

    lr: float = 0.05
    l1: float = 0.0
    l2: float = 0.0
    beta: float = 1.0
    lr_power: float = -0.5
    kind: ClassVar[int] = 6

    def __post_init__(self) -> None:
        self._check("lr", 0, _INFINITY, above=True)
        self._check("l1", 0, _INFINITY)
        self._check("l2", 0, _INFINITY)
        self._check("beta", 0, _INFINITY)
        self._check("lr_power", -_INFINITY, _INFINITY, above=True)
        if self.lr_power > 0:
            raise ValueError(f"lr_power must be at most 0, got {self.lr_power!r}")

    def state_slots(self, dim: int) -> list[tuple[str, int]]:
        """Return z and n, each as wide as the slice."""
        return [("z", dim), ("n", dim)]


_KINDS: dict[int, type[Optimizer]] = {
    cls.kind: cls for cls in (SGD, Momentum, Adagrad, RowWiseAdagrad, RMSProp, Adam, Ftrl)
}


def optimizer_from_json(data: dict[str, Any]) -> Optimizer:
    """Return the optimizer that `Optimizer.to_json` wrote.

    Parameters
    ----------
    data : dict
        A JSON object.

    Raises
    ------
    FormatVersionError
        Its kind or one of its hyper-parameters is unknown here.

    Examples
    --------
    >>> optimizer_from_json(SGD(0.5).to_json())
    SGD(lr=0.5)
    """
    return of_kind("optimizer", _KINDS, data)
