"""`bitzoo predict`: every image has a row, and the exit code says whether all could be read."""

import csv
import io
import json
import re

import pytest
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import BAD, write_photos

import bitzoo
from bitzoo.cli.main import app
from bitzoo.zoo.resolve import is_location

WEB = "https://example.com/cat.jpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    write_photos(folder / "photos", 3)
    BAD["cut off JPEG"].write(folder / "bad")
    BAD["text"].write(folder / "bad")
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("BITZOO_CACHE", str(place / "cache"))


def predict(*words, code=0, stdin=None):
    words = ("predict", "small.npz", *words, "--activation", "softmax")
    found = CliRunner().invoke(app, words, input=stdin)
    assert found.exit_code == code, found.output
    return found


ALL_WRONG = ("bad/half.jpg", "bad/page.jpg", "gone.png", WEB)
WHY = ("cannot be read", "cannot be read", "no such file or folder", "not fetched from the web")


class TestExitCode:
    def test_all_read(self):
        found = predict("photos")
        assert found.stderr == ""
        assert len(found.stdout.splitlines()) == 4

    def test_none_read(self):
        found = predict(*ALL_WRONG, code=2)
        assert found.stderr == (
            "4 of 4 images could not be read.\nerror: No image could be read.\n"
        )

    def test_some_read(self):
        found = predict("photos", "gone.png", code=1)
        assert found.stderr == "1 of 4 images could not be read.\n"

    def test_the_rest_left_out_on_request(self):
        found = predict("photos", "gone.png", "--skip-bad")
        assert "gone.png" not in found.stdout
        assert re.fullmatch(
            r"Left out: gone\.png: The image 'gone\.png' cannot be read: no such file or folder\. "
            r"Check the path\.\n",
            found.stderr,
        )
        found = predict("gone.png", "--skip-bad", code=2)
        assert found.stderr.endswith("error: No image could be read.\n")

    def test_is_documented(self):
        text = " ".join(CliRunner().invoke(app, ["predict", "--help"]).stdout.split())
        assert "1 if some could not be read, 2 if none could" in text
        assert "a single - stands for those on standard input" in text
        assert "Web addresses are not fetched" in text


class TestARowForEachFailure:
    @pytest.mark.parametrize("more", [(), ("photos/photo_1.jpg",)])
    def test_in_csv(self, more):
        out = predict(*ALL_WRONG, *more, "--format", "csv", code=1 if more else 2).stdout
        header, *rows = csv.reader(io.StringIO(out))
        assert header == ["path", "label", "score", "error"]
        assert [row[0] for row in rows] == [*ALL_WRONG, *more]
        for row, why in zip(rows, WHY, strict=False):
            assert row[1:3] == ["", ""]
            assert why in row[3]
        assert all(row[3] == "" and float(row[2]) > 0.25 for row in rows[4:])

    @pytest.mark.parametrize("more", [(), ("photos/photo_1.jpg",)])
    def test_in_json(self, more):
        out = predict(*ALL_WRONG, *more, "--format", "json", code=1 if more else 2).stdout
        rows = json.loads(out)
        assert [row["path"] for row in rows] == [*ALL_WRONG, *more]
        for row, why in zip(rows, WHY, strict=False):
            assert why in row["error"]
            assert row["predictions"] == []
        assert all(row["error"] is None and len(row["predictions"]) == 1 for row in rows[4:])

    @pytest.mark.parametrize("more", [(), ("photos/photo_1.jpg",)])
    def test_in_the_table(self, more):
        lines = predict(*ALL_WRONG, *more, code=1 if more else 2).stdout.splitlines()
        assert lines[0].split() == ["image", "class", "score", "error"]
        assert len(lines) == 5 + len(more)
        for line, path, why in zip(lines[1:], ALL_WRONG, WHY, strict=False):
            assert line.startswith(path)
            assert why in line


class TestStandardInput:
    def test_has_a_path_per_line(self):
        lines = b"photos/photo_2.jpg\n\nbad/../photos/photo_0.jpg\r\nphotos\n"
        found = predict("-", "--format", "json", stdin=lines)
        assert [row["path"] for row in json.loads(found.stdout)] == [
            "photos/photo_2.jpg",
            "bad/../photos/photo_0.jpg",
            *(f"photos/photo_{number}.jpg" for number in range(3)),
        ]

    def test_beside_other_paths_and_in_their_order(self):
        words = ("photos/photo_1.jpg", "-", "photos/photo_2.jpg", "--format", "json")
        found = predict(*words, stdin=b"photos/photo_0.jpg")
        assert [row["path"][-5] for row in json.loads(found.stdout)] == ["1", "0", "2"]

    def test_with_nothing_in_it(self):
        assert predict("-", stdin=b"\n", code=2).stderr == "error: No image could be read.\n"

    def test_names_that_are_no_text(self):
        found = predict("-", "--format", "csv", stdin=b"\xff\xfe.jpg\n", code=2)
        assert r"\udcff\udcfe.jpg" in found.stdout


class TestAMistypedPath:
    @pytest.mark.parametrize(
        "path",
        [
            "runs/nothing", "nothing/", "foto.npz", "foto.pth", "FOTO.PT", "model.onnx", "new.jpg",
            "x.h5", "x.ckpt.index", "x.tar.gz", "./x", "..\\x.bin",
        ],
    )  # fmt: skip
    def test_of_the_model_is_no_name_of_the_catalogue(self, path):
        found = CliRunner().invoke(app, ["predict", path, "photos"])
        assert found.exit_code == 2
        assert "found nothing there: no such file or folder. Check the path." in found.stderr
        assert "catalogue" not in found.stderr

    @pytest.mark.parametrize(
        "name", ["BiT-M-R50x1", "R50x1.5", "resnetv2_50x1_bit.goog_in21k", "x"]
    )
    def test_names_stay_names(self, name):
        assert not is_location(name)

    def test_from_python(self):
        found = bitzoo.predict("small.npz", ["photos", "gone.png", WEB], activation="softmax")
        assert [bool(row.error) for row in found] == [False] * 3 + [True] * 2
        assert found.failed == found[3:]
        found = bitzoo.predict(
            "small.npz", ["photos", "gone.png", WEB], activation="softmax", skip_bad=True
        )
        assert [row.error for row in found] == [None] * 3
        assert [row.path for row in found.skipped] == ["gone.png", WEB]
        assert "left out" in repr(found)
