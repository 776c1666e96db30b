"""Which part may import which: data flow one way."""

import ast
import pathlib

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "imbal_jax"
FOUNDATION = {"types", "errors", "class_counts", "losses"}
# Beside the foundation and themselves, folders import only these.
ALLOWED = {
    "data": set(),
    "models": set(),
    "corrections": set(),
    "directions": {"curvature"},
    "curvature": {"models"},  # layers are recognised by their type
    "evaluation": set(),
    "reports": set(),
    # curvature: the effects of a step on every loss, and the extreme eigenvalues of each class
    "training": {"curvature", "data", "evaluation", "reports"},
    "analysis": {"curvature", "data", "evaluation", "reports", "training"},
}


def imported_parts(path: pathlib.Path) -> set[str]:
    """The first names below imbal_jax that a module imports, also inside of functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "imbal_jax":
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imbal_jax."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("imbal_jax.")}
    return parts


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_folders_import_only_what_they_may(path):
    folder = path.relative_to(PACKAGE).parts[0]
    assert imported_parts(path) <= FOUNDATION | {folder} | ALLOWED[folder]


@pytest.mark.parametrize("name", sorted(FOUNDATION))
def test_the_foundation_imports_only_itself(name):
    assert imported_parts(PACKAGE / f"{name}.py") <= FOUNDATION


def test_only_the_top_level_reads_configs():
    readers = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "ml_collections" in path.read_text()
    }
    assert readers == {"build.py", "config.py", "inspection_tasks.py", "main.py", "resolve.py", "tasks.py"}


def test_importing_the_package_does_not_load_slow_optional_libraries():
    slow = ("tensorflow", "tensorflow_datasets", "tensorboardX", "sklearn", "torch")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in slow], path
