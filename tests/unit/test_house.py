"""The package is a house of floors: imports go down only, and the ground floors stay light."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitzoo

HOUSE = Path(bitzoo.__file__).parent

FLOORS = [
    ["errors", "_version", "interrupts"],
    ["arch", "download", "published", "hub_client"],
    ["model layers", "registry"],
    ["converters", "model_cards", "preprocess", "class_names"],
    ["zoo weights hub_source model_folder", "console"],
    ["export"],
    ["inference"],
    ["hub", "finetune", "describe"],
    ["cli commands export_commands training_commands publish_commands quickstart __main__"],
]
"""From the ground up, the rooms of each floor; modules in one string share a room.

A room is a module or a package. It imports from floors below it; inside a room any import may stand
that makes no circle. `bitzoo/__init__.py` is the roof: it may import all, and nothing imports it.
"""

ROOM_OF = {name: room for floor in FLOORS for room in floor for name in room.split()}
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS, start=1) for room in floor}
ROOF = "bitzoo"
MAX_LINES = 400
HEAVY = {"torch", "torchvision", "tensorflow", "timm", "transformers", "jax", "accelerate"}


def find_modules(house=HOUSE):
    """Dotted name -> file of every module, through the links to converters and model_cards."""
    modules = {}
    for folder, folders, files in os.walk(house, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = path.relative_to(house.parent).with_suffix("").parts
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
    return {name for name in found if name.split(".")[0] == ROOF}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


GRAPH = {
    module: imports_of(parse(path), module, path.name == "__init__.py")
    for module, path in MODULES.items()
}


def first_name(module):
    return module.split(".")[1] if "." in module else ROOF


def room_of(module):
    name = first_name(module)
    assert name in ROOM_OF, f"add {name!r} to FLOORS in {Path(__file__).name}"
    return ROOM_OF[name]


def complaint(importer, imported):
    """Why the import may not stand, or an empty string."""
    if first_name(imported) == ROOF:
        return f"{importer} imports the roof, `bitzoo` itself: import the module that has the name"
    ours, theirs = room_of(importer), room_of(imported)
    if ours == theirs or FLOOR_OF[theirs] < FLOOR_OF[ours]:
        return ""
    return (
        f"{importer} (floor {FLOOR_OF[ours]}) imports {imported} (floor {FLOOR_OF[theirs]}): "
        "imports go down only"
    )


def test_the_walk_sees_the_linked_packages():
    assert {"bitzoo", "bitzoo.errors", "bitzoo.converters", "bitzoo.model_cards"} <= set(MODULES)
    assert MODULES["bitzoo.errors"] == HOUSE / "errors.py"
    assert "bitzoo.errors" in GRAPH["bitzoo.arch"]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {ROOF}))
def test_every_module_has_a_floor_and_imports_go_down(module):
    room_of(module)
    unknown = {name for name in GRAPH[module] if name not in MODULES}
    assert not unknown, f"{module} imports modules that do not exist: {sorted(unknown)}"
    assert [c for name in sorted(GRAPH[module]) if (c := complaint(module, name))] == []


def test_there_are_no_circles():
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_described_and_short(module):
    path = MODULES[module]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert ast.get_docstring(parse(path)), f"{module} has no docstring"
    assert lines <= MAX_LINES, f"{module} has {lines} lines; split it at {MAX_LINES}"


class TestTheRuleItself:
    """Planted imports, so that a checker which sees nothing fails too."""

    def test_asks_for_a_floor(self):
        with pytest.raises(AssertionError, match=r"add 'cellar' to FLOORS in test_house\.py"):
            room_of("bitzoo.cellar.coal")

    @pytest.mark.parametrize(
        ("source", "module", "expected"),
        [
            ("import bitzoo.arch", "bitzoo.zoo", {"bitzoo.arch"}),
            ("from bitzoo import registry", "bitzoo.zoo", {"bitzoo.registry"}),
            ("from bitzoo import create_model", "bitzoo.hub", {"bitzoo"}),
            ("from .errors import BitzooError", "bitzoo.arch", {"bitzoo.errors"}),
            ("from . import errors", "bitzoo.arch", {"bitzoo.errors"}),
            ("from ..errors import BitzooError", "bitzoo.converters.x", {"bitzoo.errors"}),
            ("def f():\n    import bitzoo.cli", "bitzoo.arch", {"bitzoo.cli"}),
            ("import numpy\nfrom os import path", "bitzoo.arch", set()),
        ],
    )
    def test_finds_imports(self, source, module, expected):
        modules = {"bitzoo", "bitzoo.errors", "bitzoo.registry"}
        assert imports_of(ast.parse(source), module, False, modules) == expected

    @pytest.mark.parametrize(
        ("importer", "imported", "says"),
        [
            ("bitzoo.arch", "bitzoo.errors", ""),
            ("bitzoo.zoo", "bitzoo.weights", ""),
            ("bitzoo.converters.parity", "bitzoo.converters.tensors", ""),
            ("bitzoo.errors", "bitzoo.cli", "bitzoo.errors (floor 1) imports bitzoo.cli (floor 9)"),
            ("bitzoo.arch", "bitzoo.download", "imports go down only"),
            ("bitzoo.converters.npz", "bitzoo.preprocess", "imports go down only"),
            ("bitzoo.hub", "bitzoo", "bitzoo.hub imports the roof"),
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
        (["-c", "import bitzoo.arch"], ""),
        (["-c", "import bitzoo.registry"], ""),
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
