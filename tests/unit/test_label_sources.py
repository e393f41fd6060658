"""ImageNet and its relatives as people have them: every row gets the right output.

The copies are real ones in all but the pictures: folders, data sets that TFDS's machinery prepares,
and tables of Hugging Face's library. What is right is worked out here from timm's lists.
"""

import datasets
import numpy as np
import pytest
import tensorflow_datasets as tfds
from checkpoints import TINY, make_checkpoint, write_npz
from tfds_builders import image_bytes, prepare
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet
from torchvision.datasets import ImageFolder

import bitzoo
from bitzoo.catalogue.published_lists import subset_synsets
from bitzoo.data.label_space import match_labels, output_space
from bitzoo.data.problems import DatasetError
from bitzoo.data.readers import read_listing
from bitzoo.data.real_labels import file_name, read_real_labels, real_targets
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.zoo.info import info

ILSVRC = ImageNetInfo("imagenet-1k").label_names()
GOOGLE = ImageNetInfo("imagenet-21k-goog").label_names()
WORDS = [*map(str, ImageNetInfo("imagenet-1k").label_descriptions())]
TEDDY = ILSVRC.index("n04399382")
PICTURE = image_bytes(0, size=(4, 4), kind="JPEG")


@pytest.fixture(scope="module", params=["BiT-M-R50x1-ILSVRC2012", "BiT-M-R50x1"])
def head(request):
    """A head's space, and the ids of its outputs according to timm."""
    space = output_space(info(request.param))
    return space, {1000: ILSVRC, 21843: GOOGLE}[space.count]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def matched(listing, space, **options):
    """The match, and the id of each row's output."""
    used = {row.label for row in listing.rows}
    match = match_labels(listing.classes, space, used=used, **options)
    output = dict(zip(match.classes, match.outputs, strict=True))
    return match, [output[row.label] for row in listing.rows]


def ids(outputs, synsets):
    return [synsets[output] for output in outputs]


def folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.jpeg").write_bytes(PICTURE)
    return root


def test_folders_of_a_subset(tmp_path, head):
    space, synsets = head
    wanted = subset_synsets("ImageNet-R")
    match, found = matched(read_listing(folders(tmp_path, wanted)), space)
    assert ids(found, synsets) == sorted(wanted)
    assert ids(match.competing, synsets) == list(wanted)


@pytest.fixture(scope="module")
def imagenet_v2(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("v2"), map(str, range(1000)))


def test_folders_of_imagenet_v2(imagenet_v2, head):
    """Numbers for names: `ImageFolder` sorts them as text, so its class 2 is the folder 10."""
    space, synsets = head
    assert ImageFolder(imagenet_v2).classes[2] == "10"
    listing = read_listing(imagenet_v2)
    match, found = matched(listing, space)
    expected = [ILSVRC[int(row.path.parent.name)] for row in listing.rows]
    known = [k for k, output in enumerate(found) if output >= 0]
    assert [synsets[found[k]] for k in known] == [expected[k] for k in known]
    lost = [expected[k] for k, output in enumerate(found) if output < 0]
    assert lost == ([] if synsets is ILSVRC else ["n04399382"])
    assert len(match.competing or synsets) == 1000 - len(lost)


class TestValidation:
    """Images of ILSVRC-2012's validation set by name: ReaL's labels are those of timm."""

    numbers = np.random.default_rng(3).permutation(50_000)[:60] + 1
    labels = np.random.default_rng(4).integers(0, 849, 60)

    def judged(self, listing, head):
        space, synsets = head
        match, found = matched(listing, space)
        real = real_targets(
            [file_name(row) for row in listing.rows], read_real_labels(), space, match
        )
        return (
            ids(found, synsets),
            [
                {synsets[(match.competing or range(space.count))[k]] for k in row}
                for row in real.columns
            ],
        )

    def expected(self, order, synsets):
        names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
        labels = RealLabelsImagenet(names).real_labels
        return [
            {ILSVRC[k] for k in labels[names[self.numbers[n] - 1]] if ILSVRC[k] in synsets}
            for n in order
        ]

    def test_prepared_by_tfds(self, tmp_path, monkeypatch, head):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=ILSVRC),
            "file_name": tfds.features.Text(),
        }
        rows = [
            {"image": PICTURE, "label": int(k), "file_name": f"ILSVRC2012_val_{n:08d}.JPEG"}
            for n, k in zip(self.numbers, self.labels, strict=True)
        ]
        prepare(tmp_path, {"validation": rows}, name="imagenet2012", features=features)
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        listing = read_listing("tfds:imagenet2012@validation")
        order = [list(self.numbers).index(int(file_name(row)[15:23])) for row in listing.rows]
        assert order != sorted(order) == list(range(60))  # TFDS shuffles
        outputs, real = self.judged(listing, head)
        assert outputs == [ILSVRC[self.labels[n]] for n in order]
        assert real == self.expected(order, head[1])

    @pytest.mark.parametrize("named", [True, False])
    def test_of_the_hub(self, tmp_path, head, named):
        names = list(WORDS)
        names[517] = "crane2"
        suffix = [f"ILSVRC2012_val_{n:08d}_n01440764.JPEG" for n in self.numbers]
        images = [{"bytes": PICTURE, "path": name if named else None} for name in suffix]
        table = datasets.Dataset.from_dict(
            {"image": images, "label": self.labels.tolist()},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
            ),
        )
        table.save_to_disk(tmp_path / "saved")
        listing = read_listing(f"hf:{tmp_path / 'saved'}")
        if not named:
            with pytest.raises(DatasetError, match="found 60 of 60 with other names: row 0"):
                self.judged(listing, head)
            return
        outputs, real = self.judged(listing, head)
        assert outputs == [ILSVRC[k] for k in self.labels]
        assert real == self.expected(range(60), head[1])
        part = read_listing(table.select([5, 2]))
        assert [file_name(row) for row in part.rows] == [suffix[5], suffix[2]]

    def test_in_folders(self, tmp_path, head):
        for n, k in zip(self.numbers, self.labels, strict=True):
            place = tmp_path / ILSVRC[k] / f"ILSVRC2012_val_{n:08d}.JPEG"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(PICTURE)
        listing = read_listing(tmp_path)
        order = [list(self.numbers).index(int(row.path.name[15:23])) for row in listing.rows]
        outputs, real = self.judged(listing, head)
        assert outputs == [ILSVRC[self.labels[n]] for n in order]
        assert real == self.expected(order, head[1])
        space, synsets = head
        assert matched(listing, space)[0].competing is None  # not all 1,000 classes are there
        match, found = matched(listing, space, task="imagenet1k")
        assert ids(found, synsets) == outputs
        assert len(match.competing or synsets) == {1000: 1000, 21843: 999}[space.count]


@pytest.fixture(scope="module")
def imagenet_a(tmp_path_factory):
    """TFDS's form: all 1,000 classes are declared, and 200 have images."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=ILSVRC),
    }
    wanted = subset_synsets("ImageNet-A")
    rows = [{"image": PICTURE, "label": ILSVRC.index(id_)} for id_ in wanted]
    folder = tmp_path_factory.mktemp("a")
    prepare(folder, {"test": rows}, name="imagenet_a", features=features)
    return folder


def test_imagenet_a_by_tfds(imagenet_a, monkeypatch, head):
    space, synsets = head
    monkeypatch.setenv("TFDS_DATA_DIR", str(imagenet_a))
    listing = read_listing("tfds:imagenet_a@test")
    assert len(listing.classes) == 1000
    here = [id_ for id_ in subset_synsets("ImageNet-A") if id_ in synsets]
    match, found = matched(listing, space)
    assert {synsets[output] for output in found if output >= 0} == set(here)
    assert (match.subset, ids(match.competing, synsets)) == ("ImageNet-A", here)
    part = read_listing("tfds:imagenet_a@test[:20]")
    assert matched(part, space, task="imagenet_a")[0].competing == match.competing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "BiT-M-R50x1.npz"
    write_npz(path, make_checkpoint(num_classes=21_843))
    return path


class TestWithoutOutput:
    """The 21,843 lack ILSVRC's teddy: its images are left out, unless ReaL sees something else."""

    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch):
        monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture(TINY, 0.5))

    @staticmethod
    def table(labels, numbers):
        images = [
            {"bytes": image_bytes(n, kind="JPEG"), "path": f"ILSVRC2012_val_{n:08d}.JPEG"}
            for n in numbers
        ]
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=ILSVRC)}
        columns = {"image": images, "label": labels}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def test_its_images_are_left_out(self, checkpoint):
        found = bitzoo.evaluate(checkpoint, self.table([TEDDY, 3, TEDDY, 5], [1, 2, 3, 4]))
        assert found.count == 2
        assert [found.classes[k] for k in found.labels] == [WORDS[3], WORDS[5]]
        assert "images of n04399382 (teddy, teddy bear)" in " ".join(found.selection.notes)

    def test_a_class_that_no_list_has_is_an_error(self, checkpoint):
        table = self.table([0, 1], [1, 2]).cast_column(
            "label", datasets.ClassLabel(names=["n01440764", "n99999999"])
        )
        with pytest.raises(DatasetError, match="    n99999999: none"):
            bitzoo.evaluate(checkpoint, table)
        assert bitzoo.evaluate(checkpoint, table, skip_bad=True).count == 1

    def test_by_real_they_count_for_what_else_is_there(self, checkpoint):
        names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
        labels = RealLabelsImagenet(names).real_labels
        teddies = [n for n, name in enumerate(names, start=1) if TEDDY in labels[name]]
        also = [n for n in teddies if len(labels[names[n - 1]]) > 1][:2]
        only = [n for n in teddies if labels[names[n - 1]] == [TEDDY]][:3]
        bare = [n for n, name in enumerate(names, start=1) if not labels[name]][:1]
        numbers = [*also, *only, *bare, 2]
        found = bitzoo.evaluate(
            checkpoint, self.table([TEDDY] * 5 + [5, 5], numbers), labels="real"
        )
        assert found.count == 3
        assert found.labels.max() < 999
        notes = " ".join(found.selection.notes)
        assert "Not counted: 1 of 7 images, which have no label." in notes
        assert "Not counted: 3 of 7 images, all of whose labels are classes without a" in notes
        assert "teddy" not in notes
