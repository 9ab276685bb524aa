"""Placement groups of a simulated job: every bundle on a node of its own, and placed again when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from simulator.backends.fake.world import FakeNode, World


@dataclass(eq=False)
class FakeGroup:
    """A group that is spread strictly, and where its bundles are; `state` is as the GCS has it."""

    world: World
    name: str
    namespace: str
    group_id: str
    bundles: Sequence[Mapping[str, float]]
    state: str = "PENDING"
    places: list[FakeNode | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = [None] * len(self.bundles)
        self._tell()

    def used(self, node: FakeNode, resource: str) -> float:
        """How much of a resource its bundles reserve on a node."""
        return sum(
            bundle.get(resource, 0.0)
            for bundle, place in zip(self.bundles, self.places, strict=True)
            if place is node
        )

    def place(self, free: Callable[[FakeNode, str], float]) -> None:
        """Place what is placed nowhere, if all of that can be; `free` says what a node has left."""
        if self.state in ("CREATED", "REMOVED"):
            return
        places = list(self.places)
        for i, bundle in enumerate(self.bundles):
            if places[i] is None:
                places[i] = next(
                    (
                        n
                        for n in self.world.nodes.values()
                        if n.takes_work
                        and n not in places
                        and all(free(n, name) >= amount for name, amount in bundle.items())
                    ),
                    None,
                )
        if None not in places:
            self.places = places
            self._become("CREATED")

    def node_dead(self, node: FakeNode) -> None:
        if node in self.places and self.state != "REMOVED":
            self.places = [None if place is node else place for place in self.places]
            self._become("RESCHEDULING")

    def remove(self) -> None:
        self._become("REMOVED")
        self.places = [None] * len(self.bundles)

    def _become(self, state: str) -> None:
        self.state = state
        self._tell()

    def _tell(self) -> None:
        self.world.ray_event(
            "ray.group",
            None,
            {
                "group_id": self.group_id,
                "name": self.name,
                "namespace": self.namespace,
                "strategy": "STRICT_SPREAD",
                "state": self.state,
                "hosts": [place.hostname if place else None for place in self.places],
            },
        )
