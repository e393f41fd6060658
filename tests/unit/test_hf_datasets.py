"""Data sets of Hugging Face's library: written by it, and compared with its own reading."""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from tfds_builders import CLASSES, image_bytes

from bitzoo.data.dataset import read_dataset
from bitzoo.data.examples import ExampleTable
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.problems import DatasetError
from bitzoo.data.readers import read_listing
from bitzoo.models.preprocessing import read_rgb

LABELS = {"train": [0, 2, 1, 1, 0, 2, 2, 0, 1, 0], "test": [1, 0, 2, 2]}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def table(split, **more):
    labels = LABELS[split]
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CLASSES)),
        "number": datasets.Value("int64"),
    }
    columns = {
        "image": [
            {"bytes": image_bytes(n, seed=len(labels)), "path": None} for n in range(len(labels))
        ],
        "label": labels,
        "number": list(range(len(labels))),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def both():
    return datasets.DatasetDict({split: table(split) for split in LABELS})


@pytest.fixture(params=["saved", "parquet"])
def folder(request, tmp_path):
    """Both splits, in a folder that the library reads."""
    place = tmp_path / "data@home"
    if request.param == "saved":
        both().save_to_disk(place)
    else:
        place.mkdir()
        for split, part in both().items():
            part.to_parquet(place / f"{split}.parquet")
    return place


def refused(source):
    with pytest.raises(DatasetError) as caught:
        read_listing(source)
    return " ".join(str(caught.value).split())


def test_a_column_that_may_be_a_split_is_named():
    data = table("train")
    divided = data.add_column("Usage", ["Training"] * 8 + ["PublicTest"] * 2)
    (note,) = (n for n in read_dataset(divided, val_fraction=0.2).notes if "Not read" in n)
    assert note.startswith("Not read as a split: the column 'Usage'. If it is one, filter the data")
    for other in (data.add_column("split", ["train"] * 10), data.add_column("hue", ["a", "b"] * 5)):
        notes = read_dataset(other, val_fraction=0.2).notes
        assert not [note for note in notes if "Not read" in note]


@pytest.mark.parametrize(
    "split", ["train", "test[1:3]", "train[:20%]+test[50%:]", "train[-3:]", "test+train[2:4]"]
)
def test_slices_are_those_of_the_library(folder, split, tmp_path):
    listing = read_listing(f"hf:{folder}@{split}")
    for name, part in both().items():
        part.to_parquet(tmp_path / f"other/{name}.parquet")
    expected = list(datasets.load_dataset(str(tmp_path / "other"), split=split)["number"])
    assert [int(row.extra["number"]) for row in listing.rows] == expected
    assert listing.classes == CLASSES
    for row in listing.rows:
        name, number = row.key[:-1].split("[")
        assert row.label == CLASSES[LABELS[name][int(number)]]
        content = image_bytes(int(number), seed=len(LABELS[name]))
        assert np.array_equal(
            np.asarray(read_rgb(row.load())), np.asarray(Image.open(io.BytesIO(content)))
        )


def test_without_a_split_are_all(folder):
    images = read_dataset(f"hf:{folder}")
    assert (len(images.train), len(images.val)) == (10, 4)
    assert images.source == repr(f"hf:{folder}")


def test_unknown_splits_name_those_that_exist(folder):
    said = refused(f"hf:{folder}@validation")
    assert "has the splits train (10), test (4), and slices" in said
    assert "it has no 'validation': Unknown split" in said
    assert "no row of train is in the slice" in refused(f"hf:{folder}@train[5:5]")
    assert "Correct what stands after @." in refused(f"hf:{folder}@train[3:")


def test_one_saved_table_has_one_split(tmp_path):
    table("test").save_to_disk(tmp_path / "one")
    assert len(read_listing(f"hf:{tmp_path / 'one'}").rows) == 4
    rows = read_listing(f"hf:{tmp_path / 'one'}@train[:2]").rows
    assert [row.key for row in rows] == ["train[0]", "train[1]"]


def test_rows_are_mapped_and_pickle_small(tmp_path):
    both().save_to_disk(tmp_path / "saved")
    rows = read_listing(f"hf:{tmp_path / 'saved'}@train").rows
    content = pickle.dumps([row.load for row in rows])
    assert image_bytes(3, seed=10) not in content
    assert len(content) < 12_000
    again = pickle.loads(content)
    assert np.array_equal(np.asarray(read_rgb(again[3]())), np.asarray(read_rgb(rows[3].load())))


def test_columns_are_chosen(tmp_path):
    fine = table("train").rename_column("label", "fine_label")
    coarse = fine.add_column("coarse", [0] * 10).cast_column(
        "coarse", datasets.ClassLabel(names=["animal", "plant"])
    )
    coarse.save_to_disk(tmp_path / "two")
    said = refused(f"hf:{tmp_path / 'two'}@train")
    assert "choose it with ?label=COLUMN" in said
    listing = read_listing(f"hf:{tmp_path / 'two'}@train?label=coarse")
    assert {row.label for row in listing.rows} == {"animal"}
    listing = read_listing(f"hf:{tmp_path / 'two'}?label=fine_label&image=image")
    assert listing.classes == CLASSES
    said = refused(f"hf:{tmp_path / 'two'}@train?label=genus")
    assert "must have the column 'genus', found the columns " in said


def test_nothing_is_downloaded(monkeypatch):
    from huggingface_hub import constants

    asked = []

    def load(*names):
        asked.append((names, datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    said = refused("hf:owner/things/config@train")
    assert asked == [(("owner/things", "config"), True, True)]
    after = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    assert after == before
    call = "datasets.load_dataset('owner/things', 'config')"
    assert (
        f'Nothing is downloaded unasked: load it once with python -c "import datasets; {call}"'
        in said
    )


def test_names_that_are_not_here():
    said = refused("hf:owner/things@train")
    assert "'owner/things' cannot be loaded" in said
    assert "Nothing is downloaded unasked" in said


def test_those_loaded_before_are_read_from_the_cache(tmp_path, monkeypatch):
    """What `load_dataset` has left on this machine is found without asking the Hub."""
    source = tmp_path / "parquet"
    source.mkdir()
    table("train").to_parquet(source / "train.parquet")
    cache = tmp_path / "cache"
    datasets.load_dataset("parquet", data_dir=str(source), cache_dir=str(cache))
    (built,) = filter(Path.is_dir, cache.glob("parquet/*/*/*"))
    place = (
        tmp_path / "hf-cache/owner___things/default/0.0.0/0123456789abcdef0123456789abcdef01234567"
    )
    place.parent.mkdir(parents=True)
    built.rename(place)
    for shard in place.glob("parquet-*"):
        shard.rename(place / shard.name.replace("parquet-", "things-"))
    rows = read_listing("hf:owner/things@train[4:6]").rows
    assert [int(row.extra["number"]) for row in rows] == [4, 5]


def test_several_labels_an_image():
    """A sequence of ClassLabel gives an image all its classes, in the order of the cell."""
    labels = [[1, 0], [2], [0, 2, 0], [1, 2]]
    names = list(CLASSES)
    sequence = datasets.Sequence(datasets.ClassLabel(names=names))
    found = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": image_bytes(n, seed=1), "path": None} for n in range(4)],
            "tags": labels,
        },
        features=datasets.Features({"image": datasets.Image(), "tags": sequence}),
    )
    images = read_dataset(found)
    sets = label_sets_of(images.train)
    assert images.classes == CLASSES
    assert [sets[row] for row in range(4)] == [(1, 0), (2,), (0, 2), (1, 2)]
    assert [e.label for e in images.train.examples] == [1, 2, 0, 1]
    without = found.map(lambda row, number: {"tags": row["tags"][number:]}, with_indices=True)
    (problem, *_) = read_dataset(without).problems
    assert problem.subject == "row 1"
    assert "found []" in problem.detail


def test_rows_are_kept_as_arrays():
    images = read_dataset({"train": table("train"), "val": table("test")})
    assert isinstance(images.train.examples, ExampleTable)
    assert [e.key for e in images.val.examples] == [f"val row {n}" for n in range(4)]
    assert [e.label for e in images.train.examples] == LABELS["train"]
