"""The command line: one file per command, with its flags and one call into the package.

In: the arguments of a command line. Out: an exit code, or an exception that `cli.run` turns into one.
Read `train.py` first, then `flags.py`, which derives flags from dataclasses. `mlm_jax/__main__.py` lists the commands.
"""
