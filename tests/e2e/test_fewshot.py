"""`bitzoo fewshot`: trials, their spread, what goes on after a kill, and what is told."""

import csv
import json
import re
import shutil
import signal
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from commands import start
from images import write_digits
from PIL import Image

import bitzoo
from bitzoo.data.problems import DatasetError
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.inference import features

pytestmark = pytest.mark.slow


SMALL: dict[str, Any] = {"resolution": (36, 32), "steps": 2, "batch_size": 8, "lr": 0.03}
PROBE: dict[str, Any] = {"method": "ridge", "resolution": (36, 32)}
WORDS: list[object] = ["--resolution", "36,32", "--steps", "2", "--batch-size", "8", "--lr", "0.03"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small checkpoint, digits with a test split, and digits without a split."""
    folder = tmp_path_factory.mktemp("source")
    write_digits(folder / "digits", per_class=12, val_per_class=6, classes=range(4))
    (folder / "digits/val").rename(folder / "digits/test")
    write_digits(folder / "plain", per_class=15, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4, seed=0))
    return folder


@pytest.fixture
def here(source, tmp_path, monkeypatch):
    for name in ("digits", "plain", "small.npz"):
        (tmp_path / name).symlink_to(source / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITZOO_CACHE", str(source / "cache"))
    return tmp_path


def succeed(folder, *words):
    code, out, err = start(*words, folder=folder).result()
    assert code == 0, err
    assert "Traceback" not in err
    return out, err


def record_of(out):
    return json.loads((out / "fewshot.json").read_text())


# --- the closed-form probe ------------------------------------------------------------------------


def pixels_of(path):
    """Both edges to 36, the central 32: by Pillow alone."""
    image = Image.open(path).convert("RGB").resize((36, 36), Image.Resampling.BILINEAR)
    return np.asarray(image)[2:34, 2:34].astype(np.float32) / 127.5 - 1


def by_hand(folder, shots, seed):
    """The right answers of big_vision's probe, from files to argmax, by the plain network."""
    network = bitzoo.create_model(folder / "small.npz", True, num_classes=0).eval()
    sides = []
    for split in ("train", "test"):
        paths = sorted((folder / "digits" / split).glob("*/*.png"))
        images = torch.from_numpy(np.stack([pixels_of(path) for path in paths]))
        with torch.no_grad():
            x = network(images.permute(0, 3, 1, 2)).numpy().astype(np.float64)
        sides.append((x, np.array([int(path.parent.name) for path in paths])))
    (x, y), (test, truth) = sides
    generator = np.random.default_rng(seed)
    chosen = np.concatenate([generator.permutation(np.where(y == c)[0])[:shots] for c in range(4)])
    x, y = x[chosen], y[chosen]
    mean, std = x.mean(0), x.std(0) + 1e-5
    x = np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)])
    test = np.hstack([(test - mean) / std, np.full((len(test), 1), 100.0)])
    kernel = x @ x.T + 1024 * np.eye(len(x))
    scores = test @ (x.T @ np.linalg.solve(kernel, 2.0 * np.eye(4)[y] - 1))
    return int((scores.argmax(1) == truth).sum())


def test_ridge_counts_what_a_count_by_hand_does(here):
    told: list[str] = []
    result = bitzoo.fewshot(
        "small.npz", "digits", "few", shots=(5, 1, 25), runs=3, say=told.append, **PROBE
    )
    expected = {
        shots: [by_hand(here, shots, seed) / 24 for seed in range(3)] for shots in (1, 5, 25)
    }
    assert {shots: list(scores) for shots, scores in result.scores.items()} == expected
    assert result.medians == {shots: statistics.median(own) for shots, own in expected.items()}
    assert [trial.images for trial in result.trials] == [4] * 3 + [20] * 3 + [48] * 3
    assert result.test == "all 24 images of the data set's own test split"
    assert result.departures == ("crop 32 instead of 224", "resize 36 instead of 256")
    assert told[1] == f"All trials are judged on the same images: {result.test}."
    assert told[2] == (
        "Classes with fewer than 25 images: 0 (12), 1 (12), 2 (12), 3 (12). All that they have are "
        "taken."
    )
    record = record_of(here / "few")
    assert record == json.loads(json.dumps(result.to_dict()))
    assert record["finished"] is True
    assert record["summary"][0] == {
        "shots": 1,
        "images": [4],
        "runs": 3,
        "median": statistics.median(expected[1]),
        "lowest": min(expected[1]),
        "highest": max(expected[1]),
    }


def test_ridge_computes_features_once(here, monkeypatch):
    first = bitzoo.fewshot("small.npz", "digits", "one", shots=(1, 5), runs=2, **PROBE)
    monkeypatch.setattr(features, "Runner", None)  # no network runs any more
    second = bitzoo.fewshot("small.npz", "digits", "two", shots=(1, 5), runs=2, **PROBE)
    assert second.trials == first.trials
    more = bitzoo.fewshot("small.npz", "digits", "one", shots=(1, 5, 10), runs=3, **PROBE)
    assert len(more.trials) == 9
    assert [t for t in more.trials if t.shots < 10 and t.run < 2] == list(first.trials)
    assert (here / "one/fewshot.json").read_text() != (here / "two/fewshot.json").read_text()


# --- fine-tuning ----------------------------------------------------------------------------------


def rows_of(run):
    """split -> the paths that a run recorded."""
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        split: {row["path"] for row in rows if row["split"] == split}
        for split in {row["split"] for row in rows}
    }


@pytest.mark.parametrize("data", ["digits", "plain"])
def test_trials_are_ordinary_runs_on_nested_images(here, data):
    """With a test split, and with images held out: the same for all trials."""
    result = bitzoo.fewshot("small.npz", data, "few", shots=(1, 3), runs=2, seed=4, **SMALL)
    found = {
        (trial.shots, trial.seed): rows_of(here / "few" / trial.folder) for trial in result.trials
    }
    assert list(found) == [(1, 4), (1, 5), (3, 4), (3, 5)]
    held = {frozenset(rows["val"]) for rows in found.values()}
    assert len(held) == 1
    assert len(held.pop()) == (24 if data == "digits" else 6)
    for seed in (4, 5):
        few, more = found[1, seed]["train"], found[3, seed]["train"]
        assert (len(few), len(more)) == (4, 12)
        assert few < more
    assert found[3, 4]["train"] != found[3, 5]["train"]
    if data == "plain":
        assert result.test == "6 of 60 images, drawn by class with seed 4"
    trial = result.trials[3]
    alone = bitzoo.finetune(
        "small.npz", data, "alone", seed=5, split_seed=4, examples_per_class=3, **SMALL
    )
    assert alone.evaluation is not None
    assert (trial.correct, trial.count) == (alone.evaluation.correct, alone.evaluation.count)
    stored = json.loads((here / "few" / trial.folder / "evaluation.json").read_text())
    assert (stored["correct"], stored["count"]) == (trial.correct, trial.count)
    assert bitzoo.resume(here / "few" / trial.folder).was_finished
    assert result.departures == (
        "batch size 8 instead of 512",
        "crop 32 instead of 128",
        "lr 0.03 instead of 0.003",
        "resize 36 instead of 160",
        "steps 2 instead of 500",
    )


def test_test_is_preferred_to_val(source, here):
    shutil.copytree(source / "digits", here / "three")
    (here / "three/val").mkdir()
    for number in range(4):
        (here / f"three/val/{number}").mkdir()
        path = min((here / f"three/train/{number}").iterdir())
        path.rename(here / f"three/val/{number}/{path.name}")
    result = bitzoo.fewshot("small.npz", "three", "few", shots=(1,), runs=1, **SMALL)
    assert result.test == "all 24 images of the data set's own test split"
    assert result.trials[0].count == 24


def test_weights_may_go(here):
    result = bitzoo.fewshot(
        "small.npz", "digits", "few", shots=(1,), runs=2, discard_weights=True, **SMALL
    )
    for trial in result.trials:
        names = {path.name for path in (here / "few" / trial.folder).iterdir()}
        assert {"run.json", "report.html", "evaluation.json", "split.csv"} <= names
        assert not {"model.safetensors", "checkpoints"} & names
    again = bitzoo.fewshot("small.npz", "digits", "few", shots=(1,), runs=2, **SMALL)
    assert again.trials == result.trials


# --- going on -------------------------------------------------------------------------------------


MOMENTS = {
    "finetune": [
        "1-shot/seed-0/checkpoints/*.safetensors",
        "1-shot/seed-1/run.json",
        "3-shot/seed-1/evaluation.json",
    ],
    "ridge": ["fewshot.json", "../cache/features/*/*.features"],
}
"""What is there when a command is killed, below its folder."""


@pytest.mark.parametrize("method", MOMENTS)
def test_killed_and_given_again(here, method):
    """By SIGKILL in every part: in the end the record is that of an undisturbed one."""
    chosen: list[object] = ["--resolution", "36,32"]
    if method == "finetune":
        chosen = [*WORDS, "--checkpoint-every", 1]
    base: list[object] = ["fewshot", "small.npz", "--data", "digits", "--method", method]
    words = [*base, "--shots", "1,3", "--runs", 2, *chosen]
    place = here / "killed"
    ends = []
    for pattern in MOMENTS[method]:
        running = start(*words, "--out", "killed", folder=here)
        while running.process.is_alive() and not [*place.glob(pattern)]:
            time.sleep(0.002)
        running.process.kill()
        running.process.join(60)
        ends.append(running.process.exitcode)
    assert -signal.SIGKILL in ends
    succeed(here, *words, "--out", "killed")
    shutil.rmtree(here / "cache")
    succeed(here, *words, "--out", "whole")
    assert record_of(place)["finished"]
    for name in ("fewshot.json", "report.html"):
        assert (place / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert not [*place.rglob(".bitzoo-*")]


def test_a_trial_that_was_stopped_goes_on(here, monkeypatch):
    """A trial with a checkpoint in its folder makes the steps that are missing, and no others."""
    from bitzoo.runs import fewshot

    result = bitzoo.fewshot("small.npz", "digits", "few", shots=(1,), runs=2, **SMALL)
    record = record_of(here / "few")
    record["trials"].pop()
    (here / "few/fewshot.json").write_text(json.dumps(record))
    called = []

    def counting(*arguments, **options):
        called.append(arguments[2])
        return finetune(*arguments, **options)

    finetune = bitzoo.finetune
    monkeypatch.setattr(fewshot, "finetune", counting)
    again = bitzoo.fewshot("small.npz", "digits", "few", shots=(1,), runs=2, **SMALL)
    assert [path.name for path in called] == ["seed-1"]
    assert again.trials == result.trials


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.01}, r"started with other options.*\n  lr: 0\.03 -> 0\.01\n"),
        ({"data": "plain"}, r"  dataset: 'digits' -> 'plain'\n  data: \w{12} -> \w{12}"),
        ({"runs": 1}, "a trial with 1 image per class and number 1, which 1 images .* leave out"),
        ({"shots": (2,)}, "Give at least the `shots` and `runs` of before"),
        ({"method": "ridge", "steps": None, "batch_size": None, "lr": None}, "method: finetune"),
    ],
)
def test_other_options_are_another_folder(here, changes, says):
    options: dict[str, Any] = {"data": "digits", "shots": (1,), "runs": 2, **SMALL}
    if not (here.parent / "few").exists():
        bitzoo.fewshot("small.npz", out=here.parent / "few", **options)
    before = (here.parent / "few/fewshot.json").read_bytes()
    with pytest.raises(UsageError, match=says):
        bitzoo.fewshot("small.npz", out=here.parent / "few", **options | changes)
    assert (here.parent / "few/fewshot.json").read_bytes() == before


def test_a_folder_of_something_else(here):
    (here / "few").mkdir()
    (here / "few/letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="has files but no few-shot trials in it"):
        bitzoo.fewshot("small.npz", "digits", "few", **PROBE)
    assert [path.name for path in (here / "few").iterdir()] == ["letter.txt"]


def test_a_record_that_was_moved_away(here):
    """The runs are in their folders: they are evaluated, and no step is made."""
    result = bitzoo.fewshot("small.npz", "digits", "few", shots=(1,), runs=2, **SMALL)
    (here / "few/fewshot.json").unlink()
    before = (here / "few/1-shot/seed-0/metrics.jsonl").read_text().splitlines()
    again = bitzoo.fewshot("small.npz", "digits", "few", shots=(1,), runs=2, **SMALL)
    assert again.trials == result.trials
    after = (here / "few/1-shot/seed-0/metrics.jsonl").read_text().splitlines()
    assert [line for line in before if '"train"' in line] == [x for x in after if '"train"' in x]


def test_what_failed_before_the_first_trial_may_be_corrected(here, source):
    shutil.copytree(source / "digits", here / "mine")
    (here / "mine/train/0/bad.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"bad\.png"):
            bitzoo.fewshot("small.npz", "mine", "few", shots=(1,), runs=1, **PROBE)
    (here / "mine/train/0/bad.png").unlink()
    assert not bitzoo.fewshot("small.npz", "mine", "few", shots=(1,), runs=1, **PROBE).stopped


@pytest.mark.parametrize("content", ["{", "{}", '{"settings": {}, "trials": [{"shots": 1}]}', "[]"])
def test_a_damaged_record(here, content):
    (here / "few").mkdir()
    (here / "few/fewshot.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"fewshot\.json"):
        bitzoo.fewshot("small.npz", "digits", "few", **PROBE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "knn"}, "`method` must be one of finetune, ridge, found 'knn'"),
        ({"shots": ()}, "`shots` must be"),
        ({"shots": (0, 5)}, "`shots` must be whole numbers of at least 1, found 0, 5"),
        ({"runs": 0}, "`runs` must be"),
        ({"method": "ridge", "lr": 0.1, "freeze": True}, "so `lr`, `freeze` would change nothing"),
        ({"data": "plain", "val_fraction": 0}, "need images to evaluate on, and 'plain' has none"),
        ({"method": "ridge", "dtype": "int8"}, "`dtype` must be one of"),
    ],
)
def test_what_cannot_be(here, options, says):
    everything: dict[str, Any] = {"data": "digits", "out": "few", **options}
    with pytest.raises(UsageError, match=says):
        bitzoo.fewshot("small.npz", **everything)
    assert not (here / "few").exists()


def test_the_folder_of_trials_is_no_class(here, source):
    """In the data themselves, also where nothing is fine-tuned."""
    shutil.copytree(source / "plain", here / "mine")
    first = bitzoo.fewshot("small.npz", "mine", "mine/few", shots=(1,), runs=1, **PROBE)
    again = bitzoo.fewshot("small.npz", "mine", "few", shots=(1,), runs=1, **PROBE)
    assert again.trials == first.trials
    assert again.settings == first.settings


# --- what is told ---------------------------------------------------------------------------------


def test_the_command(here):
    words: list[object] = [
        "fewshot",
        "small.npz",
        "--data",
        "digits",
        "--out",
        "few",
        "--shots",
        "1,5",
    ]
    words += ["--runs", 3, "--method", "ridge", "--resolution", "36,32"]
    out, _ = succeed(here, *words)
    record = record_of(here / "few")
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    start_of = next(n for n, line in enumerate(lines) if line.startswith("per class"))
    for line, row in zip(lines[start_of + 1 :], record["summary"], strict=False):
        figures = [f"{100 * row[name]:.2f}" for name in ("median", "lowest", "highest")]
        assert re.findall(r"[\d.]+", line) == [
            str(row["shots"]), str(row["images"][0]), *figures, "3"
        ]  # fmt: skip
    for trial in record["trials"]:
        said = f"at {trial['shots']} per class, seed {trial['seed']}: top-1 {trial['top1']:.2%}"
        assert f"{said} ({trial['correct']} of 24), trained on {trial['images']}" in lines
    assert "Departures from the protocol: crop 32 instead of 224; resize 36 instead of 256." in out
    assert lines[-2:] == ["report    few/report.html", "all runs  few/fewshot.json"]
    out, err = succeed(here, *words, "--json")
    assert json.loads(out) == record
    assert "All trials are judged on the same images" in err


def test_the_report_has_every_trial(here):
    result = bitzoo.fewshot("small.npz", "digits", "few", shots=(1, 5), runs=3, **PROBE)
    page = (here / "few/report.html").read_text()
    assert not re.search(r"https?://|<script|<link| src=", page)
    assert page.count("<circle") == len(result.trials)
    for spread in result.spreads:
        for value in (spread.median, spread.lowest, spread.highest, *spread.scores):
            assert f"{value:.2%}".replace("%", " %") in page
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', page)]
    scores = [score for spread in result.spreads for score in spread.scores]
    order = np.lexsort((np.arange(6), -np.array(scores)))
    assert [heights[n] for n in order] == sorted(heights)  # the higher the better


def test_the_published_changes_of_the_rule_are_departures(here):
    """google-research/big_transfer's README: batch 128 and learning rate 0.001."""
    words: list[object] = [
        "fewshot",
        "small.npz",
        "--data",
        "digits",
        "--out",
        "few",
        "--shots",
        "1",
    ]
    words += ["--runs", 1, "--batch-size", 128, "--lr", 0.001, "--edition", "released"]
    words += ["--steps", 1, "--resolution", "36,32"]
    succeed(here, *words)
    record = record_of(here / "few")
    recipe = json.loads((here / "few/1-shot/seed-0/run.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["schedule"]["base_lr"]) == (128, 0.001)
    assert recipe["name"] == "BiT-HyperRule (released)"
    assert {"batch size 128 instead of 512", "lr 0.001 instead of 0.003"} < {*record["departures"]}
