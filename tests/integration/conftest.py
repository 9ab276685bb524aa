"""One cluster for all integration tests, as docs/guides/testcontainers.md shows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.testcontainers import RayClusterContainer


@pytest.fixture(scope="package")
def ray() -> Iterator[RayClusterContainer]:
    if why := RayClusterContainer.why_unavailable():
        pytest.skip(why)
    with RayClusterContainer(workers=2) as cluster:
        yield cluster


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are real, so the rules of tests/conftest.py apply to them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.real_docker)
