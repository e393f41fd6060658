"""Data sets of torchvision, in small files of its real layouts, compared with its own reading."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from tfds_builders import image_bytes

from bitzoo.data.dataset import read_dataset
from bitzoo.data.problems import DatasetError
from bitzoo.data.readers import read_listing
from bitzoo.models.preprocessing import read_rgb

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_DATA", str(tmp_path))
    return tmp_path


def refused(source):
    with pytest.raises(DatasetError) as caught:
        read_listing(source)
    return " ".join(str(caught.value).split())


@pytest.fixture
def cifar(root, monkeypatch):
    """CIFAR-10 in its files: six batches of pickled arrays, planes of red, green and blue."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    batches = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for seed, name in enumerate(batches):
        rng = np.random.default_rng(seed)
        content = {
            "data": rng.integers(0, 256, (6, 3072), np.uint8),
            "labels": rng.integers(0, 10, 6).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    names = [*CIFAR_CLASSES, "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # the checksums are those of the real files
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return root


@pytest.mark.parametrize(("split", "train"), [("train", True), ("test", False)])
def test_arrays(cifar, split, train):
    listing = read_listing(f"torchvision:CIFAR10@{split}")
    expected = torchvision.datasets.CIFAR10(cifar, train=train)
    assert listing.classes == (*CIFAR_CLASSES, "truck")
    assert len(listing.rows) == len(expected) == (30 if train else 6)
    for index, (row, (image, label)) in enumerate(zip(listing.rows, expected, strict=True)):
        assert (row.key, row.label) == (f"{split}[{index}]", expected.classes[label])
        assert np.array_equal(np.asarray(row.load()), np.asarray(image))


@pytest.mark.usefixtures("cifar")
def test_all_splits():
    images = read_dataset("torchvision:CIFAR10")
    assert (len(images.train), len(images.val)) == (30, 6)
    assert images.val.examples[2].key == "test[2]"


@pytest.mark.usefixtures("cifar")
def test_arrays_pickle_to_a_place():
    rows = read_listing("torchvision:CIFAR10@train").rows
    content = pickle.dumps([row.load for row in rows])
    assert len(content) < 2_000
    again = pickle.loads(content)
    assert np.array_equal(np.asarray(again[11]()), np.asarray(rows[11].load()))


def test_files_in_class_folders(root):
    for number, name in enumerate(("Forest", "AnnualCrop", "River", "Forest")):
        place = root / "eurosat/2750" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}_{number}.jpg").write_bytes(image_bytes(number, kind="JPEG"))
    listing = read_listing("torchvision:EuroSAT")
    expected = torchvision.datasets.EuroSAT(root)
    assert listing.classes == ("AnnualCrop", "Forest", "River")
    assert [row.label for row in listing.rows] == [expected.classes[t] for t in expected.targets]
    assert listing.rows[0].key == "eurosat/2750/AnnualCrop/AnnualCrop_1.jpg"
    for row, (image, _) in zip(listing.rows, expected, strict=True):
        assert np.array_equal(np.asarray(read_rgb(row.path)), np.asarray(image))
    assert "splits, of which it has none, found 'train'" in refused("torchvision:EuroSAT@train")


def test_files_in_lists(root):
    """DTD: images by class, and lists of the files of each split."""
    base = root / "dtd/dtd"
    (base / "labels").mkdir(parents=True)
    names = []
    for number in range(9):
        name = ("banded", "dotted", "woven")[number % 3]
        place = base / "images" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}_{number}.jpg").write_bytes(image_bytes(number, kind="JPEG"))
        names.append(f"{name}/{name}_{number}.jpg")
    random.Random(0).shuffle(names)
    for part, split in enumerate(("train", "val", "test")):
        lines = "\n".join(names[3 * part : 3 * part + 3])
        (base / f"labels/{split}1.txt").write_text(lines + "\n")
    for part, split in enumerate(("train", "val", "test")):
        listing = read_listing(f"torchvision:DTD@{split}")
        expected = torchvision.datasets.DTD(root, split=split)
        own = names[3 * part : 3 * part + 3]
        assert [row.key for row in listing.rows] == [f"dtd/dtd/images/{name}" for name in own]
        assert [row.label for row in listing.rows] == [name.partition("/")[0] for name in own]
        assert [row.label for row in listing.rows] == [expected.classes[t] for _, t in expected]
    images = read_dataset("torchvision:DTD", classes=("banded", "dotted", "woven"))
    assert (len(images.train), len(images.val)) == (3, 3)
    said = refused("torchvision:DTD@valid")
    assert "one of its splits, train, val, test, found 'valid'" in said


def test_numbers_without_names(monkeypatch):
    """`FakeData` makes images up, and has neither files nor names."""
    few = (20, (3, 8, 8), 10, None, None, 0)
    monkeypatch.setattr(torchvision.datasets.FakeData.__init__, "__defaults__", few)
    listing = read_listing("torchvision:FakeData")
    expected = torchvision.datasets.FakeData()
    assert set(listing.classes) == {str(int(label)) for _, label in expected}
    assert list(listing.classes) == sorted(listing.classes)
    assert len(listing.rows) == len(expected) == 20
    for index in (0, 5, 19):
        image, label = expected[index]
        assert listing.rows[index].label == str(int(label))
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(listing.rows[index].load()), np.asarray(image))
        assert listing.rows[index].key == f"FakeData[{index}]"


def test_images_are_the_same_in_several_threads():
    """`FakeData` seeds a generator that all threads share."""
    rows = read_listing("torchvision:FakeData").rows[:120]
    alone = [np.asarray(row.load()) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: np.asarray(row.load()), rows))
    different = [n for n, (a, b) in enumerate(zip(alone, together, strict=True)) if (a != b).any()]
    assert different == []


def test_what_was_not_downloaded(root):
    said = refused("torchvision:CIFAR100@test")
    call = f"torchvision.datasets.CIFAR100(root={str(root)!r}, train=False, download=True)"
    assert f'download it: python -c "import torchvision; {call}"' in said
    call = f"torchvision.datasets.Flowers102(root={str(root)!r}, split='val', download=True)"
    assert call in refused("torchvision:Flowers102@val")
    assert list(root.iterdir()) == []


def test_what_torchvision_cannot_download():
    assert "its files must be put there by hand" in refused("torchvision:FER2013@train")


def test_without_a_folder(monkeypatch):
    monkeypatch.delenv("BITZOO_DATA")
    said = refused("torchvision:CIFAR10@train")
    assert "environment variable BITZOO_DATA names, found it unset" in said


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("torchvision:cifar10@train", "found none of this name. Case counts."),
        ("torchvision:CocoDetection@train", "found annFile"),
        ("torchvision:ImageFolder@train", "found another kind"),
        ("torchvision:CIFAR10@validation", "one of its splits, train, test, found 'validation'"),
        ("torchvision:CIFAR10@train?label=fine", "named without ?"),
    ],
)
def test_what_is_none(source, why):
    assert why in refused(source)
