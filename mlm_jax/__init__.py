"""mlm_jax."""
