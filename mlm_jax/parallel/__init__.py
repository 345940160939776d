"""The device mesh, the rules that shard arrays over it, and the declared weights of a model.

In: a `MeshConfig`, devices, logical axes of parameters. Out: a mesh and shardings.
Read `sharding.py` first, then `weights.py`: which weights are stacked or matrices follows from their logical axes.
"""
