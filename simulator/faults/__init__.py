"""Ways to break a node, each with its own undo and its own proof."""

from simulator.faults.base import FAULTS as FAULTS
from simulator.faults.base import Fault as Fault
from simulator.faults.base import Missed as Missed
from simulator.faults.base import Site as Site
from simulator.faults.base import fault_from_data as fault_from_data
from simulator.faults.base import register_fault as register_fault
from simulator.faults.base import revive as revive
from simulator.faults.nodes import Drain as Drain
from simulator.faults.nodes import Kill as Kill
from simulator.faults.nodes import Pause as Pause
from simulator.faults.nodes import Restart as Restart
from simulator.faults.nodes import Stop as Stop
from simulator.faults.processes import CrashProcess as CrashProcess
from simulator.faults.processes import FreezeProcess as FreezeProcess
from simulator.faults.resources import CpuLimit as CpuLimit
from simulator.faults.resources import CpuStress as CpuStress
from simulator.faults.resources import DiskFull as DiskFull
from simulator.faults.resources import MemoryHog as MemoryHog
from simulator.faults.resources import MemoryLimit as MemoryLimit
from simulator.faults.resources import Oom as Oom
from simulator.faults.rpc import RpcFault as RpcFault
from simulator.faults.rpc import parse_rpc_fault as parse_rpc_fault
from simulator.faults.rpc import rpc_environment as rpc_environment
from simulator.faults.rpc import rpc_faults as rpc_faults
