"""Large calls in small: a helper takes part in all, and the log goes to the disk in pieces."""

import monolith_kv as mkv
from monolith_kv._table import Helper
from monolith_kv.storage import log_file

PIECE_BYTES = 256


def help_with_all(store: mkv.Store | None) -> None:
    """Have even the smallest calls of a store made as those of thousands of ids are."""
    assert store is not None
    store._state.helper = Helper(1)
    log_file.ALONE_BYTES = log_file.PIECE_BYTES = PIECE_BYTES
