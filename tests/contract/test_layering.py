"""Imports point down only, and one module reads the environment."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sharp_cog

ROOT = Path(__file__).parents[2]

LAYERS = (
    {"predict", "sharp_cog.__main__", "sharp_cog.cli", "sharp_cog.serving", "sharp_cog.dataset"},
    {"sharp_cog.pipeline", "sharp_cog.prediction", "sharp_cog.streaming", "sharp_cog.estimators"},
    {"sharp_cog.formats", "sharp_cog.preview"},
    {
        *(
            "sharp_cog.checkpoint",
            "sharp_cog.torch_archive",
            "sharp_cog.download",
            "sharp_cog.preprocess",
            "sharp_cog.unproject",
            "sharp_cog.weights",
            "sharp_cog.devices",
        ),
        *("sharp_cog.network", "sharp_cog.kernels", "sharp_cog.arrange"),
    },
    {
        *("sharp_cog.images", "sharp_cog.pixels", "sharp_cog.guards", "sharp_cog.color"),
        *("sharp_cog.depth", "sharp_cog.depth_files"),
    },
    {
        *(
            "sharp_cog.gaussians",
            "sharp_cog.camera",
            "sharp_cog.errors",
            "sharp_cog.options",
            "sharp_cog.atomic",
            "sharp_cog.redact",
            "sharp_cog.foreign",
            "sharp_cog.scratch",
        ),
        # Every layer may be set up, so settings lie at the bottom, and not with the doors that they are named after.
        "sharp_cog.serving.settings",
    },
)
"""From top to bottom. A package stands for all modules in it that are not named themselves."""

ENVIRONMENT_READERS = {"sharp_cog.serving.settings"}


def module_files() -> dict[str, Path]:
    files = {"predict": ROOT / "predict.py"}
    for path in sorted((ROOT / "sharp_cog").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def layer_of(module: str) -> int:
    """Index of the module's layer; the longest name in the table that fits counts."""
    name = module
    while name:
        for index, layer in enumerate(LAYERS):
            if name in layer:
                return index
        name = name.rpartition(".")[0]
    raise LookupError(f"{module} has no layer: give it one in {Path(__file__).name}")


def imports_of(module: str) -> set[str]:
    """The modules of this project that a module imports, anywhere in its code, for types included."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            if node.module in MODULES:
                imported |= {resolve(node.module, alias.name) for alias in node.names}
    # The root offers the version to all, and its names by import_module, which is not an import of theirs.
    return imported - {"sharp_cog", module}


def resolve(module: str, name: str) -> str:
    """The module behind `from module import name`."""
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


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"sharp_cog"}))
def test_a_module_imports_from_its_own_layer_or_below(module: str) -> None:
    upward = {other for other in imports_of(module) if layer_of(other) < layer_of(module)}
    assert not upward, f"{module} imports from above: {', '.join(sorted(upward))}"


def test_the_table_holds_no_layer_twice() -> None:
    everything = [module for layer in LAYERS for module in layer]
    assert len(everything) == len(set(everything))


def test_an_unknown_module_has_no_layer() -> None:
    with pytest.raises(LookupError, match=r"sharp_cog\.utils has no layer"):
        layer_of("sharp_cog.utils")


def test_no_module_imports_itself_by_way_of_others() -> None:
    # Commands take what they share from the package that offers them, which imports them by name when they are called.
    graph = {module: imports_of(module) for module in MODULES if module != "sharp_cog"}
    assert len(tuple(TopologicalSorter(graph).static_order())) >= len(graph)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ENVIRONMENT_READERS))
def test_only_the_settings_read_the_environment(module: str) -> None:
    lines = list(environment_uses(module))
    assert not lines, f"{module} touches the environment in line {', '.join(map(str, lines))}"


def test_the_settings_are_seen_to_read_the_environment() -> None:
    assert list(environment_uses("sharp_cog.serving.settings")), "the search for readers finds nothing at all"
