"""The published formulas in NumPy float32: one optimizer step of one row, initial values, hashing.

Written from the contract and from the formulas in the sources' docstrings, not from their code, so
that tests compare two independent readings. A kernel is described by its class name and arguments.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
State = dict[str, Floats]

F32 = np.float32
MASK = (1 << 64) - 1


class Kernel(NamedTuple):
    """An optimizer or initializer by name and arguments, as hashable plain values."""

    name: str
    arguments: tuple[tuple[str, float], ...] = ()

    def make(self, package):
        """The value of the package under test that this stands for."""
        return getattr(package, self.name)(**dict(self.arguments))


def kernel(name: str, **arguments: float) -> Kernel:
    return Kernel(name, tuple(sorted(arguments.items())))


# --- optimizers --------------------------------------------------------------------------------

OPTIMIZER_DEFAULTS: dict[str, dict[str, float]] = {
    "SGD": {"lr": 0.01},
    "Momentum": {"lr": 0.01, "momentum": 0.9},
    "Adagrad": {"lr": 0.05, "initial_accumulator": 0.1, "weight_decay": 0.0},
    "RowWiseAdagrad": {"lr": 0.05, "initial_accumulator": 0.1},
    "RMSProp": {"lr": 0.01, "decay": 0.9, "epsilon": 1e-8},
    "Adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0},
    "Ftrl": {"lr": 0.05, "l1": 0.0, "l2": 0.0, "beta": 1.0, "lr_power": -0.5},
}


def fresh_state(optimizer: Kernel, dim: int) -> State:
    """Optimizer state of a row that no gradient has reached yet."""
    given = OPTIMIZER_DEFAULTS[optimizer.name] | dict(optimizer.arguments)

    def full(value: float, width: int = dim) -> Floats:
        return np.full(width, value, F32)

    return {
        "SGD": dict,
        "Momentum": lambda: {"momentum": full(0)},
        "Adagrad": lambda: {"accumulator": full(given["initial_accumulator"])},
        "RowWiseAdagrad": lambda: {"accumulator": full(given["initial_accumulator"], 1)},
        "RMSProp": lambda: {"mean_square": full(0)},
        "Adam": lambda: {"step": full(0, 1), "m": full(0), "v": full(0)},
        "Ftrl": lambda: {"z": full(0), "n": full(0)},
    }[optimizer.name]()


def step(optimizer: Kernel, w: Floats, state: State, g: Floats) -> tuple[Floats, State]:
    """The row and its state after one step with the summed gradient g; nothing in place."""
    given = OPTIMIZER_DEFAULTS[optimizer.name] | dict(optimizer.arguments)
    with np.errstate(all="ignore"):
        return STEPS[optimizer.name](given, w, state, g)


def _sgd(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    return w - F32(o["lr"]) * g, s


def _momentum(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    momentum = F32(o["momentum"]) * s["momentum"] + g
    return w - F32(o["lr"]) * momentum, {"momentum": momentum}


def _adagrad(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    g = g + F32(o["weight_decay"]) * w
    accumulator = s["accumulator"] + g * g
    return w - F32(o["lr"]) * g / np.sqrt(accumulator), {"accumulator": accumulator}


def _rowwise_adagrad(
    o: Mapping[str, float], w: Floats, s: State, g: Floats
) -> tuple[Floats, State]:
    accumulator = s["accumulator"] + np.mean(g * g, dtype=np.float64).astype(F32)
    return w - F32(o["lr"]) * g / np.sqrt(accumulator), {"accumulator": accumulator}


def _rmsprop(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    mean_square = F32(o["decay"]) * s["mean_square"] + (F32(1) - F32(o["decay"])) * g * g
    w = w - F32(o["lr"]) * g / (np.sqrt(mean_square) + F32(o["epsilon"]))
    return w, {"mean_square": mean_square}


def _adam(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    beta1, beta2 = F32(o["beta1"]), F32(o["beta2"])
    count = s["step"] + F32(1)
    m = beta1 * s["m"] + (F32(1) - beta1) * g
    v = beta2 * s["v"] + (F32(1) - beta2) * g * g
    # The corrections are scalars of the row, in double: 1 - beta^step cancels in float32.
    unbiased_m = m / F32(1 - float(beta1) ** float(count[0]))
    unbiased_v = v / F32(1 - float(beta2) ** float(count[0]))
    change = unbiased_m / (np.sqrt(unbiased_v) + F32(o["epsilon"])) + F32(o["weight_decay"]) * w
    return w - F32(o["lr"]) * change, {"step": count, "m": m, "v": v}


def _ftrl(o: Mapping[str, float], w: Floats, s: State, g: Floats) -> tuple[Floats, State]:
    lr, p = F32(o["lr"]), -F32(o["lr_power"])
    n = s["n"] + g * g
    z = s["z"] + g - (n**p - s["n"] ** p) / lr * w
    shrunk = -(z - np.sign(z) * F32(o["l1"])) / ((F32(o["beta"]) + n**p) / lr + F32(o["l2"]))
    return np.where(np.abs(z) <= F32(o["l1"]), F32(0), shrunk).astype(F32), {"z": z, "n": n}


STEPS: dict[str, Callable[..., tuple[Floats, State]]] = {
    "SGD": _sgd,
    "Momentum": _momentum,
    "Adagrad": _adagrad,
    "RowWiseAdagrad": _rowwise_adagrad,
    "RMSProp": _rmsprop,
    "Adam": _adam,
    "Ftrl": _ftrl,
}

# --- hashing -----------------------------------------------------------------------------------


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, variant 13: a bijection of 64 bits."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The inverse of mix()."""

    def unshift(y: NDArray[np.uint64], by: int) -> NDArray[np.uint64]:
        shifted = y
        for _ in range(64 // by):
            shifted = y ^ (shifted >> np.uint64(by))
        return shifted

    x = unshift(x, 31) * np.uint64(pow(0x94D049BB133111EB, -1, 1 << 64))
    x = unshift(x, 27) * np.uint64(pow(0xBF58476D1CE4E5B9, -1, 1 << 64))
    return unshift(x, 30)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_fids(fids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return mix(fids + GOLDEN)


def fids_of_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ids whose hashes these are: lets a test aim at one shard or one index segment."""
    return unmix(hashes) - GOLDEN


# --- initial values ----------------------------------------------------------------------------

INITIALIZER_DEFAULTS: dict[str, dict[str, float]] = {
    "Zeros": {},
    "Constant": {},
    "Uniform": {"low": -0.05, "high": 0.05, "seed": 0},
    "Normal": {"mean": 0.0, "std": 0.01, "seed": 0},
}


def initial_value(initializer: Kernel, table: str, part: str, dim: int, fid: int) -> Floats:
    """The first value of a row's slice, by the formulas above cython_src/_initializers.pxd."""
    given = INITIALIZER_DEFAULTS[initializer.name] | dict(initializer.arguments)
    if initializer.name == "Zeros":
        return np.zeros(dim, F32)
    if initializer.name == "Constant":
        return np.full(dim, given["value"], F32)
    seed = int(given["seed"]).to_bytes(8, "little")
    text = f"{table}\0{part}\0".encode() + seed
    key = np.uint64(int.from_bytes(hashlib.blake2b(text).digest()[:8], "little"))
    base = mix(hash_fids(np.array([fid], np.uint64)) ^ key)
    # One more word than asked for: an odd dim's last normal value uses half of a pair.
    places = np.arange(1, dim + 2, dtype=np.uint64)
    words = mix(base + places * GOLDEN)
    if initializer.name == "Uniform":
        low, high = float(F32(given["low"])), float(F32(given["high"]))
        unit = (words[:dim] >> np.uint64(40)).astype(np.float64) * 2.0**-24
        return (low + (high - low) * unit).astype(F32)
    mean, std = float(F32(given["mean"])), float(F32(given["std"]))
    places = np.arange(dim)
    pairs = places - places % 2
    radius = np.sqrt(-2 * np.log(((words[pairs] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    angle = 2 * np.pi * ((words[pairs + 1] >> np.uint64(11)) * 2.0**-53)
    wave = np.where(places % 2 == 0, np.cos(angle), np.sin(angle))
    return (mean + std * radius * wave).astype(F32)
