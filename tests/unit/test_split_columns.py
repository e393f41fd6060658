"""A manifest's column that is a split under another name is used, refused or named."""

import json

import pytest

from bitzoo.data.dataset import DatasetError, list_splits, read_dataset


def write(tmp_path, header, *rows, name="list.csv"):
    """A manifest of as many images as there are rows; those end with what the header names."""
    lines = [
        f"path,label,{header}",
        *(f"{n}.jpg,{'ab'[n % 2]},{row}" for n, row in enumerate(rows)),
    ]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path / name


FER = ("Training",) * 4 + ("PublicTest",) * 2 + ("PrivateTest",) * 2


@pytest.mark.parametrize(
    ("header", "rows", "train", "val", "note"),
    [
        (
            "Usage",
            FER,
            "0123",
            "45",
            "train from 'Training', val from 'PublicTest', test from 'PrivateTest'",
        ),
        ("subset", ["train", "train", "test", "test"], "01", "23", "train from 'train', test from "
         "'test'"),
        ("data_set", ["Train", "Train", "Valid", "valid"], "01", "23", None),
        ("image set", ["trainset", "trainset", "valset", "valset"], "01", "23", None),
        ("partition", ["trn", "trn", "tst", "tst"], "01", "23", None),
        ("fold", ["train", "train", "dev", "dev"], "01", "23", None),
        ("phase", ["training", "training", "testing", "testing"], "01", "23", None),
        ("train/test", ["train", "train", "test", "test"], "01", "23", None),
        ("is_valid", ["False", "False", "True", "True"], "01", "23", "train from 'False', val from "
         "'True'"),
        ("is_training_image", [1, 1, 0, 0], "01", "23", "train from '1', val from '0'"),
        ("is_test", ["yes", "yes", "no", "no"], "23", "01", "test from 'yes', train from 'no'"),
    ],
)  # fmt: skip
def test_a_column_that_is_a_split_is_one(tmp_path, header, rows, train, val, note):
    file = write(tmp_path, header, *rows)
    images = read_dataset(file, val_fraction=None)
    found = ["".join(e.key[0] for e in split.examples) for split in images.splits]
    assert found == [train, val]
    assert images.draw is None
    assert images.held_out.startswith("the data set's own ")
    said = [n for n in images.notes if n.startswith(f"Splits by the column {header.lower()!r}: ")]
    assert len(said) == 1
    assert note is None or note in said[0]
    assert not [n for n in images.notes if "Other columns" in n]


def test_every_split_is_reached(tmp_path):
    file = write(tmp_path, "pixels,Usage", *(f"{n},{u}" for n, u in enumerate(FER)))
    listed = list_splits(file)
    assert {name: len(split) for name, split in listed.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert listed.notes[0] == "Other columns of the manifest (1): pixels."
    lines = [{"path": f"{n}.jpg", "label": "ab"[n % 2], "Split": u} for n, u in enumerate(FER)]
    other = tmp_path / "list.jsonl"
    other.write_text("\n".join(map(json.dumps, lines)))
    assert {k: len(v) for k, v in list_splits(other).splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }


def test_the_column_split_counts_first(tmp_path):
    file = write(tmp_path, "split,usage", "train,test", "train,test", "val,train", "val,train")
    images = read_dataset(file)
    assert [e.key for e in images.train.examples] == ["0.jpg", "1.jpg"]
    assert images.notes == ("Other columns of the manifest (1): usage.",)


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        (
            "folder",
            ["train", "train", "test", "test"],
            r"The column 'folder' of .* has names of splits \('train', 'test'\), and its "
            r"name does not say what it is; .*rename it to split; if it is none, remove it",
        ),
        (
            "usage",
            ["Training", "Training", "PublicTest", "Extra"],
            r"in other lines 'Extra'; nothing is held out at random beside it\. Write train, "
            "val or test in every line",
        ),
        ("set", ["train", "train", "test", ""], "in other lines none"),
        ("folder", ["train", "train", "test", ""], "in other lines none"),
        ("set,usage", ["train,train", "train,test", "test,test", "test,train"], "one split, found "
         "two columns that divide its images otherwise: 'set' and 'usage'"),
    ],
)  # fmt: skip
def test_what_may_be_a_split_is_refused(tmp_path, header, rows, says):
    for read in (read_dataset, list_splits):
        with pytest.raises(DatasetError, match=says):
            read(write(tmp_path, header, *rows))


def test_two_columns_that_agree_are_one(tmp_path):
    rows = ["train,Training", "train,Training", "test,PublicTest", "test,PublicTest"]
    with pytest.raises(DatasetError, match="divide its images otherwise"):
        read_dataset(write(tmp_path, "set,usage", *rows))  # test is not val
    rows = ["train,Training", "train,Training", "test,Testing", "test,Testing"]
    assert len(read_dataset(write(tmp_path, "set,usage", *rows)).val) == 2


@pytest.mark.parametrize(
    ("header", "rows", "values"),
    [
        ("fold", [10, 2, 1, 2], "'1', '2', '10'"),
        ("subset", ["A", "B", "A", "B"], "'A', 'B'"),
        ("is_fold", ["1", "0", "1", "0"], "'0', '1'"),
    ],
)
def test_what_its_name_alone_calls_a_split_is_said(tmp_path, header, rows, values):
    images = read_dataset(write(tmp_path, header, *rows), val_fraction=0.5)
    assert images.draw is not None
    assert images.notes[:2] == (
        f"Other columns of the manifest (1): {header}.",
        f"Not read as a split: the column {header!r}, because its values ({values}) are no names "
        "of splits. To hold out by it, write train, val or test in a column split; to keep the "
        f"images of one value together: `group_by='{header}'`.",
    )


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("type", ["A", "B", "A", "B"]),
        ("vehicle", ["train", "bus", "test", "bus"]),
        ("person", ["train", "train", "trains", "tram"]),
        ("is_bus,is_train", ["1,0", "0,1", "1,0", "0,1"]),  # classes, each with a column
        ("subset", ["A", "A", "A", "A"]),
        ("train", [1, 0, 1, 0]),
    ],
)
def test_other_columns_are_what_they_were(tmp_path, header, rows):
    images = read_dataset(write(tmp_path, header, *rows), val_fraction=0.5)
    assert images.draw is not None
    assert not [note for note in images.notes if "split" in note.lower()]


def test_the_way_to_another_split_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"by its column 'usage'.* or remove the column"):
        read_dataset(write(tmp_path, "usage", *FER), val_fraction=0.2)
