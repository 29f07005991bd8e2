"""The fuzz part of the kit in small, the inputs of its corpus, and that it notices what it must."""

import itertools
import random
from collections.abc import Callable

import pytest
from crash import fuzz
from crash.mutations import INPUT_BYTES_MAX, MUTATORS
from crash.parsers import PARSERS, Parser, checks_off

import monolith_kv as mkv
from monolith_kv.storage import framing

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("target", PARSERS)
def test_every_input_of_the_corpus_is_read_or_refused(target: str) -> None:
    with checks_off(), fuzz.watched():
        found = [fuzz.run_one(PARSERS[target], data) for data in fuzz.corpus(target)]
    assert found
    assert set(found) == {None}


def test_fuzzing_finds_nothing() -> None:
    figures = list(fuzz.measure(full=False))
    assert len(figures) == len(PARSERS)
    assert [figure for figure in figures if not figure.is_reached] == []


@pytest.mark.parametrize("target", PARSERS)
def test_the_same_seed_gives_the_same_inputs_and_none_is_large(target: str) -> None:
    mutate, seeds = MUTATORS[PARSERS[target].shape], fuzz.corpus(target)
    one, two = ([mutate(dice, seeds) for _ in range(300)] for dice in map(random.Random, (7, 7)))
    assert one == two
    assert len(set(one)) > 100
    assert max(map(len, one)) <= INPUT_BYTES_MAX


@pytest.mark.parametrize("target", [t for t, p in PARSERS.items() if p.shape == "records"])
def test_many_inputs_get_past_the_framing(target: str) -> None:
    dice, good = random.Random(1), 0
    with checks_off():
        seeds = fuzz.seeds(target)
        for _ in range(200):
            try:
                PARSERS[target].parse(MUTATORS["records"](dice, seeds))
            except (mkv.CorruptionError, mkv.FormatVersionError):
                continue
            good += 1
    assert 5 < good < 195


def never(data: bytes) -> None:
    raise KeyError(data)


def for_ever(data: bytes) -> None:
    for _ in itertools.count():
        pass


@pytest.mark.parametrize(("parse", "what"), [(never, "KeyError"), (for_ever, "over 1 s")])
def test_an_undocumented_error_and_a_hang_are_findings(
    parse: Callable[[bytes], None], what: str
) -> None:
    with fuzz.watched():
        found = fuzz.run_one(Parser(parse, (ValueError,), "bytes"), b"a")
    assert found is not None
    assert what in found


def test_a_finding_is_made_small() -> None:
    def parse(data: bytes) -> None:
        if b"bad" in data:
            raise KeyError

    parser = Parser(parse, (), "bytes")
    with fuzz.watched():
        what = fuzz.run_one(parser, b"xx bad yy")
        assert what is not None
        found = fuzz.minimised(parser, fuzz.Finding(what, b"some" * 50 + b"bad" + b"more" * 50))
    assert found.data == b"bad"


def test_a_dead_process_is_a_finding() -> None:
    dead, good = fuzz.run_targets(["no such target", "lineage"], 0.1)
    [finding] = dead.findings
    assert finding.what == "the process ended with 1"
    assert (good.target, good.findings) == ("lineage", [])
    assert good.executions > 0


def test_checks_are_on_again_afterwards() -> None:
    with checks_off():
        assert framing.crc32c(b"a", 0) == framing.crc32c(b"b", 0)
    assert framing.crc32c(b"a", 0) != framing.crc32c(b"b", 0)
