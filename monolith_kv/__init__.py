"""monolith_kv: an embedding store for models that learn online.

`open` a store, `create_table`, `pull` rows and `push` gradients; `seal` publishes what changed as a
small delta, `snapshot` all of it as a checkpoint. What stands here is the public contract; modules
below it may change at any time.

Examples
--------
>>> import tempfile
>>> import monolith_kv as mkv
>>> with mkv.open(tempfile.mkdtemp()) as store:
...     items = store.create_table("item", dim=4, initializer=mkv.Zeros())
...     items.pull([7]).tolist()
[[0.0, 0.0, 0.0, 0.0]]
"""

from monolith_kv.errors import (
    ClockError,
    ClosedError,
    CorruptionError,
    DataLossWarning,
    Error,
    FencedError,
    ForkedError,
    FormatVersionError,
    GapError,
    ReadOnlyError,
    SchemaError,
    StoreFullError,
    StoreLockedError,
    TableExistsError,
)
from monolith_kv.initializers import Constant, Initializer, Normal, Uniform, Zeros
from monolith_kv.optimizers import (
    SGD,
    Adagrad,
    Adam,
    Ftrl,
    Momentum,
    Optimizer,
    RMSProp,
    RowWiseAdagrad,
)
from monolith_kv.policies import FrequencyGate
from monolith_kv.published import Compaction, Delta, Snapshot
from monolith_kv.schema import Slice

try:
    from monolith_kv.dense_parameters import DenseParameters
    from monolith_kv.store import Store, open, restore, salvage
    from monolith_kv.table import Table
except ModuleNotFoundError as error:
    if (error.name or "").startswith("monolith_kv._"):
        raise ImportError(
            f"the extension {error.name} is not built for this Python; in a source tree run "
            "`make build` (or `python setup.py build_ext --inplace`), elsewhere install the "
            "package: pip install monolith-kv"
        ) from error
    raise

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "ClockError",
    "ClosedError",
    "Compaction",
    "Constant",
    "CorruptionError",
    "DataLossWarning",
    "Delta",
    "DenseParameters",
    "Error",
    "FencedError",
    "ForkedError",
    "FormatVersionError",
    "FrequencyGate",
    "Ftrl",
    "GapError",
    "Initializer",
    "Momentum",
    "Normal",
    "Optimizer",
    "RMSProp",
    "ReadOnlyError",
    "RowWiseAdagrad",
    "SchemaError",
    "Slice",
    "Snapshot",
    "Store",
    "StoreFullError",
    "StoreLockedError",
    "Table",
    "TableExistsError",
    "Uniform",
    "Zeros",
    "open",
    "restore",
    "salvage",
]
