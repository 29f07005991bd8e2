"""Console tools, benchmarks and the demo: applications of the public API alone."""
