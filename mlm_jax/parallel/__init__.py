"""Device mesh, sharding rules, and the declared weights of a model.

In: a `MeshConfig`, devices, logical axes of parameters. Out: a mesh and shardings.
Read `sharding.py` first, then `weights.py`, which derives the properties of weights from their logical axes.
"""
