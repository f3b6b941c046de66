"""How fast the scores are, against what else computes them: `python -m benchmarks --help`, `pytest benchmarks`."""
