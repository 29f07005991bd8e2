"""What a table is: its slices, what each is trained and initialised with, its gate and its TTL.

A record is one row: the embeddings of all slices, then the optimizer state of all slices, in the
order of the slices. Every offset in it is derived here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from monolith_kv.errors import FormatVersionError
from monolith_kv.initializers import Initializer, Uniform, initializer_from_json
from monolith_kv.optimizers import Adagrad, Optimizer, optimizer_from_json
from monolith_kv.policies import SLOT_MAX, FrequencyGate

__all__ = ["DIM_MAX", "Slice", "TableSchema", "check_name", "slices_of"]

DIM_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def check_name(name: str, what: str) -> str:
    """Return `name` if a table or a slice may be called so.

    Parameters
    ----------
    name : str
        1 to 64 of A-Z a-z 0-9 _ . -
    what : str
        What it names, for the message.

    Raises
    ------
    TypeError, ValueError
        It is not a string, or not of this form.

    Examples
    --------
    >>> check_name("item.v2", "table name")
    'item.v2'
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {type(name).__name__}")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{what} must be 1 to 64 of A-Z a-z 0-9 _ . -, got {name!r}")
    return name


@dataclass(frozen=True)
class Slice:
    """One part of a record, with its own dim, optimizer and initializer.

    Parameters
    ----------
    name : str
        1 to 64 of A-Z a-z 0-9 _ . -
    dim : int
        1 to 4096.
    optimizer : Optimizer
        What trains it.
    initializer : Initializer
        What its values start with.

    Examples
    --------
    >>> bias = Slice("bias", 1, Adagrad(lr=0.1))
    >>> bias.name, bias.dim
    ('bias', 1)
    """

    name: str
    dim: int
    optimizer: Optimizer = Adagrad()
    initializer: Initializer = Uniform()

    def __post_init__(self) -> None:
        check_name(self.name, "slice name")
        object.__setattr__(self, "dim", _check_dim(self.dim))
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be one such as Adagrad(), got {_described(self.optimizer)}"
            )
        if not isinstance(self.initializer, Initializer):
            raise TypeError(
                f"initializer must be one such as Uniform(), got {_described(self.initializer)}"
            )

    @property
    def state_floats(self) -> int:
        """Width of its optimizer state in float32."""
        return sum(width for _, width in self.optimizer.state_slots(self.dim))


@dataclass(frozen=True)
class TableSchema:
    """All that a table is but its rows.

    Parameters
    ----------
    name : str
        1 to 64 of A-Z a-z 0-9 _ . -
    slices : tuple of Slice
        At least one, with distinct names; their dims sum up to 4096 at most.
    named : bool
        True when the user gave slices; else there is one, named "".
    admission : FrequencyGate, optional
        None: every id is admitted at once.
    ttl_default : int, optional
        Whole seconds; None: never.
    ttl_slots : dict
        Whole seconds by slot, for the slots that have their own.

    Examples
    --------
    >>> schema = TableSchema("item", *slices_of(8))
    >>> schema.dim, schema.state_floats, schema.state_layout()
    (8, 8, [('accumulator', 0, 8)])
    """

    name: str
    slices: tuple[Slice, ...]
    named: bool
    admission: FrequencyGate | None = None
    ttl_default: int | None = None
    ttl_slots: Mapping[int, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_name(self.name, "table name")
        names = [part.name for part in self.slices]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"slices must be at least one, of distinct names, got {names}")
        if not self.named and names != [""]:
            raise ValueError(f"a table without named slices has one slice, got {names}")
        if self.dim > DIM_MAX:
            raise ValueError(f"dim must be 1..{DIM_MAX} over all slices, got {self.dim}")
        if self.admission is not None and not isinstance(self.admission, FrequencyGate):
            raise TypeError(
                f"admission must be a FrequencyGate or None, got {_described(self.admission)}"
            )

    @property
    def dim(self) -> int:
        """Width of the embedding in float32, over all slices."""
        return sum(part.dim for part in self.slices)

    @property
    def state_floats(self) -> int:
        """Width of the optimizer state in float32, over all slices."""
        return sum(part.state_floats for part in self.slices)

    def state_layout(self) -> list[tuple[str, int, int]]:
        """Return public name, offset and width of each part of a row's optimizer state.

        Returns
        -------
        list of (str, int, int)
            "name", or "slice.name" where slices were given; in float32, from the start of the
            state.
        """
        layout, offset = [], 0
        for part in self.slices:
            for slot, width in part.optimizer.state_slots(part.dim):
                layout.append((f"{part.name}.{slot}" if self.named else slot, offset, width))
                offset += width
        return layout

    def initializer_key(self, part: Slice) -> int:
        """Return what stands for seed, table and slice when the initial value of an id is drawn.

        Parameters
        ----------
        part : Slice
            One of the slices.

        Returns
        -------
        int
            Unsigned, 64 bits. On disk, in effect: every row starts from it, so it never changes.
        """
        seed = part.initializer.parameters()[2]
        text = f"{self.name}\0{part.name}\0".encode()
        from hashlib import blake2b  # It loads OpenSSL: not before it is needed.

        return int.from_bytes(blake2b(text + seed.to_bytes(8, "little")).digest()[:8], "little")

    def core_slices(self) -> list[tuple[int, int, tuple[float, ...], int, float, float, int]]:
        """Return the slices in the form that the data plane takes them."""
        slices = []
        for part in self.slices:
            a, b, _ = part.initializer.parameters()
            optimizer = part.optimizer
            key = self.initializer_key(part)
            slices.append(
                (part.dim, optimizer.kind, optimizer.hyper(), part.initializer.kind, a, b, key)
            )
        return slices

    def same_kind(self, other: "TableSchema") -> bool:
        """Tell whether rows of both tables look alike: names, dims and optimizer kinds.

        Parameters
        ----------
        other : TableSchema
            The table to compare with.
        """
        return self._kinds() == other._kinds()

    def _kinds(self) -> list[tuple[str, int, int]]:
        return [(part.name, part.dim, part.optimizer.kind) for part in self.slices]

    def to_json(self) -> dict[str, Any]:
        """Return this schema as a JSON object; `from_json` reads it."""
        return {
            "name": self.name,
            "named": self.named,
            "slices": [
                {
                    "name": part.name,
                    "dim": part.dim,
                    "optimizer": part.optimizer.to_json(),
                    "initializer": part.initializer.to_json(),
                }
                for part in self.slices
            ],
            "admission": None if self.admission is None else self.admission.to_json(),
            "ttl_default": self.ttl_default,
            "ttl_slots": {str(slot): ttl_s for slot, ttl_s in sorted(self.ttl_slots.items())},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TableSchema":
        """Return the schema that `to_json` wrote.

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
        >>> schema = TableSchema("item", *slices_of(8))
        >>> TableSchema.from_json(schema.to_json()) == schema
        True
        """
        try:
            named = data["named"]
            gate = data["admission"]
            return cls(
                data["name"],
                tuple(_slice_from_json(part, named) for part in data["slices"]),
                named,
                None if gate is None else FrequencyGate.from_json(gate),
                None if data["ttl_default"] is None else _ttl(data["ttl_default"]),
                {_slot(slot): _ttl(ttl_s) for slot, ttl_s in data["ttl_slots"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatVersionError(f"schema {data!r} cannot be read: {error!r}") from error


def _ttl(seconds: Any) -> int:
    if type(seconds) is not int or not 0 <= seconds < 2**63:
        raise ValueError(f"a TTL is whole seconds, got {seconds!r}")
    return seconds


def _slot(text: str) -> int:
    slot = int(text)
    if not 0 <= slot <= SLOT_MAX:
        raise ValueError(f"slots are 0 to {SLOT_MAX}, got {text}")
    return slot


def slices_of(
    dim: int | Sequence[Slice],
    optimizer: Optimizer | None = None,
    initializer: Initializer | None = None,
) -> tuple[tuple[Slice, ...], bool]:
    """Return the slices that `dim` stands for, and whether they are named.

    Parameters
    ----------
    dim : int or sequence of Slice
        One unnamed slice of this width, or the slices themselves.
    optimizer, initializer : optional
        Of the unnamed slice; None for the defaults, Adagrad() and Uniform().

    Raises
    ------
    TypeError, ValueError
        `dim` is neither, or not 1..4096; slices came together with an optimizer or an
        initializer, which each of them has itself.

    Examples
    --------
    >>> slices_of([Slice("bias", 1), Slice("vector", 8)])[1]
    True
    """
    if isinstance(dim, Iterable) and not isinstance(dim, str | bytes):
        slices = tuple(dim)
        for part in slices:
            if not isinstance(part, Slice):
                raise TypeError(f"dim must be an int or a sequence of Slice, got {part!r} in it")
        if optimizer is not None or initializer is not None:
            raise ValueError(
                "optimizer and initializer must be left out beside slices, "
                "give them to each Slice instead"
            )
        return slices, True
    optimizer = Adagrad() if optimizer is None else optimizer
    initializer = Uniform() if initializer is None else initializer
    return (_unnamed(dim, optimizer, initializer),), False


def _unnamed(dim: int, optimizer: Optimizer, initializer: Initializer) -> Slice:
    """Make the one slice that has no name, which a user cannot."""
    part = Slice("unnamed", dim, optimizer, initializer)
    object.__setattr__(part, "name", "")
    return part


def _slice_from_json(data: dict[str, Any], named: bool) -> Slice:
    optimizer = optimizer_from_json(data["optimizer"])
    initializer = initializer_from_json(data["initializer"])
    if named:
        return Slice(data["name"], data["dim"], optimizer, initializer)
    return _unnamed(data["dim"], optimizer, initializer)


def _check_dim(dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, Integral):
        raise TypeError(f"dim must be an int or a sequence of Slice, got {type(dim).__name__}")
    if not 1 <= dim <= DIM_MAX:
        raise ValueError(f"dim must be 1..{DIM_MAX}, got {dim}")
    return int(dim)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
