"""docs/reference/json.yml: what comes out is described, and the other way round."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from json_documents import Documents
from json_schemas import keys_of, schema, source, used
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from bitzoo.models.architecture import ARCHITECTURES, Architecture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

UNSEEN = {
    "Recipe": {"betas", "head_bias"},  # of big_vision's recipes
    "Schedule": {"before", "since"},  # after `bitzoo resume --lr`
    "Proof": {"logits_absent"},  # with TensorFlow
    "Way": {"options", "command", "seconds", "how"},  # above an hour on a CPU
    "Split": {"left_out"},
    "ModelInfo": {"base", "license"},
    "StudyPublished": {"where", "metric", "value", "source"},
}
"""Described keys that none of the commands here gives; tests of their own know them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        patch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
        documents = Documents(folder)
        documents.make()
    return documents


@pytest.fixture(scope="module")
def found(made):
    return made.found


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made.folder)


def test_all_documents_are_made(found):
    assert found.keys() == source()["documents"].keys()


@pytest.mark.parametrize("name", source()["documents"])
def test_what_comes_out_is_what_is_described(found, name):
    Draft202012Validator.check_schema(schema(name))
    judge = Draft202012Validator(schema(name, closed=True))
    wrong = [
        f"{error.json_path}: {error.message:.200}"
        for document in found[name]
        for error in judge.iter_errors(document)
    ]
    assert not wrong


def test_what_is_described_comes_out(found):
    seen = {pair for name, all_of in found.items() for one in all_of for pair in used(name, one)}
    unseen = {
        (name, key)
        for name in source()["types"]
        for key in keys_of(name)
        if (name, key) not in seen
    }
    assert unseen == {(name, key) for name, keys in UNSEEN.items() for key in keys}


def test_other_keys_and_types_are_refused():
    """The comparison itself."""
    judge = Draft202012Validator(schema("predict", closed=True))
    right = {"path": "a.jpg", "error": None, "predictions": [{"label": "cat", "score": 0.5}]}
    assert judge.is_valid([right])
    assert not judge.is_valid([right | {"more": 1}])
    assert not judge.is_valid([right | {"error": 1}])
    assert not judge.is_valid([{"path": "a.jpg", "error": None}])
    assert Draft202012Validator(schema("predict")).is_valid([right | {"more": 1}])


# --- docs/reference/run-folders.md: the files of these runs ---------------------------------------

PAGE = Path(__file__).parents[2] / "docs/reference/run-folders.md"
FOLDERS = {
    "A run": ("runs/photos", "runs/pre", "runs/student"),
    "Several runs": ("runs/twice",),
    "A probe": ("probes/a",),
    "Few-shot trials": ("few/tuned",),
    "VTAB-1k": ("vtab",),
    "A study": ("study",),
}
PLACEHOLDER = r"\b(?:N|TASK|CELL|TRANSFER)\b|(?<=/)$"
SOMETIMES = {"tensorboard/events.out.tfevents.*", "wandb/", ".bitzoo-run.lock"}


@pytest.mark.parametrize(("title", "folders"), FOLDERS.items())
def test_the_page_lists_the_files_of_a_run(found, here, title, folders):
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", section.partition("`split.csv` has")[0], re.MULTILINE)
    patterns = {name: re.sub(PLACEHOLDER, "*", name) for name in listed}
    for folder in folders:
        files = [str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.is_file()]
        known = {f: [n for n, p in patterns.items() if fnmatch(f, p)] for f in files}
        assert [file for file, names in known.items() if not names] == []
        assert {name for names in known.values() for name in names} >= set(listed) - SOMETIMES


def test_a_saved_probe_has_the_files_of_the_page(found, here):
    section = PAGE.read_text().partition("\n## A probe\n")[2].partition("\n| file")[0]
    files = {str(f.relative_to("probes/saved")) for f in Path("probes/saved").rglob("*")}
    assert files == set(re.findall(r"`([\w.]+\.\w+)`", section))


def test_a_figure_measured_again_is_a_file(found, here):
    assert "`reproduce.json`" in PAGE.read_text()
    assert json.loads(Path("again/reproduce.json").read_text()) == found["reproduce"][0]
