"""No setting and no flag is dead: each is read by the code that it is for, and the model's settings reach the model."""

from __future__ import annotations

import ast
import base64
import runpy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import modal
import pytest
import runpod
import torch

from sharp_cog.cli import COMMANDS
from sharp_cog.config.dataset import FIXED_FOLDERS, DatasetSettings
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.runtime import load
from sharp_cog.serving import runpod as worker
from tests.gated import Gated

PACKAGE = Path(__file__).parents[2] / "sharp_cog"


def attributes_read(paths: Iterable[Path]) -> set[str]:
    """Return the names of all attributes that the modules read, outside the checks in `__post_init__`."""
    names = set()
    for path in paths:
        waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("table", [PredictOptions, Settings, ServiceSettings, DatasetSettings])
def test_every_option_and_setting_is_read(table: type) -> None:
    read = attributes_read(PACKAGE.rglob("*.py"))
    assert {about.name for about in parameters(table)} - read == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_read(command: str) -> None:
    module = PACKAGE / "cli" / f"{command.replace('-', '_')}.py"
    read = attributes_read([module])
    calls = {
        node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    for function, table in {
        "settings_from": Settings,
        "options_from": PredictOptions,
        "ServiceSettings.from_environment": ServiceSettings,
        "DatasetSettings.build": DatasetSettings,
    }.items():
        if function in calls:
            read |= {about.name for about in parameters(table)}
    if "DatasetSettings.build" in calls:
        read |= FIXED_FOLDERS.keys()
    if command == "serve":
        read.add("http")  # It names the only service, for the reader of a command line.
    declared = {names[-1].lstrip("-").replace("-", "_") for names, _ in COMMANDS[command].flags}
    assert declared - read == set()


@pytest.mark.parametrize(
    ("name", "value"), [("model", "lift"), ("precision", "bfloat16"), ("keep_encoding", False), ("cuda_graphs", False)]
)
def test_a_setting_of_the_model_reaches_the_model(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "choose", lambda precision, device: precision)
    monkeypatch.setattr(load, "SharpRunner", lambda source, **given: given)

    def loaded(settings: Settings) -> object:
        predictor = load.load_predictor(settings, torch.device("cpu"), MagicMock())
        return predictor if isinstance(predictor, dict) else type(predictor)

    assert loaded(Settings()) != loaded(replace(Settings(), **{name: value}))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
def test_modal_sends_a_container_as_many_requests_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, concurrent = list[int](), modal.concurrent

    def recorded(*, max_inputs: int) -> Any:
        limits.append(max_inputs)
        return concurrent(max_inputs=max_inputs)

    monkeypatch.setattr(modal, "concurrent", recorded)
    monkeypatch.setenv("SHARP_MODAL_CONCURRENCY", "2")
    runpy.run_module("sharp_cog.serving.modal_app")
    assert limits[0] == 2


@pytest.mark.parametrize("webhook", ["", "https://runpod.example/done"])
def test_the_worker_reports_progress_only_if_runpod_listens(
    webhook: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    progress_update, start = MagicMock(), MagicMock()
    monkeypatch.setenv("RUNPOD_WEBHOOK_POST_OUTPUT", webhook)
    monkeypatch.setattr(worker, "READY", tmp_path / "ready")
    monkeypatch.setattr(SharpPipeline, "load", lambda settings, **more: Gated())
    monkeypatch.setattr(runpod.serverless, "progress_update", progress_update)
    monkeypatch.setattr(runpod.serverless, "start", start)
    worker.main()
    handler = start.call_args.args[0]["handler"]
    handler({"id": "job", "input": {"image": base64.b64encode(b"abc").decode()}})
    assert progress_update.called == bool(webhook)
