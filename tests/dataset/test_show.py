"""The display of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.show import duration, show, status
from tests.dataset.client import run_of, settings_of


def test_durations_are_for_people() -> None:
    assert [duration(value) for value in (0, 119.4, 120, 7199, 7260, 172_800, 10**6)] == [
        *("0 s", "119 s", "2 min", "119 min", "2 h 1 min", "2 d 0 h", "11 d 13 h")
    ]


def test_lines_are_logged_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharp_cog.dataset.show.LINE_S", 0.1)
    run = run_of(settings_of(tmp_path, count=6), seconds=0.1)
    with caplog.at_level(logging.INFO, logger="sharp_cog"), show(run):
        run.work()
    lines = [record.message for record in caplog.records if record.name == "sharp_cog.dataset.show"]
    assert len(lines) >= 3
    assert lines[-1].startswith("done: 6; failed: 0; an hour: ")
    assert "time left: 0 s" in lines[-1]
    assert "waiting: " in lines[-1]


def test_status_lists_the_first_failures(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    names = [f"photo{number}" for number in range(12)]
    journal.add(Photo(id=name, where="") for name in [*names, "fine"])
    for name in names:
        journal.fail(name, "broken", state="seen")
        journal.fail(name, "invalid_image: broken", state="seen")
    journal.finish(["fine"])
    lines = status(journal).splitlines()
    assert lines[0].split() == ["done", "1"]
    assert "  photo0: invalid_image: broken" in lines
    assert lines[-1] == "  and 2 more"


def test_status_counts_the_assumptions_about_photographs(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add(Photo(id=name, where="") for name in ("a", "b", "c", "d"))
    for name, assumptions in {"a": ["focal length taken as 30 mm"], "b": ["focal length taken as 30 mm", "x"]}.items():
        journal.advance(name, "made", splats={}, assumptions=assumptions)
    journal.advance("c", "made", splats={})  # As versions before wrote it.
    journal.finish(["a"])
    assert status(journal).splitlines()[-2:] == [
        "  assumed for 2: focal length taken as 30 mm",
        "  assumed for 1: x",
    ]
