"""The command line: one file per command, with its flags and one call into the package.

In: `sys.argv`. Out: an exit code. Read `cli.py` first.
"""
