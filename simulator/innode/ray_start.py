"""``ray start`` without what the other commands of ``ray`` import.

    python -m simulator.innode.ray_start --head --num-cpus=1 ...

Ray's command line loads all of its commands before it runs one: of the 1.7 CPU-seconds that go by before
``ray start`` begins, 1.1 go into ``ray serve``, ``ray job`` and ``ray list``, and every node pays them. Ray itself
takes these three as optional and goes on without them where they cannot be imported. So here they cannot be,
until the command line is there; what is then run is Ray's own ``ray start``, all of it.

Where an image's Ray does not take that, Ray is run as it is.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

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
    cli(args=arguments, prog_name="ray")


if __name__ == "__main__":
    main()
