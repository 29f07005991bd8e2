"""Salvage (to come)."""

from collections.abc import Callable


def salvage_files(path: str, to: str, clock: Callable[[], float]) -> list[str]:
    raise NotImplementedError
