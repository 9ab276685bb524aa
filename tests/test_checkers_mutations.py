"""The table of checks against mutations: each mutation flips exactly the checks that it should.

It runs on a built history and on every recorded one: ``tests/histories/<name>/`` holds the ``spec.json`` and the
``history.jsonl.gz`` of a real run that was valid. The checks are those that the run's spec names.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from history_builder import build
from history_mutations import MUTATIONS, NotHere
from recorded import HISTORIES, flips_exactly, load, recorded

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.registry import (
    BUILT_IN,
    OF_GROWTH,
    OF_ONE_WORKLOAD,
    OF_PROGRAMS,
    run_checks,
)


def named(name: str, folder: Path) -> RunView:
    """A recorded run; or the built one."""
    if name == "built":
        return RunView(*build())
    return load(HISTORIES / name, folder)


@pytest.fixture(scope="module", params=["built", *recorded(HISTORIES)])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return named(request.param, tmp_path_factory.mktemp("history"))


def test_the_original_is_valid_by_every_check(original: RunView) -> None:
    findings = run_checks(original)
    assert [f"{f.check}: {f.summary}" for f in findings if f.verdict is not Verdict.VALID] == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_flips_exactly_the_checks_that_it_should(original: RunView, name: str) -> None:
    flips_exactly(original, MUTATIONS[name])


def test_no_mutation_is_skipped_everywhere_and_every_check_is_flipped(tmp_path: Path) -> None:
    """On the built history, or on the recorded one of a workload that the built one does not have."""
    views = [
        named(name, tmp_path) for name in ("built", "docker-task-placement", "process-promises")
    ]
    flipped: set[str] = set()
    for name, mutate in MUTATIONS.items():
        flips: set[str] = set()
        for view in views:
            with suppress(NotHere):
                flips |= set(mutate(view).flips)
        assert flips, name
        flipped |= flips
    # Those of programs, of clusters that grow and of one kind of fault have tables of their own, which make the
    # same claim (test_checkers_program, test_elasticity, test_losses, test_survival).
    elsewhere = (
        (OF_ONE_WORKLOAD & set(OF_PROGRAMS)) | set(OF_GROWTH) | {"drained_in_time", "outlives_head"}
    )
    assert flipped >= set(BUILT_IN) - elsewhere
