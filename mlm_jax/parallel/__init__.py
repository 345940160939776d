"""The device mesh and the rules that shard arrays over it.

In: a `MeshConfig`, devices, logical axes of parameters. Out: a mesh and shardings.
Read `sharding.py` first.
"""
