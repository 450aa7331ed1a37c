"""Speed, memory, scale and robustness; run as ``python -m benchmarks.NAME --help``."""
