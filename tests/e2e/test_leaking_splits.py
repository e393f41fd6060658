"""Bursts split at random: found, shown, counted beside the accuracy, dropped, kept together."""

import base64
import io
import json
import re

import pytest
from checkpoints import make_checkpoint, write_npz
from commands import start
from PIL import Image
from textures import texture, write_bursts

TRAINING = ["--steps", "3", "--batch-size", "8", "--resolution", "36,32", "--val-fraction", "0.2"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """`bursts` has six scenes of five frames per class; `own` has splits with one copy in val."""
    folder = tmp_path_factory.mktemp("leaks")
    write_bursts(folder / "bursts")
    write_npz(folder / "small.npz", make_checkpoint(num_classes=2))
    for split, first in (("train", 0), ("val", 100)):
        for label in range(2):
            to = folder / "own" / split / "ab"[label]
            to.mkdir(parents=True)
            for index in range(4):
                texture(first + 10 * label + index).save(to / f"{index}.jpg")
    texture(0).resize((100, 75)).save(folder / "own/val/a/copy.jpg", quality=60)
    return folder


def finetune(folder, data, out, *words, code=0):
    found, said, errors = start(
        "finetune", "--model", "small.npz", "--data", data, "--out", out, *words, folder=folder
    ).result()
    assert found == code, errors
    said = re.sub(r"\s+", " ", said)
    return (said, folder / out) if code == 0 else errors


def json_of(run):
    return json.loads((run / "evaluation.json").read_text())


def images_in(page):
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def test_a_random_split_of_bursts_is_said_to_leak(workspace):
    said, run = finetune(workspace, "bursts", "random", *TRAINING)
    assert "Near-duplicates across the splits: 28 training images of 12 held-out images" in said
    assert "`drop_near_duplicates`" not in said
    assert "--drop-near-duplicates drops them from train; --group-by keeps" in said
    assert "Without near-duplicates in train: top-1 unknown: every held-out image has" in said
    assert json_of(run)["near_duplicates"] == {
        "held_out_images": 12,
        "train_images": 28,
        "dropped_from_train": False,
        "most_bits_that_differ": 44,
        "least_correlation": 0.96,
        "held_out_without_them": {"count": 0, "correct": 0, "top1": None},
    }
    page = (run / "report.html").read_text()
    section = page[page.index("Near-duplicates across the splits") :].partition("</section>")[0]
    assert "28 in train, of 12 of 12 held-out images." in section
    assert section.count("<figure>") == 10  # two are nowhere the nearest
    shown = images_in(section)
    assert len(shown) == 20
    assert max(max(image.size) for image in shown) == 128
    card = (run / "README.md").read_text()
    assert "Near-duplicates: 28 in train, of 12 of 12 held-out images." in card


def test_a_grouped_split_does_not_leak(workspace):
    said, run = finetune(workspace, "bursts", "grouped", *TRAINING, "--group-by", r"\w+/p\d+")
    assert "12, of which 2 with 10 of 60 images are held out." in said
    assert "Near-duplicates" not in said
    assert json_of(run)["count"] == 10
    assert json_of(run)["near_duplicates"]["train_images"] == 0
    page = (run / "report.html").read_text()
    assert "Near-duplicates across the splits" not in page
    assert "none found across the splits" in page
    assert "in whole groups by" in page


def test_a_copy_in_the_data_sets_own_val_is_counted_and_shown(workspace):
    said, run = finetune(workspace, "own", "own-run", *TRAINING[:-2])
    assert "1 training image of 1 held-out image (train/a/0.jpg ~ val/a/copy.jpg" in said
    found = json_of(run)
    without = found["near_duplicates"]["held_out_without_them"]
    assert (found["count"], without["count"]) == (9, 8)
    assert found["correct"] - without["correct"] in (0, 1)
    assert f"({without['correct']} of 8)" in said
    page = (run / "report.html").read_text()
    assert "val/a/copy.jpg (a)<br>train/a/0.jpg (a)" in page
    assert "top-1 without near-duplicates" in page
    assert f"({without['correct']} of 8)" in (run / "README.md").read_text()


def test_dropping_is_said_and_counted(workspace):
    said, run = finetune(workspace, "own", "dropped", *TRAINING[:-2], "--drop-near-duplicates")
    assert "Dropped from train: 1 training image" in said
    assert "Without near-duplicates in train" not in said
    found = json_of(run)
    assert found["near_duplicates"]["dropped_from_train"] is True
    assert found["near_duplicates"]["held_out_without_them"]["count"] == found["count"] == 9
    page = (run / "report.html").read_text()
    assert "1 dropped from train, of 1 of 9 held-out images." in page
    assert '<th scope="row">train images</th><td>7</td>' in page
    before, after = (
        json.loads((workspace / name / "run.json").read_text()) for name in ("own-run", "dropped")
    )
    assert before["data"] != after["data"]


def test_images_without_a_group_are_an_error_for_people(workspace):
    said = finetune(workspace, "bursts", "none", *TRAINING, "--group-by", r"(person\d+)", code=2)
    said = re.sub(r"\s+", " ", said)
    assert (
        r"--group-by must name the group of every image, but '(person\\d+)' finds nothing" in said
    )
    assert "60 of 60 images" in said
    assert "'cat/p00_0.jpg', 'cat/p00_1.jpg', 'cat/p00_2.jpg' and 57 more" in said
    assert not (workspace / "none").exists()
