"""What runs on the cluster during a run, from its submission to Ray's last word about it.

There are two kinds. A workload of ours (`simulator.runner.own`) writes to the ledger what it does, goes on
beyond its plan while the cluster recovers, and ends when told to. A program of the user's
(`simulator.runner.program`) knows nothing of a run: it ends when it is done, and only Ray can be asked about it.
To the runner and to the faults both look like this.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from simulator.errors import CannotRun
from simulator.runner.live import LiveRun

LEDGER_WORKLOAD = "workload.json"

#: How often Ray is asked about the work, seconds.
ASK_S = 2.0

#: The same where Ray is slow to answer, at most.
SLOW_S = 10.0

#: How long a fault waits for its target to be in the middle of a task, seconds.
BUSY_S = 10.0

#: Why Ray knows nothing of a job that it took.
ANEW = "its head was started anew, and knows no earlier job"

#: Whether a fault holds a node now.
Struck = Callable[[str], bool]


def nothing_struck(node: str) -> bool:  # noqa: ARG001
    """No fault holds any node."""
    return False


class Load(ABC):
    """What runs on the cluster during one run.

    Attributes
    ----------
    job
        Its id as a Ray job, once it was submitted.
    over
        Whether its job is known to have ended.
    """

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        self.job: str | None = None
        self.over = False
        self._next_ask = 0.0

    # -- its life ----------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Submit it, and wait until it runs.

        Raises
        ------
        CannotRun
            It ended before it began, or did not begin in time.
        """

    @abstractmethod
    def wait_planned(self) -> None:
        """Nothing is to be broken: wait until it has done what it was to do."""

    @abstractmethod
    def drain(self, struck: Struck = nothing_struck) -> None:
        """Have it end by itself, and record how it did."""

    def survey(self) -> None:  # noqa: B027 - of most there is nothing to look for
        """The cluster is whole again: have it looked at what is left of it."""

    @abstractmethod
    def stop(self, why: str) -> None:
        """Have Ray stop it."""

    def end(self, struck: Struck) -> None:
        """Have no work going on any more: finished where all is well, stopped where it is not."""
        if self.job is None or self.over:
            return
        if self.live.error is None:
            self.drain(struck)
        else:
            self.stop("the run ended early")

    # -- what faults ask of it ---------------------------------------------------------------------

    @property
    @abstractmethod
    def driver_node(self) -> str | None:
        """The node that its driver runs on, once that is known."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether it has come to an end of its own."""

    @property
    def too_late(self) -> str:
        """Why faults whose time has not come yet are not worth waiting for; "" if they are.

        An experiment may break a cluster that has nothing to do, and say what follows.
        """
        return ""

    @abstractmethod
    def wait_busy(self, nodes: Sequence[str]) -> None:
        """Wait until one of these nodes is in the middle of its work.

        Gives up after `BUSY_S` seconds, or when the work is over: then the fault hits what it hits,
        and the checks say so.
        """

    def go_on(self, *, struck: bool = True) -> None:  # noqa: B027 - not every load takes orders
        """A fault is in: there must be work until the cluster is whole again.

        Parameters
        ----------
        struck
            False where one was only announced.
        """

    def before_head_goes(self) -> None:  # noqa: B027 - most of it is asked for at the end
        """A fault is about to hit the head, which alone remembers what became of tasks: ask for it now."""

    # -- what Ray says of it -----------------------------------------------------------------------

    @property
    def head_was_lost(self) -> bool:
        """Whether the head died meanwhile. What becomes of tasks, no store keeps."""
        history = self.live.recorder.snapshot()
        return any(op.node == "head" for op in history.of("engine.die"))

    def ask(self, struck: Struck) -> None:
        """Every `ASK_S` seconds: what Ray says of it, and whether the head is there at all.

        Raises
        ------
        CannotRun
            The head is gone, and no fault did it.
        """
        clock, cluster = self.live.clock, self.live.cluster
        if clock.mono() < self._next_ask:
            return
        began = clock.mono()
        self.look(struck)
        head = cluster.node("head")
        if head.state != "running" and not struck("head"):
            raise CannotRun(
                f"the head is {head.state}, and no fault of this run did it",
                why=f"its exit code is {head.exit_code}; its last lines follow",
                details=self.live.backend.logs(cluster.name, "head", tail=12).splitlines(),
            )
        self.look_at_job(struck)
        # Where Ray takes its time to answer, it has better things to do.
        self._next_ask = began + max(ASK_S, min(10 * (clock.mono() - began), SLOW_S))

    @abstractmethod
    def look(self, struck: Struck) -> None:
        """Record what Ray says of its tasks."""

    @abstractmethod
    def look_at_job(self, struck: Struck) -> None:
        """Notice its end."""

    @abstractmethod
    def complete(self) -> None:
        """Record the last of what Ray has to say of it, and whether that is all."""

    @property
    def leaves_nothing(self) -> bool:
        """Whether the cluster is at rest once it is over."""
        return True

    def new_job_id(self) -> str:
        return f"{self.live.run_id}-{secrets.token_hex(3)}"
