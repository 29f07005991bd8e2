"""monolith_kv: an embedding store for models that learn online.

Examples
--------
>>> import monolith_kv as mkv
>>> mkv.FrequencyGate(threshold=3).default_threshold
3
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

__version__ = "0.1.0"
