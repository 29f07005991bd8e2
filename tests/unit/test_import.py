"""What `import monolith_kv` brings in: every process that only looks something up pays for it."""

import subprocess
import sys

LATE = {
    "lmdb": "stores without a memory limit have no overflow tier",
    "hashlib": "it loads OpenSSL",
    "ctypes.util": "it starts processes to look for libraries",
    "multiprocessing": "nothing here starts processes",
    "subprocess": "nothing here starts processes",
    "socket": "nothing here listens",
    "urllib.request": "paths are paths",
    "concurrent.futures": "threads are made where they are needed",
    "pyarrow": "of the server alone",
    "torch": "of the trainer alone",
    "monolith_kv._testing": "doors for tests",
    "monolith_kv._yardsticks": "for benchmarks",
}


def test_an_import_loads_nothing_that_most_stores_never_use() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import monolith_kv; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "monolith_kv.store" in loaded
    assert {name: LATE[name] for name in loaded & set(LATE)} == {}
