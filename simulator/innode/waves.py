"""The driver of the `Waves` workload: work that comes in waves, so that nodes are needed, and then are not.

Runs as a Ray job. A wave is submitted whole: tasks of several kinds, and a placement group if it has one, whose
bundles are held by tasks of their own until the wave is over. When all of it came back, there is nothing to do until
the next wave, which is when nodes may leave. After the last one the driver waits until it is told to finish.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from simulator.innode.ledger import CONTROL, read_json, root
from simulator.innode.stream import Stream, main


class Waves(Stream):
    """Submits a wave, waits until it is back, rests, and goes on with the next."""

    def run(self) -> None:
        waves = self.spec["waves"]
        planned = sum(int(kind["count"]) for wave in waves for kind in wave["kinds"])
        planned += sum(len(wave["bundles"]) for wave in waves)
        self.out.write(
            "driver.start",
            job_id=ray.get_runtime_context().get_job_id(),
            tasks=planned,
            task_seconds=self.seconds,
            slots=int(ray.cluster_resources().get("CPU", 0)),
            max_retries=int(self.spec["max_retries"]),
        )
        for number, wave in enumerate(waves, 1):
            self.rest(float(wave["after_s"]))
            self.wave(number, wave)
        self.out.write("driver.planned", tasks=self.submitted)
        self.rest(float(self.spec["rest_s"]))

    def rest(self, seconds: float) -> None:
        """Nothing to do for a while; ended early when the driver is told to finish."""
        control, end = root() / self.run_id / CONTROL, time.monotonic() + seconds
        while time.monotonic() < end and not read_json(control).get("finish"):
            time.sleep(0.1)

    def wave(self, number: int, wave: Mapping[str, Any]) -> None:
        """Submit one, and wait until all of it is back."""
        self.out.write("driver.wave", wave=number)
        group = None
        if wave["bundles"]:
            group = self.reserve(number, wave)
        for kind in wave["kinds"]:
            self.submit_kind(number, kind, float(wave["seconds"]))
        while self.pending:
            self.collect(0.1)
        if group is not None:
            remove_placement_group(group)
        self.out.write("driver.wave_over", wave=number)

    def submit_kind(self, number: int, kind: Mapping[str, Any], seconds: float) -> None:
        needs = dict(kind["resources"])
        options: dict[str, Any] = {
            "num_cpus": needs.pop("CPU", 0),
            "num_gpus": needs.pop("GPU", 0),
            "resources": needs,
        }
        if kind["labels"]:
            options["label_selector"] = dict(kind["labels"])
        for n in range(1, int(kind["count"]) + 1):
            key = f"w{number}-{kind['name']}-{n}"
            args = [n, int(self.spec["loop"])]
            ref = self.square_sum.options(name=key, **options).remote(
                self.run_id, key, seconds, *args
            )
            self.submit(key, "square_sum", args, ref, wave=number, of=kind["name"])

    def reserve(self, number: int, wave: Mapping[str, Any]) -> Any:
        """A placement group, with a task in each bundle that holds it while the wave lasts."""
        bundles = [dict(bundle) for bundle in wave["bundles"]]
        group = placement_group(bundles, strategy=wave["strategy"], name=f"wave-{number}")
        for index, bundle in enumerate(bundles):
            key = f"w{number}-bundle-{index}"
            rest = {k: v for k, v in bundle.items() if k not in ("CPU", "GPU")}
            args = [index, int(self.spec["loop"])]
            ref = self.square_sum.options(
                name=key,
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources=rest,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                ),
            ).remote(self.run_id, key, float(wave["seconds"]), *args)
            self.submit(key, "square_sum", args, ref, wave=number, of="bundle")
        return group


if __name__ == "__main__":
    main(Waves, __doc__)
