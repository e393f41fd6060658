"""Images without labels: every one of a folder, or the training split of another source."""

import shutil

import numpy as np
import pytest
from images import write_digits, write_photos

from bitzoo.data.unlabelled import NO_LABEL, read_unlabelled
from bitzoo.data.validation import inspect
from bitzoo.errors import BitzooError


def test_a_flat_folder(tmp_path):
    """Which no other reader takes, as it has no classes."""
    write_photos(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("hello")
    images, summary = inspect(read_unlabelled(tmp_path), training=False)
    assert [example.key for example in images.train.examples] == [
        "photo_0.jpg", "photo_1.jpg", "photo_2.jpg",
    ]  # fmt: skip
    assert images.classes == (NO_LABEL,)
    assert images.val is None
    assert summary.counts == {"train": 3}
    assert all(len(example.sha256) == 64 for example in images.train.examples)
    assert any("Ignored" in note and "notes.txt" in note for note in images.notes)


def test_every_folder_below_counts(tmp_path):
    """Folders named as splits or classes too, which is said."""
    write_digits(tmp_path, per_class=2, val_per_class=1, classes=range(3))
    write_photos(tmp_path, 1)
    images = read_unlabelled(str(tmp_path))
    assert len(images.train) == 3 * 3 + 1
    assert {example.label for example in images.train.examples} == {0}
    assert "(10 images), whatever the names of the folders in it mean" in images.notes[0]


def test_a_manifest_gives_its_training_split(tmp_path):
    paths = write_photos(tmp_path, 4)
    splits = ["train", "train", "val", "test"]
    rows = [f"{path.name},a,{split}" for path, split in zip(paths, splits, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    images = read_unlabelled(tmp_path / "list.csv")
    assert [example.path.name for example in images.train.examples] == [
        "photo_0.jpg", "photo_1.jpg",
    ]  # fmt: skip
    assert "Not used: 2 images of the other splits." in images.notes


def test_arrays(tmp_path):
    pixels = np.zeros((5, 8, 8), np.uint8)
    assert len(read_unlabelled((pixels, [0, 0, 0, 0, 0])).train) == 5


def test_the_fingerprint_is_of_the_images(tmp_path):
    """Class folders do not matter, but names do."""
    write_digits(tmp_path / "a", per_class=2, classes=range(2))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (inspect(read_unlabelled(tmp_path / n), training=False)[0] for n in "ab")
    assert first.fingerprint == second.fingerprint
    next((tmp_path / "b").rglob("*.png")).unlink()
    third, _ = inspect(read_unlabelled(tmp_path / "b"), training=False)
    assert third.fingerprint != first.fingerprint


def test_no_images(tmp_path):
    with pytest.raises(BitzooError, match="must have images to train on, found none"):
        read_unlabelled(tmp_path)


def test_a_damaged_image_is_reported(tmp_path):
    write_photos(tmp_path, 2)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(BitzooError, match=r"bad\.jpg"):
        inspect(read_unlabelled(tmp_path), training=False)
    images, summary = inspect(read_unlabelled(tmp_path), training=False, skip_bad=True)
    assert len(images.train) == 2
    assert len(summary.skipped) == 1
