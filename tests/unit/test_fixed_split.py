"""A benchmark's split stays as it is: nothing is dropped or refused, and what is wrong is said."""

import shutil

import pytest
from images import write_digits

from bitzoo.data.dataset import read_dataset
from bitzoo.data.problems import DatasetError, Reason
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError


@pytest.fixture
def flawed(tmp_path):
    """Five classes: 3 has no training images, 4 no held-out ones, and an image of 0 is in both."""
    folder = write_digits(tmp_path / "digits", per_class=6, val_per_class=2, classes=range(5))
    shutil.rmtree(folder / "train/3")
    shutil.rmtree(folder / "val/4")
    (common,) = sorted((folder / "val/0").iterdir())[:1]
    shutil.copy(common, folder / "train/0/common.png")
    return folder


def keys(split):
    return sorted(example.key for example in split.examples)


def test_it_is_kept_and_noted(flawed):
    listed = read_dataset(flawed)
    images, summary = inspect(listed, fixed_split=True)
    assert images.classes == ("0", "1", "2", "3", "4")
    assert keys(images.train) == keys(listed.train)
    assert "train/0/common.png" in keys(images.train)
    assert keys(images.val) == keys(listed.val)
    assert summary.class_counts == {"train": (7, 6, 6, 0, 6), "val": (2, 2, 2, 2, 0)}
    assert not summary.skipped.problems
    first = keys(images.val)[0]
    assert summary.notes[:2] == (
        "The split stays as it is, with images of train that are held out too (1): "
        f"train/0/common.png (same as {first}).",
        "Classes without training images, which remain classes (1): 3. Of the held-out images, 2 "
        "belong to them.",
    )


def test_it_stays_even_where_bad_images_are_skipped(flawed):
    (flawed / "train/1/broken.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        inspect(read_dataset(flawed), fixed_split=True)
    images, summary = inspect(read_dataset(flawed), fixed_split=True, skip_bad=True)
    assert [problem.subject for problem in summary.skipped.problems] == ["train/1/broken.png"]
    assert "train/0/common.png" in keys(images.train)
    assert images.classes == ("0", "1", "2", "3", "4")


def test_any_other_split_is_refused_for_it(flawed):
    with pytest.raises(DatasetError) as refused:
        inspect(read_dataset(flawed))
    for reason in (Reason.DUPLICATE, Reason.ONLY_IN_TRAIN, Reason.ONLY_IN_VAL):
        assert reason.title in str(refused.value)


def test_what_would_change_it_is_refused(flawed, tmp_path):
    with pytest.raises(UsageError, match="`drop_near_duplicates` changes the training images"):
        inspect(read_dataset(flawed), fixed_split=True, drop_near_duplicates=True)
    whole = write_digits(tmp_path / "whole", per_class=5, classes=range(2))
    for fraction in (0.0, 0.2):
        with pytest.raises(UsageError, match="`fixed_split` is for data with splits of their own"):
            inspect(read_dataset(whole, val_fraction=fraction), fixed_split=True)


def test_a_split_without_usable_images_is_still_refused(flawed):
    for path in (flawed / "val").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=Reason.EMPTY_SPLIT.title):
        inspect(read_dataset(flawed), fixed_split=True, skip_bad=True)
