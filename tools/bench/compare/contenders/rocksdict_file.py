"""rocksdict: raw bytes, reads of a list of keys, writes by WriteBatch, set up for point lookups.

All rows fit into the block cache, nothing is compressed (rows of floats barely compress) and there
is no write-ahead log: nothing is promised here.
"""

from importlib.metadata import version
from pathlib import Path

from monolith_kv_tools.bench.compare.contenders.stores import ByteStore, keys_of, rows_of, values_of
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope
from rocksdict import Checkpoint, DBCompressionType, Options, Rdict, WriteBatch, WriteOptions

CACHE_MB = 2048
ACCUMULATORS = "accumulators"


class RocksdictFile(ByteStore):
    """Rows in the default column family, accumulators in one of their own."""

    def version(self) -> str:
        return f"rocksdict {version('rocksdict')}"

    def create(self, folder: Path, scope: Scope) -> None:
        self.dim = scope.dim
        self._open(folder / "rocksdb")

    def settle(self) -> None:
        for table in (self._file, self._accumulators):
            table.flush()
            # As advised after a bulk load: one sorted run to search in.
            table.compact_range(None, None)

    def read_rows(self, ids: Ids) -> Rows:
        return rows_of(self._file[keys_of(ids)], self.dim)

    def read_both(self, ids: Ids) -> tuple[Rows, Rows]:
        keys = keys_of(ids)
        return rows_of(self._file[keys], self.dim), rows_of(self._accumulators[keys], self.dim)

    def write(self, ids: Ids, rows: Rows, accumulators: Rows | None) -> None:
        batch = WriteBatch(raw_mode=True)
        keys = keys_of(ids)
        for key, value in zip(keys, values_of(rows), strict=True):
            batch.put(key, value)
        if accumulators is not None:
            for key, value in zip(keys, values_of(accumulators), strict=True):
                batch.put(key, value, self._family)
        self._file.write(batch, self._unlogged)

    def save(self, folder: Path) -> Path:
        path = folder / "checkpoint"
        Checkpoint(self._file).create_checkpoint(str(path))
        return path

    def load(self, path: Path) -> None:
        self._open(path)

    def close(self) -> None:
        self._accumulators.close()
        self._file.close()

    def _open(self, path: Path) -> None:
        families = {ACCUMULATORS: self._options()}
        self._file = Rdict(str(path), options=self._options(), column_families=families)
        self._accumulators = self._file.get_column_family(ACCUMULATORS)
        self._family = self._file.get_column_family_handle(ACCUMULATORS)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.optimize_for_point_lookup(CACHE_MB)
        options.set_compression_type(DBCompressionType.none())
        return options
