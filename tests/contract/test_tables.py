"""The tables in docs/ are those of the package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_options_and_settings_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "tables"), "--check"]
    checked = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
