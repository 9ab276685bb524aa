"""``ray start`` without the other commands: what is left out, what is not, and what if Ray minds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.innode import ray_start

PACKAGE_ROOT = Path(ray_start.__file__).parents[2]

COMMANDS = """
import sys
try:
    import {other}
    loaded = True
except ImportError:
    loaded = False

def cli(args, prog_name):
    print("loaded" if loaded else "left out", prog_name, *args)
    import {other}
    print("there again")

"""


def a_ray(folder: Path, commands: str) -> Path:
    """A stand-in for Ray's command line, and for the commands that it can be without."""
    for name in (ray_start.COMMANDS, *ray_start.OPTIONAL):
        path = folder.joinpath(*name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.parents:
            if folder in package.parents:
                (package / "__init__.py").touch()
        path.with_suffix(".py").write_text(commands if name == ray_start.COMMANDS else "")
    return folder


def start(path: Path | None, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "simulator.innode.ray_start", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [*([path] if path else []), PACKAGE_ROOT])),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("other", ray_start.OPTIONAL)
def test_what_ray_can_be_without_is_left_out_until_it_begins(tmp_path: Path, other: str) -> None:
    path = a_ray(tmp_path, COMMANDS.format(other=other))
    assert start(path, "--head", "--num-cpus=1").splitlines() == [
        "left out ray start --head --num-cpus=1",
        "there again",
    ]


def test_a_ray_that_minds_is_run_as_it_is(tmp_path: Path) -> None:
    commands = "import sys, ray.serve.scripts\nif __name__ == '__main__': print(*sys.argv[1:])\n"
    assert start(a_ray(tmp_path, commands), "--address=a:1") == "start --address=a:1\n"


def test_a_command_line_of_another_make_is_run_as_it_is(tmp_path: Path) -> None:
    commands = "import sys\nif __name__ == '__main__': print(*sys.argv[1:])\n"
    assert start(a_ray(tmp_path, commands), "--head") == "start --head\n"


def test_ray_itself_takes_all_three_as_optional_and_start_is_whole() -> None:
    """Pinned on the Ray that is installed here, which is that of the node image."""
    pytest.importorskip("ray")
    program = f"""
import sys
sys.modules.update(dict.fromkeys({ray_start.OPTIONAL!r}) if {{left_out}} else {{{{}}}})
from {ray_start.COMMANDS} import cli
print(sorted(o for p in cli.commands["start"].params for o in p.opts))
print(*sorted(cli.commands))
print("starlette" in sys.modules or "fastapi" in sys.modules)
"""
    whole, slim = (
        subprocess.run(
            [sys.executable, "-c", program.format(left_out=left_out)],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for left_out in (False, True)
    )  # fmt: skip
    assert slim[0] == whole[0]
    assert set(whole[1].split()) - set(slim[1].split()) == {
        "serve", "job", "list", "get", "summary", "logs"
    }  # fmt: skip
    assert slim[2] == "False", "Ray imports Serve by another way: starting costs more than it must"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_node_without_a_device_does_not_say_what_the_machines_is(hidden: bool) -> None:
    """Pinned on the Ray that is installed here: it asks the driver even where CUDA is shown nothing."""
    pytest.importorskip("ray")
    program = f"""
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from simulator.innode import ray_start
# What the driver of a machine with an H100 answers.
NvidiaGPUAcceleratorManager.get_current_node_accelerator_type = staticmethod(lambda: "H100")
if {hidden}:
    ray_start._without_device()
spec = ResourceAndLabelSpec(1, 1, 2**30, 2**27, {{}}, {{}}).resolve(False, "127.0.0.1")
print(spec.to_resource_dict().get("GPU"))
print([r for r in spec.to_resource_dict() if r.startswith("accelerator_type")], spec.labels)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(PACKAGE_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    gpus, kind = done.stdout.splitlines()[-2:]
    assert gpus == "1"
    said = "[] {}" if hidden else "['accelerator_type:H100'] {'ray.io/accelerator-type': 'H100'}"
    assert kind == said


def test_a_wrong_option_is_said_in_rays_own_words() -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-m", "simulator.innode.ray_start", "--nonsense"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Usage: ray start" in done.stderr
    assert "No such option" in done.stderr
