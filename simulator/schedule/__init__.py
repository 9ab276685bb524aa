"""Which fault hits whom, when, and when it is undone."""

from simulator.schedule.steps import After as After
from simulator.schedule.steps import AtEnd as AtEnd
from simulator.schedule.steps import Condition as Condition
from simulator.schedule.steps import Heal as Heal
from simulator.schedule.steps import Never as Never
from simulator.schedule.steps import PlannedFault as PlannedFault
from simulator.schedule.steps import Step as Step
from simulator.schedule.steps import WhenDeclaredDead as WhenDeclaredDead
from simulator.schedule.steps import resolve as resolve
from simulator.schedule.steps import without as without
from simulator.schedule.targets import Look as Look
from simulator.schedule.targets import Named as Named
from simulator.schedule.targets import RandomWorker as RandomWorker
from simulator.schedule.targets import Target as Target
