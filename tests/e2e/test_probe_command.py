"""`bitzoo probe` as typed, and the saved probe in every command that takes a model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import write_digits
from PIL import Image
from planted import make_planted_checkpoint, write_planted_images

import bitzoo
from bitzoo.cli.main import app
from bitzoo.exporters.onnx import load_onnx
from bitzoo.exporters.openvino import load_openvino

pytestmark = pytest.mark.slow

SMALL = ["--resolution", "36,32", "--workers", "1"]


def call(*words: object, code: int = 0):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Digits without a split, three checkpoints, and a probe that is saved as a model."""
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_digits("digits", per_class=20, classes=range(4))
        write_planted_images("stripes", per_class=8)
        write_npz("a.npz", make_checkpoint(num_classes=4, seed=0))
        write_npz("b.npz", make_checkpoint((2, 1, 1, 1), num_classes=4, seed=1))
        write_npz("planted.npz", make_planted_checkpoint())
        words = ("--val-fraction", "0.25", "--out", "p", "--save", "m", *SMALL)
        # as the issue writes it: the names after --models are MODELs
        first = call("probe", "--data", "digits", "--models", "a.npz", "b.npz", "gone.npz", *words)
        yield folder, first


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place[0])
    monkeypatch.setenv("BITZOO_CACHE", str(place[0] / "cache"))
    return place[0]


def test_what_is_printed(here, place):
    printed = place[1].output
    record = json.loads(Path("p/probe.json").read_text())
    for line in printed.splitlines():
        assert len(line) <= 80, line
    assert "Accuracies are over 20 of 80 images, drawn by class with seed 0; 60 are" in printed
    for row in record["models"]:
        if row["outcome"] == "done":
            shown = rf"^{row['model']} +{100 * row['top1']:.1f} % .*{100 * row['top1_lsr']:.1f} %"
            assert re.search(shown, printed, re.MULTILINE), printed
    assert "\ngone.npz  failed: gone.npz: expected a checkpoint file or a run folder" in printed
    assert record["why"].split()[:2] == ["Take", f"{record['take']}:"]
    assert record["saved"] == "m"


def test_json_is_one_document(here):
    words = ["--data", "stripes", "--json", "--folds", "4", "--resolution", "32,32"]
    result = CliRunner().invoke(app, ["probe", "planted.npz", "a.npz", *words, "--workers", "1"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["model"] for row in document["models"]] == ["planted.npz", "a.npz"]
    assert document["models"][0]["correct"] == 32
    assert document["take"] == "planted.npz"
    assert "Accuracies are over all 32 images in 4 stratified folds" in " ".join(
        result.stderr.split()
    )


def held_out(folder):
    lines = [line.split(",") for line in Path(folder, "split.csv").read_text().splitlines()[1:]]
    return [(Path("digits", line[0]), int(line[1])) for line in lines if line[2] == "val"]


def pixels_of(path):
    """Both edges to 36, the central 32: by Pillow alone."""
    image = Image.open(path).convert("RGB").resize((36, 36), Image.Resampling.BILINEAR)
    return np.asarray(image)[2:34, 2:34].astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def by_hand(place):
    """Scores of the held-out images by a float64 ridge on features of the plain network."""
    folder = place[0]
    record = json.loads((folder / "m/run.json").read_text())
    network = bitzoo.create_model(folder / record["model"], True, num_classes=0).eval()
    lines = [line.split(",") for line in (folder / "m/split.csv").read_text().splitlines()[1:]]
    sides = []
    for split in ("train", "val"):
        paths = [folder / "digits" / line[0] for line in lines if line[2] == split]
        images = torch.from_numpy(np.stack([pixels_of(path) for path in paths]))
        with torch.no_grad():
            found = network(images.permute(0, 3, 1, 2)).numpy().astype(np.float64)
        sides.append((found, np.array([int(path.parent.name) for path in paths])))
    (x, y), (test, truth) = sides
    mean, std = x.mean(0), x.std(0) + 1e-5
    varies = np.ptp(x, axis=0) > 0
    x = np.hstack([((x - mean) / std)[:, varies], np.full((len(x), 1), 100.0)])
    test = np.hstack([((test - mean) / std)[:, varies], np.full((len(test), 1), 100.0)])
    kernel = x @ x.T + record["recipe"]["l2"] * np.eye(len(x))
    return test @ (x.T @ np.linalg.solve(kernel, 2.0 * np.eye(4)[y] - 1)), truth


def test_predict_gives_the_classes_of_the_ridge(here, by_hand):
    scores, _ = by_hand
    paths = [path for path, _ in held_out("m")]
    result = CliRunner().invoke(app, ["predict", "m", *map(str, paths), "--top", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = [row["predictions"][0]["label"] for row in json.loads(result.stdout)]
    assert found == [str(label) for label in scores.argmax(1)]


@pytest.mark.parametrize(
    ("to", "name", "load", "exact"),
    [
        ("onnx", "m.onnx", load_onnx, {}),
        ("openvino", "m.xml", load_openvino, {"INFERENCE_PRECISION_HINT": "f32"}),
    ],
)
def test_exports_give_the_scores_of_the_ridge(here, by_hand, tmp_path, to, name, load, exact):
    scores, _ = by_hand
    call("export", "m", "--to", to, "--out", tmp_path / name)
    images = np.stack([pixels_of(path) for path, _ in held_out("m")]).transpose(0, 3, 1, 2)
    found = load(tmp_path / name, exact).run(np.ascontiguousarray(images))
    np.testing.assert_array_equal(found.argmax(1), scores.argmax(1))
    np.testing.assert_allclose(found, scores, atol=2e-3)


def test_evaluate_repeats_the_held_out_images(here, by_hand):
    scores, truth = by_hand
    found = bitzoo.evaluate("m", "digits")
    hits = int((scores.argmax(1) == truth).sum())
    assert (found.correct, found.count) == (hits, 20)
    assert found.selection is not None
    assert found.selection.chosen == "the images that m held out"
    assert found.selection.trained_on == 0
    record = json.loads(Path("p/probe.json").read_text())
    (row,) = [own for own in record["models"] if own["model"] == record["take"]]
    assert (row["correct"], row["count"]) == (hits, 20)
    kept = json.loads(Path("m/evaluation.json").read_text())
    assert (kept["correct"], kept["count"]) == (hits, 20)
    assert bitzoo.evaluate("m").count == 20  # on the data that it knows of


def test_what_is_known_of_it(here):
    known = bitzoo.info("m")
    assert known.own_names == ("0", "1", "2", "3")
    assert (
        str(known.identity) == "probed by bitzoo: head by ridge regression on features of 60 images"
    )
    assert known.run is not None
    assert known.run.recipe["base"] == json.loads(Path("p/probe.json").read_text())["take"]
    assert known.run.split["val"] == 20
    assert known.preprocessing is not None
    assert (known.preprocessing.resize, known.preprocessing.crop) == (36, 32)
    card = Path("m/README.md").read_text()
    assert "its head solved in closed form on the features of" in card
    assert "ridge regression on features of 60 images" in card
    assert "no calibrated probability" in card
    assert "one of 2 models that were compared on the same judged images" in card


def test_it_publishes_and_is_trained_on(here, tmp_path):
    call("publish", "m", "--repo", "me/m", "--dry-run", "--folder", tmp_path / "staged")
    assert (
        "ridge regression on features of 60 images" in (tmp_path / "staged/README.md").read_text()
    )
    said = call("resume", "m", code=2).output
    assert "The folder is a saved probe" in said
    words = ("--steps", 1, "--batch-size", 4, *SMALL, "--val-fraction", "0.25")
    call("finetune", "m", "--data", "digits", "--out", tmp_path / "run", *words)
    assert (tmp_path / "run/model.safetensors").is_file()


def test_saving_again_replaces_a_probe_alone(here, tmp_path):
    call("probe", "a.npz", "--data", "digits", "--save", tmp_path / "m", *SMALL)
    call("probe", "b.npz", "--data", "digits", "--save", tmp_path / "m", *SMALL)
    assert json.loads((tmp_path / "m/run.json").read_text())["model"] == "b.npz"
    said = call("probe", "b.npz", "--data", "digits", "--save", "digits", *SMALL, code=2).output
    assert "has files but no probe in it. Choose another --save" in said
    words = ("--save", tmp_path / "n", "--take", "gone.npz", *SMALL)
    said = call("probe", "a.npz", "gone.npz", "--data", "digits", *words, code=2).output
    assert "Nothing is saved" in said
    assert not (tmp_path / "n").exists()
