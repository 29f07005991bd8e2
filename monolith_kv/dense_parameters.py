"""DenseParameters: the model's dense weights, versioned beside the tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import ArrayLike, NDArray

from monolith_kv.catalog import commit, drop_file
from monolith_kv.state import DenseState, StoreState
from monolith_kv.storage import dense


class DenseParameters(Mapping[str, NDArray[Any]]):
    """Map names to the model's dense weights, versioned beside the tables.

    It comes from `Store.dense`. Arrays are read-only; a new version replaces all of them at once,
    on a replica with the delta that brings it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import monolith_kv as mkv
    >>> with mkv.open(tempfile.mkdtemp()) as store:
    ...     version = store.dense.publish({"w": np.zeros(2)})
    ...     version, store.dense["w"].tolist()
    (1, [0.0, 0.0])
    """

    def __init__(self, state: StoreState) -> None:
        self._state = state

    @property
    def version(self) -> int:
        """Rises by one with each `publish`; 0 before the first."""
        return self._read().version

    def publish(self, arrays: Mapping[str, ArrayLike]) -> int:
        """Replace all arrays; durable when it returns, and part of the next delta.

        Parameters
        ----------
        arrays : mapping of str to array_like
            Of bool, integer, float16, float32 or float64; copied.

        Returns
        -------
        int
            The new version.

        Raises
        ------
        ReadOnlyError
            The store is not open "rw".
        TypeError, ValueError
            A name or an array cannot be stored; nothing changed.
        StoreFullError
            There is no room; nothing changed.
        """
        state = self._state
        state.check_writable()
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a mapping, got {type(arrays).__name__}")
        data = dense.pack(arrays)
        with state.files, state.mutex:
            state.check_writable()
            old = state.dense.entry
            entry = dense.store(state.path, state.dense.version + 1, data)
            try:
                commit(state, dense=entry)
            except BaseException:
                drop_file(state, dense.path_of(state.path, entry["name"]))
                raise
            state.dense = DenseState(
                version=entry["version"],
                arrays=dense.unpack(data),
                data=data,
                is_pending=True,
                entry=entry,
            )
            if old.get("name") not in (None, entry["name"]):
                drop_file(state, dense.path_of(state.path, old["name"]))
            state.check_durable()
            return state.dense.version

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self._read().arrays[name].view()
        array.setflags(write=False)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._read().arrays)

    def __len__(self) -> int:
        return len(self._read().arrays)

    def __repr__(self) -> str:
        held = self._state.dense  # Closed or not.
        return f"<monolith_kv.DenseParameters version={held.version} {sorted(held.arrays)}>"

    def _read(self) -> DenseState:
        self._state.check()
        return self._state.dense
