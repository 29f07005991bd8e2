"""Who may use a handle, and where: one writer, no forked child, pickled by path."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checks import u64
from model import ManualClock

import monolith_kv as mkv

ONE = u64([1])
ROW = np.ones((1, 4), np.float32)


@pytest.fixture
def store(store_dir: Path, clock: ManualClock) -> Iterator[mkv.Store]:
    with mkv.open(store_dir, delta_interval=None, clock=clock) as store:
        store.create_table("t", 4).upsert(ONE, ROW)
        store.seal()
        yield store


def test_a_second_writer_is_refused_by_pid(store: mkv.Store) -> None:
    for mode in ("rw", "replica"):
        with pytest.raises(mkv.StoreLockedError, match=str(os.getpid())):
            mkv.open(store.path, mode=mode)
    code = f"import monolith_kv; monolith_kv.open({store.path!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "StoreLockedError" in run.stderr
    assert str(os.getpid()) in run.stderr
    store.table("t").push(ONE, ROW)


FORKED = """
import os, sys, warnings
import numpy as np
import monolith_kv as mkv

warnings.simplefilter("ignore", DeprecationWarning)
store = mkv.open(sys.argv[1], durability=sys.argv[2])
table = store.create_table("t", 1, optimizer=mkv.SGD(lr=1.0), initializer=mkv.Zeros())
ids, row = np.arange(10, dtype=np.uint64), np.ones((10, 1), np.float32)
table.upsert(ids, row)
child = os.fork()
if child == 0:
    calls = [
        lambda: table.lookup(ids), lambda: table.push(ids, row), lambda: table.pull(ids),
        lambda: table.remove(ids), lambda: len(table), store.seal, store.snapshot, store.compact,
        store.stats, store.digest, lambda: store.create_table("u", 1), store.verify,
        lambda: store.table("t"), lambda: store.dense.publish({}), lambda: 1 in table,
    ]
    bad = 0
    for call in calls:
        try:
            call()
            bad += 1
        except mkv.ForkedError:
            pass
    store.close()
    os._exit(bad)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
table.push(ids, row)
assert (table.lookup(ids) == 0).all() and store.verify() == []
try:
    mkv.open(sys.argv[1])
except mkv.StoreLockedError:
    pass
else:
    raise AssertionError("the child unlocked the parent's store")
store.close()
with mkv.open(sys.argv[1]) as store:
    assert (store.table("t").lookup(ids) == 0).all() and len(store.table("t")) == 10
"""


@pytest.mark.parametrize("durability", ["interval", "batch", "sync"])
def test_a_forked_child_is_refused_and_the_parent_unharmed(
    store_dir: Path, durability: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKED, str(store_dir), durability],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_a_store_that_is_not_there_is_not_read(store_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mkv.open(store_dir, mode="r")
    assert not store_dir.exists()


# --- pickling ----------------------------------------------------------------------------------


def test_a_store_pickles_as_its_path_and_opens_there_to_read(store: mkv.Store) -> None:
    with pickle.loads(pickle.dumps(store)) as copy:
        assert (copy.mode, copy.path) == ("r", store.path)
        assert copy.digest() == store.digest()
        with pytest.raises(mkv.ReadOnlyError):
            copy.seal()


def test_a_table_pickles_and_reads_in_another_process(store: mkv.Store, folder: Path) -> None:
    (folder / "table.pickle").write_bytes(pickle.dumps(store.table("t")))
    code = (
        "import pickle, sys, numpy as np\n"
        "table = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert table.name == 't' and (table.lookup(np.array([1, 2], np.uint64))[0] == 1).all()\n"
        "assert len(table) == 1\n"
    )
    command = [sys.executable, "-c", code, str(folder / "table.pickle")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_handle_of_a_store_that_is_gone_does_not_unpickle(
    store_dir: Path, clock: ManualClock
) -> None:
    with mkv.open(store_dir, delta_interval=None, clock=clock) as store:
        data = pickle.dumps(store)
    store_dir.rename(store_dir.with_name("moved"))
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


# --- opening and closing -----------------------------------------------------------------------


def test_the_lock_goes_with_the_handle(store: mkv.Store) -> None:
    store.close()
    with mkv.open(store.path) as again, pytest.raises(mkv.StoreLockedError):
        mkv.open(again.path)


def test_what_a_store_shows_of_itself_cannot_be_set(store: mkv.Store) -> None:
    table = store.table("t")
    for name, value in (("dim", 1), ("name", "u")):
        with pytest.raises(AttributeError):
            setattr(table, name, value)
    store.seal(cursor={"parts": [1, 2]})
    store.cursor["parts"].append(3)
    assert store.cursor == {"parts": [1, 2]}


def test_a_list_of_ids_on_both_sides_of_the_sign_is_taken_as_it_is(store: mkv.Store) -> None:
    table = store.table("t")
    table.upsert([2**63, 5, -1], np.arange(12, dtype=np.float32).reshape(3, 4))
    assert table.lookup([2**63, 5, 2**64 - 1])[:, 0].tolist() == [0.0, 4.0, 8.0]
    assert 2**63 in table


def test_a_table_is_no_sequence_of_its_first_ids(store: mkv.Store) -> None:
    table = store.table("t")
    table.upsert(np.array([0, 1], np.uint64), np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="not iterable"):
        list(table)


def test_handles_of_a_closed_store_still_tell_what_they_are(store: mkv.Store) -> None:
    store.dense.publish({"w": np.zeros(2)})
    store.close()
    assert repr(store.dense) == "<monolith_kv.DenseParameters version=1 ['w']>"


def test_closing_again_does_nothing(store: mkv.Store) -> None:
    store.close()
    store.close()


def test_leaving_the_block_closes_even_after_an_error(store_dir: Path) -> None:
    store = mkv.open(store_dir)

    def fail_inside() -> None:
        with store:
            store.create_table("t", 4).upsert(ONE, ROW)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_inside()
    with pytest.raises(mkv.ClosedError):
        store.stats()
    with mkv.open(store_dir) as store:
        assert len(store.table("t")) == 1


def test_path_may_be_text_or_a_path_and_is_told_as_text(store_dir: Path) -> None:
    for path in (store_dir, str(store_dir)):
        with mkv.open(path, delta_interval=None) as store:
            assert store.path == str(store_dir)
            assert store.mode == "rw"


def test_readers_share_a_store_with_its_writer_and_leave_it_alone(store: mkv.Store) -> None:
    def files() -> dict[Path, bytes]:
        found = Path(store.path).rglob("*")
        return {p: p.read_bytes() for p in found if p.is_file() and p.name != "LOCK"}

    before = files()
    with mkv.open(store.path, mode="r") as first, mkv.open(store.path, mode="r") as second:
        assert first.digest() == second.digest() == store.digest()
        assert not first.refresh()
    assert files() == before
    store.table("t").push(ONE, ROW)
