"""Speed, memory and scale; run as ``python -m benchmarks.NAME --help``."""
