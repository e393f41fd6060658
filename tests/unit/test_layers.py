"""The package is built in layers: imports go down only, and the lowest layers stay light."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bitzoo

PACKAGE = Path(bitzoo.__file__).parent

LAYERS = [
    [
        *("_version", "errors", "locks", "files", "display", "small_files"),
        *("progress", "progress_line", "durations", "interrupts", "portable"),
        *("openmp_waiting", "limited_process"),
    ],
    ["models"],
    ["catalogue", "fetch"],
    ["converters", "model_cards", "data", "zoo"],
    ["exporters", "hub"],
    ["inference"],
    ["training"],
    ["runs"],
    ["cli", "__main__"],
]
"""From the bottom up, the packages and top-level modules of each layer.

A package imports from the layers below it and, within its own layer, from the packages named before
it in `SIBLINGS`. Inside a package any import may stand that makes no circle. `bitzoo/__init__.py`
may import all, and nothing imports it.
"""

SIBLINGS = {
    "fetch": {"catalogue"},
    "durations": {"errors"},
    "errors": {"display"},
    "files": {"errors", "locks", "portable"},
    "locks": {"errors", "portable"},
    "progress": {"durations", "progress_line"},
    "progress_line": {"display", "durations"},
    "openmp_waiting": {"portable"},
    "small_files": {"errors", "portable"},
    "zoo": {"converters"},
    "hub": {"exporters"},
    "__main__": {"cli"},
}
"""Package -> the packages of its own layer that it may import; none but these."""

NAMED_AFTER_COMMANDS = "cli"
"""The package whose modules share the names of what they call."""

LAYER_OF = {name: number for number, layer in enumerate(LAYERS, start=1) for name in layer}
TOP = "bitzoo"
MAX_LINES = 600
HEAVY = {"torch", "torchvision", "tensorflow", "timm", "transformers", "jax", "accelerate"}


def find_modules(package=PACKAGE):
    """Dotted name -> file of every module."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


MODULES = find_modules()


def imports_of(tree, module, is_package, modules=MODULES):
    """The package's modules that `tree` imports anywhere, lazily and for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            # `from package import name` means the submodule of that name where there is one
            submodules = {f"{base}.{alias.name}" for alias in node.names} & set(modules)
            is_all_modules = len(submodules) == len(node.names)
            found |= submodules if is_all_modules else submodules | {base}
    return {name for name in found if name.split(".")[0] == TOP}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


GRAPH = {
    module: imports_of(parse(path), module, path.name == "__init__.py")
    for module, path in MODULES.items()
}


def package_of(module):
    """The package, or top-level module, that a module belongs to."""
    name = module.split(".")[1] if "." in module else TOP
    assert name in {*LAYER_OF, TOP}, f"add {name!r} to LAYERS in {Path(__file__).name}"
    return name


def complaint(importer, imported):
    """Why the import may not stand, or an empty string."""
    if package_of(imported) == TOP:
        return f"{importer} imports `bitzoo` itself: import the module that has the name"
    ours, theirs = package_of(importer), package_of(imported)
    if ours == theirs or LAYER_OF[theirs] < LAYER_OF[ours] or theirs in SIBLINGS.get(ours, ()):
        return ""
    return (
        f"{importer} (layer {LAYER_OF[ours]}) imports {imported} (layer {LAYER_OF[theirs]}): "
        "imports go down only"
    )


def test_every_module_is_seen():
    assert {"bitzoo", "bitzoo.errors", "bitzoo.converters.formats.npz"} <= set(MODULES)
    assert MODULES["bitzoo.errors"] == PACKAGE / "errors.py"
    assert "bitzoo.errors" in GRAPH["bitzoo.models.architecture"]


def test_there_is_no_link_in_the_package():
    assert [path for path in PACKAGE.rglob("*") if path.is_symlink()] == []


def test_a_modules_name_stands_once():
    names = Counter(
        path.stem
        for module, path in MODULES.items()
        if path.name not in ("__init__.py", "__main__.py")
        and package_of(module) != NAMED_AFTER_COMMANDS
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("module", sorted(set(MODULES) - {TOP}))
def test_every_module_has_a_layer_and_imports_go_down(module):
    package_of(module)
    unknown = {name for name in GRAPH[module] if name not in MODULES}
    assert not unknown, f"{module} imports modules that do not exist: {sorted(unknown)}"
    assert [c for name in sorted(GRAPH[module]) if (c := complaint(module, name))] == []


def test_there_are_no_circles():
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


def test_there_are_no_circles_of_packages():
    packages: dict[str, set[str]] = {}
    for module, imported in GRAPH.items():
        if module != TOP:
            ours = packages.setdefault(package_of(module), set())
            ours |= {package_of(name) for name in imported} - {package_of(module)}
    try:
        graphlib.TopologicalSorter(packages).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle of packages: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_described_and_short(module):
    path = MODULES[module]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert ast.get_docstring(parse(path)), f"{module} has no docstring"
    assert lines <= MAX_LINES, f"{module} has {lines} lines; is it two ideas?"


class TestTheRuleItself:
    """Planted imports, so that a checker which sees nothing fails too."""

    def test_asks_for_a_layer(self):
        with pytest.raises(AssertionError, match=r"add 'cellar' to LAYERS in test_layers\.py"):
            package_of("bitzoo.cellar.coal")

    @pytest.mark.parametrize(
        ("source", "module", "expected"),
        [
            ("import bitzoo.errors", "bitzoo.zoo.create", {"bitzoo.errors"}),
            ("from bitzoo.fetch import http", "bitzoo.zoo.create", {"bitzoo.fetch.http"}),
            ("from bitzoo import create_model", "bitzoo.hub", {"bitzoo"}),
            ("from ..errors import BitzooError", "bitzoo.models.x", {"bitzoo.errors"}),
            ("from .. import errors", "bitzoo.models.x", {"bitzoo.errors"}),
            ("from ...errors import BitzooError", "bitzoo.converters.formats.x", {"bitzoo.errors"}),
            ("def f():\n    import bitzoo.errors", "bitzoo.models.x", {"bitzoo.errors"}),
            ("import numpy\nfrom os import path", "bitzoo.models.x", set()),
        ],
    )
    def test_finds_imports(self, source, module, expected):
        modules = {"bitzoo", "bitzoo.errors", "bitzoo.fetch", "bitzoo.fetch.http"}
        assert imports_of(ast.parse(source), module, False, modules) == expected

    @pytest.mark.parametrize(
        ("importer", "imported", "says"),
        [
            ("bitzoo.models.bit", "bitzoo.errors", ""),
            ("bitzoo.zoo.create", "bitzoo.zoo.resolve", ""),
            ("bitzoo.zoo.create", "bitzoo.converters.open", ""),
            ("bitzoo.errors", "bitzoo.cli.main", "(layer 1) imports bitzoo.cli.main (layer 9)"),
            ("bitzoo.models.bit", "bitzoo.fetch.http", "imports go down only"),
            ("bitzoo.converters.open", "bitzoo.zoo.create", "imports go down only"),
            ("bitzoo.data.loader", "bitzoo.converters.open", "imports go down only"),
            ("bitzoo.hub", "bitzoo", "bitzoo.hub imports `bitzoo` itself"),
        ],
    )
    def test_judges_imports(self, importer, imported, says):
        found = complaint(importer, imported)
        assert says in found
        assert bool(says) == bool(found)


@pytest.mark.parametrize(
    ("arguments", "prints"),
    [
        (["-c", "import bitzoo"], ""),
        (["-c", "import bitzoo.models.architecture"], ""),
        (["-c", "import bitzoo.catalogue.registry"], ""),
        (["-m", "bitzoo", "--help"], "convert"),
        (["-m", "bitzoo", "list"], "BiT-M-R50x1"),
    ],
)
def test_looking_around_loads_no_framework(arguments, prints):
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[-2000:]
    assert prints in run.stdout
    timings = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in timings}
    assert "bitzoo" in imported
    assert imported & HEAVY == set()
