"""`split.csv`: what is written is read again, whatever names and labels are like."""

import numpy as np
import pytest
from images import digits, write_digits

from bitzoo.data.dataset import Example, ImageSet, Split, read_dataset
from bitzoo.data.problems import DatasetError, Problems
from bitzoo.data.split_record import SPLIT_NAME, Entry, SplitRecord, read_split, write_split
from bitzoo.data.validation import hash_contents, inspect
from bitzoo.inference.selection import held_out_by

NAMES = ("a,b.jpg", 'quote".jpg', "line\nbreak.jpg", "=1+1.jpg", "鳥/é 1.jpg", " ")


def imageset(tmp_path):
    def examples(names, salt):
        return tuple(
            Example(number % 2, tmp_path / name, key=name, sha256=f"{salt}{number}" * 32)
            for number, name in enumerate(names)
        )

    train, val = examples(NAMES, "a"), examples(["v.jpg"], "b")
    return ImageSet(("cat, or so", "dog"), Split("train", train), Split("val", val), "x")


def test_is_read_as_it_was_written(tmp_path):
    images = imageset(tmp_path)
    write_split(tmp_path, images)
    found = read_split(tmp_path)
    assert found.of_files
    assert found.of("train") == tuple(
        Entry(name, images.classes[number % 2], "train", f"a{number}" * 32)
        for number, name in enumerate(NAMES)
    )
    assert found.of("val") == (Entry("v.jpg", "cat, or so", "val", "b0" * 32),)
    assert found.trained == {f"a{number}" * 32 for number in range(len(NAMES))}


def test_what_was_trained_on_before_stays_known(tmp_path):
    before = SplitRecord(
        (
            Entry("old.jpg", "x", "train", "cc" * 32),
            Entry("older.jpg", "x", "before", "dd" * 32),
            Entry("held.jpg", "x", "val", "ee" * 32),
            Entry("again.jpg", "x", "train", "a0" * 32),
        ),
        of_files=True,
    )
    write_split(tmp_path, imageset(tmp_path), before)
    found = read_split(tmp_path)
    assert [entry.path for entry in found.of("before")] == ["old.jpg", "older.jpg"]
    assert found.trained >= {"cc" * 32, "dd" * 32}
    assert "ee" * 32 not in found.trained


def test_of_images_in_memory_is_marked(tmp_path):
    pixels, labels = digits()
    images, _ = inspect(read_dataset((pixels[:40], labels[:40]), val_fraction=0.25))
    write_split(tmp_path, images)
    assert (tmp_path / SPLIT_NAME).read_text().splitlines()[0] == "path,label,split,pixels_sha256"
    found = read_split(tmp_path)
    assert not found.of_files
    assert found.can_compare(images.train.examples)
    assert not found.can_compare(imageset(tmp_path).train.examples)
    assert hash_contents(images.train.examples) == [e.sha256 for e in images.train.examples]


@pytest.mark.parametrize(("of_files", "trained_on"), [(True, 1), (False, None)])
def test_held_out_images_that_an_earlier_run_trained_on(tmp_path, of_files, trained_on):
    """Counted where contents can be compared; else unknown, and not none."""
    images = imageset(tmp_path)
    before = SplitRecord((Entry("seen.jpg", "x", "train", "b0" * 32),), of_files)
    found = held_out_by(images, Problems("x", ()), before, "an earlier run")
    assert found.trained_on == trained_on
    (note,) = found.notes
    assert note.startswith(
        "an earlier run was trained on 1 of the 1 images counted: v.jpg."
        if of_files
        else "It is unknown which of the held-out images an earlier run was trained on: "
    )
    assert held_out_by(images, Problems("x", ()), None, "a file").trained_on == 0


def test_hashes_of_files_are_those_of_the_inspection(tmp_path):
    images, _ = inspect(read_dataset(write_digits(tmp_path, per_class=30)))
    gone = Example(0, tmp_path / "gone.png", key="gone.png")
    calls = []
    found = hash_contents((*images.train.examples, gone), progress=lambda *call: calls.append(call))
    assert found == [*(example.sha256 for example in images.train.examples), ""]
    assert calls == [("reading images", 256, 301), ("reading images", 301, 301)]


def test_none_is_no_error(tmp_path):
    assert read_split(tmp_path) is None
    assert read_split(tmp_path / "no folder") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "path,label\n",
        "path,label,split,md5\n",
        "path,label,split,sha256\na,b,train\n",
        f"path,label,split,sha256\na,b,dev,{'0' * 64}\n",
        "path,label,split,sha256\na,b,train,0\n",
        'path,label,split,sha256\n"a,b',
        "path,label,split,sha256\n\xff",
    ],
)
def test_damage(tmp_path, text):
    (tmp_path / SPLIT_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"split\.csv: expected the images of a run, .* remove"):
        read_split(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / SPLIT_NAME)
    with pytest.raises(DatasetError, match="found a pipe"):
        read_split(tmp_path)


def test_few_shot_leaves_the_rest_out(tmp_path):
    root = write_digits(tmp_path / "data", per_class=20)
    images, _ = inspect(read_dataset(root, val_fraction=0.1, examples_per_class=2))
    write_split(tmp_path, images)
    counts = [len(read_split(tmp_path).of(split)) for split in ("train", "val")]
    assert counts == [20, 20]
    assert np.sum(counts) < 200
