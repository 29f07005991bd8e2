"""Benchmarks: the engine against a yardstick in the same process, as ratios."""
