"""`python -m scripts.benchmark` measures: training steps, masking, data and whole runs, also of other libraries."""
