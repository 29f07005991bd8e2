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
    environment : str
        Name of the one that it needs; empty: this interpreter will do.
    requirements : tuple of str
        What pip installs into it.
    program : str
        That has to be on the PATH.
    how : str
        To get that program.
    is_store : bool
        Keeps bytes for keys and knows nothing of rows.
    remark : str
        What one has to know to read its figures.
    """

    name: str
    adapter: str
    environment: str = ""
    requirements: tuple[str, ...] = ()
    program: str = ""
    how: str = ""
    is_store: bool = False
    remark: str = ""


NUMPY = "numpy>=1.26"
TORCH = (NUMPY, "torch==2.13.0")
FBGEMM = (*TORCH, "fbgemm-gpu-cpu==1.8.0")
TFRA = ("tensorflow-cpu==2.16.2", "tensorflow-recommenders-addons==0.8.1")
NO_INDEX = "no index: it is handed positions in place of ids"
_ALL = (
    Entry(OWN, "own.MonolithKv"),
    Entry("dict", "plain.PlainDict"),
    Entry("lmdb", "lmdb_file.LmdbFile", is_store=True, remark="rows in a file that is mapped"),
    Entry(
        "rocksdict",
        "rocksdict_file.RocksdictFile",
        environment="rocksdict",
        requirements=(NUMPY, "rocksdict==0.3.29"),
        is_store=True,
        remark="rows in files, its memory is a cache",
    ),
    Entry(
        "redis",
        "redis_server.RedisServer",
        environment="redis",
        requirements=(NUMPY, "redis[hiredis]==8.1.0"),
        program="redis-server",
        how="apt-get install redis-server",
        is_store=True,
        remark="memory is the server's; what it saves is compressed",
    ),
    Entry(
        "torch",
        "torch_table.TorchEmbedding",
        environment="torch",
        requirements=TORCH,
        remark=f"nn.Embedding; {NO_INDEX}",
    ),
    Entry(
        "torch-bags",
        "torch_table.TorchBags",
        environment="torch",
        requirements=TORCH,
        remark=f"nn.EmbeddingBag, one id in every bag; {NO_INDEX}",
    ),
    Entry(
        "fbgemm",
        "fbgemm_table.FbgemmRows",
        environment="fbgemm",
        requirements=FBGEMM,
        remark=f"pooling NONE; {NO_INDEX}",
    ),
    Entry(
        "fbgemm-bags",
        "fbgemm_table.FbgemmBags",
        environment="fbgemm",
        requirements=FBGEMM,
        remark=f"pooling SUM, one id in every bag; {NO_INDEX}",
    ),
    Entry("tfra", "tfra_table.TfraTable", environment="tfra", requirements=TFRA),
)
ENTRIES = {entry.name: entry for entry in _ALL}


def make(name: str) -> Contender:
    """Import the adapter, and with it the library, and return the contender."""
    module, _, kind = ENTRIES[name].adapter.rpartition(".")
    imported = importlib.import_module(f"monolith_kv_tools.bench.compare.contenders.{module}")
    contender: Contender = getattr(imported, kind)()
    return contender
