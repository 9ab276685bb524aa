"""Prints for whatever is at the other end: a colour terminal, a log file, a console of ASCII only.

Reports are composed once, with the characters that read best. Where the output's encoding cannot
carry them, each is replaced by one ASCII character, so that every column stays in its place.
"""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

_ASCII = str.maketrans(
    {
        **dict.fromkeys("╭╮╰╯┌┐└┘┏┓┗┛├┤┬┴┼┡┩╇┳┻╋╈╂┿╶╴╸╺", "+"),
        **dict.fromkeys("│┃┫", "|"),
        **dict.fromkeys("─━\u2013\u2014\u2212", "-"),
        **dict.fromkeys("▁▂▃", "."),
        **dict.fromkeys("▄▅", ":"),
        **dict.fromkeys("▆▇█", "#"),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("“”", '"'),
        "✓": "+",
        "✕": "x",
        "·": "-",
        "±": "~",
        "…": "_",
    }
)


def show(console: Console, what: RenderableType, *, crop: bool = True) -> None:
    """Print to `console`, with ASCII stand-ins where its encoding has nothing better.

    What is not cropped may be longer than a line: the terminal folds it.
    """
    if not console.options.ascii_only:
        console.print(what, crop=crop)
        return
    text = StringIO()
    Console(file=text, width=console.width, color_system=None, legacy_windows=False).print(
        what, crop=crop
    )
    plain = text.getvalue().translate(_ASCII).encode("ascii", "replace").decode("ascii")
    console.print(plain, markup=False, highlight=False, soft_wrap=True, end="")
