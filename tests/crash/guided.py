"""Fuzz one target guided by the lines it reaches, with atheris, which has to be installed.

    PYTHONPATH=tests python -m crash.guided TARGET SECONDS FOLDER

Inputs that reach new lines go into FOLDER; those worth keeping belong into the corpus, small.
"""

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["monolith_kv"]):
    from crash.fuzz import CORPUS, corpus, run_one, watched
    from crash.mutations import MUTATORS
    from crash.parsers import PARSERS, checks_off


def main(target: str, seconds: int, folder: Path) -> None:
    """Run until the time is up or there is a finding."""
    parser, seeds = PARSERS[target], corpus(target)
    mutate = MUTATORS[parser.shape]

    def try_one(data: bytes) -> None:
        what = run_one(parser, data)
        if what is not None:
            raise RuntimeError(what)

    def change(data: bytes, size_max: int, seed: int) -> bytes:
        return mutate(random.Random(seed), [data, *seeds])[:size_max]

    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=8192", "-rss_limit_mb=2048", "-timeout=30"]
    arguments = [sys.argv[0], str(folder), str(CORPUS / target), *options]
    atheris.Setup(arguments, try_one, custom_mutator=change, internal_libfuzzer=True)
    with checks_off(), watched():
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
