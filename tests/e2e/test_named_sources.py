"""Commands on data sets that libraries have: one run of them all, without TensorFlow."""

import json
import os
import time

import datasets
import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from commands import start
from safetensors.numpy import load_file
from tfds_builders import CLASSES, prepare, records

from bitzoo.data.readers import read_listing

OPTIONS = ["--steps", "4", "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]
OPTIONS += ["--checkpoint-every", "1", "--micro-batch", "8"]
WORDS = ["finetune", "small.npz", "--data", "tfds:insects", *OPTIONS]
TRAIN, TEST = records(24, kind="JPEG"), records(10, seed=1)


VARIABLES = ("TFDS_DATA_DIR", "BITZOO_CACHE", "HF_HOME")
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] == "tensorflow"
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def stored(row) -> bytes:
    """The bytes that the data set has of an image."""
    return row.load.content()


@pytest.fixture(autouse=True, scope="module")
def without_tensorflow(tmp_path_factory):
    """Hide it as if it were not installed: TFDS and its parts look whether it can be found."""
    folder = tmp_path_factory.mktemp("hiding")
    (folder / "sitecustomize.py").write_text(HIDING)
    with pytest.MonkeyPatch.context() as patch:
        parts = (str(folder), os.getenv("PYTHONPATH"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, parts)))
        yield


def begin(folder, *words):
    """Start `bitzoo WORDS`, forked from a process that may be older than these variables."""
    environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return start(*words, folder=folder, environment=environment)


def run(folder, *words, code=0):
    """Run `bitzoo WORDS`; returns its output and its errors."""
    running = begin(folder, *words)
    found, out, err = running.next(timeout=300)
    running.process.join(60)
    assert "Traceback" not in err
    assert found == code, err
    return out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory, without_tensorflow):
    """A prepared data set, a small network, and a run on it."""
    folder = tmp_path_factory.mktemp("sources")
    prepare(folder / "tfds", {"train": TRAIN, "test": TEST})
    write_npz(folder / "small.npz", make_checkpoint(num_classes=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.setenv("HF_HOME", str(folder / "hf"))
        run(folder, *WORDS, "--out", "whole")
        yield folder


def test_a_killed_run_ends_as_if_nothing_had_happened(place):
    running = begin(place, *WORDS, "--out", "run")
    end = time.monotonic() + 200
    while not (place / "run/checkpoints/step-00000002.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    running.kill()
    run(place, "resume", "run")
    found, expected = (load_file(place / name / "model.safetensors") for name in ("run", "whole"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_the_same_images_count_the_same_from_everywhere(place):
    """Of TFDS, as files in folders, and as a table of Hugging Face."""
    rows = read_listing("tfds:insects@test").rows
    for row in rows:
        folder = place / "files" / row.label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row.extra['number']}.png").write_bytes(stored(row))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    columns = {
        "image": [{"bytes": stored(row), "path": None} for row in rows],
        "label": [CLASSES.index(row.label) for row in rows],
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(place / "saved")
    found = []
    for data in ("tfds:insects@test", "files", f"hf:{place / 'saved'}@train"):
        out, _ = run(place, "evaluate", "whole", "--data", data, "--json")
        measured = json.loads(out)
        found.append((measured["count"], measured["top1"], measured["loss"]))
    assert found[0][0] == len(TEST)
    assert found[1][:2] == found[0][:2] == found[2][:2]
    assert found[1][2] == pytest.approx(found[0][2])
    assert found[2][2] == pytest.approx(found[0][2])


def test_what_was_trained_on_is_known_again(place):
    out, _ = run(place, "evaluate", "whole", "--data", "tfds:insects@train[:5]+test[:4]", "--json")
    assert json.loads(out)["count"] == 4


def test_predictions_name_the_records(place):
    out, _ = run(place, "predict", "whole", "tfds:insects@test[7:9]", "--json")
    predictions = json.loads(out)
    assert [prediction["path"] for prediction in predictions] == ["test[7]", "test[8]"]
    content = [stored(row) for row in read_listing("tfds:insects@test[7:9]").rows]
    for number, image in enumerate(content):
        (place / f"{number}.png").write_bytes(image)
    out, _ = run(place, "predict", "whole", "0.png", "1.png", "--json")
    for one, other in zip(json.loads(out), predictions, strict=True):
        assert one["predictions"] == other["predictions"]


def test_an_unprepared_data_set(place):
    _, err = run(place, *WORDS[:3], "tfds:dtd", "--out", "none", code=2)
    said = " ".join(err.split())
    assert "tfds:dtd must be prepared in" in said
    assert "tfds.builder('dtd', file_format='array_record').download_and_prepare()" in said
    assert not os.path.exists(place / "none")
