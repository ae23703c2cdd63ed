import hashlib
from pathlib import Path

import pytest

from tests.cli.commands import run


def test_a_checkpoint_that_exists_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "sharp_2572gikvuh.pt"
    checkpoint.write_bytes(b"weights")
    monkeypatch.setenv("SHARP_CHECKPOINT_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert run("download", "--cache-dir", tmp_path) == 0
    assert capsys.readouterr().out == f"{checkpoint}: 7 bytes, verified\n"
    checkpoint.write_bytes(b"other weights")
    assert run("download", "--cache-dir", tmp_path) == 1
    captured = capsys.readouterr()
    assert "[invalid_checkpoint]" in captured.err
    assert "verified" not in captured.out
