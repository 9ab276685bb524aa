"""What a program may tell the run that it is part of; outside of a run, as here, it does nothing.

The wheel has this at its top, so that a program that imports it runs on its author's machine too. Nodes
have the module itself.
"""

from simulator.innode.importable.ray_sim import effect as effect
from simulator.innode.importable.ray_sim import mark as mark
