"""Programs that run inside a node: standard library only, and Ray where it must be.

They are mounted into nodes, never baked into an image, and are imported as ``simulator.innode`` from
a folder that holds nothing else of the package: nothing here may import the rest of `simulator`.
They must run on every Python that a Ray image may have (3.10 and later).
"""
