"""What must stand in several places stands there alike, and the pages that list things list them all."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import typer
import yaml

import simulator
from simulator import assets
from simulator.backends.docker import image
from simulator.backends.process import checks
from simulator.checkers import anatomy, registry
from simulator.cli.app import app
from simulator.experiment import DEFAULT_CHECKS, PHASES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import cli_reference  # noqa: E402 - a script of this checkout


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_pin_of_ray_is_the_same() -> None:
    pins = {
        "the process backend": checks.RAY_VERSION,
        "compose.yaml": re.findall(r"/node:([\d.]+)-cpu", text("compose.yaml"))[0],
        "docker/gpu.yaml": re.findall(r"/node:([\d.]+)-gpu", text("docker/gpu.yaml"))[0],
        "docker/lean.yaml": re.findall(r"/node:([\d.]+)-lean", text("docker/lean.yaml"))[0],
        "docker/Dockerfile, by hand": re.findall(r"/node:([\d.]+)-cpu", text("docker/Dockerfile"))[0],
        "docker/stock-layout": re.findall(r"/node:([\d.]+)-cpu", text("docker/stock-layout/Dockerfile"))[0],
        "README.md": re.findall(r"rayproject/ray:([\d.]+)-", text("README.md"))[0],
    }  # fmt: skip
    assert pins == dict.fromkeys(pins, image.RAY_VERSION)


def test_every_stage_of_the_dockerfile_pins_the_same_torch() -> None:
    assert set(re.findall(r"ARG TORCH_VERSION=(\S+)", text("docker/Dockerfile"))) == {
        image.TORCH_VERSION
    }


def test_the_range_of_pythons_is_the_same_everywhere() -> None:
    low, high = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text("pyproject.toml"))[0]
    said = f"(3, {low}) <= sys.version_info[:2] <= (3, {int(high) - 1})"
    assert said in text("Makefile")
    assert said in text("simulator/doctor.py")
    minors = set(
        re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text("pyproject.toml"))
    )
    assert minors == {str(minor) for minor in range(int(low), int(high))}


def test_an_experiment_names_the_phases_and_checks_that_there_are() -> None:
    assert list(PHASES) == list(anatomy.PHASES)
    assert {*DEFAULT_CHECKS, *registry.OF_ONE_WORKLOAD} == set(registry.BUILT_IN)
    assert set(re.findall(r"^\| `(\w+)` \|", text("docs/reference/checks.md"), re.MULTILINE)) == {
        *registry.BUILT_IN
    }


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.page(), (
        "run: python scripts/cli_reference.py"
    )


def test_every_command_that_prints_json_says_what_it_holds() -> None:
    commands = cli_reference.commands(typer.main.get_command(app))
    able = {name for name, c in commands if any("--json" in p.opts for p in c.params)}
    (table,) = re.findall(r"^## JSON\n(.*?)^A node's", cli_reference.HEAD, re.M | re.S)
    rows = re.findall(r"^\| (`[^|]*`) \|", table, re.M)
    assert {name for row in rows for name in re.findall(r"`([a-z]+(?: [a-z]+)*)", row)} == able


def test_every_room_of_the_house_is_on_the_plan() -> None:
    parts = (ROOT / "simulator").iterdir()
    rooms = {p.stem for p in parts if p.name[0] not in "_." and p.suffix in ("", ".py")}
    plan = re.findall(r"^## The rooms\n(.*?)^## ", text("docs/architecture.md"), re.M | re.S)[0]
    assert not {room for room in rooms if not re.search(rf"\b{room}\b", plan)}
    assert rooms >= {"cli", "cluster", "innode"}


def test_every_decision_is_listed_and_numbered_as_it_is_named() -> None:
    notes = sorted(p for p in (ROOT / "docs/decisions").glob("*.md") if p.name != "README.md")
    listed = re.findall(r"\]\((\d+-[^)]+\.md)\)", text("docs/decisions/README.md"))
    assert listed == [p.name for p in notes]
    for number, note in enumerate(notes, 1):
        assert note.name.startswith(f"{number:04d}-")
        assert note.read_text(encoding="utf-8").startswith(f"# {number}. ")


def test_compose_by_hand_names_the_settings_of_fast() -> None:
    from simulator.cluster import HEALTH

    values = ", ".join(list(HEALTH["fast"].values())[:-1]) + f" and {list(HEALTH['fast'].values())[-1]}"  # fmt: skip
    assert f"`--health fast` is {values}" in " ".join(
        text("compose.yaml").replace("#", " ").split()
    )


def test_a_type_checker_sees_the_public_names_where_they_live() -> None:
    seen = re.findall(r"^    from (\S+) import (\w+) as \2$", text("simulator/__init__.py"), re.M)
    assert {name: home for home, name in seen} == simulator._HOMES


def test_the_wheel_carries_every_file_that_the_package_looks_for() -> None:
    section = re.findall(r"wheel\.force-include\]\n(.*?)\n\n", text("pyproject.toml"), re.DOTALL)[0]
    carried = dict(re.findall(r'"(\S+)" = "(\S+)"', section))
    # What a user's program may import, it imports by this name on the user's own machine too.
    importable = carried.pop("packaging/ray_sim.py")
    assert importable == "ray_sim.py"
    on_nodes = text("simulator/innode/importable/ray_sim.py")
    offered = set(re.findall(r"import (\w+) as \1", text("packaging/ray_sim.py")))
    assert offered == set(re.findall(r'__all__ = \["(\w+)", "(\w+)"\]', on_nodes)[0])
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "simulator").rglob("*.py")]
    wanted = {
        name for code in sources for name in re.findall(r'asset_(?:path|names)\("([^"]+)"', code)
    }
    assert wanted >= {"compose.yaml", "docker", "experiments", "topologies"}
    assert carried == {name: f"simulator/_data/{name}" for name in wanted}
    # A wheel may be built from the source distribution, which must have what goes into it.
    section = re.findall(
        r"targets\.sdist\]\ninclude = \[(.*?)\]", text("pyproject.toml"), re.DOTALL
    )[0]
    assert {"/simulator", *(f"/{name}" for name in carried)} <= set(
        re.findall(r'"(\S+?)"', section)
    )
    assert (ROOT / "simulator/py.typed").is_file()
    assert (ROOT / "simulator/report/assets/uplot/LICENSE").is_file()


def test_every_relative_link_of_the_docs_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_topologies_shows_one_that_is_valid() -> None:
    from simulator.topology import parse_topology

    shown = re.findall(r"```yaml\n(.*?)```", text("docs/reference/topology.md"), re.DOTALL)
    assert shown
    for example in shown:
        parse_topology(yaml.safe_load(example), "docs/reference/topology.md")


def test_no_message_names_what_only_a_checkout_has(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = "|".join(re.findall(r"^([a-z-]+):.*##", text("Makefile"), re.MULTILINE))
    only_here = re.compile(rf"\bmake ({targets})\b|\bscripts/|\.venv/")
    said = {}
    for path in (ROOT / "simulator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if only_here.search(node.value) and "in a checkout" not in node.value:
                    said[node.value] = path.name
    assert said == {"on Debian as root: make engine": "assets.py"}  # what `engine_help` says here
    assert assets.engine_help() in said
    monkeypatch.setattr(assets, "is_checkout", lambda: False)
    assert not only_here.search(assets.engine_help())


def test_what_a_lean_node_gives_up_is_said_on_the_page_as_it_is_everywhere() -> None:
    from simulator.topology import LEAN_LACKS

    assert LEAN_LACKS in " ".join(text("docs/reference/topology.md").split())


def test_the_images_that_can_be_built_are_those_of_the_help() -> None:
    assert f'metavar="{"|".join(image.IMAGES)}"' in text("simulator/cli/machine.py")


def test_what_users_copy_needs_public_names_only() -> None:
    copied = {p: p.read_text(encoding="utf-8") for p in (ROOT / "starter").rglob("*.py")}
    for page in ("docs/guides/your-own-experiment.md", "docs/reference/checks.md"):
        copied[ROOT / page] = text(page)
    deep = {
        path.name: re.findall(r"(?:from|import) (simulator\.checkers\S*)", code)
        for path, code in copied.items()
    }
    assert not any(deep.values()), deep
