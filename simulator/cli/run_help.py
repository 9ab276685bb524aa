"""``run NAME --help`` lists the parameters of that experiment too, and a shell completes them.

The help option of a command is handled before its arguments are known, and a line that is being
completed cannot be parsed to its end, so the name is read from the command line beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text
from typer.core import TyperCommand

if TYPE_CHECKING:
    from simulator.experiment import Experiment

_NAME = "simulator.run.experiment"


class RunCommand(TyperCommand):
    """The command ``run``, whose help depends on the experiment that is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_NAME] = self._named(ctx, args)
        return super().parse_args(ctx, args)

    def _named(self, ctx: Any, args: list[str]) -> str | None:
        """The experiment on the command line, if there is one and the line can be read."""
        for words in (args, args[:-1]):  # the last one may be an option that waits for its value
            try:
                values, _, _ = self.make_parser(ctx).parse_args(args=list(words))
            except Exception:  # noqa: BLE001 - the real parsing, next, says what is wrong
                continue
            name = values.get("experiment")
            if isinstance(name, str):
                return name
        return None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from simulator.experiment import load_experiment

        name = named_experiment(ctx)
        experiment = load_experiment(name) if name is not None else None
        super().format_help(ctx, formatter)
        if experiment is not None:
            _show(experiment)


def named_experiment(ctx: Any) -> str | None:
    """The experiment that a command line of ``run`` names."""
    name = ctx.meta.get(_NAME)
    return name if isinstance(name, str) else None


def _show(experiment: Experiment) -> None:
    from simulator.cli.output import data_console
    from simulator.cli.params import param_rows
    from simulator.cli.tables import params_view

    console = data_console()
    console.print(Text(f"{experiment.name}: {experiment.claim}", "bold"))
    console.print(f"Topology {experiment.topology}, unless told otherwise.\n")
    rows = param_rows(experiment)
    if rows:
        console.print("Parameters, each set with --param NAME=VALUE:")
        console.print(params_view(rows))
    else:
        console.print("It has no parameters.")
