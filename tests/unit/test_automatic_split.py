"""The split of data without one: copies stay together, and what is advised works."""

import re
import shutil

import numpy as np
import pytest
from images import BAD, digits, write_digits, write_photos

from bitzoo.data.dataset import read_dataset
from bitzoo.data.problems import DatasetError, Reason
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError


def keys(split):
    return [example.key for example in split.examples]


def twins(folder):
    """Two classes of ten photographs, each of which is there twice."""
    for seed, name in enumerate(("cat", "dog")):
        for path in write_photos(folder / name, 10, first_seed=100 * seed):
            shutil.copy(path, path.with_name(f"x_{path.name}"))
    return folder


class TestCopies:
    @pytest.mark.parametrize("seed", range(4))
    def test_stay_on_one_side(self, tmp_path, seed):
        images = read_dataset(twins(tmp_path), val_fraction=0.2, seed=seed)
        assert {k.split("/")[-1].removeprefix("x_") for k in keys(images.train)} & {
            k.split("/")[-1].removeprefix("x_") for k in keys(images.val)
        }  # names alone do not say that they are copies
        inspected, summary = inspect(images)
        held = {example.sha256 for example in inspected.val.examples}
        assert not held & {example.sha256 for example in inspected.train.examples}
        assert summary.class_counts == {"train": (16, 16), "val": (4, 4)}
        assert inspected.held_out == (
            f"8 of 40 images, drawn by class with seed {seed}, 40 images with equal content kept "
            "together"
        )
        assert len(summary.skipped) == 0
        again, _ = inspect(read_dataset(tmp_path, val_fraction=0.2, seed=seed), workers=1)
        assert again.fingerprint == inspected.fingerprint

    def test_with_different_labels_are_named(self, tmp_path):
        paths = write_photos(tmp_path / "cat", 10)
        write_photos(tmp_path / "dog", 10, first_seed=50)
        shutil.copy(paths[4], tmp_path / "dog" / "other.jpg")
        inspected, summary = inspect(read_dataset(tmp_path, val_fraction=0.3))
        (note,) = [note for note in summary.notes if "different labels" in note]
        assert note.endswith(" (1): cat/photo_4.jpg = dog/other.jpg.")
        sides = [{"cat/photo_4.jpg", "dog/other.jpg"} & set(keys(s)) for s in inspected.splits]
        assert sorted(map(len, sides)) == [0, 2]

    def test_across_splits_of_the_data_itself_say_their_labels(self, tmp_path):
        for split, seed in (("train", 0), ("val", 50)):
            write_photos(tmp_path / split / "cat", 2, first_seed=seed)
            write_photos(tmp_path / split / "dog", 2, first_seed=seed + 20)
        shutil.copy(tmp_path / "val/cat/photo_50.jpg", tmp_path / "train/dog/x.jpg")
        with pytest.raises(DatasetError, match=r"val/cat/photo_50\.jpg, which has another label, "):
            inspect(read_dataset(tmp_path))

    def test_without_copies_nothing_changes(self, tmp_path):
        images = read_dataset(write_digits(tmp_path, per_class=20), val_fraction=0.25, seed=3)
        inspected, _ = inspect(images)
        assert [keys(split) for split in inspected.splits] == [keys(s) for s in images.splits]
        assert (
            inspected.held_out
            == images.held_out
            == ("50 of 200 images, drawn by class with seed 3")
        )

    def test_of_held_out_images_are_left_out_of_few_shot(self, tmp_path):
        images = read_dataset(twins(tmp_path), val_fraction=0.2, examples_per_class=15)
        inspected, summary = inspect(images)
        assert keys(inspected.val) == keys(images.val)
        held = {example.sha256 for example in inspected.val.examples}
        assert not held & {example.sha256 for example in inspected.train.examples}
        lost = len(images.train) - len(inspected.train)
        assert lost > 0
        (note,) = [note for note in summary.notes if note.startswith("Not trained on")]
        assert note.startswith(f"Not trained on, as the same image is held out ({lost}): ")

    def test_in_memory(self):
        pixels, labels = digits()
        pixels, labels = np.concatenate([pixels[:50]] * 2), np.concatenate([labels[:50]] * 2)
        inspected, _ = inspect(read_dataset((pixels, labels), val_fraction=0.2))
        rows = {int(key.split()[1]) for key in keys(inspected.val)}
        assert len(rows) == 20
        assert {(row + 50) % 100 for row in rows} == rows


class TestSkipping:
    def test_is_as_if_the_bad_had_never_been_there(self, tmp_path):
        clean, _ = inspect(read_dataset(twins(tmp_path), val_fraction=0.2))
        for form in BAD.values():
            form.write(tmp_path / "cat" / "bad")
        inspected, summary = inspect(read_dataset(tmp_path, val_fraction=0.2), skip_bad=True)
        assert (inspected.fingerprint, inspected.held_out) == (clean.fingerprint, clean.held_out)
        assert len(summary.skipped) == len(BAD)

    def test_says_what_it_left_out(self, tmp_path):
        root = write_digits(tmp_path, per_class=9, classes=range(3))
        for name in ("x.png", "y.png"):
            (root / "1" / name).write_bytes(b"")
        (root / "2" / "z.png").write_text("no image")
        _, summary = inspect(read_dataset(root), skip_bad=True)
        assert summary.notes[:2] == (
            "Left out: Files of 0 bytes (2): 1/x.png, 1/y.png.",
            "Left out: Not an image of a format that is read (1): 2/z.png: begins with "
            "b'no image'.",
        )

    def test_drops_a_class_without_a_usable_image(self, tmp_path):
        root = write_digits(tmp_path, per_class=9, classes=[0, 1, 3])
        (root / "2").mkdir()
        (root / "1.5").mkdir()
        (root / "1.5" / "x.png").write_bytes(b"")
        with pytest.raises(DatasetError, match=r"  1\.5: none of its 1 can be used\n  2\n\nFix"):
            inspect(read_dataset(root, val_fraction=0.2))
        inspected, summary = inspect(read_dataset(root, val_fraction=0.2), skip_bad=True)
        assert inspected.classes == ("0", "1", "3")
        assert summary.class_counts["train"] == (8, 7, 7)
        for split in inspected.splits:
            for example in split.examples:
                assert inspected.classes[example.label] == example.key.split("/")[0]
        assert len(summary.skipped.of(Reason.EMPTY_CLASS)) == 2
        assert (
            "Classes that the network does not learn, as train has no usable image of them (2): "
            "1.5, 2." in summary.notes
        )

    def test_drops_its_images_of_val_too(self, tmp_path):
        root = write_digits(tmp_path, per_class=3, val_per_class=2, classes=range(4))
        for path in (root / "train" / "1").iterdir():
            path.write_bytes(b"")
        inspected, summary = inspect(read_dataset(root), skip_bad=True)
        assert inspected.classes == ("0", "2", "3")
        assert summary.class_counts == {"train": (3, 3, 3), "val": (2, 2, 2)}
        assert any(note.endswith(" (1): 1 (with its 2 of val).") for note in summary.notes)

    def test_a_single_class_that_is_left_cannot_be_skipped_to(self, tmp_path):
        root = write_digits(tmp_path, per_class=3, classes=[0])
        (root / "1").mkdir()
        for skip_bad in (False, True):
            with pytest.raises(
                DatasetError, match=r"needed:\n  only 0\n\n.*fix.*: Too few classes"
            ):
                inspect(read_dataset(root), skip_bad=skip_bad)


class TestAdvice:
    """Whatever number is advised is tried."""

    CASES = (
        dict.fromkeys("ab", 2),
        {"a": 2, "b": 1},
        dict.fromkeys("abc", 4),
        {"a": 1, "b": 1, "c": 9},
        dict.fromkeys("ab", 9),
    )

    @pytest.mark.parametrize("counts", CASES)
    @pytest.mark.parametrize("fraction", [0.01, 0.04, 0.1, None])
    def test_for_few_images_per_class(self, tmp_path, counts, fraction):
        for seed, (name, count) in enumerate(counts.items()):
            write_photos(tmp_path / name, count, first_seed=50 * seed)
        if round((fraction or 0.1) * sum(counts.values())) >= 1:
            assert len(inspect(read_dataset(tmp_path, val_fraction=fraction))[0].val) >= 1
            return
        with pytest.raises(UsageError, match=r"holds out none \(one image of each") as caught:
            read_dataset(tmp_path, val_fraction=fraction)
        found = re.findall(r"`val_fraction=([\d.]+)`", str(caught.value))
        more, none = map(float, found)
        assert len(inspect(read_dataset(tmp_path, val_fraction=more))[0].val) >= 1
        assert none == 0
        assert inspect(read_dataset(tmp_path, val_fraction=none))[0].val is None

    def test_where_no_fraction_works(self, tmp_path):
        for seed, name in enumerate("abc"):
            write_photos(tmp_path / name, 1, first_seed=50 * seed)
        with pytest.raises(UsageError) as caught:
            read_dataset(tmp_path, val_fraction=None)
        assert str(caught.value).endswith(
            "No fraction can: add images to the classes, or hold out nothing, `val_fraction=0`; "
            "then the accuracy on other images stays unknown."
        )
        inspected, _ = inspect(read_dataset(tmp_path, val_fraction=0))
        assert (len(inspected.train), inspected.val) == (3, None)

    def test_where_all_of_a_class_are_copies(self, tmp_path):
        for seed, name in enumerate("ab"):
            (path,) = write_photos(tmp_path / name, 1, first_seed=50 * seed)
            for number in range(9):
                shutil.copy(path, path.with_name(f"{number}.jpg"))
        with pytest.raises(UsageError, match="images that belong together are not separated"):
            inspect(read_dataset(tmp_path, val_fraction=0.2))
        inspect(read_dataset(tmp_path, val_fraction=0))

    def test_classes_of_which_nothing_is_held_out_are_named(self, tmp_path):
        write_photos(tmp_path / "a", 40)
        write_photos(tmp_path / "b", 3, first_seed=100)
        write_photos(tmp_path / "c", 1, first_seed=200)
        _, summary = inspect(read_dataset(tmp_path, val_fraction=0.1))
        assert summary.notes == (
            "Only in train: the one image of c.",
            "Nothing is held out of 1 of 3 classes, so the accuracy says nothing about them: "
            "b (3).",
        )
