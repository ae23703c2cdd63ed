"""Documents and workflows name files, scripts and flags that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from sharp_cog.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")]
)
YAML_FILES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"])


def shell_lines(document: Path) -> list[str]:
    """Return the lines of all shell blocks of a document, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documented_commands_have_the_flags_that_they_use(document: Path) -> None:
    for line in shell_lines(document):
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("scripts/predict"):
            words[:1] = ["sharp-cog", "predict"]
        if words and words[0] == "sharp-cog":
            build_parser().parse_args(words[1:])


@pytest.mark.parametrize("file", [*DOCUMENTS, *YAML_FILES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_and_tests_that_are_mentioned_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    mentioned = re.findall(r"(?<![\w/])((?:scripts|tests|sharp_cog|benchmarks)/[\w/.-]*\w)(?![\w*{-])", text)
    assert not [path for path in mentioned if not (ROOT / path).exists()]


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yaml_files_can_be_read(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content
    for job in content.get("jobs", {}).values():
        assert job["timeout-minutes"], "a job that hangs must end"
        for step in job["steps"]:
            action = step.get("uses", "actions/any@v1")
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action), "actions are pinned by major version"
