"""mlm_jax at the work that other libraries are measured at, and the roof: each module is a contestant."""
