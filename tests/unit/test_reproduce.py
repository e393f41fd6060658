"""`bitzoo reproduce`: one figure of each kind, with tiny stand-ins, recomputed apart."""

import io
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from PIL import Image
from scipy.stats import binomtest
from tfds_builders import features_of, image_bytes, prepare

import bitzoo
from bitzoo.catalogue import claims, registry
from bitzoo.catalogue.class_names import class_names
from bitzoo.cli.main import app
from bitzoo.errors import UsageError, WeightsUnavailableError
from bitzoo.models.architecture import ARCHITECTURES, Architecture

SYNSETS = class_names("imagenet1k", descriptions=False)


@pytest.fixture(autouse=True, scope="module")
def data_folder(tmp_path_factory):
    """A tiny R50x1, BiT-M with ten outputs, and TFDS's folder."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        patch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
        spec = replace(registry.get_spec("BiT-M-R50x1"), num_classes=10)
        patch.setitem(registry._catalogue(), spec.name, spec)
        patch.setitem(registry._index(), registry._key(spec.name), spec)
        yield folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "BiT-R50x1_160.npz"
    return write_npz(path, make_checkpoint(num_classes=1000))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "BiT-M-R50x1.npz"
    return write_npz(path, make_checkpoint(num_classes=10))


def pixels_of(content, resize):
    """An image as the network sees it, by PIL alone: short side to 182, bicubic, 160 in the middle;
    or both sides to `resize`, bilinear."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if resize:
        image = image.resize((resize, resize), Image.Resampling.BILINEAR)
    else:
        scale = 182 / min(image.size)
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - 160) // 2 for side in image.size)
        image = image.crop((left, top, left + 160, top + 160))
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 127.5 - 1


def ranked(weights, contents, resize=None):
    """Each image's outputs, the best first."""
    network = bitzoo.create_model(weights, pretrained=True).eval()
    with torch.no_grad():
        logits = network(torch.stack([pixels_of(content, resize) for content in contents]))
    return logits.argsort(dim=1, descending=True).tolist()


@pytest.fixture(scope="module")
def validation(data_folder, student):
    """24 images of which the student gets 11 right, and 17 among its first five."""
    contents = [image_bytes(n, size=(20, 18), seed=5) for n in range(24)]
    places = [0] * 11 + [3] * 6 + [500] * 7
    rows = [
        {"image": content, "label": order[place], "number": n}
        for n, (content, order, place) in enumerate(
            zip(contents, ranked(student, contents), places, strict=True)
        )
    ]
    prepare(
        data_folder / "tfds",
        {"validation": rows},
        "imagenet2012",
        "5.1.0",
        features=features_of(SYNSETS),
    )
    return rows


@pytest.fixture(scope="module")
def cifar(data_folder):
    """Stand-ins for CIFAR-10: three classes that differ in brightness, more or less."""
    random = np.random.default_rng(3)

    def rows(count):
        found = []
        for number in range(count):
            label = number % 3
            noise = random.normal(60 + 60 * label, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(noise).save(content, "PNG")
            found.append({"image": content.getvalue(), "label": label, "number": number})
        return found

    splits = {"train": rows(30), "test": rows(14)}
    prepare(data_folder / "tfds", splits, "cifar10", "3.0.2", features=features_of(("a", "b", "c")))
    return splits


def run(*words, code=0):
    result = CliRunner().invoke(app, ["reproduce", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_the_list_of_a_file(student):
    listed = run(student, "--list").stdout
    assert listed.splitlines()[0] == "BiT-R50x1_160"
    assert listed == run("BiT-R50x1_160", "--list").stdout


class TestEvaluate:
    def test_top1(self, student, validation, tmp_path):
        found = json.loads(
            run(
                student, "--claim", "ilsvrc-top1", "--out", tmp_path, "--workers", 1, "--json"
            ).stdout
        )
        measured = found["measured"]
        assert measured["value"] == pytest.approx(100 * 11 / 24)
        interval = binomtest(11, 24).proportion_ci(method="wilson")
        assert measured["lowest"] == pytest.approx(100 * interval.low)
        assert measured["highest"] == pytest.approx(100 * interval.high)
        assert (measured["images"], measured["versions"]) == (24, {"imagenet2012": "5.1.0"})
        assert found["difference"] == pytest.approx(100 * 11 / 24 - 80.5)
        assert found["inside"] is False
        assert json.loads((tmp_path / "reproduce.json").read_text()) == found
        assert found["departures"][0].startswith(
            f"The weights are those of {student}: BiT-R50x1_160, by its file name only"
        )
        assert any("50,000" in text and "24" in text for text in found["departures"])

    def test_for_people(self, student, validation):
        result = run(student, "--claim", "ilsvrc-top1-paper", "--workers", 1)
        text = " ".join(result.stdout.split())
        assert "published 80.49 %, https://arxiv.org/abs/2106.05237" in text
        assert "measured 45.83 % (27.89 to 64.93, 95 % interval, 24 images)" in text
        assert "difference -34.66 points; the published value is outside the interval" in text
        assert "departures" in text

    def test_a_figure_inside_the_interval(self, student, validation, monkeypatch):
        known = claims._claims()
        own = replace(known["BiT-R50x1_160"][0], metric="top-5", value=70.0)
        monkeypatch.setitem(known, "BiT-R50x1_160", (own,))
        found = bitzoo.reproduce(student, "ilsvrc-top1", workers=1)
        assert found.measured.value == pytest.approx(100 * 17 / 24)
        assert found.inside is True
        assert found.folder is None

    def test_other_images(self, student, tmp_path):
        contents = [image_bytes(n, size=(20, 18), seed=8) for n in range(3)]
        for number, (content, order) in enumerate(
            zip(contents, ranked(student, contents), strict=True)
        ):
            path = tmp_path / "images" / SYNSETS[order[number]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found = bitzoo.reproduce(student, "ilsvrc-top1", data=tmp_path / "images", workers=1)
        assert found.measured.value == pytest.approx(100 / 3)
        assert f"Data: {tmp_path / 'images'} instead of tfds:imagenet2012@validation." in (
            found.departures
        )

    def test_several_labels(self, data_folder, tmp_path):
        """ReaL, as TFDS has it: images by number, some with several labels, some with none."""
        import tensorflow_datasets as tfds

        large = write_npz(tmp_path / "BiT-R50x1_224.npz", make_checkpoint(num_classes=1000))
        with (Path(timm.data.__file__).parent / "_info/imagenet_real_labels.json").open() as file:
            real = json.load(file)
        contents = [image_bytes(n, size=(20, 18), seed=9) for n in range(6)]
        transform = bitzoo.create_transform(large)
        pictures = torch.stack([transform(Image.open(io.BytesIO(c))) for c in contents])
        with torch.no_grad():
            logits = bitzoo.create_model(large, pretrained=True).eval()(pictures)
        orders = logits.argsort(dim=1, descending=True).tolist()
        # right by the fourth guess, twice; wrong, three times; without labels
        wanted = [
            next(n for n, labels in enumerate(real) if order[3] in labels) for order in orders[:2]
        ]
        wanted += [
            next(n for n, labels in enumerate(real) if labels and not {*order[:5]} & {*labels})
            for order in orders[2:5]
        ]
        wanted[3], wanted[4] = wanted[3] + 1000, wanted[4] + 2000
        wanted.append(real.index([]))
        assert len(set(wanted)) == 6
        judged = [
            bool({*order[:5]} & {*real[number]})
            for order, number in zip(orders, wanted, strict=True)
            if real[number]
        ]
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "original_label": tfds.features.ClassLabel(names=SYNSETS),
            "real_label": tfds.features.Sequence(tfds.features.ClassLabel(names=SYNSETS)),
            "file_name": tfds.features.Text(),
        }
        rows = [
            {
                "image": content,
                "original_label": 0,
                "real_label": real[number],
                "file_name": f"ILSVRC2012_val_{number + 1:08d}.JPEG",
            }
            for content, number in zip(contents, wanted, strict=True)
        ]
        prepare(
            data_folder / "tfds", {"validation": rows}, "imagenet2012_real", "1.0.0",
            features=features, supervised_keys=("image", "real_label"),
        )  # fmt: skip
        found = bitzoo.reproduce(large, "imagenet-real-top5-timm", workers=1)
        assert found.measured.images == len(judged)
        assert found.measured.value == pytest.approx(100 * sum(judged) / len(judged))
        assert 0 < sum(judged) < len(judged)

    def test_a_task_of_its_own(self, data_folder, tmp_path, monkeypatch):
        monkeypatch.setitem(ARCHITECTURES, "R152x2", Architecture((1, 1, 1, 1), 0.5))
        teacher = write_npz(tmp_path / "BiT-R152x2_T_pet128.npz", make_checkpoint(num_classes=37))
        contents = [image_bytes(n, size=(128, 128), seed=6) for n in range(6)]
        with torch.no_grad():
            network = bitzoo.create_model(teacher, pretrained=True).eval()
            transform = bitzoo.create_transform(teacher)
            pictures = [Image.open(io.BytesIO(content)) for content in contents]
            best = network(torch.stack([transform(p) for p in pictures])).argmax(1).tolist()
        labels = [best[0], best[1], best[2], *((label + 1) % 37 for label in best[3:])]
        rows = [
            {"image": content, "label": label, "number": number}
            for number, (content, label) in enumerate(zip(contents, labels, strict=True))
        ]
        names = [str(number) for number in range(37)]
        prepare(
            data_folder / "tfds",
            {"test": rows},
            "oxford_iiit_pet",
            "4.0.0",
            features=features_of(names),
        )
        found = bitzoo.reproduce(teacher, "pets-top1", workers=1)
        assert found.measured.value == pytest.approx(50)
        drift = "Version 4.0.0 of oxford_iiit_pet, whose images are not those of version 3.*."
        assert drift in found.departures


@pytest.fixture
def small_batches(monkeypatch):
    """CIFAR's figures as if their batches were of 8 images, for a test to take seconds."""
    known = claims._claims()
    changed = []
    for claim in known["BiT-M-R50x1"]:
        if claim.id.startswith("cifar10-"):
            assert claim.protocol.options["batch_size"] == 128
            options = {**claim.protocol.options, "batch_size": 8}
            claim = replace(claim, protocol=replace(claim.protocol, options=options))
        changed.append(claim)
    monkeypatch.setitem(known, "BiT-M-R50x1", tuple(changed))


class TestFinetune:
    def test_median_of_runs(self, base, cifar, small_batches, tmp_path):
        options = ("--runs", 2, "--steps", 1, "--workers", 1, "--seed", 4, "--out", tmp_path)
        run(base, "--claim", "cifar10-full", *options)
        found = json.loads((tmp_path / "reproduce.json").read_text())
        contents = [row["image"] for row in cifar["test"]]
        labels = [row["label"] for row in cifar["test"]]
        scores = []
        for seed in (4, 5):
            folder = tmp_path / "runs" / f"seed-{seed}"
            best = [order[0] for order in ranked(folder, contents, 128)]
            scores.append(100 * float(np.mean(np.equal(best, labels))))
            recipe = json.loads((folder / "run.json").read_text())["recipe"]
            assert (recipe["batch_size"], recipe["schedule"]["base_lr"]) == (8, 0.001)
        measured = found["measured"]
        assert measured["runs"] == pytest.approx(scores)
        assert measured["value"] == pytest.approx(statistics.median(scores))
        assert (measured["lowest"], measured["highest"]) == pytest.approx(
            (min(scores), max(scores))
        )
        assert measured["interval"] == "lowest and highest of 2 runs"
        assert (measured["images"], measured["versions"]) == (14, {"cifar10": "3.0.2"})
        assert found["departures"][1:] == [
            "2 runs instead of 5.",
            "1 step per run instead of the rule's.",
        ]
        # the same command again trains nothing, and finds the same
        result = run(base, "--claim", "cifar10-full", *options, "--json")
        assert json.loads(result.stdout) == found

    def test_departures(self, base, cifar, tmp_path):
        found = bitzoo.reproduce(
            base, "cifar10-full-jax", out=tmp_path, runs=1, steps=1, freeze=True, edition="paper",
            dtype="bfloat16", workers=1,
        )  # fmt: skip
        assert found.departures[1:] == (
            "1 run instead of 5.",
            "1 step per run instead of the rule's.",
            "Only the head was trained, on fixed features, instead of the whole network.",
            "HyperRule's edition 'paper' instead of 'released'.",
            "Computed in bfloat16.",
            *bitzoo.list_claims("BiT-M-R50x1")[8].protocol.differences,
        )
        assert "train[:98%]" in found.measured.call
        split = json.loads((tmp_path / "runs" / "config.json").read_text())
        assert split  # a model folder
        assert found.measured.interval == "95 % interval, 14 images"


class TestFewShot:
    def test_median_of_trials(self, base, cifar, small_batches, tmp_path):
        options = ("--runs", 3, "--steps", 1, "--workers", 1, "--seed", 2, "--out", tmp_path)
        found = json.loads(run(base, "--claim", "cifar10-5shot", *options, "--json").stdout)
        contents = [row["image"] for row in cifar["test"]]
        labels = [row["label"] for row in cifar["test"]]
        scores = []
        for seed in (2, 3, 4):
            folder = tmp_path / "runs" / "5-shot" / f"seed-{seed}"
            best = [order[0] for order in ranked(folder, contents, 128)]
            scores.append(100 * float(np.mean(np.equal(best, labels))))
            recipe = json.loads((folder / "run.json").read_text())["recipe"]
            assert (recipe["num_examples"], recipe["schedule"]["base_lr"]) == (15, 0.001)
        measured = found["measured"]
        assert measured["runs"] == pytest.approx(scores)
        assert measured["value"] == pytest.approx(statistics.median(scores))
        assert (measured["lowest"], measured["highest"]) == pytest.approx(
            (min(scores), max(scores))
        )
        assert measured["images"] == 14
        assert found["published"]["value"] == 82.3
        assert found["difference"] == pytest.approx(statistics.median(scores) - 82.3)
        assert found["departures"][1:] == [
            "3 runs instead of 5.",
            "1 step per run instead of the rule's.",
            "That code draws the examples without a seed; here each run has its own seed.",
        ]
        assert json.loads((tmp_path / "reproduce.json").read_text()) == found


class TestWhatCannotBeRun:
    def test_weights_that_nobody_has(self):
        with pytest.raises(WeightsUnavailableError, match="never released"):
            bitzoo.reproduce("BiT-L-R152x4", "cifar10-full")
        assert (
            "cannot be measured again" in run("BiT-L-R152x4", "--claim", "vtab-1k", code=2).stderr
        )

    def test_recipes_that_nobody_published(self):
        with pytest.raises(UsageError, match="Optimizer, weight decay and batch size"):
            bitzoo.reproduce("BiT-M-R50x1", "flowers-transfer-128px")

    def test_images_that_have_no_name(self):
        stderr = run("BiT-R50x1_224", "--claim", "imagenet-a-clean-top1-timm", code=2).stderr
        assert "needs --data: a folder with the validation images of only these 200" in stderr

    def test_options_of_another_protocol(self, student):
        stderr = run(student, "--claim", "ilsvrc-top1", "--steps", 5, "--freeze", code=2).stderr
        assert "--freeze, --steps cannot be used with the figure ilsvrc-top1" in stderr

    def test_no_figure_and_no_model(self, student):
        assert (
            "None of its figures was named: --claim must be one of" in run(student, code=2).stderr
        )
        assert "Missing argument 'MODEL'" in run("--claim", "x", code=2).stderr

    def test_weights_of_nothing_known(self, tmp_path):
        own = write_npz(tmp_path / "own.npz", make_checkpoint(num_classes=10))
        with pytest.raises(UsageError, match="Published figures are about released checkpoints"):
            bitzoo.reproduce(own, "cifar10-full")

    def test_data_that_are_not_prepared(self, base):
        stderr = run(base, "--claim", "cifar100-full", code=2).stderr
        assert "cifar100" in stderr
        assert "tfds build" in stderr or "download_and_prepare" in stderr
