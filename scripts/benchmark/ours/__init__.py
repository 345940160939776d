"""Contestants of mlm_jax, one per module, and the matrix product that measures the machine's peak."""
