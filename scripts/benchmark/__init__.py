"""What `scripts/benchmark.py` measures: training steps, masking, data, whole runs and their start, beside others."""
