"""Imports point one way: a module imports only from its own package and from packages above it in the list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sharp_cog

ROOT = Path(__file__).parents[2]

ORDER = (
    *("errors", "text", "config", "files", "geometry", "imaging", "depth", "model", "runtime", "estimators", "formats"),
    *("preview", "pipeline", "evaluation", "serving", "dataset", "cli", "camera", "images", "__main__"),
)
"""Packages and modules of sharp_cog, from the bottom up; `predict.py` stands above all of them."""

ENVIRONMENT_READERS = {"sharp_cog.config.settings", "sharp_cog.config.process"}
"""Modules that may touch `os.environ`."""


def module_files() -> dict[str, Path]:
    files = {"predict": ROOT / "predict.py"}
    for path in sorted((ROOT / "sharp_cog").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def rank(module: str) -> int:
    """Index of the module's package in `ORDER`."""
    return len(ORDER) if module == "predict" else ORDER.index(module.split(".")[1])


def imports_of(module: str) -> set[str]:
    """Modules of this project that a module imports, anywhere in its code, for types included."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            if node.module in MODULES:
                imported |= {resolve(node.module, alias.name) for alias in node.names}
    # The root offers the version to all modules, and its public names lazily, by import_module.
    return imported - {"sharp_cog", module}


def resolve(module: str, name: str) -> str:
    """Module behind `from module import name`."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if module == "sharp_cog":
        return sharp_cog._HOMES.get(name, module)
    return module


def environment_uses(module: str) -> Iterator[int]:
    """Lines where a module touches the process's environment."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names}:
            yield node.lineno


def test_no_import_points_upward() -> None:
    upward = [
        f"{module} imports {other}"
        for module in MODULES
        if module != "sharp_cog"
        for other in imports_of(module)
        if rank(other) > rank(module)
    ]
    assert not upward, "\n".join(upward)


def test_every_module_has_a_place_in_the_order() -> None:
    unknown = {
        module for module in MODULES if module not in ("sharp_cog", "predict") and module.split(".")[1] not in ORDER
    }
    assert not unknown, f"add {unknown} to ORDER in {Path(__file__).name} and to docs/architecture.md"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imports_of(module) for module in MODULES if module != "sharp_cog"}
    assert len(tuple(TopologicalSorter(graph).static_order())) >= len(graph)


def test_only_the_configuration_touches_the_environment() -> None:
    readers = {module for module in MODULES if list(environment_uses(module))}
    assert readers == ENVIRONMENT_READERS
