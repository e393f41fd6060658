"""The parts of VTAB's tasks against TFDS's own `as_dataset`, on data sets that TFDS prepared.

TFDS reads ArrayRecord files by number only, so each data set is prepared twice, as ArrayRecord
files for bitzoo and as TFRecord files for `as_dataset`; both have the same records in one order.
"""

import numpy as np
import pytest
from vtab_records import DATA_SETS, SIDE, prepare

from bitzoo.catalogue.vtab_tasks import PARTS, TASKS
from bitzoo.data.readers import read_listing

pytestmark = pytest.mark.slow


tfds = pytest.importorskip("tensorflow_datasets")

SHARDS = 3

BY_LAYOUT = ("dtd", "oxford_iiit_pet", "eurosat", "smallnorb-azimuth", "clevr-distance")
"""A task of every way to cut the parts."""


def reference_slices(task, counts):
    """What the data set's module in google-research/task_adaptation asks TFDS for, by part."""
    own, records = "validation" in counts, counts["train"]
    if task.startswith("smallnorb"):
        return {
            "train": "train",
            "val": "test[:50%]",
            "trainval": "train+test[:50%]",
            "test": "test[50%:]",
            "train800": "train[:800]",
            "val200": "test[:200]",
        }
    if task in ("eurosat", "resisc45") or task.startswith("dsprites"):
        shares = (80, 10) if task.startswith("dsprites") else (60, 20)
        train, val = (share * records // 100 for share in shares)
        return {
            "train": f"train[:{train}]",
            "val": f"train[{train}:{train + val}]",
            "trainval": f"train[:{train + val}]",
            "test": f"train[{train + val}:]",
            "train800": "train[:800]",
            "val200": f"train[{train}:{train + 200}]",
        }
    if own and not task.startswith("clevr"):
        return {
            "train": "train",
            "val": "validation",
            "trainval": "train+validation",
            "test": "test",
            "train800": "train[:800]",
            "val200": "validation[:200]",
        }
    train = (80 if task == "oxford_iiit_pet" else 90) * records // 100
    return {
        "train": f"train[:{train}]",
        "val": f"train[{train}:]",
        "trainval": "train",
        "test": "validation" if task.startswith("clevr") else "test",
        "train800": "train[:800]",
        "val200": f"train[{train}:{train + 200}]",
    }


def reference_label(task, record):
    """The label of a decoded record, from the definitions, in another way than bitzoo's."""
    if task == "clevr-count":
        return len(record["objects"]["shape"]) - 3
    if task == "clevr-distance":
        nearest = record["objects"]["pixel_coords"].astype(np.float64)[:, 2].min()
        return np.searchsorted([0, 8, 8.5, 9, 9.5, 10, 100], nearest, side="left") - 1
    if task == "kitti-distance":
        places = record["objects"]["location"].astype(np.float64)
        vehicles = places[np.isin(record["objects"]["type"], [0, 1, 2]), 2]
        nearest = vehicles.min() if vehicles.size else np.inf
        return np.searchsorted([8, 20, 999], nearest, side="left")
    if task == "dsprites-xpos":
        return np.repeat(np.arange(16), 2)[record["label_x_position"]]
    if task == "dsprites-orientation":
        return np.repeat(np.arange(16), [3, 2] * 8)[record["label_orientation"]]
    if task.startswith("smallnorb"):
        return record[f"label_{task.partition('-')[2]}"]
    return record["label"]


def records_of(builder, slices, **options):
    """The records that TFDS's own reader yields."""
    config = tfds.ReadConfig(**options)
    return list(tfds.as_numpy(builder.as_dataset(split=slices, read_config=config)))


def assert_equal(task, part, builder, slices):
    listing = read_listing(f"vtab:{task}@{part}")
    # one file after the other, which is the order of the records; by default files are mixed
    records = records_of(builder, slices, interleave_cycle_length=1)
    assert len(listing.rows) == len(records)
    scale = 255 if task.startswith("dsprites") else 1
    for row, record in zip(listing.rows, records, strict=True):
        image = np.asarray(row.load()).reshape(SIDE, SIDE, -1)
        assert np.array_equal(image, record["image"] * scale)
        assert listing.classes.index(row.label) == reference_label(task, record)


def check_task(task, folder, monkeypatch):
    name = TASKS[task].tfds
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "array_record"))
    monkeypatch.setenv("BITZOO_CACHE", str(folder / "cache"))
    prepare(folder / "array_record", name, num_shards=SHARDS)
    builder = prepare(folder / "tfrecord", name, file_format="tfrecord", num_shards=SHARDS)
    slices = reference_slices(
        task, {s: info.num_examples for s, info in builder.info.splits.items()}
    )
    slices["train800val200"] = f"{slices['train800']}+{slices['val200']}"
    assert set(slices) == set(PARTS)
    for part, of_part in slices.items():
        assert_equal(task, part, builder, of_part)
    return builder, slices


@pytest.mark.parametrize("task", BY_LAYOUT)
def test_the_parts_are_the_records_that_tfds_yields(task, tmp_path, monkeypatch):
    builder, slices = check_task(task, tmp_path, monkeypatch)
    both = read_listing(f"vtab:{task}")
    train = records_of(builder, slices["train800val200"], interleave_cycle_length=1)
    labels = [both.classes.index(row.label) for row in both.rows if row.split == "train"]
    assert labels == [reference_label(task, record) for record in train]
    assert len(labels) == 1_000
    tested = [row for row in both.rows if row.split == "test"]
    assert len(tested) == len(both.rows) - 1_000 == len(records_of(builder, slices["test"]))


@pytest.mark.full_size
@pytest.mark.parametrize("task", [task for task in TASKS if task not in BY_LAYOUT])
def test_those_of_all_other_tasks_too(task, tmp_path, monkeypatch):
    check_task(task, tmp_path, monkeypatch)


def test_all_tasks_of_mocked_data(tmp_path, monkeypatch):
    """TFDS makes up records of every data set, with the features of the installed version."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    with tfds.testing.mock_data(num_examples=25):
        for task in TASKS.values():
            if task.name == "clevr-count":  # of 5 and more objects, few images have up to 10
                continue
            listing = read_listing(f"vtab:{task.name}@test")
            source = tfds.data_source(task.tfds, split="train")
            assert len(listing.rows) == len(source) == 25
            if task.name == "kitti-distance":  # made-up objects have more places than types
                continue
            expected = [reference_label(task.name, record) for record in source]
            assert [listing.classes.index(row.label) for row in listing.rows] == expected


def test_every_data_set_is_covered():
    assert {task.tfds for task in TASKS.values()} == set(DATA_SETS)
