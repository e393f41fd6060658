"""Data sets that cannot be trained on: one report, exit 2, nothing started. And odd ones that can.

Each command runs in its own process; all but one are forked from a server that has imported torch.
"""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from commands import start
from images import BAD, FINE, write_photos
from PIL import Image, ImageOps

STEPS = ["--steps", "3", "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return write_npz(folder / "small.npz", make_checkpoint(num_classes=2))


def finetune(small: Path, data: Path, out: Path, *more: str) -> tuple[int, str, str]:
    words = ("finetune", "--model", small, "--data", data, "--out", out, *STEPS, *more)
    return start(*words, folder=out.parent).result()


def outside_the_cache(folder: Path) -> list[Path]:
    cache = folder / "cache"
    return sorted(path for path in folder.rglob("*") if not path.is_relative_to(cache))


def refused(small: Path, data: Path, tmp_path: Path, *more: str) -> str:
    """Return the report on data that are refused before anything is started."""
    before = outside_the_cache(tmp_path)
    code, out, err = finetune(small, data, tmp_path / "run", *more)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert outside_the_cache(tmp_path) == before  # no run; the good images are not read again
    return err.removeprefix("error: ")


def groups_of(report: str, data: Path, count: int) -> dict[str, list[str]]:
    """Return kind of problem -> its lines, and check the beginning and end of the report."""
    beginning, *groups, end = report.split("\n\n")
    assert beginning == (
        f"The data set '{data}' cannot be used as it is. Every image was checked before anything "
        f"else started; found {count} {'problem' if count == 1 else 'problems'} of {len(groups)} "
        f"{'kind' if len(groups) == 1 else 'kinds'}:"
    )
    assert end.startswith("Fix these problems")
    found = {}
    for group in groups:
        title, *lines = group.splitlines()
        kind, number = title.partition(";")[0].rstrip(")").split(" (")
        assert int(number) == len(lines)
        found[kind] = [line.strip() for line in lines]
    assert sum(map(len, found.values())) == count
    return found


FILES = {
    "Missing files": ["gone.jpg: No such file or directory"],
    "Files that cannot be opened": [
        "loop.jpg: Too many levels of symbolic links",
        "pipe.jpg: not a regular file",
    ],
    "Files of 0 bytes": ["nothing.jpg"],
    "Not an image of a format that is read": ["page.jpg: begins with b'<!DOCTYPE html><'"],
    "Truncated or damaged images": ["half.gif: *", "half.jpg: *", "half.png: *", "start.png: *"],
    "Animated or multi-page files": [
        "dance.gif: GIF of 3 frames or pages",
        "dance.png: PNG of 3 frames or pages",
        "dance.webp: WEBP of 3 frames or pages",
        "pages.tif: TIFF of 3 frames or pages",
    ],
    "Images too large to decode safely": ["bomb.png: *900000000 pixels*"],
    "Images without a defined 8-bit form": ["depth.tif: *"],
}


def write_good(root: Path) -> None:
    for number, split in enumerate(("train", "val")):
        for seed, name in enumerate(("cat", "dog")):
            write_photos(root / split / name, 3, first_seed=100 * number + 10 * seed)


class TestRefused:
    def test_files_of_every_bad_kind(self, small: Path, tmp_path: Path) -> None:
        data = tmp_path / "photos"
        write_good(data)
        for form in BAD.values():
            form.write(data / "train" / "dog")
        shutil.copy(data / "train/cat/photo_1.jpg", data / "val/dog/again.jpg")
        report = refused(small, data, tmp_path)
        found = groups_of(report, data, count=len(BAD) + 1)
        assert found.pop("Identical images in train and val") == [
            "train/cat/photo_1.jpg: same as val/dog/again.jpg, which has another label, dog"
        ]
        assert list(found) == list(FILES)
        for kind, patterns in FILES.items():
            for line, pattern in zip(found[kind], patterns, strict=True):
                assert fnmatchcase(line, f"train/dog/{pattern}"), line
        assert report.endswith("or skip the listed items: --skip-bad.\n")

    def test_classes_of_every_bad_kind(self, small: Path, tmp_path: Path) -> None:
        data = tmp_path / "photos"
        write_good(data)
        write_photos(data / "train" / "fox", 1, first_seed=300)
        write_photos(data / "val" / "owl", 1, first_seed=310)
        for split in ("train", "val"):
            (data / split / "none").mkdir()
        write_photos(data / "val" / "torn", 1, first_seed=320)
        BAD["no bytes"].write(data / "train" / "torn")
        report = refused(small, data, tmp_path, "--skip-bad")
        _, *groups, end = report.split("\n\n")
        assert groups == [
            "Files of 0 bytes (1); copy or download them again:\n  train/torn/nothing.jpg",
            "Classes of train without images in val (1); add some, or check the names:\n  fox",
            "Classes of val without images in train (1); add some, or check the names:\n  owl",
            "Classes without a usable image in train (2); add images or remove them:\n"
            "  none\n  torn: none of its 1 can be used",
        ]
        assert end == ("--skip-bad cannot fix this: Classes of val without images in train.\n")

    def test_a_single_class(self, small: Path, tmp_path: Path) -> None:
        data = tmp_path / "photos"
        write_photos(data / "cat", 12)
        found = groups_of(refused(small, data, tmp_path), data, count=1)
        assert found == {"Too few classes": ["only cat"]}

    def test_an_empty_split(self, small: Path, tmp_path: Path) -> None:
        data = tmp_path / "photos"
        write_good(data)
        shutil.rmtree(data / "val")
        (data / "val" / "cat").mkdir(parents=True)
        (data / "val" / "dog").mkdir()
        found = groups_of(refused(small, data, tmp_path), data, count=1)
        assert found == {"Splits without a usable image": ["val"]}

    def test_a_manifest(self, small: Path, tmp_path: Path) -> None:
        write_photos(tmp_path, 4)
        BAD["no bytes"].write(tmp_path)
        data = tmp_path / "list.csv"
        data.write_text(
            "path,label,split\nphoto_0.jpg,a,train\nphoto_1.jpg,b,train\nphoto_2.jpg,a,val\n"
            "photo_3.jpg,b,val\nphoto_3.jpg,b\n,a,val\nphoto_3.jpg,b,later\nnothing.jpg,a,train\n"
            "gone.jpg,b,train\nfar/gone.jpg,a,val\n"
        )
        assert groups_of(refused(small, data, tmp_path), data, count=6) == {
            "Invalid lines of the manifest": [
                "list.csv line 6: expected 3 columns, found 2",
                "list.csv line 7: path is empty",
                "list.csv line 8: split must be one of train, val, test, found 'later'",
            ],
            "Missing files": [
                "gone.jpg: No such file or directory",
                "far/gone.jpg: No such file or directory",
            ],
            "Files of 0 bytes": ["nothing.jpg"],
        }

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("no_header.csv", "photo_0.jpg,a\n", "names the columns path and label"),
            ("no_label.csv", "path,class\nphoto_0.jpg,a\n", "found 'path,class'. Insert"),
            ("nothing.csv", "path,label\n", "lists no images; expected a CSV file"),
            ("list.txt", "photo_0.jpg a\n", "found a file of another kind. Check the path."),
            ("absent.csv", None, "found nothing there. Check the path."),
            ("empty/", None, "must hold one folder of images per class"),
        ],
    )
    def test_no_data_set(
        self, small: Path, tmp_path: Path, name: str, text: str | None, says: str
    ) -> None:
        data = tmp_path / name
        if name.endswith("/"):
            data.mkdir()
        elif text is not None:
            data.write_text(text)
        report = refused(small, data, tmp_path)
        assert says in report
        assert str(data) in report
        assert "\n" not in report.removesuffix("\n")

    def test_in_a_terminal(self, small: Path, tmp_path: Path) -> None:
        """Run once as users do, including whatever libraries print."""
        write_good(tmp_path / "photos")
        BAD["bomb"].write(tmp_path / "photos/val/cat")
        BAD["cut off JPEG"].write(tmp_path / "photos/train/dog")
        done = subprocess.run(
            [sys.executable, "-m", "bitzoo", "finetune", "--model", small, "--data", "photos",
             "--out", "run", *STEPS],
            cwd=tmp_path,
            env={**os.environ, "BITZOO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        found = groups_of(done.stderr.removeprefix("error: "), Path("photos"), count=2)
        assert [*found] == ["Truncated or damaged images", "Images too large to decode safely"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "photos"]


ODD = (
    "JPEG", "grayscale", "black and white", "CMYK", "16-bit grey", "16-bit colour", "alpha",
    "palette", "transparent palette", "GIF", "turned", "several images",
)  # fmt: skip


def write_odd(root: Path) -> None:
    """Write all odd forms for each class in each split, every image a different one."""
    for number, split in enumerate(("train", "val")):
        for seed, form in enumerate(2 * ODD):
            folder = root / split / "ab"[seed // len(ODD)] / f"{seed:02}"
            FINE[form].write(folder, 100 * number + seed)


def write_twin(odd: Path, twin: Path) -> None:
    """Write the same images as RGB PNGs, converted by Pillow."""
    for path in (path for path in odd.rglob("*") if path.is_file()):
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        if "transparency" in image.info:
            image = image.convert("RGBA")
        (twin / path.relative_to(odd)).parent.mkdir(parents=True)
        image.convert("RGB").save((twin / path.relative_to(odd)).with_suffix(".png"))


def metrics(run: Path) -> list[dict[str, object]]:
    """Return the recorded metrics, without those that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: line[key] for key in line if key not in ("images_per_s", "run_id")} for line in lines
    ]


def test_odd_forms_train_as_their_plain_twins(small: Path, tmp_path: Path) -> None:
    odd, twin = tmp_path / "odd", tmp_path / "twin"
    write_odd(odd)
    write_twin(odd, twin)
    found = {}
    for data in (odd, twin):
        code, _, err = finetune(small, data, tmp_path / f"run-{data.name}")
        assert code == 0, err
        found[data.name] = metrics(tmp_path / f"run-{data.name}")
    assert found["odd"] == found["twin"]
    assert [line["step"] for line in found["odd"] if line["event"] == "train"] == [1, 2, 3]
    assert found["odd"][-1]["count"] == 2 * len(ODD)

    for form in BAD.values():  # with --skip-bad, these make no difference
        form.write(odd / "train" / "a" / "bad")
    code, _, err = finetune(small, odd, tmp_path / "run-skipped", "--skip-bad")
    assert code == 0, err
    assert metrics(tmp_path / "run-skipped") == found["odd"]
