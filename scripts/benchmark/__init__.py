"""Benchmarks of training steps, masking, data and whole runs: `python -m scripts.benchmark`."""
