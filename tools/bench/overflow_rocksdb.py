"""A training step beside RocksDB, which does the same work within the same memory.

RocksDB has no optimizer: a step reads rows and accumulators of the distinct ids, takes Adagrad's
step in NumPy and writes both back, one value for each id. It promises as little as the engine does
here: no log is written. Block cache, memtables, indexes and filters are all within the limit.
"""

from collections.abc import Iterator

import numpy as np
from monolith_kv_tools.bench.compare.adagrad import adagrad_step, summed
from monolith_kv_tools.bench.compare.contenders.stores import keys_of, values_of
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import compare
from monolith_kv_tools.bench.overflow_bed import Bed, Ids
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import DIM
from monolith_kv_tools.bench.traffic import BATCH, zipf_ranks
from numpy.typing import NDArray

import monolith_kv as mkv

Rows = NDArray[np.float32]
# By trial on 300,000 rows: of 1/4, 1/2 and 3/4, with and without a cache of rows.
MEMTABLE_SHARE = 2
BLOCK_BYTES = 4096
BLOOM_BITS = 10
WARM_TURNS = 2  # Rows that are asked for, of those that memory holds, until caches have settled.


class RocksRows:
    """Rows and accumulators by id, trained by a batch.

    Parameters
    ----------
    folder : str
        For the database; absent.
    limit_bytes : int
        Of all that it keeps in memory.

    Raises
    ------
    ImportError
        rocksdict is not installed.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        import rocksdict

        self._cache = cache = rocksdict.Cache(limit_bytes)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(cache)
        blocks.set_block_size(BLOCK_BYTES)
        blocks.set_bloom_filter(BLOOM_BITS, False)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        # As optimize_for_point_lookup, which makes a cache of its own.
        blocks.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
        blocks.set_data_block_hash_ratio(0.75)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_block_based_table_factory(blocks)
        # What memtables take is taken from the cache.
        manager = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
            limit_bytes // MEMTABLE_SHARE, False, cache
        )
        options.set_write_buffer_manager(manager)
        options.set_write_buffer_size(limit_bytes // MEMTABLE_SHARE // 2)
        self._rocksdict = rocksdict
        self._file = rocksdict.Rdict(folder, options=options)
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True

    def load(self, table: mkv.Table, ids: Ids) -> None:
        """Take over rows and state of a table."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            self._write(part, np.hstack([table.lookup(part), *table.state(part).values()]))
        self._file.flush()
        self._file.compact_range(None, None)  # As advised after a bulk load.

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        """Return the rows of a batch and train them, gradients of one id summed."""
        distinct, sums = summed(ids, gradients)
        values = self._file[keys_of(distinct)]
        both = np.frombuffer(bytearray().join(values), np.float32).reshape(-1, 2 * DIM)
        pulled: Rows = both[np.searchsorted(distinct, ids), :DIM]
        adagrad_step(both[:, :DIM], both[:, DIM:], sums)
        self._write(distinct, both)
        return pulled

    def _write(self, ids: Ids, both: Rows) -> None:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in zip(keys_of(ids), values_of(both), strict=True):
            batch.put(key, value)
        self._file.write(batch, self._unlogged)

    def used(self) -> int:
        """Return what it has in memory, by its own count."""
        size: int = self._cache.get_usage()
        return size

    def close(self) -> None:
        """Close it."""
        self._file.close()


def beside_rocksdb(bed: Bed, folder: str, zipf: float, scale: Scale) -> Iterator[Figure]:
    """Compare one step, and see that both train the same; nothing where there is no rocksdict."""
    try:
        rocks = RocksRows(f"{folder}/rocksdb", bed.limit)
    except ImportError:
        return
    rows = len(bed.ids)
    rocks.load(bed.table, bed.ids)
    rng = np.random.default_rng(10)
    gradients = 1e-3 * rng.standard_normal((BATCH, DIM), np.float32)
    ids = bed.ids[:BATCH]
    out, other = np.empty_like(gradients), np.empty_like(gradients)

    def choose() -> None:
        nonlocal ids
        ids = bed.ids[zipf_ranks(rng, rows, BATCH, zipf)]

    def step() -> None:
        bed.table.pull(ids, out=out)
        bed.table.push(ids, gradients)

    def other_step() -> None:
        nonlocal other
        other = rocks.step(ids, gradients)

    asked, until = 0, int(WARM_TURNS * bed.resident() * min(1, scale.share))
    while asked < until:
        choose()
        step()
        other_step()
        asked += len(np.unique(ids))
    found = compare("rocksdb", step, other_step, rounds=scale.rounds(65), before=choose)
    np.testing.assert_allclose(out, other, rtol=1e-3, atol=1e-4)
    used = bed.store.stats()["memory"]["used"], rocks.used()
    rocks.close()
    detail = f"{found.detail()}, with {used[0] / 1e6:.0f} : {used[1] / 1e6:.0f} MB"
    yield Figure("overflow rocksdb", found.ratio, rows, detail)
