"""``ray start`` without what the other commands of ``ray`` import.

    python -m simulator.innode.ray_start --head --num-cpus=1 ...

Ray's command line loads all of its commands before it runs one: of the 1.7 CPU-seconds that go by before
``ray start`` begins, 1.1 go into ``ray serve``, ``ray job`` and ``ray list``, and every node pays them. Ray itself
takes these three as optional and goes on without them where they cannot be imported. So here they cannot be,
until the command line is there; what is then run is Ray's own ``ray start``, all of it.

Where an image's Ray does not take that, Ray is run as it is.

A node that is to have no GPU of the machine's (`NO_DEVICE`) is also kept from saying that it has one: Ray asks the
driver for the type, whatever ``CUDA_VISIBLE_DEVICES`` says, and would offer it (``accelerator_type:...``, the label
``ray.io/accelerator-type``) beside a GPU that is only declared.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module

#: Set where a node has no GPU of the machine's, and the machine has some.
NO_DEVICE = "RAY_SIM_NO_DEVICE"
#: Ray's command line, and what it can be without.
COMMANDS = "ray.scripts.scripts"
OPTIONAL = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    arguments = ["start", *sys.argv[1:]]
    # Importing what stands here as None is an ImportError.
    sys.modules.update(dict.fromkeys(OPTIONAL))  # type: ignore[arg-type] # documented, not typed
    try:
        cli = import_module(COMMANDS).cli
    except (ImportError, AttributeError):
        os.execv(sys.executable, [sys.executable, "-m", COMMANDS, *arguments])
    for name in OPTIONAL:
        del sys.modules[name]
    if os.environ.get(NO_DEVICE):
        _without_device()
    cli(args=arguments, prog_name="ray")


def _without_device() -> None:
    with suppress(ImportError):  # another Ray
        from ray._private.accelerators import get_accelerator_manager_for_resource

        manager = get_accelerator_manager_for_resource("GPU")
        manager.get_current_node_accelerator_type = staticmethod(lambda: None)


if __name__ == "__main__":
    main()
