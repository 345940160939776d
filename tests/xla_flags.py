"""XLA flags for tests: compile quickly, because the models are small and most are compiled once."""

from importlib.metadata import version

QUICK = "--xla_backend_optimization_level=0"
# Halves the time again. Releases that do not know the flag abort.
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
