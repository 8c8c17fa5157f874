"""The loggers under the Python API: `logging.getLogger("onnxshot")` and below."""

import logging

import pytest
from doc_pages import PAGES
from fixture_data import FIXTURES, facts

import onnxshot
from onnxshot import logs

MODEL = FIXTURES / facts()["digits_mobile"]["file"]


def test_stages_runs_and_notes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="onnxshot"):
        result = onnxshot.quantize(MODEL, mode="dynamic", settings=onnxshot.Settings(bench_seconds=0.01))
    told = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert told[0] == ("onnxshot.runs", logging.DEBUG, "quantize: started")
    stages = [text.partition(":")[0] for name, _, text in told if name == "onnxshot.stages"]
    assert set(result.report.timings) <= set(stages)
    (ended,) = (text for name, level, text in told if (name, level) == ("onnxshot.runs", logging.INFO))
    assert ended.startswith("quantize: ")
    assert [t for name, level, t in told if (name, level) == ("onnxshot.notes", logging.INFO)] == result.report.notes
    against = [text for name, level, text in told if (name, level) == ("onnxshot.notes", logging.WARNING)]
    assert tuple(against) == result.report.verdict.reasons
    assert against, "compared on random data only"


def test_a_stage_within_another_is_for_debugging(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_SHORT", 0.0)
    with caplog.at_level(logging.INFO, logger="onnxshot"), logs.stage("outer"), logs.stage("inner"):
        pass
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["outer"]


def test_a_stage_that_fails_ends_without_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_SHORT", 0.0)
    with caplog.at_level(logging.INFO, logger="onnxshot"):
        with pytest.raises(ZeroDivisionError), logs.stage("broken"):
            raise ZeroDivisionError
        with logs.stage("next"):
            pass
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["next"]


def test_the_package_sets_up_no_logging() -> None:
    """Python prints warnings of loggers without any handler, so there is one that drops them."""
    package = logging.getLogger("onnxshot")
    assert [type(handler) for handler in package.handlers] == [logging.NullHandler]
    assert (package.level, package.propagate) == (logging.NOTSET, True)


def test_every_logger_is_on_the_page_of_python() -> None:
    assert all(f"`{logger.name}`" in PAGES["docs/python.md"] for logger in (logs.STAGES, logs.RUNS, logs.NOTES))
