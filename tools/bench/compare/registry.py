"""Who takes part: where the adapter is, what has to be installed, in which environment."""

import importlib
from dataclasses import dataclass

from monolith_kv_tools.bench.compare.contender import Contender

OWN = "monolith_kv"


@dataclass(frozen=True)
class Entry:
    """One contender.

    Parameters
    ----------
    name : str
        In tables and on the command line.
    adapter : str
        Module and class below `contenders`.
    requirements : tuple of str
        What pip installs, in an environment of its own; none: this interpreter will do.
    program : str
        That has to be on the PATH.
    how : str
        To get that program.
    is_store : bool
        Keeps bytes for keys and knows nothing of rows.
    """

    name: str
    adapter: str
    requirements: tuple[str, ...] = ()
    program: str = ""
    how: str = ""
    is_store: bool = False


TORCH = ("numpy>=1.26", "torch==2.13.0")
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(OWN, "own.MonolithKv"),
        Entry("dict", "plain.PlainDict"),
        Entry("lmdb", "lmdb_file.LmdbFile", is_store=True),
    )
}


def make(name: str) -> Contender:
    """Import the adapter, and with it the library, and return the contender."""
    module, _, kind = ENTRIES[name].adapter.rpartition(".")
    imported = importlib.import_module(f"monolith_kv_tools.bench.compare.contenders.{module}")
    contender: Contender = getattr(imported, kind)()
    return contender
