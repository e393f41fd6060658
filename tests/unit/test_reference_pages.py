"""docs/reference says what the code says: fields, variables, names, commands, files of a run."""

import ast
import dataclasses
import re
import types
from functools import cache
from pathlib import Path

from docs_command_line import lines
from docs_json import documents
from docs_json import types as described_types
from json_schemas import keys_of, schema, source
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import bitzoo
from bitzoo import errors
from bitzoo.catalogue.model_info import Identity, ModelInfo, Provenance
from bitzoo.cli.main import app
from bitzoo.runs.run_dir import OUTPUTS

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/reference"


def page(name):
    return (PAGES / name).read_text(encoding="utf-8")


def first_cells(text):
    """What is code in the first cell of each row of the page's tables."""
    rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


class TestModelInfo:
    def test_its_fields_are_listed(self):
        fields = [field.name for field in dataclasses.fields(ModelInfo)]
        assert first_cells(page("model-info.md").partition("## Identity")[0]) == fields

    def test_those_of_its_parts_are_mentioned(self):
        text = page("model-info.md")
        made = text.partition("## Provenance")[2]
        assert sorted(first_cells(made)) == sorted(f.name for f in dataclasses.fields(Provenance))
        for field in dataclasses.fields(Identity):
            assert f"`{field.name}`" in text


# --- environment variables ------------------------------------------------------------------------

OF_LIBRARIES = {
    "HF_TOKEN",
    "HF_HUB_CACHE",
    "COLUMNS",
    "_BITZOO_COMPLETE",
    "_BITZOO_CONVERT_COMPLETE",
}
"""Read by libraries and by the shell's completion, not by a line of bitzoo that names them."""
FOR_OTHERS = {"CUDA_VISIBLE_DEVICES", "OPENBLAS_NUM_THREADS", "HDF5_PLUGIN_PRELOAD", "NNCF_CI"}
"""Given to processes and libraries, not read."""
STATED = {"TF_ENABLE_ONEDNN_OPTS"}
"""Stated in a report; TensorFlow reads it."""
_VARIABLE = re.compile(r"_?[A-Z][A-Z0-9]*(_[A-Z0-9]+)*_?")


def variables_of(path):
    """Names that a module looks up in an environment, by its syntax tree."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        keys = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("get", "pop", "setdefault") and of_environment(node.func.value):
                keys = node.args[:1]
        elif isinstance(node, ast.Subscript) and of_environment(node.value):
            keys = [node.slice]
        elif isinstance(node, ast.Compare) and of_environment(node.comparators[-1]):
            keys = [node.left]
        for key in keys:
            if isinstance(key, ast.Constant):
                yield key.value
            elif isinstance(key, ast.Name) and key.id in named:
                yield named[key.id]


def of_environment(node):
    return ast.unparse(node) in ("os.environ", "environment")


@cache
def looked_up():
    files = (ROOT / "bitzoo").rglob("*.py")
    names = {name for file in files for name in variables_of(file) if isinstance(name, str)}
    return {name for name in names if _VARIABLE.fullmatch(name)}


class TestEnvironment:
    def test_the_search_finds_them(self):
        found = looked_up()
        assert found >= {"BITZOO_CACHE", "BITZOO_MAX_IMAGE_MB", "BITZOO_DATA", "HF_ENDPOINT"}
        assert found >= {"LOCAL_RANK", "TERM", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}

    def test_whatever_is_read_is_on_the_page(self):
        listed = set(re.findall(r"`(_?[A-Z][A-Z0-9_]+)`", page("environment.md")))
        assert looked_up() - FOR_OTHERS - STATED - listed == set()

    def test_the_folders_of_the_cache_are_on_the_page(self):
        text = "".join(file.read_text() for file in (ROOT / "bitzoo").rglob("*.py"))
        used = set(re.findall(r'cache_dir\(\) / "([\w-]+)"', text)) | {"features"}
        section = page("environment.md").partition("## The cache")[2].partition("\n## ")[0]
        assert {name.split("/")[0] for name in first_cells(section)} == used

    def test_everything_of_bitzoo_is_on_the_page(self):
        text = "".join(file.read_text() for file in (ROOT / "bitzoo").rglob("*.py"))
        own = set(re.findall(r"\bBITZOO_[A-Z0-9_]+\b", text))
        assert own == {n for n in first_cells(page("environment.md")) if n.startswith("BITZOO_")}

    def test_whatever_is_on_the_page_is_read(self):
        text = "".join(file.read_text() for file in (ROOT / "bitzoo").rglob("*.py"))
        before, _, rest = page("environment.md").partition("## The cache")
        for name in first_cells(before + rest.partition("\n## ")[2]):
            name = name.removesuffix("...")
            assert name in text or name in OF_LIBRARIES, name


# --- Python ---------------------------------------------------------------------------------------


def described():
    """Every name that a page gives to mkdocstrings."""
    text = "".join(file.read_text() for file in PAGES.glob("python*.md"))
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


class TestPython:
    def test_each_public_name_is_described_once(self):
        names = described()
        assert len(names) == len(set(names))
        public = {f"bitzoo.{name}" for name in bitzoo.__all__ if name != "__version__"}
        assert {name for name in names if name.count(".") == 1} == public

    def test_each_public_name_is_in_the_overview(self):
        linked = set(re.findall(r"\]\[(bitzoo\.\w+)\]", page("python.md")))
        assert linked == {f"bitzoo.{name}" for name in bitzoo.__all__ if name != "__version__"}

    def test_each_error_is_described(self):
        ours = {
            f"bitzoo.errors.{name}"
            for name, value in vars(errors).items()
            if isinstance(value, type) and value.__module__ == "bitzoo.errors"
            and issubclass(value, Exception)
        }  # fmt: skip
        assert {name for name in described() if name.startswith("bitzoo.errors.")} == ours

    def test_all_that_is_described_is_there(self):
        for name in described():
            module, _, last = name.rpartition(".")
            value = getattr(__import__(module, fromlist=[last]), last)
            assert value.__doc__ or isinstance(value, types.FunctionType), name


# --- the command line -----------------------------------------------------------------------------


class TestCommandLine:
    def test_each_command_has_a_section_and_a_row(self):
        text = "\n".join(lines())
        assert re.findall(r"^## bitzoo (\S+) \{ #\1 \}$", text, re.MULTILINE) == list(app.commands)
        assert re.findall(r"^\| \[`(\S+)`\]\(#\1\) \|", text, re.MULTILINE) == list(app.commands)

    def test_each_option_has_a_line(self):
        sections = "\n".join(lines()).split("\n## bitzoo ")[1:]
        for section, command in zip(sections, app.commands.values(), strict=True):
            shown = re.findall(r"^- `(-[^`]+)`: ", section, re.MULTILINE)
            flags = {flag for line in shown for flag in re.findall(r"--?[a-z][\w-]*", line)}
            wanted = {
                flag
                for option in command.params
                for flag in (*option.opts, *option.secondary_opts)
                if option.param_type_name == "option" and option.name not in ("debug", "help")
            }
            assert wanted <= flags, command.name

    def test_what_is_special_in_markdown_is_not_loose(self):
        for line in lines():
            bare = re.sub(r"`[^`]*`|\\.|\]\[.*\]", "", line)
            assert not re.search(r"(?<!\*)\*(?!\*)|<|_", bare.replace("{ #", "")), line

    def test_a_default_is_told(self):
        section = "\n".join(lines()).partition("## bitzoo predict")[2].partition("\n## ")[0]
        assert "- `--batch-size INTEGER`: Images per batch. Default: `32`." in section
        assert "- `--activation softmax|sigmoid`: " in section
        assert "In Python: [`bitzoo.predict`][bitzoo.predict]" in section


# --- run folders ----------------------------------------------------------------------------------


def test_what_a_run_writes_is_listed():
    listed = first_cells(page("run-folders.md").partition("`split.csv` has these columns")[0])
    written = {pattern.split("/")[0] for pattern in OUTPUTS} | {".bitzoo-run.lock"}
    assert {name.split("/")[0] for name in listed} == written


# --- JSON documents: tests/e2e/test_json_documents.py compares them with real ones ----------------


class TestJson:
    def test_each_type_is_a_part_of_a_document(self):
        made = [schema(name) for name in source()["documents"]]
        assert {part for one in made for part in one["$defs"]} == set(source()["types"])
        for one in made:
            Draft202012Validator.check_schema(one)

    def test_the_page_has_all_of_it(self):
        text = "\n".join([*documents(), *described_types()])
        for entry in source()["documents"].values():
            assert f"\n## {entry['title']}\n" in text
        for name in source()["types"]:
            assert len(re.findall(rf"#type-{name.lower()} \}}", text)) == 1
            for key in keys_of(name):
                assert f"- `{key}` (" in text
