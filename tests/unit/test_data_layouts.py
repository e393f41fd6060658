"""The layouts in which data sets come: split folders, doubled folders, folders of tools, manifests.

The names are those of public data sets: Kaggle's cats and dogs, Intel's scenes, ASL, chest X-rays,
tiny ImageNet, COCO and YOLO, and what file servers and notebooks add to them.
"""

import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from images import photo, write_photos
from PIL import Image

import bitzoo
from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.data.class_counts import describe_classes
from bitzoo.data.dataset import DatasetError, read_dataset
from bitzoo.data.problems import Reason
from bitzoo.data.validation import inspect
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.inference.evaluate import evaluate
from bitzoo.inference.predict import find_images
from bitzoo.models.preprocessing import read_rgb

TEST_NOT_USED = (
    "Not used: the test split ({} images); val is held out. To evaluate on it after training: "
    "`bitzoo evaluate RUN --data DATA --split test`."
)


def tree(root, layout):
    """Write `{"train/cat": 3}` as files that contain their names; no image is opened."""
    for folder, count in layout.items():
        Path(root, folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Path(root, folder, f"{number:02}.jpg").write_text(f"{folder} {number}")
    return Path(root)


def counts(split, classes):
    found = Counter(classes[example.label] for example in split.examples)
    return dict(sorted(found.items()))


def read(root):
    """Return classes, and images per class in train and in val (None without)."""
    images = read_dataset(root)
    val = images.val and counts(images.val, images.classes)
    return images.classes, counts(images.train, images.classes), val


PETS = ("cats", "dogs")


class TestSplitFolders:
    @pytest.mark.parametrize(
        ("train", "val"),
        [
            ("Training", "Test"),
            ("train", "eval"),
            ("training_set", "test_set"),
            ("TRAIN", "VALIDATION"),
            ("trn", "tst"),
            ("train", "dev"),
            ("train_set", "holdout"),
            ("Training Set", "Validation Set"),
            ("trainData", "testData"),
            ("train2017", "val2017"),
            ("seg_train", "seg_test"),
            ("asl_alphabet_train", "asl_alphabet_test"),
            ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
            ("training-images", "evaluation-images"),
            ("trainset", "valset"),
            ("train", "held-out"),
            ("Training", "PublicTest"),
            ("Training", "private test"),
        ],
    )
    def test_names_of_public_data_sets(self, tmp_path, train, val):
        layout = {f"{train}/cats": 3, f"{train}/dogs": 2, f"{val}/cats": 1, f"{val}/dogs": 1}
        assert read(tree(tmp_path, layout)) == (
            PETS,
            {"cats": 3, "dogs": 2},
            {"cats": 1, "dogs": 1},
        )

    def test_what_was_chosen_is_said(self, tmp_path):
        tree(tmp_path, {"Training/a": 2, "Training/b": 2, "Eval/a": 1, "Eval/b": 1})
        images = read_dataset(tmp_path)
        assert images.notes == (
            "Splits by the folders' names: train from Training, val from Eval.",
        )
        assert images.held_out == "the data set's own val split"

    @pytest.mark.parametrize(
        ("name", "beside", "held_out"),
        [("eval", "val", "val"), ("eval", "test", "eval"), ("dev", "test", "dev")],
    )
    def test_eval_is_what_no_other_split_is(self, tmp_path, name, beside, held_out):
        layout = {f"{s}/{c}": 1 for s in ("train", name, beside) for c in "ab"}
        images = read_dataset(tree(tmp_path, layout))
        assert [e.key for e in images.val.examples] == [f"{held_out}/{c}/00.jpg" for c in "ab"]
        assert images.notes[-1] == TEST_NOT_USED.format(2)

    def test_doubled_folders(self, tmp_path):
        layout = {f"{s}/{s}/{c}": 2 for s in ("training_set", "test_set") for c in PETS}
        images = read_dataset(tree(tmp_path, layout))
        assert images.classes == PETS
        assert counts(images.train, PETS) == counts(images.val, PETS) == {"cats": 2, "dogs": 2}
        assert images.train.examples[0].key == "training_set/training_set/cats/00.jpg"
        assert images.notes == (
            "Splits by the folders' names: train from training_set/training_set, "
            "test from test_set/test_set.",
        )

    def test_scenes_with_images_to_predict(self, tmp_path):
        layout = {f"seg_{s}/seg_{s}/{c}": 2 for s in ("train", "test") for c in ("sea", "street")}
        images = read_dataset(tree(tmp_path, {**layout, "seg_pred/seg_pred": 7}))
        assert images.classes == ("sea", "street")
        assert (len(images.train), len(images.val)) == (4, 4)
        assert images.notes == (
            "Ignored: folders beside the splits (1): seg_pred (7 images).",
            "Splits by the folders' names: train from seg_train/seg_train, "
            "test from seg_test/seg_test.",
        )

    def test_a_folder_around_and_one_inside(self, tmp_path):
        layout = {f"archive/data/{s}/images/{c}": 2 for s in ("train", "test") for c in "ab"}
        images = read_dataset(tree(tmp_path, layout))
        assert images.classes == ("a", "b")
        assert (len(images.train), len(images.val)) == (4, 4)
        assert images.notes[0] == "Read: archive/data, because there is no other folder."

    def test_x_rays_with_a_copy_inside(self, tmp_path):
        layout = {f"{s}/{c}": 2 for s in ("train", "val", "test") for c in ("NORMAL", "PNEUMONIA")}
        inner = {f"chest_xray/{name}": count for name, count in layout.items()}
        copies = {f"chest_xray/chest_xray/{name}": count for name, count in layout.items()}
        images = read_dataset(tree(tmp_path, {**inner, **copies, "chest_xray/__MACOSX": 0}))
        assert images.classes == ("NORMAL", "PNEUMONIA")
        assert (len(images.train), len(images.val)) == (4, 4)
        assert images.notes == (
            "Read: chest_xray, because there is no other folder.",
            "Ignored: folders beside the splits (1): chest_xray/chest_xray (12 images).",
            "Ignored: folders of systems and tools: __MACOSX (0 images).",
            TEST_NOT_USED.format(4),
        )

    def test_a_class_folder_with_one_folder_stays_a_class(self, tmp_path):
        """As in tiny ImageNet: train/n01443537/images/*.JPEG, and a flat val/images."""
        classes = ("n01443537", "n01629819")
        layout = {f"train/{c}/images": 3 for c in classes}
        images = read_dataset(tree(tmp_path, {**layout, "val/images": 4, "test/images": 5}))
        assert images.classes == classes
        assert counts(images.train, classes) == dict.fromkeys(classes, 3)
        assert images.val is None
        assert images.problems == ()
        assert images.notes == (
            "Not used: the 5 images in test, which are in no class folders, so their classes are "
            "unknown.",
            "Not used: the 4 images in val, which are in no class folders, so their classes are "
            "unknown.",
        )

    @pytest.mark.parametrize("flat", ["test", "test/test", "test/images", "test1"])
    def test_unlabelled_images_beside_labelled_ones(self, tmp_path, flat):
        tree(tmp_path, {"train/cats": 10, "train/dogs": 10, flat: 7})
        images = read_dataset(tmp_path, val_fraction=None)
        assert images.classes == PETS
        assert (len(images.train), len(images.val)) == (18, 2)
        assert images.held_out == "2 of 20 images, drawn by class with seed 0"
        (said,) = [note for note in images.notes if note.startswith("Not used")]
        assert said.startswith("Not used: the 7 images in test")
        assert images.problems == ()

    def test_unlabelled_images_beside_val_alone(self, tmp_path):
        tree(tmp_path, {"val/cats": 1, "val/dogs": 1, "test": 4})
        images = read_dataset(tmp_path, classes=PETS)
        assert (len(images.train), len(images.val)) == (0, 2)
        assert images.notes[0].startswith("Not used: the 4 images in test,")

    def test_a_val_split_with_one_class_is_labelled(self, tmp_path):
        tree(tmp_path, {"train/cats": 2, "train/dogs": 2, "val/cats": 1})
        images = read_dataset(tmp_path)
        assert counts(images.val, images.classes) == {"cats": 1}
        assert [(p.reason, p.subject) for p in images.problems] == [(Reason.ONLY_IN_TRAIN, "dogs")]


class TestClassesThatLookLikeSplits:
    @pytest.mark.parametrize(
        "classes",
        [
            ("control", "test"),
            ("bus", "car", "train"),
            ("test1", "test2", "test3"),
            ("recycled", "trash"),
            ("thumbs", "toes"),
            ("crash_test", "race_train"),
            ("set", "data"),
            ("eval", "good"),
        ],
    )
    def test_they_stay_classes(self, tmp_path, classes):
        expected = dict.fromkeys(classes, 2)
        assert read(tree(tmp_path, expected)) == (tuple(sorted(classes)), expected, None)

    def test_the_names_of_a_network_are_classes(self, tmp_path):
        tree(tmp_path, {"train": 2, "test": 1})
        images = read_dataset(tmp_path, classes=("bus", "test", "train"))
        assert counts(images.train, images.classes) == {"test": 1, "train": 2}
        alone = read_dataset(tree(tmp_path / "x", {"bus/red": 1, "bus/blue": 1}), classes=("bus",))
        assert counts(alone.train, alone.classes) == {"bus": 2}


class TestTheWrongFolder:
    def refused(self, root):
        with pytest.raises(DatasetError) as caught:
            read_dataset(root)
        assert caught.value.exit_code == 2
        return str(caught.value)

    def test_the_same_folders_in_all(self, tmp_path):
        tree(tmp_path, {f"{part}/{c}": 2 for part in ("part1", "part2", "part3") for c in PETS})
        assert self.refused(tmp_path) == (
            f"The folders in {str(tmp_path)!r} (part1, part2, part3) are not classes: expected "
            "images of one class in each, found the same folders in all of them (cats, dogs). If "
            "they are splits, name them train and val (or test). If they are parts or copies of a "
            f"data set, give one of them: {str(tmp_path / 'part1')!r}. If they are the classes, "
            "put the images directly into them, or list them in a CSV file with the columns "
            "path,label."
        )

    def test_the_same_folders_one_level_further_down(self, tmp_path):
        """Office-31: which camera took the picture is not what it shows."""
        layout = {f"{shop}/images/{thing}": 2 for shop in ("amazon", "dslr") for thing in PETS}
        root = tree(tmp_path, layout)
        assert "found the same folders in all of them (cats, dogs)" in self.refused(root)
        assert read(root / "dslr")[0] == PETS

    def test_splits_beside_what_they_were_made_from(self, tmp_path):
        layout = dict.fromkeys(("raw/cats", "raw/dogs", "split/train/cats", "split/test/cats"), 2)
        root = tree(tmp_path, layout | {"split/train/dogs": 2, "split/test/dogs": 2})
        assert self.refused(root) == (
            f"The folders in {str(root)!r} (raw, split) are not classes: there are splits in split "
            f"(test, train). Give that folder alone: {str(root / 'split')!r}."
        )
        assert read(root / "split")[0] == PETS

    def test_a_copy_of_half_a_data_set(self, tmp_path):
        layout = dict.fromkeys(("a/train/cats", "a/train/dogs", "a/test/cats", "b/train/cats"), 2)
        assert "there are splits in a (test, train)" in self.refused(tree(tmp_path, layout))

    def test_a_few_are_missing_in_one(self, tmp_path):
        layout = {f"{part}/{c}": 2 for part in ("Big", "Small") for c in "abcd"}
        del layout["Small/d"]
        assert "not classes" in self.refused(tree(tmp_path, layout))

    def test_images_and_masks_of_each_class(self, tmp_path):
        layout = {f"{c}/{kind}": 2 for c in ("COVID", "Normal") for kind in ("images", "masks")}
        assert "(images, masks)" in self.refused(tree(tmp_path, layout))

    def test_splits_in_the_classes(self, tmp_path):
        layout = {f"{c}/{s}": 2 for c in ("bottle", "cable") for s in ("train", "test")}
        assert "Move the folders, as train/bottle, or list" in self.refused(tree(tmp_path, layout))

    def test_splits_in_the_names_of_classes(self, tmp_path):
        layout = {f"{c}_{s}": 2 for c in ("cat", "dog") for s in ("train", "test")}
        said = self.refused(tree(tmp_path, layout))
        assert "each names one of 2 classes (cat, dog) and a split. Move" in said
        assert "such as train/cat," in said

    def test_a_split_beside_the_classes(self, tmp_path):
        tree(tmp_path, {"cats": 2, "dogs": 2, "test/cats": 1, "test/dogs": 1})
        assert self.refused(tmp_path) == (
            f"The folder {str(tmp_path / 'test')!r} is no class: it has folders of the same names "
            "(cats, dogs) as those beside it. If it is a split, move the folders beside it to a "
            "folder named train; if it is a copy, move it away."
        )

    def test_different_folders_in_classes_are_fine(self, tmp_path):
        layout = {"cats/indoor": 1, "cats/outdoor": 1, "dogs/outdoor": 1, "dogs/park": 1}
        layout |= {"dogs/beach": 1, "cats/box": 1}
        assert read(tree(tmp_path, layout))[0] == PETS

    def test_one_folder_too_high(self, tmp_path):
        tree(tmp_path, {"pets/cats": 2, "pets/dogs": 2, "docs": 0, "labels": 0})
        assert self.refused(tmp_path) == (
            f"The folder {str(tmp_path)!r} must hold one folder of images per class, but all its "
            "images are below pets, in cats, dogs; there are none in docs, labels. Give the folder "
            f"{str(tmp_path / 'pets')!r}."
        )

    def test_one_folder_too_high_and_nothing_else_is_read(self, tmp_path):
        assert read(tree(tmp_path, {"pets/cats": 2, "pets/dogs": 1})) == (
            PETS,
            {"cats": 2, "dogs": 1},
            None,
        )

    def test_a_single_class_is_not_passed_through(self, tmp_path):
        images = read_dataset(tree(tmp_path, {"cats": 3}))
        assert images.classes == ("cats",)

    def test_flat_splits(self, tmp_path):
        """YOLO's, whose labels are text."""
        tree(tmp_path, {"images/train": 3, "images/val": 1, "labels/train": 0, "labels/val": 0})
        (tmp_path / "labels" / "train" / "00.txt").write_text("0 .5 .5 .1 .1")
        assert f"Give that folder alone: {str(tmp_path / 'images')!r}" in self.refused(tmp_path)
        assert "found no folder and 3 images" in self.refused(tmp_path / "images")

    def test_a_link_to_itself_ends(self, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path)
        assert "in loop" not in self.refused(tmp_path)


TOOLS = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *(".ipynb_checkpoints", "__MACOSX", ".thumbnails", "_gsdata_", "@Recycle", "@tmp"),
    *("@Recently-Snapshot", ".@__thumb", ".Trash-1000", "found.000", "#snapshot", "PaxHeaders.12"),
    *("RECYCLER", "Photos Library.photoslibrary"),
)


class TestFoldersOfTools:
    @pytest.mark.parametrize("name", TOOLS)
    def test_skipped_with_a_note_by_all(self, tmp_path, name, caplog):
        tree(tmp_path, {"cats": 2, "dogs": 2, name: 3, f"cats/{name}/00.jpg": 2})
        (tmp_path / "cats" / name / "._x.jpg").write_bytes(b"\0\5\x16\7")
        images = read_dataset(tmp_path)
        assert images.classes == PETS
        assert counts(images.train, PETS) == {"cats": 2, "dogs": 2}
        note = f"Ignored: folders of systems and tools: {name} (5 images in 2 folders)."
        assert images.notes == (note,)
        evaluated = read_dataset(tmp_path, classes=PETS)
        assert (len(evaluated.train), evaluated.notes) == (4, (note,))
        with caplog.at_level(logging.WARNING):
            found = find_images([tmp_path])
        assert found == [tmp_path / c / f"{n:02}.jpg" for c in PETS for n in range(2)]
        assert caplog.messages == [note]

    def test_evaluation_says_what_it_left_out(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
        checkpoint = write_npz(tmp_path / "small.npz", make_checkpoint(num_classes=2))
        model = bitzoo.create_model(checkpoint, pretrained=True)
        prepared = Preprocessing(32, 32, "bilinear", True, "a test")
        model.info = model.info.stating("a test", own_names=PETS, preprocessing=prepared)
        for seed, name in enumerate(("cats", "dogs", "#recycle")):
            write_photos(tmp_path / "data" / name, 2, first_seed=10 * seed)
        found = evaluate(model, tmp_path / "data", workers=1)
        assert found.count == 4
        note = "Ignored: folders of systems and tools: #recycle (2 images)."
        assert note in found.selection.notes

    def test_folders_without_images(self, tmp_path):
        tree(tmp_path, {"a": 1, "b": 1, ".git/objects": 0, "__pycache__": 0})
        images = read_dataset(tmp_path)
        assert images.notes == ("Ignored: folders of systems and tools: __pycache__ (0 images).",)

    def test_beside_splits_and_in_them(self, tmp_path):
        layout = {f"{s}/{c}": 1 for s in ("train", "val") for c in "ab"}
        tree(tmp_path, {**layout, "train/@eaDir/a": 4, "@eaDir": 1, "val/.ipynb_checkpoints": 2})
        images = read_dataset(tmp_path)
        assert images.classes == ("a", "b")
        assert images.notes == (
            "Ignored: folders of systems and tools: @eaDir (5 images in 2 folders), "
            ".ipynb_checkpoints (2 images).",
        )

    def test_hidden_images_are_named(self, tmp_path):
        tree(tmp_path, {"a": 1, "b": 1})
        (tmp_path / "a" / ".secret.jpg").write_text("x")
        (tmp_path / "a" / "._00.jpg").write_text("x")
        assert read_dataset(tmp_path).notes == ("Ignored: hidden files (1): a/.secret.jpg.",)


def heic(path, seed=0, brand=None):
    """Write a photograph as HEIC, whose brand may be changed to the one of any HEIF image."""
    heif = pytest.importorskip("pillow_heif")
    image = photo(seed, width=64, height=64)
    heif.from_pillow(image).save(path, quality=95)
    if brand:
        content = path.read_bytes()
        path.write_bytes(content[:8] + brand + content[12:])
    return image


HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


class TestFilesWithoutAKnownEnding:
    @pytest.mark.parametrize(
        "form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"]
    )
    @pytest.mark.parametrize("name", ["IMG_0001", "photo.jpg@width=200", "photo.part"])
    def test_images_by_their_first_bytes_are_read(self, tmp_path, form, name):
        tree(tmp_path, {"a": 0, "b": 0})
        write_photos(tmp_path / "b", 1)
        photo(5).save(tmp_path / "a" / name, form)
        images = read_dataset(tmp_path)
        assert [e.key for e in images.train.examples] == [f"a/{name}", "b/photo_0.jpg"]
        assert images.notes == (f"Read as images by their first bytes (1): a/{name}.",)
        _, summary = inspect(images)
        assert summary.class_counts == {"train": (1, 1)}
        assert find_images([tmp_path]) == [tmp_path / "a" / name, tmp_path / "b" / "photo_0.jpg"]

    def test_damaged_ones_are_problems(self, tmp_path):
        write_photos(tmp_path / "a", 2)
        write_photos(tmp_path / "b", 1, first_seed=5)
        content = (tmp_path / "a" / "photo_0.jpg").read_bytes()
        (tmp_path / "a" / "half").write_bytes(content[: len(content) // 2])
        with pytest.raises(DatasetError, match=r"Truncated or damaged images \(1\)(.|\n)*a/half"):
            inspect(read_dataset(tmp_path))

    def test_files_of_other_kinds_are_named_and_counted(self, tmp_path, caplog):
        tree(tmp_path, {"a": 1, "b": 1})
        others = {
            "a/1.CR2": b"II*\0", "b/2.dng": b"II*\0", "a/scan.pdf": b"%PDF", "a/scan": b"%PDF-1.7",
            "a/clip.mp4": b"", "b/clip": b"\0\0\0\x18ftypisom", "b/live.MOV": b"", "a/art.psd": b"",
            "a/list.txt": b"x", "a/README": b"Read me", "a/x.npy": b"", "a/all.zip": b"PK\3\4",
            "a/BMW": b"BMW is a car, and this is a text about it.", "a/P1": b"P1, P2: players",
        }  # fmt: skip
        for name, content in others.items():
            (tmp_path / name).write_bytes(content)
        os.mkfifo(tmp_path / "a" / "pipe")
        images = read_dataset(tmp_path)
        assert len(images.train) == 2
        expected = {
            "Ignored: raw camera files (2): a/1.CR2, b/2.dng.",
            "Ignored: PDF and other documents (2): a/scan, a/scan.pdf.",
            "Ignored: videos (3): a/clip.mp4, b/clip, b/live.MOV.",
            "Ignored: drawings and layered images (1): a/art.psd.",
            "Ignored: files that are not images (4): a/BMW, a/P1, a/README, a/list.txt.",
            "Ignored: arrays and scientific images (1): a/x.npy.",
            "Ignored: archives (1): a/all.zip.",
            "Ignored: pipes, devices and sockets (1): a/pipe.",
        }
        assert set(images.notes) == expected
        with caplog.at_level(logging.WARNING):
            assert len(find_images([tmp_path])) == 2
        shown = [message.replace(f"{tmp_path}/", "") for message in caplog.messages]
        assert set(shown) == expected

    def test_only_unknown_endings_are_opened(self, tmp_path, monkeypatch):
        tree(tmp_path, {"a": 50, "b": 50})
        for name in ("a/1.xml", "a/2.NEF", "b/unknown", "b/3.mp4"):
            (tmp_path / name).write_text("x")
        opened = []
        real = Path.open

        def recorded(path, *args, **options):
            opened.append(path)
            return real(path, *args, **options)

        monkeypatch.setattr(Path, "open", recorded)
        assert len(read_dataset(tmp_path).train) == 100
        assert opened == [tmp_path / "b" / "unknown"]

    def test_prediction_follows_links_and_names_what_it_cannot_read(self, tmp_path, caplog):
        write_photos(tmp_path / "elsewhere", 1)
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root" / "up").symlink_to(tmp_path / "root")
        with caplog.at_level(logging.WARNING):
            found = find_images([tmp_path / "root"])
        assert found == [tmp_path / "root" / "linked" / "photo_0.jpg"]
        assert caplog.messages == [
            f"Ignored: links to folders that were already read (1): {tmp_path}/root/up."
        ]


class TestHeic:
    @pytest.fixture
    def without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        for name in ("HEIF", "AVIF_HEIF"):  # which an earlier test may have registered
            monkeypatch.delitem(Image.OPEN, name, raising=False)
        monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name in Image.OPEN])

    @pytest.mark.parametrize("name", ["1.heic", "2.HEIF", "3.hif", "4", "renamed.jpg"])
    @pytest.mark.usefixtures("without_the_package")
    def test_a_problem_that_says_what_to_install(self, tmp_path, name):
        write_photos(tmp_path / "a", 1)
        write_photos(tmp_path / "b", 1, first_seed=3)
        (tmp_path / "a" / name).write_bytes(HEIC_START)
        images = read_dataset(tmp_path)
        assert f"a/{name}" in [example.key for example in images.train.examples]
        with pytest.raises(DatasetError) as caught:
            inspect(images)
        assert (
            "HEIC images, which need the package pillow-heif (1); install it: "
            f'pip install "bitzoo[heif]", or convert the images to JPEG:\n  a/{name}\n'
        ) in str(caught.value)
        _, summary = inspect(images, skip_bad=True)
        assert [p.subject for p in summary.skipped.of(Reason.NEEDS_EXTRA)] == [f"a/{name}"]

    @pytest.mark.usefixtures("without_the_package")
    def test_prediction_says_it_too(self, tmp_path):
        (tmp_path / "1.heic").write_bytes(HEIC_START)
        assert find_images([tmp_path]) == [tmp_path / "1.heic"]
        with pytest.raises(UsageError, match=r'needs the package pillow-heif.*"bitzoo\[heif\]"'):
            read_rgb(tmp_path / "1.heic")

    @pytest.mark.parametrize("brand", [None, b"mif1"])
    def test_is_read_with_the_package(self, tmp_path, brand):
        image = heic(tmp_path / "1.heic", brand=brand)
        read = np.asarray(read_rgb(tmp_path / "1.heic")).astype(int)
        assert np.abs(read - np.asarray(image)).mean() < 6
        write_photos(tmp_path / "data" / "b", 1)
        (tmp_path / "data" / "a").mkdir()
        (tmp_path / "1.heic").rename(tmp_path / "data" / "a" / "1.HEIC")
        inspected, _ = inspect(read_dataset(tmp_path / "data"))
        assert [example.key for example in inspected.train.examples] == [
            "a/1.HEIC",
            "b/photo_0.jpg",
        ]


class TestManifests:
    def write(self, folder, text, name="list.csv"):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def test_reasons_stand_first_when_every_line_fails(self, tmp_path):
        lines = [f"{n}.jpg,cat,fold{n % 3}\n" for n in range(812)]
        lines += ["a.jpg,,train\n"] * 3 + ["b.jpg,cat\n"]
        file = self.write(tmp_path, "path,label,split\n" + "".join(lines))
        with pytest.raises(DatasetError) as caught:
            read_dataset(file)
        assert str(caught.value) == (
            f"Nothing in the data set {str(file)!r} can be used, for the reasons below.\n\n"
            "Invalid lines of the manifest (816); correct the lines:\n"
            "  list.csv line 2: split must be one of train, val, test, found 'fold0' "
            "(and 811 more like it)\n"
            "  list.csv line 814: label is empty (and 2 more like it)\n"
            "  list.csv line 817: expected 3 columns, found 2"
        )

    def test_reasons_when_every_line_to_train_on_fails(self, tmp_path):
        file = self.write(tmp_path, "path,label,split\na.jpg,,train\nb.jpg,,train\nc.jpg,x,val\n")
        with pytest.raises(DatasetError, match="found none outside its val") as caught:
            read_dataset(file)
        assert "line 2: label is empty (and 1 more like it)" in str(caught.value)

    def test_names_of_splits(self, tmp_path):
        text = "path,label,split\n1.jpg,a,Training\n2.jpg,b,training\n3.jpg,a,dev\n4.jpg,b,TEST\n"
        images = read_dataset(self.write(tmp_path, text))
        assert [e.key for e in images.train.examples] == ["1.jpg", "2.jpg"]
        assert [e.key for e in images.val.examples] == ["3.jpg"]
        assert images.notes == (
            "Splits by their names: train from 'Training', train from 'training', val from 'dev', "
            "test from 'TEST'.",
            TEST_NOT_USED.format(1),
        )

    def test_a_column_without_a_name(self, tmp_path):
        images = read_dataset(self.write(tmp_path, ",path,label\n0,a.jpg,x\n1,b.jpg,y\n"))
        assert images.notes == ("Other columns of the manifest (1): (no name).",)

    def test_columns_that_are_not_read(self, tmp_path):
        text = "id,path,label,width,label2\n1,a.jpg,x,30,y\n2,b.jpg,y,30,y\n"
        expected = (
            "Other columns of the manifest (3): id, width, label2. An image has one label, "
            "which is in the column label, or several in labels.",
        )
        assert read_dataset(self.write(tmp_path, text)).notes == expected
        lines = [{"id": 1, "path": "a.jpg", "label": "x", "width": 30, "label2": "y"}]
        text = "\n".join(map(json.dumps, [*lines, {"path": "b.jpg", "label": "y"}]))
        assert read_dataset(self.write(tmp_path, text, "list.jsonl")).notes == expected

    def test_the_first_of_two_label_columns_is_read(self, tmp_path):
        images = read_dataset(self.write(tmp_path, "path,label,label\na.jpg,x,1\nb.jpg,y,2\n"))
        assert images.classes == ("x", "y")
        assert images.notes == (
            "Other columns of the manifest (1): label (column 3). An image has one label, which "
            "is in the column label, or several in labels.",
        )

    def test_labels_that_nearly_agree(self, tmp_path):
        labels = ["1", "001", "1", "2", "Great Tit", "great_tit", "C++", "C#", "1.05", "1.5", "-1"]
        text = "path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels))
        images = read_dataset(self.write(tmp_path, text))
        assert len(images.classes) == 10
        assert images.notes == (
            "Classes whose names differ only in case, spaces, separators or leading zeros count as "
            "different classes: '001' (1) and '1' (2), 'Great Tit' (1) and 'great_tit' (1). If "
            "they are one, give them one name.",
        )

    def test_spaces_around_labels(self, tmp_path):
        images = read_dataset(
            self.write(tmp_path, "path,label\na.jpg,cat \nb.jpg,cat\nc.jpg, dog\n")
        )
        assert images.classes == ("cat", "dog")
        assert images.notes == ("Spaces around the labels of 1 lines were removed, as in 'cat '.",)

    def test_folders_that_nearly_agree(self, tmp_path):
        tree(tmp_path, {"train/Cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 1})
        assert "'Cat' (1) and 'cat' (1)" in read_dataset(tmp_path).notes[0]


ClassLabel = type("ClassLabel", (), {"__init__": lambda self, names: setattr(self, "names", names)})
ImageFeature = type("Image", (), {})


class Table:
    """The used part of `datasets.Dataset`."""

    def __init__(self, labels):
        self.features = {"image": ImageFeature(), "label": ClassLabel(["cat", "dog"])}
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        return self.labels if key == "label" else {"image": photo(key), "label": self.labels[key]}


class TestHuggingFace:
    @pytest.mark.parametrize("missing", [-1, None])
    def test_an_unlabelled_test_split(self, missing):
        tables = {"train": Table([0, 1, 0]), "test": Table([missing] * 5)}
        images = read_dataset(tables)
        assert images.classes == ("cat", "dog")
        assert (len(images.train), images.val, images.problems) == (3, None, ())
        assert images.notes == (
            f"Split test: not used: its 5 images have no labels, only {missing!r}.",
        )

    def test_names_of_splits(self):
        images = read_dataset({"training": Table([0, 1]), "dev": Table([1]), "extra": Table([0])})
        assert (len(images.train), len(images.val)) == (2, 1)
        assert images.notes == (
            "Ignored: splits (1): extra.",
            "Splits by their names: train from training, val from dev.",
        )

    def test_nothing_but_unlabelled_images(self):
        with pytest.raises(DatasetError, match="have no labels, only -1"):
            read_dataset(Table([-1, -1]))

    def test_no_label_that_can_be_used(self):
        with pytest.raises(
            DatasetError, match=r"Nothing in (.|\n)*row 0: .*\(and 2 more like it\)"
        ):
            read_dataset(Table([7, 8, 9]))


class TestClassesBeforeTraining:
    def test_few_classes_are_all_listed(self, tmp_path):
        tree(tmp_path, {"train/cats": 1_200, "train/dogs": 3, "val/cats": 1, "val/dogs": 1})
        assert describe_classes(read_dataset(tmp_path)) == [
            "2 classes; images: 1,203 in train, 2 in val (the data set's own val split).",
            "class  train  val",
            "cats   1,200    1",
            "dogs       3    1",
        ]

    def test_of_many_the_first_and_the_last(self, tmp_path):
        tree(tmp_path, {f"c{number:03}": 2 for number in range(100)})
        lines = describe_classes(read_dataset(tmp_path))
        assert lines[0] == "100 classes; images: 200 in train."
        assert [line.split()[0] for line in lines[2:]] == [
            *(f"c{number:03}" for number in range(5)),
            "(90",
            *(f"c{number:03}" for number in range(95, 100)),
        ]
        assert lines[7] == "(90 more classes)"

    def test_they_are_said_before_a_network_is_built(self, tmp_path):
        from bitzoo.runs.config import Callbacks
        from bitzoo.runs.finetune import finetune

        data = tmp_path / "data"
        for seed, folder in enumerate(("Training/a", "Training/b", "Test/a", "Test/b")):
            write_photos(data / folder, 2, first_seed=10 * seed)
        said: list[str] = []
        damaged = tmp_path / "model.npz"
        damaged.write_bytes(b"no checkpoint")
        with pytest.raises(CheckpointError):
            finetune(damaged, data, tmp_path / "run", callbacks=Callbacks(say=said.append))
        assert said == [
            "Splits by the folders' names: train from Training, test from Test.",
            "2 classes; images: 4 in train, 4 in val (the data set's own test split).\n"
            "class  train  val\n"
            "a          2    2\n"
            "b          2    2",
        ]
