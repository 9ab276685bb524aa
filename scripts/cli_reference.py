"""Writes docs/reference/cli.md from the commands themselves, so that no option is told twice.

    python scripts/cli_reference.py

A test fails when the page is older than the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "cli.md"
sys.path.insert(0, str(ROOT))

HEAD = """\
# The command line

Written by `scripts/cli_reference.py` from the commands themselves; each one's `--help` says the same, and
`run EXPERIMENT --help` also lists the experiment's parameters. `ray-sim` is the same as
`python -m simulator`.

## Exit codes

| code | means |
|---|---|
| 0 | valid, or done |
| 1 | invalid: what was promised did not hold |
| 2 | wrong usage: a name, option or file that is not right; every problem is listed |
| 3 | unknown: nothing can be said, and why |
| 4 | could not run: the machine, the engine or the image cannot do it, or it was interrupted |

`exec` and `attach` end with the code of what ran in the node, `submit` with the script's. Of a repeat, the exit code is the first that occurred of 4, 1, 3, 0.
An unhandled error of ours is 4, never 1.

## Streams

Data goes to standard output, progress and errors to standard error; with `--json` standard output is one JSON
document, and of what goes on (`monitor`, `status --watch`) one after the other. Colours are for terminals only.

## JSON

| command | prints |
|---|---|
| `up`, `start`, `status` | `cluster, backend, gpu, count: {desired, running, alive}, ray: {answers, version, why, remedy, resources}, nodes: [..], autoscaler, store` |
| | each node: `name, role, group, state, desired, running, alive, address, hostname, ray_node_id, resources, used, gpu, exit_code, profile, managed` (by Ray's autoscaler) |
| | `autoscaler`, null where it decides nothing: `runs, age_s` (of its last look), `groups: {name: {min, max, busy, idle, draining, starting, launching, failed}}, demand, placement_groups, never` (what no node could ever give), `failed` |
| | `store`, null where the head's tables are in no Redis: `name, state, address, exit_code` |
| `stop` | `cluster`; `stopped`: names of the nodes that ran |
| `heal` | `cluster`, null if it is gone; `done`, `problems`: sentences |
| `scale` | `cluster`; `added`: names; `removed`: a list of `node, running: {tasks, actors}, unknown` (why it is not known what ran there, or null) |
| `nodes` | `cluster`; `nodes`, as Ray remembers them: `node` (our name, or null), `ray_node_id, state` (ALIVE, DEAD), `is_head, hostname, address, resources, labels, since, until, message` |
| `monitor` | one object a line: `kind, source, wall, node, present, data` ([what they hold](../guides/clusters-by-hand.md)) |
| `run` | `experiment, backend, status, verdict, seed, run_dir, report, topology, ray_version, health, gpu, findings, recovery, params` of the [result](result.md) |
| `run --repeat N` | `runs`: one such object each; `summary`: verdicts, seeds, and the distribution of each phase |
| `chaos` | as `run`, and `program`: `script, arguments, status, exit_code, seconds, baseline_s, slowdown, tasks, attempts, retried, lost, actors, restarted, marks, effects` of the [result](result.md) |
| `replay` | as `run` or `chaos` |
| `shrink` | `faults`: the steps that are enough, as in the [spec](result.md); `runs`: how many it took, `complete`, `run_dir` of the smallest failing run |
| `check` | the [result](result.md), judged again |
| `clusters` | a list of `cluster, backend, gpu, run_dir, nodes: [..]`; each node: `name, role, group, state, address, hostname, exit_code` |
| `faults` | a list of `name, summary, parameters: [{name, type, default, unit, description}], undo, able, why_not, example` |
| `schedule` | `topology, seed, backend` (null where none was asked for); `faults`: as `schedule` of a run's [spec](result.md) |
| `experiments` | a list of `name, claim, path, topology, params: [{name, type, default, description}]`; of one that cannot be loaded `name, claim, path, error` |
| `runs` | a list of `run_id, experiment, started, backend, seed, status, verdict, run_dir` |
| `submit` | `job_id, status, exit_code, seconds, message`; status LOST where Ray is gone, exit code null where the script has none |
| `dashboard` | `cluster, url, relayed`; with `--token` `cluster, token` |
| `topologies` | a list of `name, description, path, nodes, resources`; one of them also `head, worker_groups` |
| `doctor` | `able, choice, asked, sections: [..]`: every check with its level and remedy |

A node's `state` is *alive* (running, and alive in the GCS), *starting* (running, not in the GCS yet), *dead*
(running, but the GCS gave it up), *paused* or *exited* (so says the engine). `gpu` is real, simulated or none.

## Environment

| variable | means |
|---|---|
| `RAY_SIM_RUNS` | where runs are kept; `./runs` by default |
| `RAY_SIM_STATE_DIR` | where the process backend keeps nodes' folders; below the user's state folder by default |
| `RAY_SIM_BASE_IMAGE` | base image that `image build` starts from, instead of an official slim Python |
| `RAY_SIM_DEBUG` | set to 1, an unhandled error shows its stack trace |
| `DOCKER_HOST`, `DOCKER_CONTEXT` | which engine, as for `docker` itself |

## Commands
"""  # noqa: E501 - a row of a table is one line


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its full name, in the order of ``--help``."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def page() -> str:
    """The whole page."""
    from typer.main import get_command

    from simulator.cli.app import app

    return HEAD + "".join(_command(name, command) for name, command in commands(get_command(app)))


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *(_argument(p) for p in arguments)])
    lines = [f"\n### `{usage}`\n", f"{command.help.strip()}\n"]
    rows = [(_argument(p), p.help) for p in arguments] + [(_option(p), p.help) for p in options]
    if rows:
        lines += ["| | |", "|---|---|"]
        lines += [f"| `{_cell(what)}` | {_cell(text or '')} |" for what, text in rows]
    return "\n".join(lines) + "\n"


def _argument(parameter: Any) -> str:
    words = parameter.metavar or parameter.name.upper()
    return words if parameter.required else f"[{words}]"


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    value = f"{names} {parameter.metavar or parameter.type.name.upper()}"
    shown = parameter.default
    hidden = parameter.show_default is False or shown in (None, "", (), []) or callable(shown)
    return value if hidden else f"{value}, default {shown}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
