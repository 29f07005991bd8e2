"""Settings of a table: what a new one gets, what may change in a living one, how it is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from monolith_kv import calls
from monolith_kv.errors import SchemaError
from monolith_kv.optimizers import Optimizer
from monolith_kv.policies import parse_ttl
from monolith_kv.schema import Slice, TableSchema, slices_of
from monolith_kv.state import StoreState, TableEntry


class Keep:
    """Stands for an argument that was left out."""

    def __repr__(self) -> str:
        return "..."


KEEP: Any = Keep()


def new_schema(
    name: str, dim: Any, optimizer: Any, initializer: Any, admission: Any, ttl: Any
) -> TableSchema:
    """Return the schema of a new table from the arguments of `Store.create_table`."""
    slices, named = slices_of(
        dim,
        None if optimizer is KEEP else optimizer,
        None if initializer is KEEP else initializer,
    )
    schema = TableSchema(name, slices, named)
    return settings_changed(schema, ttl, admission, KEEP)


def same_schema(
    known: TableSchema, dim: Any, optimizer: Any, initializer: Any, admission: Any, ttl: Any
) -> TableSchema:
    """Return the schema of a table that is there, with the settings that were given.

    Raises
    ------
    SchemaError
        What was given are other slices than the table has.
    """
    is_plain = not known.named and not isinstance(dim, Sequence)
    if is_plain and optimizer is KEEP:
        optimizer = known.slices[0].optimizer
    if is_plain and initializer is KEEP:
        initializer = known.slices[0].initializer
    given = new_schema(known.name, dim, optimizer, initializer, KEEP, KEEP)
    if not given.same_kind(known) or given.named != known.named:
        raise SchemaError(
            f"table {known.name} has slices {_kinds(known)}, got {_kinds(given)}; take another "
            "name, or the slices that it has"
        )
    return settings_changed(replace(known, slices=given.slices), ttl, admission, KEEP)


def _kinds(schema: TableSchema) -> list[tuple[str, int, str]]:
    return [(part.name, part.dim, type(part.optimizer).__name__) for part in schema.slices]


def create(state: StoreState, schema: TableSchema) -> TableEntry:
    """Log and make a new table. Under the mutex."""
    entry = state.make_entry(state.next_table_id, schema)
    calls.log_schema(
        state,
        lambda log: log.create(entry.id, schema.to_json()),
        lambda: state.add_entry(entry),
        lambda: state.tables.get(schema.name) is entry,
    )
    return entry


def drop(state: StoreState, entry: TableEntry) -> None:
    """Log and make the end of a table. Under the mutex."""

    def change() -> None:
        with state.barrier:
            state.drop_entry(entry)

    calls.log_schema(state, lambda log: log.drop(entry.id), change, lambda: entry.dropped)


def configure(state: StoreState, entry: TableEntry, schema: TableSchema) -> None:
    """Log and make a change of a table's settings. Under the mutex."""
    if schema == entry.schema:
        return
    calls.log_schema(
        state,
        lambda log: log.configure(entry.id, schema.to_json()),
        lambda: state.change_schema(entry, schema),
        lambda: entry.schema is schema,
    )


def settings_changed(
    schema: TableSchema,
    ttl: Any,
    admission: Any,
    optimizer: Any,
) -> TableSchema:
    """Return a schema with those settings that are not KEEP, checked."""
    changes: dict[str, Any] = {}
    if ttl is not KEEP:
        changes["ttl_default"], changes["ttl_slots"] = parse_ttl(ttl)
    if admission is not KEEP:
        changes["admission"] = admission
    if optimizer is not KEEP:
        changes["slices"] = _with_optimizers(schema, optimizer)
    return replace(schema, **changes)


def _with_optimizers(schema: TableSchema, optimizer: Any) -> Any:
    if isinstance(optimizer, Mapping) != schema.named:
        wanted = "a mapping by slice name" if schema.named else "an Optimizer"
        raise TypeError(
            f"optimizer of table {schema.name} must be {wanted}, got {type(optimizer).__name__}"
        )
    by_name = dict(optimizer) if schema.named else {"": optimizer}
    names = [part.name for part in schema.slices]
    for name, given in by_name.items():
        if name not in names:
            raise ValueError(f"table {schema.name} has no slice {name!r}, it has {names}")
        if not isinstance(given, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(given).__name__}")
        kind = type(schema.slices[names.index(name)].optimizer)
        if type(given) is not kind:
            raise SchemaError(
                f"table {schema.name} is trained with {kind.__name__}, got "
                f"{type(given).__name__}; make another table for another kind"
            )
    return tuple(
        _with_optimizer(part, by_name.get(part.name, part.optimizer)) for part in schema.slices
    )


def _with_optimizer(part: Slice, optimizer: Optimizer) -> Slice:
    if part.name:
        return replace(part, optimizer=optimizer)
    (unnamed,), _ = slices_of(part.dim, optimizer, part.initializer)
    return unnamed
