from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_samples import change_json, cut_short, make_run

from simulator.report import junit_xml


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for verdict in ("valid", "invalid", "unknown"):
        make_run(root / verdict, verdict)
    make_run(root / "cut")
    cut_short(root / "cut")
    return root


def suite_of(run: Path) -> ElementTree.Element:
    suite = ElementTree.fromstring(junit_xml(run)).find("testsuite")
    assert suite is not None
    return suite


def outcome(suite: ElementTree.Element, check: str) -> list[str]:
    case = next(c for c in suite.iter("testcase") if c.get("name") == check)
    return [child.tag for child in case if child.tag != "system-out"]


def test_each_check_is_a_test_case(runs: Path) -> None:
    suite = suite_of(runs / "valid")
    assert [c.get("name") for c in suite.iter("testcase")] == [
        "no_task_lost", "results_right", "executions_explained", "fault_hit_work", "recovers", "healed", "evidence",
    ]  # fmt: skip
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("7", "0", "0")


def test_invalid_is_a_failure_with_its_details(runs: Path) -> None:
    suite = suite_of(runs / "invalid")
    assert outcome(suite, "no_task_lost") == ["failure"]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "2 of 292 lost" in str(failure.get("message"))
    assert suite.get("failures") == "1"


def test_unknown_is_an_error_because_skipped_would_look_like_a_pass(runs: Path) -> None:
    suite = suite_of(runs / "unknown")
    assert outcome(suite, "recovers") == ["error"]
    assert suite.get("errors") == "1"


def test_a_run_that_did_not_complete_is_an_error_of_its_own(runs: Path) -> None:
    assert outcome(suite_of(runs / "cut"), "run") == ["error"]


def test_a_run_in_which_nothing_was_checked_is_not_green(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    change_json(tmp_path / "run" / "result.json", lambda result: result.update(findings=[]))
    suite = suite_of(tmp_path / "run")
    assert outcome(suite, "run") == ["error"]


def test_properties_hold_seed_versions_and_phases(runs: Path) -> None:
    found = {p.get("name"): p.get("value") for p in suite_of(runs / "unknown").iter("property")}
    assert found["seed"] == "1"
    assert found["version.ray"] == "2.60.0"
    assert found["gpu"] == "simulated"
    assert found["recovery.declared_dead_s"] == "4.300"
    assert found["recovery.rejoined_s"] == "not seen"


def test_several_runs_are_several_suites_with_totals(runs: Path) -> None:
    root = ElementTree.fromstring(junit_xml([runs / "valid", runs / "invalid", runs / "unknown"]))
    assert len(root.findall("testsuite")) == 3
    # The invalid run's recovery could not be decided either.
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("21", "1", "2")


def test_text_that_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "invalid")

    def write(result: dict[str, list[dict[str, object]]]) -> None:
        result["findings"][0].update(summary="a\x00b\x1b]]>\ud800<c>", details=["\ufffe"])

    change_json(tmp_path / "run" / "result.json", write)
    failure = suite_of(tmp_path / "run").find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "a\ufffdb\ufffd]]>\ufffd<c>"
