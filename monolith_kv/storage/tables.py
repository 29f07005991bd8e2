"""From META to tables: the schemas that a file names, and a state with just these tables.

What must hold: a table never becomes one of another kind.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from monolith_kv.errors import CorruptionError, SchemaError
from monolith_kv.schema import TableSchema
from monolith_kv.state import StoreState, TableEntry
from monolith_kv.storage.cold_rows import ColdRows
from monolith_kv.storage.framing import Record


def read_schemas(tables: Iterable[Mapping[str, Any]], path: str) -> dict[int, TableSchema]:
    """Return the schemas in META by table id."""
    found: dict[int, TableSchema] = {}
    for data in tables:
        table_id = data.get("id") if isinstance(data, dict) else None
        if not isinstance(table_id, int) or table_id in found:
            raise CorruptionError(f"{path}: table id {table_id!r} is none, or there twice", path)
        found[table_id] = TableSchema.from_json(dict(data))
    names = [schema.name for schema in found.values()]
    if len(set(names)) != len(names):
        raise CorruptionError(f"{path}: two tables have one name, {names}", path)
    return found


def check_schemas(state: StoreState, schemas: Mapping[int, TableSchema], path: str) -> None:
    """Raise SchemaError where a table would become one of another kind."""
    for entry in state.tables.values():
        schema = schemas.get(entry.id)
        if schema is not None and not (
            schema.same_kind(entry.schema) and schema.name == entry.schema.name
        ):
            raise SchemaError(
                f"{path}: table {entry.id} is {schema.name} of other slices than the store's "
                f"{entry.schema.name}; restore a snapshot of the same store"
            )


def sync_tables(state: StoreState, tables: Iterable[Mapping[str, Any]], path: str) -> None:
    """Make the tables those that META names: create, drop, configure."""
    schemas = read_schemas(tables, path)
    check_schemas(state, schemas, path)
    with state.mutex:
        for entry in list(state.tables.values()):
            if entry.id not in schemas:
                state.drop_entry(entry)
        known = {entry.id: entry for entry in state.tables.values()}
        for table_id, schema in schemas.items():
            if table_id not in known:
                state.put_entry(state.make_entry(table_id, schema))
            elif known[table_id].schema != schema:
                state.change_schema(known[table_id], schema)
        state.next_table_id = max([state.next_table_id, *(i + 1 for i in schemas)])


def entry_of(by_id: Mapping[int, TableEntry], record: Record | ColdRows, path: str) -> TableEntry:
    """Return the table that a record is about; CorruptionError if the file names none such."""
    entry = by_id.get(record.table)
    if entry is None:
        raise CorruptionError(
            f"{path} at byte {record.offset}: a record of table {record.table}, of which META "
            "knows nothing; run mkv verify",
            path,
            record.offset,
        )
    return entry
