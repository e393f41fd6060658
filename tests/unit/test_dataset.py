"""Every kind of source lists the same examples; splits depend only on names and the seed."""

import builtins
import json
import os
import pickle
import sys
import types
from collections import Counter
from typing import Any

import numpy as np
import pytest
from images import digits, photo, write_digits, write_photos
from PIL import Image
from sklearn.model_selection import train_test_split

from bitzoo.data.dataset import DatasetError, Example, read_dataset
from bitzoo.data.manifest import read_manifest
from bitzoo.data.problems import Reason
from bitzoo.errors import MissingExtraError, UsageError
from bitzoo.models.preprocessing import read_rgb

SUFFIXES = ["jpg", "JPEG", "png", "bmp", "GIF", "tif", "TIFF", "webp"]


def keys(split):
    return [example.key for example in split.examples]


def class_counts(split, classes):
    counts = Counter(example.label for example in split.examples)
    return [counts[label] for label in range(len(classes))]


def touch(root, *names):
    """Write files that contain their names: reading a data set opens no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def tree(root, **counts):
    """`root/cat/00.jpg`, ... for cat=3."""
    for name, count in counts.items():
        touch(root, *(f"{name}/{i:02}.jpg" for i in range(count)))
    return root


class TestFolders:
    def test_is_what_torchvision_lists(self, tmp_path):
        from torchvision.datasets import ImageFolder  # seconds, which no other test needs

        root = write_digits(tmp_path, per_class=4, classes=[3, 1, 0])
        touch(root, "1/deep/er/a.PNG", "1/Z.jpeg", "Upper/b.bmp", "été/c.webp", "0/notes.txt")
        theirs = ImageFolder(str(root))
        ours = read_dataset(root)
        assert ours.classes == tuple(theirs.classes) == ("0", "1", "3", "Upper", "été")
        listed = [(str(example.path), example.label) for example in ours.train.examples]
        assert sorted(listed) == sorted(theirs.samples)
        assert ours.val is None
        assert "1/deep/er/a.PNG" in keys(ours.train)
        assert ours.source == repr(str(root))

    def test_every_usual_suffix_in_any_case(self, tmp_path):
        names = [f"a/x.{s}" for s in SUFFIXES]
        touch(tmp_path, *names, "b/y.jpg", "a/x.txt", "a/x", "a/x.jpg.bak")
        images = read_dataset(tmp_path)
        assert sorted(keys(images.train)) == sorted([*names, "b/y.jpg"])
        assert images.notes == (
            "Ignored: files that are not images (3): a/x, a/x.jpg.bak, a/x.txt.",
        )

    def test_hidden_files_do_not_count(self, tmp_path):
        touch(tmp_path, "a/1.jpg", "b/2.jpg", "a/._1.jpg", ".git/c.jpg", "__MACOSX/a/._1.jpg")
        touch(tmp_path, "a/.ipynb_checkpoints/1.jpg", ".DS_Store", "a/.DS_Store")
        images = read_dataset(tmp_path)
        assert images.classes == ("a", "b")
        assert keys(images.train) == ["a/1.jpg", "b/2.jpg"]
        assert images.notes == (
            "Ignored: folders of systems and tools: .git (1 image), __MACOSX (0 images), "
            ".ipynb_checkpoints (1 image).",
        )

    @pytest.mark.parametrize(
        ("train", "val"), [("train", "val"), ("Train", "Test"), ("train", "validation")]
    )
    def test_train_and_val(self, tmp_path, train, val):
        tree(tmp_path / train, cat=3, dog=2)
        tree(tmp_path / val, cat=1, dog=1)
        images = read_dataset(tmp_path)
        assert images.classes == ("cat", "dog")
        assert images.train.name == "train"
        assert images.val.name == "val"
        assert class_counts(images.train, images.classes) == [3, 2]
        assert keys(images.val) == [f"{val}/cat/00.jpg", f"{val}/dog/00.jpg"]

    def test_val_is_preferred_to_test(self, tmp_path):
        tree(tmp_path / "train", cat=3, dog=2)
        tree(tmp_path / "val", cat=1, dog=1)
        tree(tmp_path / "test", cat=5, dog=5)
        touch(tmp_path, "extra/1.jpg")
        images = read_dataset(tmp_path)
        assert keys(images.val) == ["val/cat/00.jpg", "val/dog/00.jpg"]
        assert images.notes == (
            "Ignored: folders beside the splits (1): extra (1 image).",
            "Not used: the test split (10 images); val is held out. To evaluate on it after "
            "training: `bitzoo evaluate RUN --data DATA --split test`.",
        )

    def test_train_alone(self, tmp_path):
        tree(tmp_path / "train", cat=3, dog=2)
        images = read_dataset(tmp_path)
        assert images.classes == ("cat", "dog")
        assert images.val is None

    def test_a_class_may_be_called_train(self, tmp_path):
        tree(tmp_path, bus=2, train=2)
        assert read_dataset(tmp_path).classes == ("bus", "train")

    def test_images_outside_class_folders_are_noted(self, tmp_path):
        tree(tmp_path, cat=1, dog=1)
        touch(tmp_path, "stray.jpg")
        images = read_dataset(tmp_path)
        assert images.notes == ("Ignored: images outside the class folders (1): stray.jpg.",)

    def test_loops_of_links_end(self, tmp_path):
        tree(tmp_path, cat=1, dog=1)
        (tmp_path / "cat" / "up").symlink_to(tmp_path)
        (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
        (tmp_path / "cat" / "knot").symlink_to(tmp_path / "cat" / "knot")
        (tmp_path / "whole").symlink_to(tmp_path)
        images = read_dataset(tmp_path)
        assert keys(images.train) == ["cat/00.jpg", "dog/00.jpg"]
        assert images.classes == ("cat", "dog", "whole")
        assert images.notes == (
            "Ignored: files without a known ending that cannot be opened (1): cat/knot.",
            "Ignored: links to folders that were already read (3): cat/self, cat/up, whole.",
        )

    def test_linked_folders_count(self, tmp_path):
        tree(tmp_path / "elsewhere", lions=2)
        root = tree(tmp_path / "root", dog=1)
        (root / "cat").symlink_to(tmp_path / "elsewhere" / "lions")
        images = read_dataset(root)
        assert keys(images.train) == ["cat/00.jpg", "cat/01.jpg", "dog/00.jpg"]

    def test_names_that_a_terminal_or_json_would_misunderstand(self, tmp_path):
        decomposed = "e\u0301te\u0301"
        touch(tmp_path, "train/a\x1b[31m/1\n.jpg", "val/a\x1b[31m/2.jpg")
        touch(tmp_path, f"train/{decomposed}/1.jpg", "val/\u00e9t\u00e9/2.jpg")
        os.makedirs(os.fsencode(tmp_path) + b"/train/\xff")
        images = read_dataset(tmp_path)
        assert images.classes == (r"\udcff", r"a\x1b[31m", "\u00e9t\u00e9")
        assert keys(images.train)[0] == r"train/a\x1b[31m/1\n.jpg"
        assert images.train.examples[0].path.read_text() == "train/a\x1b[31m/1\n.jpg"
        assert class_counts(images.val, images.classes) == [0, 1, 1]

    def test_classes_that_only_one_split_has(self, tmp_path):
        tree(tmp_path / "train", cat=1, dog=1, wolf=1)
        tree(tmp_path / "val", cat=1, Dog=1)
        images = read_dataset(tmp_path)
        assert images.classes == ("Dog", "cat", "dog", "wolf")
        assert [(p.reason, p.subject) for p in images.problems] == [
            (Reason.ONLY_IN_TRAIN, "dog"),
            (Reason.ONLY_IN_TRAIN, "wolf"),
            (Reason.ONLY_IN_VAL, "Dog"),
        ]

    def test_a_val_folder_without_images(self, tmp_path):
        tree(tmp_path / "train", cat=1, dog=1)
        (tmp_path / "val" / "cat").mkdir(parents=True)
        images = read_dataset(tmp_path)
        assert [(p.reason, p.subject) for p in images.problems] == [(Reason.EMPTY_SPLIT, "val")]


class TestFolderErrors:
    def test_no_class_folders(self, tmp_path):
        touch(tmp_path, "1.jpg", "2.jpg")
        with pytest.raises(
            DatasetError,
            match=r"one folder of images per class, found no folder and 2 images\. Sort",
        ) as caught:
            read_dataset(tmp_path)
        assert caught.value.exit_code == 2

    def test_nothing(self, tmp_path):
        with pytest.raises(DatasetError, match="found no folder and 0 images"):
            read_dataset(tmp_path)

    def test_only_val(self, tmp_path):
        tree(tmp_path / "val", cat=1, dog=1)
        with pytest.raises(DatasetError, match=r"found none outside its val .* Add a train split"):
            read_dataset(tmp_path)

    @pytest.mark.parametrize(("name", "found"), [("none", "nothing there"), ("a.zip", "another")])
    def test_no_folder_and_no_manifest(self, tmp_path, name, found):
        touch(tmp_path, "a.zip")
        with pytest.raises(DatasetError, match=f"must be a folder .* found .*{found}"):
            read_dataset(tmp_path / name)

    def test_another_type(self):
        with pytest.raises(DatasetError, match=r"must be a path, .* found int\."):
            read_dataset(7)


class TestManifests:
    def write(self, tmp_path, text, name="list.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    def test_csv(self, tmp_path):
        file = self.write(
            tmp_path,
            "\ufeffLabel, path ,width\r\n"
            'dog,"a, b.jpg",3\r\n'
            "\r\n"
            f"cat, {tmp_path}/elsewhere/c.png,4\r\n"
            '"the ""cat""",sub/../d.jpg,5\r\n',
        )
        images = read_dataset(file)
        assert images.classes == ("cat", "dog", 'the "cat"')
        assert [(e.key, e.label) for e in images.train.examples] == [
            ("a, b.jpg", 1),
            (f"{tmp_path}/elsewhere/c.png", 0),
            ("sub/../d.jpg", 2),
        ]
        paths = [example.path for example in images.train.examples]
        assert paths == [
            tmp_path / "a, b.jpg",
            tmp_path / "elsewhere/c.png",
            tmp_path / "sub/../d.jpg",
        ]
        assert images.val is None
        assert images.source == repr(str(file))

    @pytest.mark.parametrize("name", ["list.jsonl", "list.NDJSON"])
    def test_json_lines(self, tmp_path, name):
        lines = [
            {"path": "a.jpg", "label": 10, "split": "train"},
            {"path": "b.jpg", "label": 9, "split": "train"},
            {"label": "9", "path": "c.jpg", "split": "Validation", "more": [1]},
            {"label": 10, "path": "d.jpg", "split": "val"},
            {"label": 10, "path": "e.jpg", "split": "test"},
        ]
        text = "\n\n".join(map(json.dumps, lines))
        images = read_dataset(self.write(tmp_path, text, name))
        assert images.classes == ("9", "10")
        assert [(e.key, e.label) for e in images.train.examples] == [("a.jpg", 1), ("b.jpg", 0)]
        assert [(e.key, e.label) for e in images.val.examples] == [("c.jpg", 0), ("d.jpg", 1)]
        assert images.notes == (
            "Other columns of the manifest (1): more.",
            "Not used: the test split (1 images); val is held out. To evaluate on it after "
            "training: `bitzoo evaluate RUN --data DATA --split test`.",
        )
        assert images.problems == ()

    def test_the_same_in_both_forms(self, tmp_path):
        rows = [("a.jpg", "x"), ("b.jpg", "y"), ("c.jpg", "x")]
        csv = self.write(tmp_path, "path,label\n" + "\n".join(map(",".join, rows)))
        lines = (json.dumps({"path": path, "label": label}) for path, label in rows)
        jsonl = self.write(tmp_path, "\n".join(lines), "list.jsonl")
        one, other = read_dataset(csv), read_dataset(jsonl)
        assert (one.classes, one.train) == (other.classes, other.train)
        assert one.fingerprint == other.fingerprint

    def test_bad_lines_have_numbers(self, tmp_path):
        text = (
            'path,label,split\na.jpg,cat,train\n,cat,train\nb.jpg,,train\n"c\nd.jpg",dog,extra\n'
            "e.jpg,cat\nf.jpg,dog,val,x\ng.jpg,dog,\nh.jpg,dog,val\n"
        )
        images = read_dataset(self.write(tmp_path, text))
        assert keys(images.train) == ["a.jpg"]
        assert [str(p) for p in images.problems if p.reason is Reason.LINE] == [
            "list.csv line 3: path is empty",
            "list.csv line 4: label is empty",
            "list.csv line 6: split must be one of train, val, test, found 'extra'",
            "list.csv line 7: expected 3 columns, found 2",
            "list.csv line 8: expected 3 columns, found 4",
            "list.csv line 9: split is empty",
        ]

    def test_bad_json_lines_have_numbers(self, tmp_path):
        text = (
            '{"path": "a.jpg", "label": "x"}\n{"path": "b.jpg"}\n\n{"path": 1.5, "label": "x"}\n'
            '["c.jpg", "x"]\n{"path": "d.jpg", "label": true}\n{"path": "d.jpg",\n'
            '{"path": "\\u0000", "label": "x"}\n{"path": "z.jpg", "label": null}\n'
        )
        images = read_dataset(self.write(tmp_path, text, "list.jsonl"))
        assert keys(images.train) == ["a.jpg"]
        assert [str(problem) for problem in images.problems] == [
            "list.jsonl line 2: label is missing",
            "list.jsonl line 4: path must be text, found 1.5",
            "list.jsonl line 5: expected a JSON object",
            "list.jsonl line 6: label must be text, found true",
            "list.jsonl line 7: not valid JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 18 (char 17)",
            "list.jsonl line 8: path must not hold the character NUL",
            "list.jsonl line 9: label must be text, found null",
        ]

    @pytest.mark.parametrize("text", ["", "a.jpg,cat\nb.jpg,dog\n", "path;label\na.jpg;cat\n"])
    def test_a_csv_needs_its_header(self, tmp_path, text):
        with pytest.raises(
            DatasetError, match=f"begin with a header line .* found {text.split(chr(10))[0]!r}"
        ):
            read_dataset(self.write(tmp_path, text))

    def test_long_lines_are_not_quoted_whole(self, tmp_path):
        with pytest.raises(DatasetError, match="begin with a header line") as caught:
            read_dataset(self.write(tmp_path, "x" * 5_248))
        assert len(str(caught.value)) < 600
        long = {"path": "a.jpg", "label": ["x" * 5_000]}
        split = {"path": "a.jpg", "label": "x", "split": "y" * 5_000}
        text = "\n".join(map(json.dumps, [long, split]))
        problems = read_manifest(self.write(tmp_path, text, "a.jsonl")).problems
        assert ["characters ..." in str(problem) for problem in problems] == [True, True]
        assert max(len(str(problem)) for problem in problems) < 250

    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
    def test_that_never_end(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DatasetError, match="expected a regular file, found a pipe"):
            read_manifest(tmp_path / name)
        (tmp_path / name).unlink()
        with open(tmp_path / name, "wb") as file:
            file.truncate((1 << 30) + 1)
        with pytest.raises(DatasetError, match="a small file of at most 1,073,741,824 bytes"):
            read_manifest(tmp_path / name)

    @pytest.mark.parametrize(("name", "text"), [("a.csv", "path,label\n"), ("a.jsonl", "\n")])
    def test_no_lines(self, tmp_path, name, text):
        with pytest.raises(DatasetError, match="lists no images; expected a CSV file"):
            read_dataset(self.write(tmp_path, text, name))

    def test_a_quote_that_never_ends(self, tmp_path):
        with pytest.raises(DatasetError, match="not valid CSV from line 3 on: unexpected end"):
            read_dataset(self.write(tmp_path, 'path,label\n"a.jpg,cat\nb.jpg,dog\n'))

    def test_another_encoding(self, tmp_path):
        file = tmp_path / "list.csv"
        file.write_bytes("path,label\na.jpg,é".encode("latin-1"))
        with pytest.raises(DatasetError, match=r"expected UTF-8 text, found .* 0xe9 .* as UTF-8"):
            read_dataset(file)

    def test_splits_for_all_lines_or_none(self, tmp_path):
        lines = ({"path": "a", "label": "x", "split": "val"}, {"path": "b", "label": "x"})
        file = self.write(tmp_path, "\n".join(map(json.dumps, lines)), "list.jsonl")
        with pytest.raises(DatasetError, match="found 1 lines with and 1 without"):
            read_dataset(file)


class TestHoldingOut:
    def test_counts_are_those_of_scikit_learn(self, tmp_path):
        sizes = {"a": 31, "b": 17, "c": 8, "d": 52}
        labels = [name for name, size in sizes.items() for _ in range(size)]
        for fraction in (0.15, 0.2, 0.37, 0.5):
            total = round(fraction * len(labels))
            _, theirs = train_test_split(labels, test_size=total, stratify=labels, random_state=0)
            images = read_dataset(tree(tmp_path, **sizes), val_fraction=fraction)
            assert class_counts(images.val, sizes) == [Counter(theirs)[name] for name in sizes]
            assert sorted(keys(images.train) + keys(images.val)) == [
                f"{name}/{i:02}.jpg" for name, size in sizes.items() for i in range(size)
            ]

    def test_many_small_classes_share(self, tmp_path):
        sizes = {f"c{i}": 3 for i in range(20)}
        images = read_dataset(tree(tmp_path, **sizes), val_fraction=0.1)
        counts = class_counts(images.val, sizes)
        assert sum(counts) == 6
        assert max(counts) == 1
        again = read_dataset(tmp_path, val_fraction=0.1, seed=1)
        assert class_counts(again.val, sizes) != counts

    def test_one_image_of_each_class_stays(self, tmp_path):
        images = read_dataset(tree(tmp_path, a=10, b=2, c=1, d=1), val_fraction=0.9)
        assert class_counts(images.train, "abcd") == [1, 1, 1, 1]
        assert class_counts(images.val, "abcd") == [9, 1, 0, 0]
        assert images.notes == ("Only in train: the one image of c, d.",)
        assert images.problems == ()

    def test_the_seed_decides(self, tmp_path):
        tree(tmp_path, a=40, b=40)
        choices = [keys(read_dataset(tmp_path, val_fraction=0.25, seed=s).val) for s in (0, 0, 1)]
        assert choices[0] == choices[1] != choices[2]

    def test_the_choice_is_kept_between_versions(self, tmp_path):
        images = read_dataset(tree(tmp_path, a=9, b=9), val_fraction=0.3, seed=5)
        assert keys(images.val) == ["a/02.jpg", "a/03.jpg", "a/08.jpg", "b/06.jpg", "b/07.jpg"]

    def test_the_order_of_the_file_system_does_not(self, tmp_path, monkeypatch):
        tree(tmp_path, a=30, b=20)
        first = read_dataset(tmp_path, val_fraction=0.3, examples_per_class=5)
        scandir = os.scandir

        class Shuffled:
            def __init__(self, folder):
                with scandir(folder) as entries:
                    self.entries = sorted(entries, key=lambda entry: entry.name[::-1], reverse=True)

            def __enter__(self):
                return iter(self.entries)

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(os, "scandir", Shuffled)
        assert read_dataset(tmp_path, val_fraction=0.3, examples_per_class=5) == first

    def test_another_class_changes_no_choice(self, tmp_path):
        before = read_dataset(tree(tmp_path, b=20, d=20), val_fraction=0.25).val
        after = read_dataset(tree(tmp_path, a=20, c=20), val_fraction=0.25).val
        assert set(keys(before)) < set(keys(after))

    @pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
    def test_not_a_fraction(self, tmp_path, fraction):
        with pytest.raises(UsageError, match=f"at least 0 and below 1, found {fraction}"):
            read_dataset(tree(tmp_path, a=2, b=2), val_fraction=fraction)

    def test_a_fraction_that_holds_out_nothing(self, tmp_path):
        with pytest.raises(UsageError, match=r"but 0.01 of 4 images in 2 classes holds out none"):
            read_dataset(tree(tmp_path, a=2, b=2), val_fraction=0.01)

    def test_a_source_with_its_own_val(self, tmp_path):
        tree(tmp_path / "train", a=2, b=2)
        tree(tmp_path / "val", a=1, b=1)
        with pytest.raises(
            UsageError, match=r"to evaluate on \(2\), so `val_fraction` must be 0, found 0\.5"
        ):
            read_dataset(tmp_path, val_fraction=0.5)

    def test_the_split_may_have_a_seed_of_its_own(self, tmp_path):
        """So that few-shot runs with different seeds are evaluated on the same images."""
        tree(tmp_path, a=40, b=40)
        options: dict[str, Any] = {"val_fraction": 0.25, "examples_per_class": 4}
        first, second = (
            read_dataset(tmp_path, seed=seed, split_seed=7, **options) for seed in (0, 1)
        )
        assert first.val == second.val == read_dataset(tmp_path, val_fraction=0.25, seed=7).val
        assert first.held_out == "20 of 80 images, drawn by class with seed 7"
        assert set(keys(first.train)) != set(keys(second.train))
        assert read_dataset(tmp_path, seed=7, **options).val == first.val

    @pytest.mark.parametrize("wanted", [None, "val", "test"])
    def test_val_or_test_is_held_out(self, tmp_path, wanted):
        for split, count in {"train": 3, "val": 1, "test": 2}.items():
            tree(tmp_path / split, a=count, b=count)
        images = read_dataset(tmp_path, eval_split=wanted)
        held, other, number = ("test", "val", 2) if wanted == "test" else ("val", "test", 4)
        assert {key.split("/")[0] for key in keys(images.val)} == {held}
        assert images.held_out == f"the data set's own {held} split"
        assert images.notes == (
            f"Not used: the {other} split ({number} images); {held} is held out. To evaluate on it "
            f"after training: `bitzoo evaluate RUN --data DATA --split {other}`.",
        )
        assert (images.fingerprint == read_dataset(tmp_path).fingerprint) == (wanted != "test")

    def test_the_split_that_there_is(self, tmp_path):
        tree(tmp_path / "train", a=3, b=3)
        tree(tmp_path / "val", a=1, b=1)
        assert read_dataset(tmp_path, eval_split="test") == read_dataset(tmp_path)

    def test_no_split_of_that_name(self, tmp_path):
        with pytest.raises(UsageError, match="`eval_split` must be val or test, found 'dev'"):
            read_dataset(tree(tmp_path, a=2, b=2), eval_split="dev")


class TestFewShot:
    def test_number_per_class(self, tmp_path):
        tree(tmp_path, a=30, b=20, c=3)
        images = read_dataset(tmp_path, examples_per_class=5, val_fraction=0.2)
        assert class_counts(images.train, "abc") == [5, 5, 2]
        assert class_counts(images.val, "abc") == [6, 4, 1]
        assert not set(keys(images.train)) & set(keys(images.val))
        assert images.notes == ("Classes with fewer than 5 images: c (2).",)

    def test_val_does_not_change(self, tmp_path):
        tree(tmp_path, a=30, b=20)
        few = read_dataset(tmp_path, examples_per_class=5, val_fraction=0.2)
        assert few.val == read_dataset(tmp_path, val_fraction=0.2).val

    def test_the_seed_decides(self, tmp_path):
        tree(tmp_path, a=30, b=30)
        choices = [
            keys(read_dataset(tmp_path, examples_per_class=8, seed=s).train) for s in (3, 3, 4)
        ]
        assert choices[0] == choices[1] != choices[2]

    def test_fewer_are_a_subset_of_more(self, tmp_path):
        tree(tmp_path, a=30, b=30)
        five, ten = (
            set(keys(read_dataset(tmp_path, examples_per_class=count).train)) for count in (5, 10)
        )
        assert five < ten

    def test_every_image_has_the_same_chance(self, tmp_path):
        tree(tmp_path, a=5, b=5)
        chosen = Counter(
            key
            for seed in range(400)
            for key in keys(read_dataset(tmp_path, examples_per_class=1, seed=seed).train)
        )
        # 400 draws of 1 in 5: 80 expected, standard deviation 8
        assert set(chosen) == {f"{name}/0{i}.jpg" for name in "ab" for i in range(5)}
        assert 48 < min(chosen.values()) <= max(chosen.values()) < 112

    def test_none(self, tmp_path):
        with pytest.raises(UsageError, match="must be at least 1, found 0"):
            read_dataset(tree(tmp_path, a=1, b=1), examples_per_class=0)


class TestFingerprint:
    def test_tells_what_changed(self, tmp_path):
        tree(tmp_path, a=5, b=5)
        base = read_dataset(tmp_path, val_fraction=0.4).fingerprint
        assert len(base) == 64
        assert read_dataset(tmp_path, val_fraction=0.4).fingerprint == base
        others = {
            read_dataset(tmp_path, val_fraction=0.4, seed=1).fingerprint,
            read_dataset(tmp_path).fingerprint,
            read_dataset(tmp_path, val_fraction=0.4, examples_per_class=1).fingerprint,
        }
        (tmp_path / "b").rename(tmp_path / "c")
        others.add(read_dataset(tmp_path, val_fraction=0.4).fingerprint)
        assert len(others - {base}) == 4

    def test_a_copy_elsewhere_has_the_same(self, tmp_path):
        one, two = (tree(tmp_path / name, a=3, b=3) for name in ("one", "two"))
        assert read_dataset(one).fingerprint == read_dataset(two).fingerprint


class TestArrays:
    def test_digits(self):
        pixels, labels = digits()
        images = read_dataset((pixels[:50], labels[:50]), val_fraction=0.2)
        assert images.classes == tuple("0123456789")
        assert (len(images.train), len(images.val)) == (40, 10)
        for example in (*images.train.examples, *images.val.examples):
            index = int(example.key.removeprefix("row "))
            assert example.label == labels[index]
            grey = np.asarray(read_rgb(example.image()))
            np.testing.assert_array_equal(grey, np.stack([pixels[index]] * 3, axis=2))

    def test_colour_and_names(self):
        pixels = np.stack([np.asarray(photo(seed)) for seed in range(3)])
        images = read_dataset((pixels, ["dog", "cat", "dog"]))
        assert images.classes == ("cat", "dog")
        assert [(e.key, e.label) for e in images.train.examples] == [
            ("row 0", 1),
            ("row 1", 0),
            ("row 2", 1),
        ]
        for example, expected in zip(images.train.examples, pixels, strict=True):
            np.testing.assert_array_equal(np.asarray(read_rgb(example.image())), expected)

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [([10, 9, -1], ("-1", "9", "10")), (["b", "1", "10"], ("1", "10", "b"))],
    )
    def test_order_of_classes(self, labels, classes):
        pixels, _ = digits()
        assert read_dataset((pixels[:3], labels)).classes == classes
        assert read_dataset([pixels[:3], np.array(labels)]).classes == classes

    def test_splits(self):
        pixels, labels = digits()
        parts = {"train": (pixels[:30], labels[:30]), "test": (pixels[30:50], labels[30:50])}
        images = read_dataset(parts)
        assert (len(images.train), len(images.val)) == (30, 20)
        assert images.val.examples[7].key == "test row 7"
        assert images.val.examples[7].label == labels[37]
        np.testing.assert_array_equal(np.asarray(images.val.examples[7].image()), pixels[37])

    def test_examples_travel_to_other_processes(self):
        pixels, labels = digits()
        example = read_dataset((pixels, labels)).train.examples[5]
        content = pickle.dumps(example)
        assert len(content) < 2000
        np.testing.assert_array_equal(np.asarray(pickle.loads(content).image()), pixels[5])

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((2, 8, 8), np.float32),
            np.zeros((2, 3, 8, 8), np.uint8),
            np.zeros((2, 8), np.uint8),
            np.zeros((0, 8, 8), np.uint8),
        ],
    )
    def test_other_pixels(self, images):
        with pytest.raises(DatasetError, match=r"must be uint8 with shape .* Move channels last"):
            read_dataset((images, [0, 1]))

    @pytest.mark.parametrize("labels", [[0.0, 1.0], [[0, 1], [1, 0]], None, [True, False]])
    def test_other_labels(self, labels):
        with pytest.raises(DatasetError, match="flat list or array of whole numbers or strings"):
            read_dataset((np.zeros((2, 8, 8), np.uint8), labels))

    def test_too_few_labels(self):
        with pytest.raises(DatasetError, match="found 2 images and 1 labels"):
            read_dataset((np.zeros((2, 8, 8), np.uint8), [1]))


class Feature:
    """A feature type, identified by its class name as in the library."""

    def __init__(self, names=None):
        if names:
            self.names = names


ClassLabel = type("ClassLabel", (Feature,), {})
ImageFeature = type("Image", (Feature,), {})
Value = type("Value", (Feature,), {})


class Table:
    """The used part of `datasets.Dataset`, over a dict of columns."""

    def __init__(self, features, **columns):
        self.features = features
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


def make_table(labels, names=("cat", "dog"), **more):
    features = {"file": Value(), "photo": ImageFeature(), "animal": ClassLabel(list(names))}
    photos = [photo(seed) for seed in range(len(labels))]
    return Table(features, file=["x"] * len(labels), photo=photos, animal=labels, **more)


class TestHuggingFace:
    def test_types_of_columns_decide(self):
        images = read_dataset(make_table([1, 0, 1], names=("zebra", "ape")))
        assert images.classes == ("zebra", "ape")
        assert [(e.key, e.label) for e in images.train.examples] == [
            ("row 0", 1),
            ("row 1", 0),
            ("row 2", 1),
        ]
        for seed, example in enumerate(images.train.examples):
            assert example.image() == photo(seed)

    @pytest.mark.parametrize("form", ["bytes", "path", "array"])
    def test_names_of_columns_and_undecoded_rows(self, tmp_path, form):
        paths = write_photos(tmp_path, 2)
        rows = {
            "bytes": [{"bytes": path.read_bytes(), "path": None} for path in paths],
            "path": [{"bytes": None, "path": str(path)} for path in paths],
            "array": [np.asarray(Image.open(path)) for path in paths],
        }[form]
        features = {"img": Value(), "label": Value(), "id": Value()}
        images = read_dataset(Table(features, img=rows, label=["b", "a"], id=[7, 8]))
        assert images.classes == ("a", "b")
        assert [example.label for example in images.train.examples] == [1, 0]
        for path, example in zip(paths, images.train.examples, strict=True):
            ours, expected = read_rgb(example.image()), read_rgb(path)
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))

    def test_splits(self):
        tables = {"train": make_table([0, 1, 1]), "validation": make_table([1, 0])}
        images = read_dataset({**tables, "unsupervised": make_table([0])})
        assert (len(images.train), len(images.val)) == (3, 2)
        assert images.val.examples[0].key == "validation row 0"
        assert images.notes == ("Ignored: splits (1): unsupervised.",)

    def test_labels_out_of_range_are_problems(self):
        images = read_dataset(make_table([0, -1, 2, 1, None]))
        assert keys(images.train) == ["row 0", "row 3"]
        assert [str(problem) for problem in images.problems] == [
            "row 1: expected 0 to 1 in 'animal', found -1",
            "row 2: expected 0 to 1 in 'animal', found 2",
            "row 4: expected 0 to 1 in 'animal', found None",
        ]

    @pytest.mark.parametrize("column", ["fine_label", "coarse_label"])
    def test_ambiguous_label_columns(self, column):
        features = {
            "image": ImageFeature(),
            "fine_label": ClassLabel(["a"]),
            "b": ClassLabel(["a"]),
        }
        table = Table(features, image=[photo()], fine_label=[0], b=[0])
        with pytest.raises(
            DatasetError, match=r"one column of type ClassLabel .* image, fine_label, b\. Rename"
        ):
            read_dataset(table)

    def test_splits_without_a_known_name(self):
        with pytest.raises(DatasetError, match=r"must have splits named train, .*, found all"):
            read_dataset({"all": make_table([0, 1])})

    def test_streams(self):
        stream = types.SimpleNamespace(features={"image": ImageFeature()})
        with pytest.raises(DatasetError, match="Load it without streaming"):
            read_dataset(stream)


class TestHuggingFaceByName:
    def test_the_library_is_an_extra(self, monkeypatch):
        importer = builtins.__import__
        monkeypatch.delitem(sys.modules, "datasets", raising=False)
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert importer is builtins.__import__
        with pytest.raises(MissingExtraError, match=r"hf:beans needs .* 'bitzoo\[datasets\]'"):
            read_dataset("hf:beans")

    @pytest.fixture
    def library(self, monkeypatch):
        """Replace the library, and record what it is asked to load."""
        asked = []

        def loader(function):
            def load(name):
                asked.append((function, name))
                if name == "no/such":
                    raise FileNotFoundError(f"Dataset {name!r} doesn't exist on the Hub")
                return {"train": make_table([0, 1]), "test": make_table([1, 0, 0])}

            return load

        module = types.ModuleType("datasets")
        for name in ("load_dataset", "load_from_disk"):
            setattr(module, name, loader(name))
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    def test_by_name(self, library):
        images = read_dataset("hf:owner/beans")
        assert library == [("load_dataset", "owner/beans")]
        assert (len(images.train), len(images.val)) == (2, 3)
        assert images.source == "'hf:owner/beans'"

    @pytest.mark.parametrize("file", ["dataset_dict.json", "state.json", "train.parquet"])
    def test_a_folder(self, library, tmp_path, file):
        touch(tmp_path, file)
        read_dataset(f"hf:{tmp_path}")
        function = "load_dataset" if file == "train.parquet" else "load_from_disk"
        assert library == [(function, str(tmp_path))]

    @pytest.mark.usefixtures("library")
    def test_errors_of_the_library_are_passed_on(self):
        with pytest.raises(
            DatasetError,
            match=r"'no/such' cannot be loaded: .* FileNotFoundError: .*the Hub\. Nothing is down",
        ):
            read_dataset("hf:no/such")


class TestForEvaluation:
    CLASSES = ("bird", "dog", "cat")

    def test_labels_follow_the_network(self, tmp_path):
        images = read_dataset(tree(tmp_path, cat=1, dog=2), classes=self.CLASSES)
        assert images.classes == self.CLASSES
        assert [example.label for example in images.train.examples] == [2, 1, 1]
        assert images.problems == ()

    def test_a_single_split_is_enough(self, tmp_path):
        tree(tmp_path / "test", cat=1, dog=2)
        images = read_dataset(tmp_path, classes=self.CLASSES)
        assert (len(images.train), len(images.val)) == (0, 3)

    def test_other_classes(self, tmp_path):
        with pytest.raises(
            DatasetError, match=r"network's 3 \(bird, dog, cat\), found cow, wolf\."
        ):
            read_dataset(tree(tmp_path, cat=1, wolf=1, cow=1), classes=self.CLASSES)


def test_an_example_without_an_image():
    with pytest.raises(ValueError, match="'x' has neither a path nor a load function"):
        Example(0, key="x").image()
