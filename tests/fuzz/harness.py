"""Fuzzing targets, and the verdict on one input: it must end in a result or in a proper error, at low cost.

Modules `tests.fuzz.targets_*` list their targets as `TARGETS`; the tests and `python -m tests.fuzz` find them there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tests.fuzz
from sharp_cog.errors import SharpError

MAX_CPU_S = 2.0
"""Maximum CPU seconds for an input that is refused."""
MAX_GROWTH_BYTES = 10**9
"""Maximum peak memory for an input that is refused, above the peak after the seeds."""
MAX_MESSAGE_CHARS = 1000
MAX_FINDINGS = 20
"""Number of findings after which the campaign of a target ends."""

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Target:
    """A reader of foreign bytes.

    Attributes:
        name: Unique, such as `image-png`.
        seeds: Creates well-formed inputs of some kilobytes at most, each of which has a result.
        run: Reads one input; returns a result that was checked for sanity, or raises.
        allowed: Proper errors; anything else that `run` raises is a finding.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], object]
    allowed: tuple[type[SharpError], ...]


def registry() -> dict[str, Target]:
    """Returns all targets by name."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(tests.fuzz.__path__, "tests.fuzz."):
        if module.name.startswith("tests.fuzz.targets_"):
            for target in importlib.import_module(module.name).TARGETS:
                assert target.name not in found, f"two fuzzing targets are called {target.name}"
                found[target.name] = target
    return found


@dataclass(kw_only=True)
class Finding:
    """An input that did not end as it should."""

    reason: str
    path: str


@dataclass(kw_only=True)
class Report:
    """Outcome of a campaign for one target; `refused` counts errors by their code."""

    target: str
    engine: str
    seed: int
    inputs: int = 0
    results: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    slowest_refusal_s: float = 0.0
    slowest_result_s: float = 0.0
    refusal_growth_bytes: int = 0
    result_growth_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        values = json.loads(path.read_text(encoding="utf-8"))
        findings = [Finding(**finding) for finding in values.pop("findings")]
        return cls(**values, findings=findings)


class Examiner:
    """Runs a target on one input after another, and records every outcome.

    The current input is kept in the file `current`, so that it is known even if the process dies of it.

    Args:
        target: The target. It runs in this process, whose memory is measured.
        report: Receives the outcomes.
        folder: Folder of `current` and of `findings/`.
        on_start: Called before each input, as a sign of life.
    """

    def __init__(self, target: Target, report: Report, folder: Path, on_start: Callable[[], None]) -> None:
        self._target, self._report, self._folder, self._on_start = target, report, folder, on_start
        self._baseline = 0

    @property
    def num_inputs(self) -> int:
        return self._report.inputs

    @property
    def is_done(self) -> bool:
        return len(self._report.findings) >= MAX_FINDINGS

    def warm_up(self, seeds: Iterable[bytes]) -> None:
        """Runs the seeds, which must have results, and takes the memory after them as the baseline."""
        for seed in seeds:
            (self._folder / "current").write_bytes(seed)
            self._on_start()
            try:
                self._target.run(seed)
            except Exception as error:  # noqa: BLE001 - any exception is a finding
                self._note(seed, f"a seed has no result: {_describe(error)}")
        reset_peak()
        self._baseline = peak_bytes()

    def __call__(self, content: bytes) -> None:
        (self._folder / "current").write_bytes(content)
        self._on_start()
        report, refusal, wrong = self._report, None, None
        reset_peak()
        start = time.process_time()
        try:
            self._target.run(content)
        except self._target.allowed as error:
            refusal, wrong = error, wrong_with(error)
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            wrong = f"raised an improper error: {_describe(error)}"
        cpu_s, growth = time.process_time() - start, peak_bytes() - self._baseline
        report.inputs += 1
        if refusal is not None:
            report.refused[refusal.code] = report.refused.get(refusal.code, 0) + 1
            report.slowest_refusal_s = max(report.slowest_refusal_s, cpu_s)
            report.refusal_growth_bytes = max(report.refusal_growth_bytes, growth)
            if cpu_s >= MAX_CPU_S:
                wrong = f"was refused after {cpu_s:.2f} s of CPU, {MAX_CPU_S:g} s is the limit: {refusal}"
            elif growth >= MAX_GROWTH_BYTES:
                wrong = f"was refused after taking {growth / 1e9:.2f} GB of memory: {refusal}"
        elif wrong is None:
            report.results += 1
            report.slowest_result_s = max(report.slowest_result_s, cpu_s)
            report.result_growth_bytes = max(report.result_growth_bytes, growth)
        if wrong is not None:
            self._note(content, wrong)

    def _note(self, content: bytes, reason: str) -> None:
        self._report.findings.append(keep(content, reason, self._target.name, self._folder))


def keep(content: bytes, reason: str, target_name: str, folder: Path) -> Finding:
    """Saves an input, and the reason for it in a text file beside it."""
    path = folder / "findings" / f"{target_name}-{hashlib.sha256(content).hexdigest()[:16]}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.with_name(f"{path.name}.txt").write_text(reason, encoding="utf-8", errors="backslashreplace")
    return Finding(reason=reason, path=str(path))


def wrong_with(error: SharpError) -> str | None:
    """Returns the fault of an error that must not be shown to a caller, or None."""
    message = str(error)
    if not error.code or not message.strip():
        return f"{type(error).__name__} has the code {error.code!r} and the message {message!r}"
    if not message.isprintable() or len(message) > MAX_MESSAGE_CHARS:
        return f"the message is not printable, or has more than {MAX_MESSAGE_CHARS} characters: {message[:2000]!a}"
    if tempfile.gettempdir() in message:
        return f"the message names a temporary file: {message}"
    return None


def _describe(error: Exception) -> str:
    return "".join(traceback.format_exception(error)[-6:]).strip()


def reset_peak() -> None:
    """Resets the peak of this process's memory to its present size (man 5 proc_pid_clear_refs)."""
    _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_bytes() -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
