"""Pre-training as a user types it: digits as files, a small network, a few steps."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from commands import start
from images import write_digits, write_photos
from PIL import Image

import bitzoo
from bitzoo.errors import UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.training.checkpointing import latest_checkpoint

ARCH = "R(1,1,1,1)x0.5"
SIZES = ["--batch-size", "16", "--resolution", "32", "--workers", "1", "--log", "none"]


def run(folder: Path, *words: object, code: int = 0):
    ended, out, err = start(*words, folder=folder).result()
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", per_class=12, val_per_class=5, classes=range(4))
    return folder


@pytest.fixture(scope="module")
def finished(workspace):
    return run(
        workspace, "pretrain", "--arch", ARCH, "--data", "digits", "--out", "run",
        "--steps", 6, "--checkpoint-every", 2, *SIZES,
    )  # fmt: skip


def weights(folder):
    return bitzoo.create_model(folder, pretrained=True).state_dict()


class TestSoftmax:
    def test_the_recipe_is_told_with_what_it_departs_from(self, workspace, finished):
        told = " ".join(finished[0].split())
        assert "BiT-S (ILSVRC-2012)" in told
        assert "inception crop: a random box of 5 to 100 % of the area, resized to 32x32" in told
        assert "48 training images instead of the 1,281,167 of ILSVRC-2012" in told
        assert "Weight decay on kernels only is inferred" in told
        assert "6 steps, top-1" in told

    def test_the_record(self, workspace, finished):
        record = json.loads((workspace / "run/run.json").read_text())
        assert (record["kind"], record["model"], record["architecture"]) == ("pretrain", ARCH, ARCH)
        recipe = record["recipe"]
        assert recipe["decayed"] == "kernels"
        # 90 epochs of 48 images by 16: 270 steps
        assert recipe["overrides"]["steps"] == {"from": 270, "to": 6}
        text = (workspace / "run/metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        rates = [line["lr"] for line in lines if line["event"] == "train"]
        base = 0.03 * 16 / 256
        assert rates == pytest.approx([0, base, base, base / 10, base / 10, base / 100])

    def test_the_model_says_what_it_is(self, workspace, finished):
        known = bitzoo.info(workspace / "run")
        assert known.identity.evidence == "pre-trained by bitzoo"
        assert (known.activation, known.architecture) == ("softmax", ARCH)
        assert known.run.recipe["name"] == "pre-training: BiT-S (ILSVRC-2012)"
        transform = bitzoo.create_transform(workspace / "run")
        assert (transform.crop, transform.resize, transform.square) == (32, 37, False)
        card = (workspace / "run/README.md").read_text()
        assert "pre-trained by bitzoo from random weights on" in " ".join(card.split())
        assert "the shorter edge resized to 37 pixels" in card
        assert "not Google's" in card

    def test_evaluate_counts_what_the_run_says(self, workspace, finished):
        said = json.loads((workspace / "run/evaluation.json").read_text())
        found = bitzoo.evaluate(workspace / "run", workspace / "digits")
        assert (found.correct, found.count) == (said["correct"], said["count"])
        assert found.loss == pytest.approx(said["loss"], abs=1e-5)

    def test_resume_is_bit_for_bit(self, workspace, finished):
        """From the checkpoint of step 4, by the command and without its options."""
        shutil.copytree(workspace / "run", workspace / "again")
        record = json.loads((workspace / "again/run.json").read_text())
        del record["finished"]
        (workspace / "again/run.json").write_text(json.dumps(record))
        (workspace / "again/checkpoints/step-00000006.safetensors").unlink()
        (workspace / "again/model.safetensors").unlink()
        assert latest_checkpoint(workspace / "again/checkpoints").step == 4
        run(workspace, "resume", "again", "--workers", 2, "--micro-batch", 16)
        first, second = weights(workspace / "run"), weights(workspace / "again")
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_a_finished_run_is_left_as_it_is(self, workspace, finished):
        out, _ = run(workspace, "resume", "run")
        assert "is finished: all 6 steps were made before" in out

    def test_training_moved_everything_from_where_the_seed_put_it(self, workspace, finished):
        network = BiT(Architecture.parse(ARCH), 4)
        network.init_weights(torch.Generator().manual_seed(0))
        after = weights(workspace / "run")
        for name, before in network.state_dict().items():
            change = (after[name] - before).norm()
            assert 0 < change < 0.5 * max(before.norm(), 1), name


class TestAsAModel:
    def test_finetune_and_features(self, workspace, finished):
        run(
            workspace, "finetune", "run", "--data", "digits", "--out", "tuned",
            "--steps", 1, "--batch-size", 8, "--resolution", "36,32", "--log", "none",
        )  # fmt: skip
        known = bitzoo.info(workspace / "tuned")
        assert known.identity.evidence == "fine-tuned by bitzoo"
        before, after = weights(workspace / "run"), weights(workspace / "tuned")
        for name in before.keys() - {"head.fc.weight", "head.fc.bias"}:  # these are still small
            assert (after[name] - before[name]).norm() < 0.05 * before[name].norm() + 0.01, name

    def test_convert_to_npz_and_back(self, workspace, finished):
        run(workspace, "convert", "run/model.safetensors", "--to", "npz", "--dst", "run.npz")
        before, after = weights(workspace / "run"), weights(workspace / "run.npz")
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_publish(self, workspace, finished):
        run(
            workspace, "publish", "run", "--repo", "lab/small", "--dry-run",
            "--folder", "staged",
        )  # fmt: skip
        staged = next((workspace / "staged").rglob("model.safetensors")).parent
        card = (staged / "README.md").read_text()
        assert "pre-trained by bitzoo" in card
        before, after = weights(workspace / "run"), weights(staged)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def several(workspace):
    """Digits side by side, each image of two classes but for every third, of one."""
    random = np.random.default_rng(0)
    files = sorted((workspace / "digits/train").rglob("*.png"))
    rows = []
    for number in range(60):
        chosen = random.choice(len(files), 2 if number % 3 else 1, replace=False)
        images = [Image.open(files[n]).convert("RGB").resize((32, 32)) for n in chosen]
        whole = Image.new("RGB", (32 * len(images), 32))
        for place, image in enumerate(images):
            whole.paste(image, (32 * place, 0))
        whole.putpixel((0, 0), (4 * number, 255 - number, 0))  # no two are the same
        (workspace / "pairs").mkdir(exist_ok=True)
        whole.save(workspace / f"pairs/{number}.png")
        labels = sorted({files[n].parent.name for n in chosen})
        rows.append([f"pairs/{number}.png", ";".join(labels), "val" if number >= 40 else "train"])
    with (workspace / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "labels", "split"], *rows])
    return rows


@pytest.fixture(scope="module")
def trained(workspace, several):
    return run(
        workspace, "pretrain", ARCH, "--data", "pairs.csv", "--out", "many",
        "--recipe", "big_vision", "--steps", 4, "--json", *SIZES,
    )  # fmt: skip


class TestSigmoid:
    def test_the_result(self, workspace, trained):
        result = json.loads(trained[0])
        recipe = result["recipe"]
        assert recipe["loss"] == "sigmoid_cross_entropy"
        assert (recipe["head_bias"], recipe["clip_norm"]) == (-10.0, 1.0)
        assert recipe["schedule"]["shape"] == "cosine"
        assert result["steps"] == 4

    def test_the_first_loss_is_that_of_a_bias_of_minus_ten(self, workspace, several, trained):
        """The head's kernel is zero: 10 for each label, and next to nothing for other classes."""
        first = json.loads((workspace / "many/metrics.jsonl").read_text().splitlines()[0])
        assert 10 <= first["loss"] <= 20
        assert first["loss"] * 16 == pytest.approx(round(first["loss"] * 16 / 10) * 10, abs=0.1)

    def test_evaluation_accepts_any_label(self, workspace, several, trained):
        said = json.loads((workspace / "many/evaluation.json").read_text())
        model = bitzoo.create_model(workspace / "many", pretrained=True)
        transform, names = bitzoo.create_transform(model), bitzoo.labels(model)
        held_out = [row for row in several if row[2] == "val"]
        images = torch.stack([transform(workspace / row[0]) for row in held_out])
        with torch.inference_mode():
            logits = model(images).double()
        targets = torch.tensor(
            [[float(name in row[1].split(";")) for name in names] for row in held_out]
        )
        hits = int(targets[range(len(held_out)), logits.argmax(1)].sum())
        assert (said["count"], said["correct"]) == (len(held_out), hits)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets.double(), reduction="sum"
        ) / len(held_out)
        assert said["loss"] == pytest.approx(float(loss), rel=1e-5)
        again = bitzoo.evaluate(workspace / "many", workspace / "pairs.csv", split="val")
        assert (again.count, again.correct) == (len(held_out), hits)
        assert again.loss == pytest.approx(float(loss), rel=1e-5)
        assert str(dict(again.display_rows())["loss"]).endswith(" (sigmoid, summed over classes)")

    def test_activation(self, workspace, trained):
        assert bitzoo.info(workspace / "many").activation == "sigmoid"
        card = (workspace / "many/README.md").read_text()
        assert "a sigmoid of each, not a softmax" in card
        assert "a prediction counts as right if it is any of them" in card
        found = next(iter(bitzoo.predict(workspace / "many", workspace / "pairs/1.png")))
        assert found.guesses[0].score < 0.01  # of a bias near -10; a softmax would give 1/4

    def test_a_softmax_is_refused(self, workspace, several):
        _, err = run(
            workspace, "pretrain", ARCH, "--data", "pairs.csv", "--out", "no", *SIZES, code=2
        )
        assert "Use the recipe bit-m, bit-l or big_vision" in " ".join(err.split())


class TestFraction:
    def test_shares_are_nested(self, workspace, finished):
        found = {}
        for share in (0.25, 0.5):
            out = workspace / f"share-{share}"
            bitzoo.pretrain(
                ARCH, workspace / "digits", out, fraction=share, steps=1, batch_size=4,
                resolution=32, workers=1, log="none", progress=False,
            )  # fmt: skip
            rows = csv.DictReader((out / "split.csv").read_text().splitlines())
            found[share] = {row["sha256"] for row in rows if row["split"] == "train"}
        assert (len(found[0.25]), len(found[0.5])) == (12, 24)
        assert found[0.25] < found[0.5]


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--arch", "R50y1"], "R50y1"),
            ([ARCH, "--arch", "R50x1"], "ARCH is named twice"),
            ([ARCH, "--fraction", "2"], "above 0 and at most 1, found 2.0"),
            ([ARCH, "--resolution", "16"], "at least 32, found 16"),
        ],
    )
    def test_of_options(self, workspace, words, says):
        _, err = run(workspace, "pretrain", *words, "--data", "digits", "--out", "no", code=2)
        assert says in " ".join(err.split())
        assert not (workspace / "no").exists()


class TestWhatIsHeldOut:
    OPTIONS: ClassVar[dict[str, Any]] = {
        "steps": 1, "batch_size": 8, "resolution": 32, "workers": 1, "log": "none",
        "progress": False,
    }  # fmt: skip

    @pytest.fixture
    def twins(self, tmp_path):
        """Photographs; one in val is in train too, a little smaller."""
        data = tmp_path / "data"
        for number, place in enumerate(["train/a", "train/b", "val/a", "val/b"]):
            written = write_photos(data / place, 3, first_seed=10 * number, width=96, height=96)
        with Image.open(written[0]) as image:
            image.resize((90, 90)).save(data / "train/b/smaller.png")
        return data

    def test_near_duplicates_are_dropped_as_the_line_says(self, twins, tmp_path):
        pre = ("pretrain", ARCH, "--data", "data", "--steps", 1, *SIZES)
        said = " ".join("".join(run(tmp_path, *pre, "--out", "found")).split())
        assert "--drop-near-duplicates drops them from train; --group-by keeps groups" in said
        run(tmp_path, *pre, "--out", "dropped", "--drop-near-duplicates")
        split = (tmp_path / "dropped/split.csv").read_text()
        assert "smaller" in (tmp_path / "found/split.csv").read_text()
        assert "smaller" not in split

    def test_groups_stay_on_one_side(self, tmp_path):
        write_digits(tmp_path / "data", per_class=8, classes=range(3))
        result = bitzoo.pretrain(
            ARCH, tmp_path / "data", tmp_path / "run", group_by=r"(\d)\.png", val_fraction=0.3,
            **self.OPTIONS,
        )  # fmt: skip
        with open(result.folder / "split.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        sides: dict[str, set[str]] = {}
        for row in rows:
            sides.setdefault(Path(row["path"]).stem[-1], set()).add(row["split"])
        assert {side for found in sides.values() for side in found} == {"train", "val"}
        assert all(len(found) == 1 for found in sides.values())

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"drop_near_duplicates": True}, "`drop_near_duplicates=True` needs all images"),
            ({"group_by": "near-duplicates"}, '`group_by="near-duplicates"` needs all images'),
        ],
    )
    def test_large_data_are_not_compared(self, given, named, tmp_path, monkeypatch):
        write_digits(tmp_path / "data", per_class=8, classes=range(2))
        monkeypatch.setattr("bitzoo.runs.one_run.CHECKED_BEFORE", 10)
        with pytest.raises(UsageError, match=named):
            bitzoo.pretrain(ARCH, tmp_path / "data", tmp_path / "run", **self.OPTIONS, **given)
        assert not (tmp_path / "run/run.json").exists()

    def test_a_fraction_is_not_grouped_by_near_duplicates(self, tmp_path):
        write_digits(tmp_path / "data", per_class=8, classes=range(2))
        with pytest.raises(UsageError, match="where only some of the images are used"):
            bitzoo.pretrain(
                ARCH, tmp_path / "data", tmp_path / "run", fraction=0.5,
                group_by="near-duplicates", **self.OPTIONS,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number"),
        ({"resolution": 8}, "`crop` must be"),
        ({"steps": 2, "epochs": 1}, "`steps` and `epochs` both say"),
        ({"resolution": (64, 48)}, "the edge of the crops alone"),
    ],
)
def test_what_no_data_allow_is_refused_before_they_are_read(given, named, tmp_path):
    with pytest.raises(UsageError, match=named):
        bitzoo.pretrain(ARCH, tmp_path / "no data", tmp_path / "run", **given)
