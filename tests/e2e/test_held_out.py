"""What an evaluation counts: what a run held out, and never in silence what it trained on."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import digits, write_digits

import bitzoo
from bitzoo.cli.main import app
from bitzoo.data.problems import DatasetError
from bitzoo.errors import UsageError
from bitzoo.hub.repo_manifest import ALLOWED

STEPS = ["--steps", "8", "--batch-size", "16", "--lr", "0.03", "--resolution", "36,32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A flat folder, one with its own splits, other digits, and a run on each of the first two."""
    folder = tmp_path_factory.mktemp("place")
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    write_digits(folder / "flat", per_class=25, classes=range(4))
    write_digits(folder / "split", per_class=8, val_per_class=3, classes=range(4))
    shutil.copytree(folder / "split" / "val", folder / "split" / "test")
    for number, path in enumerate(sorted((folder / "split" / "test").rglob("*.png"))):
        path.unlink()
        write(path, 40 + number, int(path.parent.name))
    for name in ("flat", "split"):
        finetune(folder, name, f"run-{name}")
    return folder


def write(path, number, digit):
    """Write the image of that number of a digit."""
    from PIL import Image

    images, labels = digits()
    Image.fromarray(images[np.flatnonzero(labels == digit)[number]]).save(path)


def run(folder, *words):
    """Return exit code, output and errors of a command in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        found = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    return found.exit_code, found.stdout, found.stderr


def finetune(folder, data, out, *more, model="small.npz"):
    words = ["finetune", "--model", model, "--data", data, "--out", out, *STEPS, *more]
    code, said, err = run(folder, *words)
    assert code == 0, err
    return said + err


def evaluate(folder, *words, code=0):
    found, out, err = run(folder, "evaluate", *words)
    assert found == code, err
    return out if code == 0 else err


def as_json(folder, *words):
    return json.loads(evaluate(folder, *words, "--format", "json"))


def entries(run):
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of(run, split):
    return [entry for entry in entries(run) if entry["split"] == split]


class TestSameData:
    def test_repeats_the_figure_of_the_run(self, place):
        said = json.loads((place / "run-flat/evaluation.json").read_text())
        found = as_json(place, "run-flat", "--data", "flat")
        assert found["loss"] == pytest.approx(said["loss"], abs=1e-5)
        for key in ("top1", "top5", "count", "correct", "per_class", "split", "trained_on"):
            assert found[key] == said[key], key
        assert (found["count"], found["split"], found["trained_on"]) == (10, "val", 0)
        assert found["chosen"] == "the images that run-flat held out"
        assert said["chosen"] == "10 of 100 images, drawn by class with seed 0"

    def test_says_what_is_not_counted(self, place):
        out = evaluate(place, "run-flat", "--data", "flat")
        said = " ".join(out.split())
        assert "Not counted: 90 of the 100 images; run-flat was trained on 90 of these: 0/" in said
        assert "and 85 more. Count them too with --split all. " in said
        last = out.splitlines()[-1]
        assert re.fullmatch(r"top-1 [\d.]+% \(\d+ of 10: the images that run-flat held out\)", last)

    @pytest.mark.parametrize("option", [["--all"], ["--split", "all"]])
    def test_all_says_how_many_were_trained_on(self, place, option):
        found = as_json(place, "run-flat", "--data", "flat", *option)
        assert (found["split"], found["count"], found["trained_on"]) == ("all", 100, 90)
        assert found["notes"][-1].startswith(
            "run-flat was trained on 90 of the 100 images counted: 0/"
        )

    def test_every_split_of_the_run(self, place):
        found = as_json(place, "run-flat", "--data", "flat", "--split", "train")
        assert (found["count"], found["trained_on"]) == (90, 90)
        assert as_json(place, "run-flat", "--data", "flat", "--split", "val")["count"] == 10
        assert evaluate(place, "run-flat", "--data", "flat", "--split", "test", code=2) == (
            "error: 'flat' has no test split of run-flat; it has train (90 images) and val (10 "
            "images). Choose one that exists, or --split all.\n"
        )

    def test_under_other_names(self, place, tmp_path):
        for number, path in enumerate(sorted((place / "flat").rglob("*.png"))):
            to = tmp_path / path.parent.name / f"renamed {number}.png"
            to.parent.mkdir(exist_ok=True)
            shutil.copy(path, to)
        found = as_json(place, "run-flat", "--data", tmp_path)
        said = json.loads((place / "run-flat/evaluation.json").read_text())
        assert (found["count"], found["correct"]) == (10, said["correct"])

    def test_from_python(self, place):
        model = bitzoo.create_model(place / "run-flat", pretrained=True)
        for given in (model, place / "run-flat", str(place / "run-flat")):
            found = bitzoo.evaluate(given, place / "flat", cache_gb=0, workers=1)
            assert (found.count, found.selection.trained_on) == (10, 0)
        whole = bitzoo.evaluate(model, place / "flat", split="all", cache_gb=0, workers=1)
        assert (whole.count, whole.selection.trained_on) == (100, 90)
        assert "trained on 90 of these images" in " ".join(repr(whole).split())
        with pytest.raises(UsageError, match="one of train, val, test, all, found 'dev'"):
            bitzoo.evaluate(model, place / "flat", split="dev")


class TestItsOwnData:
    def test_need_not_be_named(self, place):
        named, found = as_json(place, "run-flat", "--data", "flat"), as_json(place, "run-flat")
        assert found["notes"][0] == f"Evaluated on {place / 'flat'}, the data of the run."
        assert found["notes"][1:] == named["notes"]
        assert {**found, "notes": None} == {**named, "notes": None}
        assert (found["count"], found["split"], found["trained_on"]) == (10, "val", 0)

    def test_that_are_gone(self, place, tmp_path):
        shutil.copytree(place / "run-flat", tmp_path / "run")
        record = json.loads((tmp_path / "run/run.json").read_text())
        record["options"]["data"] = str(tmp_path / "gone")
        (tmp_path / "run/run.json").write_text(json.dumps(record))
        err = evaluate(place, tmp_path / "run", code=2)
        assert f"{tmp_path / 'run'} was trained on {tmp_path / 'gone'}, where nothing" in (
            " ".join(err.split())
        )
        assert "with --data." in err

    def test_that_were_in_memory(self, place, tmp_path):
        shutil.copytree(place / "run-flat", tmp_path / "run")
        record = json.loads((tmp_path / "run/run.json").read_text())
        record["options"]["data"] = None
        (tmp_path / "run/run.json").write_text(json.dumps(record))
        err = evaluate(place, tmp_path / "run", code=2)
        assert "data that were in memory" in err


class TestTheRecord:
    def test_is_every_image_of_the_run(self, place):
        import hashlib

        found = entries(place / "run-flat")
        assert len(of(place / "run-flat", "train")) == 90
        assert len(of(place / "run-flat", "val")) == 10
        for entry in found:
            assert entry["path"].startswith(f"{entry['label']}/")
            content = (place / "flat" / entry["path"]).read_bytes()
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()

    @pytest.mark.slow
    def test_is_never_published(self, place):
        assert "split.csv" not in ALLOWED
        words = ["publish", "run-flat", "--repo", "lab/x", "--folder", "staged", "--dry-run"]
        code, out, err = run(place, *words, "--license", "mit")
        assert code == 0, err
        assert "split.csv" not in out
        assert (place / "staged" / "model.safetensors").is_file()
        names = [entry["path"] for entry in entries(place / "run-flat")]
        for path in (place / "staged").iterdir():
            assert path.name != "split.csv"
            content = path.read_bytes()
            assert not [name for name in names if name.encode() in content], path

    def test_of_an_older_run(self, place, tmp_path):
        shutil.copytree(place / "run-flat", tmp_path / "old")
        (tmp_path / "old" / "split.csv").unlink()
        found = as_json(place, tmp_path / "old", "--data", "flat")
        assert (found["split"], found["count"], found["trained_on"]) == ("all", 100, None)
        assert found["notes"] == [
            f"It is unknown which images {tmp_path / 'old'} was trained on: it has no split.csv of "
            "its own, as runs of `bitzoo finetune` have."
        ]
        err = evaluate(place, tmp_path / "old", "--data", "flat", "--split", "val", code=2)
        assert "'flat' has no val split; it has no splits. Choose" in err

    def test_of_another_run_is_not_believed(self, place, tmp_path):
        shutil.copytree(place / "run-flat", tmp_path / "mixed")
        shutil.copy(place / "run-split" / "split.csv", tmp_path / "mixed")
        assert as_json(place, tmp_path / "mixed", "--data", "flat")["trained_on"] is None

    def test_that_is_damaged(self, place, tmp_path):
        shutil.copytree(place / "run-flat", tmp_path / "bad")
        text = (tmp_path / "bad" / "split.csv").read_text()
        for content in (text[:-40], "a,b\n", "\0", text.replace(",val,", ",dev,")):
            (tmp_path / "bad" / "split.csv").write_text(content)
            err = evaluate(place, tmp_path / "bad", "--data", "flat", code=2)
            assert "split.csv: expected the images of a run" in err
            assert "or remove it; then it is unknown what the run was trained on." in err


class TestOtherData:
    def test_trained_images_are_left_out_and_named(self, place, tmp_path):
        for digit in range(4):
            (tmp_path / str(digit)).mkdir()
            for number in range(30, 33):
                write(tmp_path / str(digit) / f"{number}.png", number, digit)
        trained = of(place / "run-flat", "train")[0]
        name = f"{trained['label']}/again.png"
        shutil.copy(place / "flat" / trained["path"], tmp_path / name)
        found = as_json(place, "run-flat", "--data", tmp_path)
        assert (found["split"], found["count"], found["trained_on"]) == ("new", 12, 0)
        assert found["chosen"] == "the images that run-flat was not trained on"
        assert found["notes"] == [
            f"Not counted: 1 of the 13 images; run-flat was trained on 1 of these: {name}. Count "
            'them too with `split="all"`.'
        ]
        found = as_json(place, "run-flat", "--data", tmp_path, "--all")
        assert (found["count"], found["trained_on"]) == (13, 1)

    def test_nothing_but_trained_images(self, place, tmp_path):
        for entry in of(place / "run-flat", "train"):
            (tmp_path / entry["label"]).mkdir(exist_ok=True)
            shutil.copy(place / "flat" / entry["path"], tmp_path / entry["path"])
        err = evaluate(place, "run-flat", "--data", tmp_path, code=2)
        assert f"run-flat was trained on all 90 images of {str(tmp_path)!r}" in err
        assert err.endswith("or count these: --split all.\n")

    def test_a_part_of_the_held_out_images(self, place, tmp_path):
        shutil.copytree(place / "flat", tmp_path / "part")
        gone = of(place / "run-flat", "val")[0]
        (tmp_path / "part" / gone["path"]).unlink()
        found = as_json(place, "run-flat", "--data", tmp_path / "part", "--split", "val")
        assert found["count"] == 9
        assert found["notes"][0] == "Not in the data: 1 of the 10 held-out images."

    def test_own_splits_count_whole_and_trained_images_are_named(self, place, tmp_path):
        data = tmp_path / "data"
        shutil.copytree(place / "split", data)
        trained = of(place / "run-split", "train")[3]
        shutil.copy(place / "split" / trained["path"], data / "val" / trained["label"] / "seen.png")
        found = as_json(place, "run-split", "--data", data)
        assert (found["split"], found["count"], found["trained_on"]) == ("val", 13, 1)
        assert found["notes"] == [
            "Not counted: train (32) and test (12); choose with `split`.",
            "run-split was trained on 1 of the 13 images counted: "
            f"val/{trained['label']}/seen.png. On images that are new to it, expect less.",
        ]

    def test_memory_cannot_be_compared_with_files(self, place):
        pixels, labels = digits()
        few = [np.flatnonzero(labels == digit)[0] for digit in range(4)]
        found = bitzoo.evaluate(
            place / "run-flat", (pixels[few], labels[few]), cache_gb=0, workers=1
        )
        assert (found.count, found.selection.trained_on) == (4, None)
        assert "it was trained on files, and the contents of both" in found.selection.notes[0]


class TestOwnSplits:
    def test_default_is_val_and_said(self, place):
        found = as_json(place, "run-split", "--data", "split")
        assert (found["split"], found["count"], found["trained_on"]) == ("val", 12, 0)
        out = evaluate(place, "run-split", "--data", "split")
        assert "Not counted: train (32) and test (12); choose with --split.\n" in out
        assert out.splitlines()[-1].endswith(" of 12: the data set's own val split)")

    @pytest.mark.parametrize(("split", "count"), [("train", 32), ("val", 12), ("test", 12)])
    def test_every_split_is_reached(self, place, split, count):
        found = as_json(place, "run-split", "--data", "split", "--split", split)
        assert (found["split"], found["count"]) == (split, count)
        assert found["trained_on"] == (32 if split == "train" else 0)

    def test_the_command_that_finetune_names(self, place, tmp_path):
        said = finetune(place, "split", tmp_path / "again")
        (command,) = re.findall(r"test split \(12 images\).*`bitzoo (.*)`", said)
        words = [
            {"RUN": str(tmp_path / "again"), "DATA": "split"}.get(w, w) for w in command.split()
        ]
        code, out, err = run(place, *words)
        assert code == 0, err
        assert "of 12: the data set's own test split)" in out

    def test_a_split_that_does_not_exist(self, place, tmp_path):
        shutil.copytree(place / "split", tmp_path / "data")
        shutil.rmtree(tmp_path / "data" / "test")
        err = evaluate(place, "run-split", "--data", tmp_path / "data", "--split", "test", code=2)
        assert err == (
            f"error: {str(tmp_path / 'data')!r} has no test split; it has train (32 images) and "
            "val (12 images). Choose one that exists, or --split all.\n"
        )

    def test_of_a_manifest(self, place):
        lines = [
            f"flat/{entry['path']},{entry['label']},{split}\n"
            for entry, split in zip(of(place / "run-flat", "val"), ["val", "test"] * 5, strict=True)
        ]
        (place / "list.csv").write_text("path,label,split\n" + "".join(lines))
        for split in ("val", "test"):
            found = as_json(place, "run-flat", "--data", "list.csv", "--split", split)
            assert (found["split"], found["count"]) == (split, 5)

    def test_of_mappings(self, place):
        pixels, labels = digits()
        few = np.flatnonzero(labels < 4)
        parts = {"train": few[:20], "val": few[20:26], "test": few[26:30]}
        data = {split: (pixels[rows], labels[rows]) for split, rows in parts.items()}
        for split, count in (("train", 20), ("val", 6), ("test", 4), (None, 6), ("all", 30)):
            found = bitzoo.evaluate(place / "run-flat", data, split=split, cache_gb=0, workers=1)
            assert found.count == count


class TestFewShot:
    def test_unused_images_are_neither_train_nor_val(self, place, tmp_path):
        finetune(place, "flat", tmp_path / "few", "--examples-per-class", "3")
        assert len(of(tmp_path / "few", "train")) == 12
        assert len(of(tmp_path / "few", "val")) == 10
        assert len(entries(tmp_path / "few")) == 22
        found = as_json(place, tmp_path / "few", "--data", "flat")
        assert (found["count"], found["trained_on"]) == (10, 0)
        assert f"90 of the 100 images; {tmp_path / 'few'} was trained on 12 of these" in str(found)


class TestARunFromARun:
    def test_knows_what_the_first_was_trained_on(self, place, tmp_path):
        said = finetune(place, "flat", tmp_path / "two", "--seed", "1", model="run-flat")
        held = {entry["sha256"] for entry in of(tmp_path / "two", "val")}
        first = {entry["sha256"] for entry in of(place / "run-flat", "train")}
        both = len(held & first)
        assert both > 5
        assert f"run-flat was trained on {both} of the 10 images counted: " in said
        record = json.loads((tmp_path / "two/evaluation.json").read_text())
        assert record["trained_on"] == both
        found = as_json(place, tmp_path / "two", "--data", "flat")
        assert (found["count"], found["trained_on"]) == (10, both)


@pytest.fixture(scope="module")
def bad(place, tmp_path_factory):
    data = tmp_path_factory.mktemp("bad") / "data"
    shutil.copytree(place / "flat", data)
    for name in ("a.png", "b.png"):
        (data / "1" / name).write_bytes(b"")
    (data / "2" / "c.png").write_text("no image")
    (data / "9").mkdir()
    (data / "9" / "d.png").write_bytes(b"")
    return data


class TestSkipping:
    def test_a_run_says_what_it_left_out_everywhere(self, place, bad):
        run = bad.parent / "run"
        said = finetune(place, bad, run, "--skip-bad")
        assert "Left out: Files of 0 bytes (3): 1/a.png, 1/b.png, 9/d.png.\n" in said
        assert "Left out: Not an image of a format that is read (1): 2/c.png" in said
        assert "as train has no usable image of them (1): 9.\n" in said
        left_out = json.loads((run / "evaluation.json").read_text())["skipped"]
        assert left_out == {
            "Files of 0 bytes": ["1/a.png", "1/b.png", "9/d.png"],
            "Not an image of a format that is read": ["2/c.png: begins with b'no image'"],
            "Classes without a usable image in train": ["9: none of its 1 can be used"],
        }
        for name in ("report.html", "README.md"):
            text = re.sub(r"<[^>]*>|[\s|]+", " ", (run / name).read_text())
            assert re.search(r"left out: Files of 0 bytes +3 ", text), name
        config = json.loads((run / "config.json").read_text())
        assert '"left_out": 5' in json.dumps(config)
        assert len(of(run, "val")) == 10
        found = as_json(place, run, "--data", bad, "--skip-bad")
        said = json.loads((run / "evaluation.json").read_text())
        assert (found["count"], found["correct"]) == (10, said["correct"])

    def test_evaluate_counts_what_it_left_out(self, place, bad):
        err = evaluate(place, "run-split", "--data", bad, "--all", code=2)
        assert "must be one of the model's, found 1 of 5 that are not:\n    9: none\n" in err
        assert "model: the 4 classes of the model: 0, 1, 2, 3\n" in err
        assert err.endswith("or leave their images out: --skip-bad.\n")
        out = evaluate(place, "run-split", "--data", bad, "--all", "--skip-bad")
        assert (
            "Left out and not counted: Images of classes that the network lacks (1): 9/d.png: of "
            "class 9. " in " ".join(out.split())
        )
        assert "Left out and not counted: Files of 0 bytes (2): 1/a.png, 1/b.png.\n" in out
        assert out.splitlines()[-1].endswith(" of 100: all images of the data set; 4 left out)")
        found = as_json(place, "run-split", "--data", bad, "--all", "--skip-bad")
        assert sum(map(len, found["skipped"].values())) == 4

    def test_nothing_that_can_be_used(self, place, tmp_path):
        for name in "01":
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(b"")
        err = evaluate(place, "run-flat", "--data", tmp_path, "--skip-bad", code=2)
        assert "no images to evaluate" in err
        with pytest.raises(DatasetError, match="Files of 0 bytes"):
            bitzoo.evaluate(place / "run-flat", tmp_path)
