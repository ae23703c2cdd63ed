"""The table of GPU memory."""

from __future__ import annotations

from pathlib import Path

from sharp_cog.dataset.gpu_log import GpuLog


def test_gpu_memory_is_logged_as_a_table(tmp_path: Path) -> None:
    log = GpuLog(tmp_path / "gpu_mem_log.csv")
    log.write("a")
    log.write("b")
    rows = [line.split(",") for line in (tmp_path / "gpu_mem_log.csv").read_text().splitlines()]
    assert rows[0] == ["time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes", "free_bytes"]
    assert [row[1] for row in rows[1:]] == ["a", "b"]
    assert all(len(row) == 6 for row in rows)
