"""Validation reports every problem of a data set at once, before training starts."""

import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from images import BAD, FINE, digits, photo, write_digits, write_photos
from PIL import Image

from bitzoo.data.dataset import DatasetError, Example, read_dataset
from bitzoo.data.image_check import check_image
from bitzoo.data.problems import Problem, Problems, Reason
from bitzoo.data.validation import TASK, inspect
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import read_rgb


def check_file(path):
    return check_image(Example(0, path, key=path.name))


def keys(split):
    return [example.key for example in split.examples]


def report_of(source, skip_bad=False, **options):
    """Return the report with which a bad data set is refused."""
    with pytest.raises(DatasetError) as caught:
        inspect(read_dataset(source, **options), skip_bad=skip_bad)
    assert caught.value.exit_code == 2
    return str(caught.value)


@contextlib.contextmanager
def as_nobody():
    """Drop the rights of the superuser, who can read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


class TestOneImage:
    @pytest.mark.parametrize("form", FINE)
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_fine(self, tmp_path, form):
        path = FINE[form].write(tmp_path)
        check = check_file(path)
        assert (check.reason, check.detail) == (None, "")
        assert ", ".join(check.traits) == FINE[form].says
        assert check.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        is_turned = form in ("turned", "turned TIFF")
        assert check.size == ((61, 40) if is_turned else (40, 61))

    @pytest.mark.parametrize("form", BAD)
    def test_bad(self, tmp_path, form):
        path = BAD[form].write(tmp_path)
        check = check_file(path)
        assert check.reason is not None
        assert BAD[form].says in f"{check.reason.title}: {check.detail}"
        assert check.sha256 == ""

    @pytest.mark.parametrize("form", sorted({*BAD} - {"pipe"}))
    def test_bad_is_what_cannot_be_decoded(self, tmp_path, form):
        path = BAD[form].write(tmp_path)
        if check_file(path).reason is Reason.ANIMATED:
            assert np.array_equal(read_rgb(path).size, (61, 40))
        else:
            with pytest.raises(UsageError):
                read_rgb(path)

    def test_forbidden(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            path = FINE["JPEG"].write(folder)
            path.chmod(0)
            with as_nobody():
                check = check_file(path)
        assert (check.reason, check.detail) == (Reason.UNREADABLE, "Permission denied")

    def test_a_file_for_a_folder(self, tmp_path):
        path = FINE["JPEG"].write(tmp_path)
        assert check_file(path / "more.jpg").reason is Reason.MISSING
        assert check_file(tmp_path).detail == "not a regular file"

    @pytest.mark.parametrize("limit", [61 * 40 - 1, 61 * 40 // 2])
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_large_is_counted_and_twice_as_large_is_bad(self, tmp_path, monkeypatch, limit):
        path = FINE["JPEG"].write(tmp_path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert check_file(path).traits == ("more than 0 megapixels",)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 40 // 2 - 1)
        assert check_file(path).reason is Reason.HUGE

    def test_in_memory(self):
        grey, colour = digits()[0][0], np.asarray(photo())
        for pixels, traits in ((grey, ("grayscale",)), (colour, ())):
            check = check_image(Example(0, load=partial(Image.fromarray, pixels)))
            assert (check.size, check.traits) == (pixels.shape[:2], traits)
            rgb = np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            assert check.sha256 == hashlib.sha256(size.encode() + rgb.tobytes()).hexdigest()

    def test_a_load_that_fails(self):
        def load():
            raise OSError("broken data stream")

        check = check_image(Example(0, load=load))
        assert (check.reason, check.detail) == (Reason.DAMAGED, "broken data stream")


class TestSummary:
    def test_every_fine_form_at_once(self, tmp_path):
        for seed, form in enumerate(FINE.values()):
            form.write(tmp_path / "ab"[seed % 2], seed)
        images = read_dataset(tmp_path)
        inspected, summary = inspect(images)
        assert keys(inspected.train) == keys(images.train)
        assert summary.counts == {"train": len(FINE)}
        assert summary.class_counts == {"train": (len(FINE) // 2, len(FINE) // 2)}
        assert summary.traits == {
            "16 bits per channel": 2,
            "CMYK": 1,
            "EXIF-rotated": 2,
            "alpha": 2,
            "grayscale": 3,
            "palette": 3,
        }
        assert summary.skipped.report() == ""
        assert (summary.bit_depth, *summary.notes) == (
            16,
            "Images of more than 8 bits per channel (2) are read as 16-bit values, of which 65,535 "
            "is white; the largest is 61,680.",
        )

    def test_resolution_is_the_median_of_train_upright(self, tmp_path):
        sizes = [(30, 20), (50, 40), (70, 10), (90, 60), (20, 80)]
        for seed, (width, height) in enumerate(sizes):
            form = FINE["turned" if seed % 2 else "JPEG"]
            form.write(
                tmp_path / "train" / "ab"[seed % 2] / str(seed), seed, width=width, height=height
            )
        write_photos(tmp_path / "val" / "a", 9, first_seed=50, width=300, height=300)
        write_photos(tmp_path / "val" / "b", 9, first_seed=60, width=300, height=300)
        upright = [size[::-1] if seed % 2 else size for seed, size in enumerate(sizes)]
        _, summary = inspect(read_dataset(tmp_path))
        assert summary.resolution == (
            statistics.median(height for _, height in upright),
            statistics.median(width for width, _ in upright),
        )
        assert summary.counts == {"train": 5, "val": 18}
        assert summary.class_counts == {"train": (3, 2), "val": (9, 9)}

    def test_digits(self, tmp_path):
        root = write_digits(tmp_path, per_class=20, val_per_class=5)
        images = read_dataset(root)
        inspected, summary = inspect(images, workers=2)
        assert summary.counts == {"train": 200, "val": 50}
        assert summary.class_counts["train"] == (20,) * 10
        assert summary.resolution == (8, 8)
        assert summary.traits == {"grayscale": 250}
        for example in (*inspected.train.examples, *inspected.val.examples):
            assert example.sha256 == hashlib.sha256(example.path.read_bytes()).hexdigest()
        assert [e.label for e in inspected.train.examples] == [
            e.label for e in images.train.examples
        ]

    def test_arrays(self):
        pixels, labels = digits()
        inspected, summary = inspect(read_dataset((pixels[:100], labels[:100]), val_fraction=0.2))
        assert summary.counts == {"train": 80, "val": 20}
        examples = (*inspected.train.examples, *inspected.val.examples)
        assert len({e.sha256 for e in examples}) == 100

    def test_the_fingerprint_is_over_contents(self, tmp_path):
        root = write_digits(tmp_path / "one", per_class=3)
        copy = shutil.copytree(root, tmp_path / "two")
        first, again, other = (
            inspect(read_dataset(folder))[0].fingerprint for folder in (root, root, copy)
        )
        assert first == again == other != read_dataset(root).fingerprint
        photo().save(next((copy / "3").iterdir()))
        assert inspect(read_dataset(copy))[0].fingerprint != first

    @pytest.mark.parametrize("workers", [1, 3])
    def test_progress(self, tmp_path, workers):
        calls = []
        root = write_digits(tmp_path, per_class=30)
        inspect(read_dataset(root), workers=workers, progress=lambda *call: calls.append(call))
        assert calls == [(TASK, done, 300) for done in range(1, 301)]

    def test_repeats_in_train_are_noted(self, tmp_path):
        paths = write_photos(tmp_path / "a", 3) + write_photos(tmp_path / "b", 2, first_seed=5)
        shutil.copy(paths[0], tmp_path / "a" / "copy.jpg")
        shutil.copy(paths[1], tmp_path / "b" / "other.jpg")
        _, summary = inspect(read_dataset(tmp_path))
        assert summary.notes == (
            "Images that occur more than once in train (2): a/copy.jpg = a/photo_0.jpg, "
            "a/photo_1.jpg = b/other.jpg.",
            "Of these, with different labels (1): a/photo_1.jpg = b/other.jpg.",
        )


class TestOneReport:
    def make_bad(self, root):
        """Make a data set that has every problem at once."""
        for seed, name in enumerate(["cat", "dog"]):
            write_photos(root / "train" / name, 3, first_seed=10 * seed)
            write_photos(root / "val" / name, 2, first_seed=100 + 10 * seed)
        for form in BAD.values():
            form.write(root / "train" / "dog")
        for form in FINE.values():
            form.write(root / "train" / "cat" / "fine", seed=7, width=45, height=45)
        shutil.copy(root / "train" / "cat" / "photo_1.jpg", root / "val" / "dog" / "again.jpg")
        (root / "train" / "empty").mkdir()
        (root / "val" / "empty").mkdir()
        write_photos(root / "val" / "wolf", 1, first_seed=200)
        write_photos(root / "train" / "bird", 1, first_seed=210)

    def test_lists_all_at_once(self, tmp_path):
        self.make_bad(tmp_path)
        report = report_of(tmp_path)
        beginning, *groups, end = report.split("\n\n")
        assert beginning == (
            f"The data set '{tmp_path}' cannot be used as it is. Every image was checked before "
            "anything else started; found 19 problems of 12 kinds:"
        )
        found = {lines[0]: lines[1:] for lines in map(str.splitlines, groups)}
        assert list(found) == list(REPORT)
        for title, patterns in REPORT.items():
            for line, pattern in zip(found[title], patterns, strict=True):
                folder = "" if pattern.startswith("train/") or "." not in pattern else "train/dog/"
                assert fnmatchcase(line, f"  {folder}{pattern}"), line
        assert end == (
            "Fix these problems; `skip_bad=True` alone cannot fix: Classes of val without images "
            "in train."
        )

    def test_the_order_of_the_threads_does_not_matter(self, tmp_path):
        self.make_bad(tmp_path)
        assert report_of(tmp_path) == report_of(tmp_path)

    def test_skipping_cannot_fix_classes(self, tmp_path):
        self.make_bad(tmp_path)
        report = report_of(tmp_path, skip_bad=True)
        assert report.endswith(
            "\n\n`skip_bad=True` cannot fix this: Classes of val without images in train."
        )
        assert report.count("skip_bad") == 1

    def test_manifest_lines_and_files_together(self, tmp_path):
        write_photos(tmp_path, 4)
        BAD["no bytes"].write(tmp_path)
        (tmp_path / "list.csv").write_text(
            "path,label\nphoto_0.jpg,a\nphoto_1.jpg,b\n,c\nnothing.jpg,a\ngone.jpg,b\n"
        )
        assert report_of(tmp_path / "list.csv").partition("\n\n")[2] == (
            "Invalid lines of the manifest (1); correct the lines:\n"
            "  list.csv line 4: path is empty\n\n"
            "Missing files (1); check the paths:\n"
            "  gone.jpg: No such file or directory\n\n"
            "Files of 0 bytes (1); copy or download them again:\n"
            "  nothing.jpg\n\n"
            "Fix these problems, or skip the listed items: `skip_bad=True`."
        )

    def test_long_lists_are_cut(self):
        found = [Problem(Reason.NO_BYTES, f"{i}.jpg") for i in range(25)]
        found.append(Problem(Reason.FEW_CLASSES, "only cat"))
        problems = Problems("x", tuple(found))
        lines = problems.report().splitlines()
        assert lines[0] == "Files of 0 bytes (25); copy or download them again:"
        assert lines[1:22] == [*(f"  {i}.jpg" for i in range(20)), "  and 5 more"]
        assert lines[22:] == [
            "",
            "Too few classes (1); at least two are needed:",
            "  only cat",
        ]
        assert problems.report(max_lines=2).splitlines()[1:4] == [
            "  0.jpg",
            "  1.jpg",
            "  and 23 more",
        ]

    def test_names_cannot_write_to_the_terminal(self, tmp_path):
        write_digits(tmp_path, per_class=1, classes=[0, 1])
        (tmp_path / "0" / "\x1b]0;owned\x07\n.jpg").write_bytes(b"\x1b[31m no image")
        report = report_of(tmp_path)
        assert r"  0/\x1b]0;owned\x07\n.jpg: begins with b'\x1b[31m no image'" in report
        assert all(line.isprintable() for line in report.splitlines())

    def test_a_folder_that_cannot_be_read(self):
        with tempfile.TemporaryDirectory() as folder:
            root = write_digits(Path(folder), per_class=2, classes=[0, 1, 2])
            root.chmod(0o755)
            locked = root / "1"
            locked.chmod(0)
            with as_nobody():
                report = report_of(root)
            locked.chmod(0o700)
        assert "Folders that cannot be read (1); check the permissions:\n  1: Permission" in report
        assert "Classes without a usable image in train (1)" in report


REPORT = {
    "Missing files (1); check the paths:": ["gone.jpg: No such file or directory"],
    "Files that cannot be opened (2); check the permissions and the disk:": [
        "loop.jpg: Too many levels of symbolic links",
        "pipe.jpg: not a regular file",
    ],
    "Files of 0 bytes (1); copy or download them again:": ["nothing.jpg"],
    "Not an image of a format that is read (1); convert to PNG or JPEG, or remove:": [
        "page.jpg: begins with b'<!DOCTYPE html><'"
    ],
    "Truncated or damaged images (4); copy or download them again:": [
        "half.gif: *",
        "half.jpg: *",
        "half.png: *",
        "start.png: *",
    ],
    "Animated or multi-page files (4); save the intended frame as a file:": [
        "dance.gif: GIF of 3 frames or pages",
        "dance.png: PNG of 3 frames or pages",
        "dance.webp: WEBP of 3 frames or pages",
        "pages.tif: TIFF of 3 frames or pages",
    ],
    "Images too large to decode safely (1); make them smaller:": ["bomb.png: *900000000 pixels*"],
    "Images without a defined 8-bit form (1); scale them to 8 bits per channel:": [
        "depth.tif: *mode 'F' with values from 0.* to 0.*"
    ],
    "Identical images in train and val (1); keep each in one split:": [
        "train/cat/photo_1.jpg: same as val/dog/again.jpg, which has another label, dog"
    ],
    "Classes of train without images in val (1); add some, or check the names:": ["bird"],
    "Classes of val without images in train (1); add some, or check the names:": ["wolf"],
    "Classes without a usable image in train (1); add images or remove them:": ["empty"],
}
"""Kind -> its lines; `*` stands for Pillow's words, which change with its version."""


class TestClasses:
    def test_a_single_class(self, tmp_path):
        write_photos(tmp_path / "cat", 3)
        for skip_bad in (False, True):
            report = report_of(tmp_path, skip_bad=skip_bad)
            assert "Too few classes (1); at least two are needed:\n  only cat\n" in report

    def test_an_empty_class(self, tmp_path):
        write_digits(tmp_path, per_class=2, classes=[0, 1])
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "notes.txt").write_text("nothing here yet")
        report = report_of(tmp_path)
        assert "Classes without a usable image in train (1); add images or remove" in report
        assert ":\n  2\n\nFix these problems, or skip the listed items: `skip_bad=True`." in report

    def test_a_class_of_bad_files_only(self, tmp_path):
        write_digits(tmp_path, per_class=2, classes=[0, 1])
        BAD["text"].write(tmp_path / "2")
        BAD["cut off JPEG"].write(tmp_path / "2")
        assert "  2: none of its 2 can be used\n" in report_of(tmp_path)
        inspected, _ = inspect(read_dataset(tmp_path), skip_bad=True)
        assert inspected.classes == ("0", "1")

    def test_classes_of_val_that_train_lacks(self, tmp_path):
        write_digits(tmp_path, per_class=2, val_per_class=1, classes=[0, 1])
        write_photos(tmp_path / "val" / "One", 1)
        report = report_of(tmp_path, skip_bad=True)
        assert "Classes of val without images in train (1); add some, or check" in report
        assert "\n  One\n" in report
        assert "usable" not in report

    def test_classes_of_train_that_val_lacks(self, tmp_path):
        write_digits(tmp_path, per_class=2, val_per_class=1, classes=[0, 1])
        write_photos(tmp_path / "train" / "2", 2)
        report = report_of(tmp_path)
        assert "Classes of train without images in val (1); add some, or check" in report
        assert "\n  2\n\nFix these problems, or skip the listed items: `skip_bad=True`." in report
        inspected, summary = inspect(read_dataset(tmp_path), skip_bad=True)
        assert inspected.classes == ("0", "1", "2")
        assert summary.class_counts == {"train": (2, 2, 2), "val": (1, 1, 0)}

    def test_val_of_bad_files_only(self, tmp_path):
        write_digits(tmp_path / "train", per_class=2, classes=[0, 1])
        BAD["text"].write(tmp_path / "val" / "0")
        BAD["text"].write(tmp_path / "val" / "1")
        report = report_of(tmp_path, skip_bad=True)
        assert "Splits without a usable image (1); add images:\n  val: none of its 2 can" in report

    def test_evaluation_only_requires_readable_images(self, tmp_path):
        write_photos(tmp_path / "cat", 2)
        images = read_dataset(tmp_path, classes=["dog", "cat"])
        inspected, summary = inspect(images, training=False)
        assert keys(inspected.train) == ["cat/photo_0.jpg", "cat/photo_1.jpg"]
        assert summary.class_counts == {"train": (0, 2)}
        BAD["no bytes"].write(tmp_path / "cat")
        with pytest.raises(
            DatasetError, match=r"found 1 problem of 1 kind:\n\nFiles of 0 bytes \(1\)"
        ):
            inspect(read_dataset(tmp_path, classes=["dog", "cat"]), training=False)


class TestDuplicates:
    def make(self, root):
        for seed, name in enumerate(["cat", "dog"]):
            write_photos(root / "train" / name, 3, first_seed=10 * seed)
            write_photos(root / "val" / name, 2, first_seed=100 + 10 * seed)
        shutil.copy(root / "train/cat/photo_1.jpg", root / "val/cat/same.jpg")
        shutil.copy(root / "train/cat/photo_1.jpg", root / "train/dog/third.jpg")
        shutil.copy(root / "val/dog/photo_110.jpg", root / "train/dog/held.jpg")
        return root

    def test_listed_with_both_paths(self, tmp_path):
        report = report_of(self.make(tmp_path))
        assert report.partition("\n\n")[2] == (
            "Identical images in train and val (3); keep each in one split:\n"
            "  train/cat/photo_1.jpg: same as val/cat/same.jpg\n"
            "  train/dog/held.jpg: same as val/dog/photo_110.jpg\n"
            "  train/dog/third.jpg: same as val/cat/same.jpg, which has another label, cat\n\n"
            "Fix these problems, or skip the listed items: `skip_bad=True`."
        )

    def test_skipping_removes_them_from_train(self, tmp_path):
        images = read_dataset(self.make(tmp_path))
        inspected, summary = inspect(images, skip_bad=True)
        assert keys(inspected.train) == [
            "train/cat/photo_0.jpg",
            "train/cat/photo_2.jpg",
            "train/dog/photo_10.jpg",
            "train/dog/photo_11.jpg",
            "train/dog/photo_12.jpg",
        ]
        assert keys(inspected.val) == keys(images.val)
        assert len(summary.skipped.of(Reason.DUPLICATE)) == 3

    def test_skipping_all_of_a_class_is_refused(self, tmp_path):
        self.make(tmp_path)
        for path in (tmp_path / "train/cat").iterdir():
            shutil.copy(path, tmp_path / "val/cat" / f"copy_{path.name}")
        report = report_of(tmp_path, skip_bad=True)
        assert "  cat: none of its 3 can be used\n" in report

    def test_in_memory(self):
        pixels, labels = digits()
        parts = {"train": (pixels[:30], labels[:30]), "val": (pixels[29:60], labels[29:60])}
        with pytest.raises(DatasetError, match="train row 29: same as val row 0"):
            inspect(read_dataset(parts))


class TestSkipping:
    def test_continues_without_bad_files(self, tmp_path):
        root = write_digits(tmp_path, per_class=3, classes=[0, 1])
        good = keys(read_dataset(root).train)
        for form in BAD.values():
            form.write(root / "1")
        inspected, summary = inspect(read_dataset(root), skip_bad=True)
        assert keys(inspected.train) == good
        assert summary.counts == {"train": 6}
        assert len(summary.skipped) == len(BAD)
        assert inspected.problems == ()
        clean, _ = inspect(read_dataset(write_digits(tmp_path / "x", per_class=3, classes=[0, 1])))
        assert inspected.fingerprint == clean.fingerprint

    def test_continues_without_bad_lines(self, tmp_path):
        write_photos(tmp_path, 3)
        file = tmp_path / "list.csv"
        file.write_text("path,label\nphoto_0.jpg,a\nphoto_1.jpg,b\nphoto_2.jpg\ngone.jpg,b\n")
        inspected, summary = inspect(read_dataset(file), skip_bad=True)
        assert keys(inspected.train) == ["photo_0.jpg", "photo_1.jpg"]
        assert summary.skipped.reasons == (Reason.LINE, Reason.MISSING)


def test_torch_is_not_needed(tmp_path):
    write_digits(tmp_path, per_class=1, classes=[0, 1])
    BAD["no bytes"].write(tmp_path / "0")
    program = (
        "import sys\n"
        "from bitzoo.data.dataset import DatasetError, read_dataset\n"
        "from bitzoo.data.validation import inspect\n"
        f"images = read_dataset({str(tmp_path)!r})\n"
        "try:\n    inspect(images)\n"
        "except DatasetError as error:\n    print(error)\n"
        "print({'torch', 'timm', 'datasets'} & set(sys.modules))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "Files of 0 bytes (1)" in run.stdout
    assert run.stdout.endswith("set()\n")
