"""Ways to break a node, each with its own undo and its own proof."""

from simulator.faults.base import FAULTS as FAULTS
from simulator.faults.base import Fault as Fault
from simulator.faults.base import Site as Site
from simulator.faults.base import fault_from_data as fault_from_data
from simulator.faults.base import register_fault as register_fault
from simulator.faults.base import revive as revive
from simulator.faults.network import Bandwidth as Bandwidth
from simulator.faults.network import Delay as Delay
from simulator.faults.network import Disconnect as Disconnect
from simulator.faults.network import Duplicate as Duplicate
from simulator.faults.network import Loss as Loss
from simulator.faults.network import Partition as Partition
from simulator.faults.network import Reorder as Reorder
from simulator.faults.nodes import Kill as Kill
from simulator.faults.nodes import Pause as Pause
from simulator.faults.nodes import Restart as Restart
from simulator.faults.nodes import Stop as Stop
