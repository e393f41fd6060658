"""Counts on ImageNet in its many forms, against a count made outside the project.

The oracle reads the images with Pillow and torchvision, computes logits with `networks.run`
(float64, Google's tensor names) and counts with NumPy. Folders are named so that some images are
right, some are right among five, and some are wrong. The order of the outputs is that of timm's
files.
"""

import json
import shutil
from importlib.resources import files
from typing import Any

import datasets
import numpy as np
import pytest
import scipy.io
import torch
from checkpoints import TINY, make_checkpoint, write_npz
from images import photo
from oracle.networks import run
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

import bitzoo
from bitzoo.data.problems import DatasetError
from bitzoo.errors import UsageError
from bitzoo.models.architecture import ARCHITECTURES, Architecture

INFO = files("timm.data") / "_info"
ILSVRC = INFO.joinpath("imagenet_synsets.txt").read_text().split()
GOOG = INFO.joinpath("imagenet21k_goog_synsets.txt").read_text().split()
IMAGENET_A = INFO.joinpath("imagenet_a_synsets.txt").read_text().split()
RANKS = (0, 0, 3, 700, 4, 5, 0, 2)
"""Where the true class of each image is to be among the network's guesses."""
IMAGES = len(RANKS)


@pytest.fixture(scope="module", autouse=True)
def tiny_r50x1(tmp_path_factory):
    """A network of that name is small, so that small files are the releases by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "R50x1", Architecture(TINY, 0.5))
        patch.setenv("BITZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Oracle:
    """A checkpoint and its logits, by another implementation."""

    def __init__(self, path, classes, seed):
        self.path = path
        self.weights = make_checkpoint(num_classes=classes, seed=seed)
        write_npz(path, self.weights)

    def logits(self, images, resize, crop, square=False):
        """Logits of PIL images: resized bilinearly, and cropped."""
        edges = [resize, resize] if square else [resize]
        rows = []
        for image in images:
            resized = tv.resize(image.convert("RGB"), edges, InterpolationMode.BILINEAR)
            pixels = np.asarray(tv.center_crop(resized, [crop, crop]), np.float64) / 127.5 - 1
            rows.append(run(self.weights, torch.from_numpy(pixels.transpose(2, 0, 1)[None])).logits)
        return torch.cat(rows).numpy()


def count(logits, labels):
    """Images right, and right among five; labels are lists of columns."""
    order = np.argsort(-logits, axis=1, kind="stable")
    top1 = sum(row[0] in right for row, right in zip(order, labels, strict=True))
    top5 = sum(
        bool(set(row[:5].tolist()) & set(right)) for row, right in zip(order, labels, strict=True)
    )
    return top1, top5


def counts_of(found):
    return found.correct, found.correct_top5


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("zoo") / "BiT-M-R50x1-ILSVRC2012.npz", 1000, 1)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("zoo") / "BiT-M-R50x1.npz", 21_843, 2)


@pytest.fixture(scope="module")
def pictures():
    return [photo(k, width=90 + 3 * k, height=140 - 4 * k) for k in range(IMAGES)]


@pytest.fixture(scope="module")
def logits(ilsvrc, pictures):
    return ilsvrc.logits(pictures, 448, 448)


@pytest.fixture(scope="module")
def labels(logits):
    """The ILSVRC class that each image is said to have."""
    order = np.argsort(-logits, axis=1, kind="stable")
    return [int(row[rank]) for row, rank in zip(order, RANKS, strict=True)]


def write(root, pictures, folders):
    """Write the images, named as in the validation set, into folders."""
    for number, (picture, folder) in enumerate(zip(pictures, folders, strict=True), start=1):
        path = root / folder / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")  # whatever its name: its pixels stay exactly as they are
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures, labels):
    """`n01440764/...`, as most people have ImageNet."""
    root = tmp_path_factory.mktemp("imagenet")
    return write(root, pictures, [ILSVRC[label] for label in labels])


class TestThousandOutputs:
    def test_a_folder_of_synsets(self, ilsvrc, folder, logits, labels):
        found = bitzoo.evaluate(ilsvrc.path, folder)
        expected = count(logits, [[label] for label in labels])
        assert expected[0] < expected[1] < IMAGES
        assert counts_of(found) == expected
        assert found.count == IMAGES
        assert "by WordNet id" in found.matched
        rows = [row for row in found.per_class if row["count"]]
        assert sum(row["count"] for row in rows) == IMAGES
        assert sum(row["correct"] for row in rows) == expected[0]
        exact = torch.from_numpy(logits)
        loss = torch.nn.functional.cross_entropy(
            exact, torch.tensor(labels), reduction="mean"
        ).item()
        assert found.loss > 1
        assert found.loss == pytest.approx(
            loss, rel=1e-4
        )  # float32 against float64, over 30 layers

    def test_the_pixels_are_those_of_predict(self, ilsvrc, folder):
        found = bitzoo.evaluate(ilsvrc.path, folder, cache_gb=0)
        paths = sorted(folder.rglob("*.JPEG"))
        guesses = [p.guesses[0] for p in bitzoo.predict(ilsvrc.path, paths)]
        assert found.predicted.tolist() == [guess.index for guess in guesses]
        np.testing.assert_allclose(found.scores, [guess.score for guess in guesses], rtol=1e-5)

    @pytest.mark.parametrize("form", ["folders by number", "numbers", "words", "synsets"])
    def test_other_forms_of_the_same_images(self, ilsvrc, pictures, labels, logits, form, tmp_path):
        options: dict[str, Any] = {}
        if form == "folders by number":  # as ImageNet-V2 has them
            data, options = write(tmp_path, pictures, map(str, labels)), {"labels": "imagenet1k"}
        else:
            kind = datasets.Value("int64")
            if form != "numbers":
                names = ILSVRC if form == "synsets" else bitzoo.labels(ilsvrc.path)
                if len(set(names)) == len(names) or form == "synsets":
                    kind = datasets.ClassLabel(names=names)
                else:  # crane and maillot are two classes each
                    names = [f"{id_} {name}" for id_, name in zip(ILSVRC, names, strict=True)]
                    kind = datasets.ClassLabel(names=names)
            else:
                options = {"labels": "imagenet1k"}
            features = datasets.Features({"image": datasets.Image(), "label": kind})
            data = datasets.Dataset.from_dict(
                {"image": pictures, "label": labels}, features=features
            )
        found = bitzoo.evaluate(ilsvrc.path, data, **options)
        assert counts_of(found) == count(logits, [[label] for label in labels])

    def test_the_development_kit(self, ilsvrc, pictures, labels, logits, tmp_path):
        """A flat folder, and the kit's own numbers, which are not the order of the outputs."""
        write(tmp_path, pictures, ["."] * IMAGES)
        kit = tmp_path / "ILSVRC2012_devkit_t12/data"
        kit.mkdir(parents=True)
        numbers = np.random.default_rng(0).permutation(1000) + 1
        names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
        table = np.zeros((1000, 1), [(name, object) for name in names])
        for row, (number, synset) in enumerate(zip(numbers.tolist(), ILSVRC, strict=True)):
            table[row, 0] = (number, synset, "words", "gloss", 0)
        scipy.io.savemat(kit / "meta.mat", {"synsets": table})
        lines = "".join(f"{numbers[label]}\n" for label in labels)
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
        found = bitzoo.evaluate(ilsvrc.path, tmp_path)
        assert counts_of(found) == count(logits, [[label] for label in labels])
        assert found.count == IMAGES

    def test_tensorflow_datasets(self, ilsvrc):
        tfds = pytest.importorskip("tensorflow_datasets")
        with tfds.testing.mock_data(num_examples=6):
            records = tfds.builder("imagenet2012").as_data_source("validation")
            images = [Image.fromarray(record["image"]) for record in records]
            given = [[int(record["label"])] for record in records]
            found = bitzoo.evaluate(ilsvrc.path)
        logits = ilsvrc.logits(images, 448, 448)
        assert counts_of(found) == count(logits, given)
        assert found.count == 6
        true = [int(np.argsort(-row, kind="stable").tolist().index(right[0]))
                for row, right in zip(logits, given, strict=True)]  # fmt: skip
        assert found.ranks.tolist() == true
        assert found.selection.notes[0].startswith("Evaluated on tfds:imagenet2012@validation")
        (top1, *_) = [figure for figure in found.published if figure.name == "top-1"]
        assert (top1.dataset, top1.value) == ("ILSVRC-2012", 80.386)
        assert any("50,000 images and these are 6" in reason for reason in top1.differs)

    def test_restricted_to_a_subset(self, ilsvrc, pictures, tmp_path):
        chosen = [ILSVRC.index(id_) for id_ in IMAGENET_A]
        own = ilsvrc.logits(pictures, 448, 448)[:, chosen]
        order = np.argsort(-own, axis=1, kind="stable")
        ranks = [min(rank, 150) for rank in RANKS]
        labels = [int(row[rank]) for row, rank in zip(order, ranks, strict=True)]
        data = write(tmp_path, pictures, [IMAGENET_A[label] for label in labels])
        found = bitzoo.evaluate(ilsvrc.path, data, labels="imagenet_a")
        assert counts_of(found) == count(own, [[label] for label in labels])
        assert len(found.classes) == 200
        assert any("200 of 1,000 outputs compete" in note for note in found.selection.notes)
        every = bitzoo.evaluate(ilsvrc.path, data, labels="imagenet_a", outputs="all")
        assert len(every.classes) == 1000
        assert every.correct < found.correct

    def test_only_the_outputs_of_the_data_compete(self, ilsvrc, folder, logits, labels):
        found = bitzoo.evaluate(ilsvrc.path, folder, outputs="data")
        chosen = sorted(set(labels))
        own = [[chosen.index(label)] for label in labels]
        assert counts_of(found) == count(logits[:, chosen], own)
        assert len(found.classes) == len(chosen)

    def test_several_labels(self, ilsvrc, folder, labels, logits, tmp_path):
        order = np.argsort(-logits, axis=1, kind="stable")
        real: list[list[int]] = [[] for _ in range(50_000)]
        for number, row in enumerate(order):
            wrong = [int(row[400 + number]), int(row[600])]
            real[number] = {0: [], 1: wrong}.get(number % 4, [*wrong, int(row[number % 7])])
        file = tmp_path / "real.json"
        file.write_text(json.dumps(real))
        found = bitzoo.evaluate(ilsvrc.path, folder, labels=file)
        counted = [number for number in range(IMAGES) if real[number]]
        assert found.count == len(counted) == 6
        expected = count(logits[counted], [real[number] for number in counted])
        assert 0 < expected[0] < expected[1] < len(counted)
        assert counts_of(found) == expected
        exact = logits[counted] - logits[counted].max(axis=1, keepdims=True)
        odds = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
        shares = [row[real[n]].sum() for row, n in zip(odds, counted, strict=True)]
        assert found.loss == pytest.approx(-np.log(shares).mean(), rel=1e-4)
        assert any("2 of 8 images, which have no label" in n for n in found.selection.notes)
        own = {label for number, label in enumerate(labels) if number in counted}
        assert {k for k, row in enumerate(found.per_class) if row["count"]} == own
        assert found.to_dict()["macro_f1"] is None

    def test_labels_as_published(self, ilsvrc, folder, logits):
        published = json.loads(INFO.joinpath("imagenet_real_labels.json").read_text())
        found = bitzoo.evaluate(ilsvrc.path, folder, labels="real")
        counted = [number for number in range(IMAGES) if published[number]]
        assert found.count == len(counted)
        expected = count(logits[counted], [published[number] for number in counted])
        assert counts_of(found) == expected


@pytest.fixture(scope="module")
def of_21k(upstream, pictures):
    return upstream.logits(pictures, 256, 224)


@pytest.fixture(scope="module")
def named(of_21k, pictures, tmp_path_factory):
    """Folders whose classes are right among ILSVRC's, of which the head lacks the teddy bear."""
    shared = [id_ for id_ in ILSVRC if id_ in GOOG]
    assert set(ILSVRC) - set(shared) == {"n04399382"}
    columns = [GOOG.index(id_) for id_ in shared]
    order = np.argsort(-of_21k[:, columns], axis=1, kind="stable")
    labels = [int(row[rank]) for row, rank in zip(order, RANKS, strict=True)]
    root = tmp_path_factory.mktemp("imagenet21k")
    return write(root, pictures, [shared[label] for label in labels]), labels, columns


class TestAllOutputs:
    """The head of ImageNet-21k."""

    def test_all_compete(self, upstream, of_21k, named):
        folder, labels, columns = named
        found = bitzoo.evaluate(upstream.path, folder, outputs="all")
        assert counts_of(found) == count(of_21k, [[columns[label]] for label in labels])
        assert len(found.classes) == 21_843

    def test_those_of_ilsvrc_compete(self, upstream, of_21k, named):
        folder, labels, columns = named
        found = bitzoo.evaluate(upstream.path, folder, labels="imagenet1k")
        expected = count(of_21k[:, columns], [[label] for label in labels])
        assert expected[0] == RANKS.count(0)
        assert counts_of(found) == expected
        assert len(found.classes) == 999

    def test_has_no_data_of_its_own(self, upstream):
        with pytest.raises(UsageError, match=r"not known on which images .*imagenet-21k.*`data`"):
            bitzoo.evaluate(upstream.path)


class TestOwnTask:
    def test_of_vtab(self, tmp_path):
        tfds = pytest.importorskip("tensorflow_datasets")
        oracle = Oracle(tmp_path / "BiT-M-R50x1-run0-dtd.npz", 47, 3)
        with tfds.testing.mock_data(num_examples=5):
            records = tfds.builder("dtd").as_data_source("test")
            images = [Image.fromarray(record["image"]) for record in records]
            labels = [[int(record["label"])] for record in records]
            found = bitzoo.evaluate(oracle.path)
        own = oracle.logits(images, 384, 384, square=True)
        order = np.argsort(-own, axis=1, kind="stable")
        assert found.ranks.tolist() == [
            row.tolist().index(right[0]) for row, right in zip(order, labels, strict=True)
        ]
        assert counts_of(found) == count(own, labels)
        assert "VTAB's task dtd" in found.selection.notes[0]
        assert "order" in found.matched

    @pytest.mark.parametrize(
        ("name", "classes", "says"),
        [
            ("BiT-M-R50x1-run0-dtd", 47, r"dtd.*Prepare it.*Or name other images"),
            (
                "BiT-M-R50x1-ILSVRC2012",
                1000,
                r"imagenet2012.*[Pp]repare.*n01440764.*ILSVRC2012_val_00000001",
            ),
        ],
    )
    def test_that_is_not_prepared(self, tmp_path, monkeypatch, name, classes, says):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        path = write_npz(tmp_path / f"{name}.npz", make_checkpoint(num_classes=classes))
        with pytest.raises(DatasetError, match=f"(?s){says}"):
            bitzoo.evaluate(path)


def test_classes_that_are_not_the_networks(ilsvrc, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more" / "unicorns").mkdir()
    photo(99).save(tmp_path / "more" / "unicorns" / "one.png")
    with pytest.raises(DatasetError, match=r"(?s)unicorns.*imagenet1k"):
        bitzoo.evaluate(ilsvrc.path, tmp_path / "more")
    found = bitzoo.evaluate(ilsvrc.path, tmp_path / "more", skip_bad=True)
    assert found.count == IMAGES
    (names,) = found.selection.skipped.values()
    assert names == ("unicorns/one.png: of class unicorns",)
