"""Finds the files that travel with the package: compose.yaml, docker/, topologies/, experiments/.

In a checkout they stand at its root, where a person looks for them; in an installed wheel they
are force-included under ``simulator/_data``. Nothing else in the package knows which it is, and no
message names what only a checkout has, but through `engine_help`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def asset_path(name: str) -> Path:
    """Path of a file or folder that travels with the package, such as ``"compose.yaml"``.

    Raises
    ------
    FileNotFoundError
        The installation is incomplete.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        path = root / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is missing from this installation of ray-cluster-simulator")


def asset_names(folder: str, suffix: str) -> dict[str, Path]:
    """What a folder that travels with the package has for people to name, such as experiments."""
    found = sorted(asset_path(folder).glob(f"*{suffix}"))
    return {path.stem: path for path in found if path.stem[0] not in "_."}


def is_checkout() -> bool:
    """Whether this is a checkout, with its Makefile, and not an installed wheel."""
    return not (_PACKAGE / "_data").is_dir()


def engine_help() -> str:
    """How to come by a Docker engine: the end of a sentence."""
    if is_checkout():
        return "on Debian as root: make engine"
    return "see https://docs.docker.com/engine/install"


def innode_path() -> Path:
    """The folder of the programs that run inside nodes; mounted, never baked into an image."""
    return _PACKAGE / "innode"


def importable_path() -> Path:
    """The folder of what a user's program may import in a node: `ray_sim`."""
    return innode_path() / "importable"
