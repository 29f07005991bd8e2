"""Ctrl-C at any point of a call: log and memory agree afterwards, and the store goes on."""

import dis
import functools
import gc
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from checks import WIDE
from crash.helped import help_with_all

import monolith_kv as mkv
from monolith_kv.storage import log_file

COUNT = 6
STEP = 5 if WIDE else 15  # From one place to the next that is tried, of a thousand and more.
IDS = np.arange(COUNT, dtype=np.uint64)
ONES = np.ones((COUNT, 2), np.float32)
# Behind these the interpreter looks for signals, and raises what their handlers raise.
LOOKS = {"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"}
# What these raise is never seen: they are called as an object goes, by nobody.
NOWHERE = {"__del__", "_remove"}


class Interrupt:
    """Raises KeyboardInterrupt at the n-th place where a call would look for a signal.

    `within` counts places in functions of this name only; "": in all.
    """

    def __init__(self, after: int, within: str) -> None:
        self.left, self.within = after, within
        self.last: dict[FrameType, str] = {}
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_name in NOWHERE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            before, self.last[frame] = self.last.get(frame, ""), name
            if before in LOOKS and self.within in ("", frame.f_code.co_name):
                self.left -= 1
                if self.left == 0:
                    self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self


def interrupted(call: Callable[[], object], after: int, within: str = "") -> str:
    """Where the call was interrupted; "": it ended before."""
    interrupt = Interrupt(after, within)
    before = sys.gettrace()
    gc.disable()  # Nor may it come in where others' objects go.
    sys.settrace(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return interrupt.where
    finally:
        sys.settrace(before)
        gc.enable()
    return ""


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process of its own: of exceptions that a tracer raises something stays."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                test(**given)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see standard error"

    return run


def recovered(store: mkv.Store) -> Any:
    """What a reader finds that makes the logged calls again, as after a crash."""
    with mkv.open(store.path, mode="r") as reader:
        return reader.digest(), sorted(reader.tables)


def look(store: mkv.Store) -> Any:
    return store.digest(), sorted(store.tables)


def call_of(kind: str, store: mkv.Store, ids: Any) -> Callable[[], object]:
    """The call to be interrupted; all that it needs is there."""
    table = store.table("t")
    if kind != "pull":
        table.upsert(ids, ONES)
    name = "other"
    if kind in ("drop_table", "configure"):
        store.create_table(name, 2)
    calls: dict[str, Callable[[], object]] = {
        "pull": lambda: table.pull(ids),
        "push": lambda: table.push(ids, ONES),
        "upsert": lambda: table.upsert(ids + np.uint64(COUNT // 2), ONES),
        "remove": lambda: table.remove(ids[1:]),
        "create_table": lambda: store.create_table(name, 2),
        "drop_table": lambda: store.drop_table(name),
        "configure": lambda: store.table(name).configure(ttl=100),
    }
    return calls[kind]


KINDS = ["pull", "push", "upsert", "remove", "create_table", "drop_table", "configure"]
CASES = [*((kind, False) for kind in KINDS), ("push", True), ("upsert", True)]


@pytest.mark.parametrize("durability", ["batch", "sync"])
@pytest.mark.parametrize(("kind", "is_helped"), CASES)
@in_a_child
def test_an_interrupt_anywhere_leaves_a_call_in_log_and_memory_or_in_neither(
    store_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    durability: Any,
    is_helped: bool,
) -> None:
    for constant in ("ALONE_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(log_file, constant, getattr(log_file, constant))
    with mkv.open(store_dir, durability=durability, delta_interval=None) as store:
        if is_helped:
            help_with_all(store)
        given = {"optimizer": mkv.Adagrad(0.1), "initializer": mkv.Constant(1.0)}
        table = store.create_table("t", 2, **given)
        after, where = 0, "nowhere yet"
        while where:
            after += 1
            ids = IDS + np.uint64(2 * COUNT * after)
            where = interrupted(call_of(kind, store, ids), after)
            assert recovered(store) == look(store), where
            table.push(ids, ONES)
            assert recovered(store) == look(store), where
            if "other" in store.tables:
                store.drop_table("other")
            if after % 20 == 0:
                store.seal()  # What was logged is not made again and again.
        assert after > 20
        expected = look(store)
    with mkv.open(store_dir) as again:
        assert look(again) == expected


@pytest.mark.parametrize("durability", ["batch", "sync"])
@pytest.mark.parametrize("kind", ["seal", "snapshot"])
@pytest.mark.parametrize(
    ("within", "step"), [("", STEP), ("_flip", 1), ("_close", 1), ("_shut", 1)]
)
@in_a_child
def test_an_interrupt_anywhere_leaves_what_is_published_whole_or_not_begun(
    folder: Path, kind: str, durability: Any, within: str, step: int
) -> None:
    after, where = 0, "nowhere yet"
    given = {"optimizer": mkv.Adagrad(0.1), "initializer": mkv.Constant(1.0)}
    while where:
        after += step
        path = folder / str(after)
        with mkv.open(path, durability=durability, delta_interval=None) as store:
            table = store.create_table("t", 2, **given)
            table.upsert(IDS, ONES)
            store.seal()
            table.push(IDS, ONES)
            where = interrupted(store.seal if kind == "seal" else store.snapshot, after, within)
            for publish in (lambda: None, store.seal, store.snapshot):
                publish()
                assert recovered(store) == look(store), where
                table.push(IDS, ONES)
                assert recovered(store) == look(store), where
            expected = look(store)
        with mkv.open(path) as again:
            assert look(again) == expected, where
        shutil.rmtree(path)
    assert after > (1 if within else 500)  # It was interrupted at all.
