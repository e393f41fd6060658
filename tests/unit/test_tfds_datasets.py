"""Data sets that TFDS prepared: by its own builders, and compared with its own reading."""

import pickle
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_builders import CLASSES, features_of, image_bytes, prepare, records

from bitzoo.data import record_labels
from bitzoo.data.dataset import Split, read_dataset
from bitzoo.data.image_check import check_image
from bitzoo.data.image_store import open_pixels
from bitzoo.data.readers import read_listing
from bitzoo.data.source_names import parts_of
from bitzoo.data.split_record import are_files
from bitzoo.data.tfds_datasets import LabelRule, TfdsSource, tfds_splits, tfds_version
from bitzoo.data.validation import hash_contents
from bitzoo.errors import BitzooError
from bitzoo.models.preprocessing import read_rgb

TRAIN, TEST = records(90, kind="JPEG"), records(50, seed=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, {"train": TRAIN, "test": TEST})
    return folder


@pytest.fixture(autouse=True)
def data_dir(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    return prepared


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """What TFDS itself yields for a split, in the order of the records.

    `as_dataset` cannot read ArrayRecord, so the same data are prepared once more, as TFRecord.
    """
    place = prepare(
        tmp_path_factory.mktemp("other"), {"train": TRAIN, "test": TEST}, file_format="tfrecord"
    )
    builder = tfds.builder_from_directory(place)
    decoders = {"image": tfds.decode.SkipDecoding()}
    # one file after the other: TFDS otherwise mixes the files, 16 records of each at a time
    order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)

    def read(split):
        data = builder.as_dataset(split=split, decoders=decoders, read_config=order)
        return list(data.as_numpy_iterator())

    return read


def refused(source, kind=BitzooError):
    with pytest.raises(kind) as caught:
        read_listing(source)
    return " ".join(str(caught.value).split())


def content_of(row: Any) -> bytes:
    return row.load.content()


def pixels_of(image: Any) -> np.ndarray:
    return np.asarray(read_rgb(image))


def number_of(row):
    return int(row.extra["number"])


class TestRecords:
    @pytest.mark.parametrize(
        "split",
        [
            "train",
            "train[:60]+test[:20]",
            "train[90%:]",
            "train[:90%]",
            "test[:50%]",
            "test[-7:]",
            "train[80%:90%]+train[:80%]",
            "test[10:20]+test[15:25]",
            "train+test",
        ],
    )
    def test_are_those_that_tfds_yields_in_order(self, theirs, split):
        listing = read_listing(f"tfds:insects@{split}")
        expected = theirs(split)
        assert [number_of(row) for row in listing.rows] == [int(e["number"]) for e in expected]
        assert [row.label for row in listing.rows] == [CLASSES[e["label"]] for e in expected]
        for row, record in zip(listing.rows[::7], expected[::7], strict=True):
            split_of = row.key.partition("[")[0]
            assert content_of(row) == record["image"]
            seed = {"train": 0, "test": 1}[split_of]
            kind = {"train": "JPEG", "test": "PNG"}[split_of]
            assert record["image"] == image_bytes(int(record["number"]), kind=kind, seed=seed)

    def test_keys_say_where_they_are(self, prepared):
        rows = read_listing("tfds:insects@test[-2:]+train[3:5]").rows
        assert [row.key for row in rows] == ["test[48]", "test[49]", "train[3]", "train[4]"]
        whole = read_listing("tfds:insects@test").rows
        assert [number_of(row) for row in rows[:2]] == [number_of(row) for row in whole[-2:]]

    def test_have_the_pixels_of_the_same_bytes_in_a_file(self, tmp_path):
        for split, kind in (("train", "JPEG"), ("test", "PNG")):
            row = read_listing(f"tfds:insects@{split}[4:5]").rows[0]
            path = tmp_path / f"{split}.{kind.lower()}"
            path.write_bytes(content_of(row))
            assert row.load().format == kind
            assert np.array_equal(pixels_of(row.load()), pixels_of(path))

    def test_count_as_the_files_that_were_stored(self, tmp_path):
        """A network that was trained on the files knows the records again, and the other way."""
        for row in read_listing("tfds:insects@train[:6]").rows:
            place = tmp_path / "files" / row.label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number_of(row)}.jpg").write_bytes(content_of(row))
        stored = read_dataset("tfds:insects@train[:6]").train.examples
        files = read_dataset(tmp_path / "files").train.examples
        assert are_files(stored)
        hashes = set(hash_contents(stored))
        assert hashes == set(hash_contents(files))
        assert len(hashes) == 6
        assert {check_image(example).sha256 for example in stored} == hashes
        with open_pixels(
            Split("train", stored), 16, cache=tmp_path / "pixels", budget_bytes=10**7
        ) as pixels:
            taken = pixels.take(range(6))
        with open_pixels(Split("train", files), 16, budget_bytes=0) as pixels:
            order = [hash_contents(files).index(digest) for digest in hash_contents(stored)]
            assert np.array_equal(taken, pixels.take(order))

    def test_that_are_scaled_are_no_files(self):
        row: Any = read_listing(TfdsSource("insects", "test[:1]", scale=2)).rows[0]
        assert row.load.content is None
        (example,) = read_dataset(TfdsSource("insects", "test[:1]", scale=2)).train.examples
        plain = read_dataset(TfdsSource("insects", "test[:1]")).train.examples
        assert not are_files([example])
        assert hash_contents([example]) != hash_contents(plain)

    def test_pickle_to_a_place(self):
        rows = read_listing("tfds:insects@train").rows
        together = pickle.dumps([row.load for row in rows])
        assert len(together) < 400 + 30 * len(rows)
        again = pickle.loads(together)
        assert again[7]().tobytes() == rows[7].load().tobytes()
        assert again[7].records is again[8].records

    def test_without_a_split_are_all_splits(self):
        images = read_dataset("tfds:insects")
        assert (len(images.train), len(images.val)) == (90, 50)
        assert images.train.examples[3].key == "train[3]"
        assert "test split" in images.held_out
        assert tfds_splits(TfdsSource("insects", None)) == {"train": 90, "test": 50}

    def test_by_split_in_a_mapping(self):
        images = read_dataset(
            {"train": "tfds:insects@train[:9]", "val": TfdsSource("insects", "train[9:13]")}
        )
        assert [e.key for e in images.val.examples] == [f"train[{n}]" for n in range(9, 13)]
        assert len(images.train) == 9

    def test_of_values_0_and_1_can_be_scaled(self, tmp_path, monkeypatch):
        pixels = np.arange(48, dtype=np.uint8).reshape(6, 8, 1) % 2
        features = {"image": tfds.features.Image(shape=(6, 8, 1)), "label": features_of()["label"]}
        prepare(
            tmp_path,
            {"train": [{"image": pixels, "label": 1}]},
            "masks",
            features=features,
            shards=1,
        )
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        dark, bright = (
            np.asarray(read_rgb(read_listing(TfdsSource("masks", "train", scale=s)).rows[0].load()))
            for s in (1, 255)
        )
        assert np.array_equal(dark, np.repeat(pixels, 3, 2))
        assert np.array_equal(bright, np.repeat(pixels * 255, 3, 2))

    def test_group_by_a_feature(self):
        images = read_dataset("tfds:insects@train", group_by="number", val_fraction=0.2)
        assert {e.group for e in images.val.examples} < {str(n) for n in range(90)}

    def test_are_read_without_tensorflow(self, prepared):
        code = (
            "import sys; from bitzoo.data.readers import read_listing; "
            "rows = read_listing('tfds:insects@train[:4]+test[:4]').rows; "
            "print([row.load().size for row in rows].count((12, 10)), dict(rows[0].extra)['number']"
            ".isdigit(), 'tensorflow' in sys.modules)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (run.stdout, run.stderr) == ("8 True False\n", "")

    def test_that_cannot_be_read_are_named(self, prepared, tmp_path, monkeypatch):
        shutil.copytree(prepared, tmp_path / "copy")
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
        shard = next((tmp_path / "copy/insects/1.2.0").glob("insects-test.array_record-00001*"))
        shard.unlink()
        said = refused("tfds:insects@test")
        assert "Record 1" in said
        assert "of test in" in said
        assert "Prepare the data set again" in said


class TestSlices:
    def test_unknown_split(self):
        said = refused("tfds:insects@validation")
        assert "tfds:insects:1.2.0 has the splits train (90), test (50)" in said
        assert "no 'validation': Unknown split" in said

    @pytest.mark.parametrize(
        ("slice_", "why"),
        [
            ("train[100:]", "incompatible with 90 examples"),
            ("train[:95]", "incompatible with 90 examples"),
            ("train[9:3]", "no record of train is in the slice"),
            ("train[", "Unrecognized split format"),
            ("train[:3]+", "Unrecognized split format"),
            ("train[:120%]", "[-100, 100]"),
        ],
    )
    def test_that_are_none(self, slice_, why):
        said = refused(f"tfds:insects@{slice_}")
        assert why in said
        assert said.endswith("Correct what stands after @.")

    @pytest.mark.parametrize("text", ["tfds:", "tfds:insects@", "tfds:a b@train", "tfds:x:3@train"])
    def test_that_are_malformed(self, text):
        assert f"The data set {text!r} must be named by" in refused(text)


class TestLabels:
    def test_of_unlabelled_splits(self, tmp_path, monkeypatch):
        hidden = [row | {"label": -1} for row in TEST[:5]]
        some = [*TEST[:3], TEST[3] | {"label": -1}]
        prepare(tmp_path, {"train": TRAIN[:9], "test": hidden, "val": some})
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        listing = read_listing("tfds:insects@test")
        assert listing.rows == ()
        assert [row.key for row in listing.unlabelled] == [f"test[{n}]" for n in range(5)]
        known = {image_bytes(number, seed=1) for number in range(5)}
        assert {content_of(row) for row in listing.unlabelled} == known
        assert listing.notes == ("not used: the 5 images of test have no labels, only -1.",)
        partly = read_listing("tfds:insects@val")
        assert len(partly.rows) == 3
        (problem,) = partly.problems
        assert problem.detail == "expected a label of 0 to 2, found -1"

    def test_by_a_rule(self):
        rule = LabelRule("by-number", ("number",), ("even", "odd"), parity)
        rows = read_listing(TfdsSource("insects", "train[:30]", rule=rule)).rows
        assert [row.label for row in rows] == [("even", "odd")[number_of(row) % 2] for row in rows]

    def test_by_a_rule_without_its_feature(self):
        rule = LabelRule("x", ("objects",), ("a",), parity)
        said = refused(TfdsSource("insects", "train", rule=rule))
        assert "found no objects among image, label, number" in said

    def test_are_read_once(self, prepared, monkeypatch):
        asked = counted(monkeypatch)
        first = read_listing("tfds:insects@train[10:40]")
        assert asked == [30]
        assert [r.label for r in read_listing("tfds:insects@train[10:40]").rows] == [
            r.label for r in first.rows
        ]
        assert asked == [30, 0]
        whole = read_listing("tfds:insects@train")
        assert asked == [30, 0, 60]
        assert [r.label for r in whole.rows[10:40]] == [r.label for r in first.rows]
        read_listing("tfds:insects@test[:50%]+train")
        assert asked == [30, 0, 60, 25, 0]

    def test_are_read_again_for_another_preparation(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        place = prepare(tmp_path, {"train": TRAIN[:20]})
        before = [row.label for row in read_listing("tfds:insects@train").rows]
        shutil.rmtree(place)
        other = [row | {"label": (row["label"] + 1) % 3} for row in TRAIN[:20]]
        prepare(tmp_path, {"train": other})
        after = [row.label for row in read_listing("tfds:insects@train").rows]
        assert after == [CLASSES[(CLASSES.index(label) + 1) % 3] for label in before]

    def test_of_a_damaged_cache_are_read_again(self, tmp_path, monkeypatch):
        before = [row.label for row in read_listing("tfds:insects@train").rows]
        for path in (tmp_path / "cache/labels").glob("*.labels"):
            path.write_bytes(path.read_bytes()[:50])
        asked = counted(monkeypatch)
        assert [row.label for row in read_listing("tfds:insects@train").rows] == before
        assert asked == [90]

    def test_need_no_cache(self, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "file/cache"))
        assert len(read_listing("tfds:insects@train").rows) == 90
        assert "The labels are read again the next time" in caplog.text


def parity(features):
    return features["number"] % 2


def counted(monkeypatch):
    """Record how many labels each part of a source reads."""
    asked, plain = [], record_labels.LabelCache.labels

    def labels(self, split, count, wanted, read, progress=None):
        asked.append(0)

        def noted(number):
            asked[-1] += 1
            return read(number)

        return plain(self, split, count, wanted, noted, progress)

    monkeypatch.setattr(record_labels.LabelCache, "labels", labels)
    return asked


class TestFeatures:
    @pytest.fixture
    def pairs(self, tmp_path, monkeypatch):
        """A data set with two images and two labels in each record."""
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        features = features_of() | {
            "image2": tfds.features.Image(shape=(None, None, 3)),
            "sex": tfds.features.ClassLabel(names=["f", "m"]),
        }
        rows = [
            row | {"image2": image_bytes(row["number"], seed=9), "sex": row["number"] % 2}
            for row in TRAIN[:12]
        ]

        def make(supervised_keys=None):
            return prepare(
                tmp_path, {"train": rows}, features=features, supervised_keys=supervised_keys
            )

        return make

    def test_stated_by_the_data_set(self, pairs):
        pairs(("image2", "sex"))
        listing = read_listing("tfds:insects@train")
        assert listing.classes == ("f", "m")
        row = listing.rows[5]
        assert row.label == "fm"[number_of(row) % 2]
        assert content_of(row) == image_bytes(number_of(row), seed=9)
        assert np.array_equal(pixels_of(row.load()), pixels_of(image_bytes(number_of(row), seed=9)))
        assert listing.notes == (
            "The image is image2, as tfds:insects:1.2.0 states, not image.",
            "The label is sex, as tfds:insects:1.2.0 states, not label.",
        )

    def test_named_by_the_user(self, pairs):
        pairs(("image2", "sex"))
        listing = read_listing("tfds:insects@train?label=label&image=image")
        assert (listing.classes, listing.notes) == (CLASSES, ())
        assert listing.rows[0].load().format == "JPEG"

    def test_that_are_ambiguous(self, pairs):
        pairs()
        said = refused("tfds:insects@train")
        assert "it has image, image2, and it does not state which is meant" in said
        assert "Choose one: tfds:insects?image=image." in said
        said = refused("tfds:insects@train?image=image&label=species")
        assert "it has label, sex, found 'species'" in said


class TestPreparations:
    def test_newest_version_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        for version, count in (("1.9.0", 3), ("1.10.0", 4), ("2.0.0", 5)):
            prepare(tmp_path, {"train": TRAIN[:count]}, version=version, shards=1)
        listing = read_listing("tfds:insects@train")
        assert len(listing.rows) == 5
        note = "Of insects, 2.0.0 is read, the newest; also prepared: 1.10.0, 1.9.0."
        assert listing.notes == (note,)
        assert listing.source == "'tfds:insects:2.0.0@train'"
        for versions, expected in ((("1.*.*",), "1.10.0"), (("3.0.0", "1.9.0"), "1.9.0")):
            source = TfdsSource("insects", "train", versions)
            assert tfds_version(source) == expected
            assert read_listing(source).notes == ()
        assert len(read_listing("tfds:insects:1.9.0@train").rows) == 3
        said = refused("tfds:insects:3.*.*@train")
        assert "in the version 3.*.*, found 2.0.0, 1.10.0, 1.9.0 in" in said

    def test_configs(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        prepare(tmp_path, {"train": TRAIN[:3]}, config="small", shards=1)
        listing = read_listing("tfds:insects@train")
        assert listing.source == "'tfds:insects/small:1.2.0@train'"
        assert listing.notes == ("Of insects, the variant small is read, the only one here.",)
        prepare(tmp_path, {"train": TRAIN[:5]}, config="large", shards=1)
        assert len(read_listing("tfds:insects/large@train").rows) == 5
        said = refused("tfds:insects@train")
        assert "prepared in several variants, found large, small. Choose one" in said

    def test_of_another_format(self, tmp_path, monkeypatch):
        """What the message says is done, and helps."""
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        place = prepare(tmp_path, {"train": TRAIN[:6]}, file_format="tfrecord")
        said = refused("tfds:insects@train")
        assert "must be prepared as ArrayRecord files" in said
        assert "found tfrecord files" in said
        assert repr(str(place)) in said
        assert "tfds.builder('insects', file_format='array_record').download_and_prepare()" in said
        shutil.move(place, tmp_path / "away")
        prepare(tmp_path, {"train": TRAIN[:6]})
        assert len(read_listing("tfds:insects@train").rows) == 6

    def test_of_known_data_sets_name_the_command(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        said = refused("tfds:dtd:3.0.1@train")
        assert f"must be prepared in {str(tmp_path)!r}" in said
        call = "tfds.builder('dtd:3.0.1', file_format='array_record').download_and_prepare()"
        assert f'python -c "import tensorflow_datasets as tfds; {call}"' in said
        assert said.endswith("This downloads it.")
        said = refused("tfds:resisc45@train")
        assert "must be downloaded by hand" in said
        assert "can prepare (rgb, all), found 'ms'" in refused("tfds:eurosat/ms@train")

    def test_of_unknown_data_sets(self):
        assert "found neither. Did you mean cifar10" in refused("tfds:sifar10@train")

    def test_whose_records_have_no_such_label(self, prepared, tmp_path, monkeypatch):
        """The files say that each has one, which TFDS then gives as None."""
        shutil.copytree(prepared, tmp_path / "copy")
        made = tmp_path / "copy/insects/1.2.0"
        features = made / "features.json"
        assert '"label"' in features.read_text()
        features.write_text(features.read_text().replace('"label"', '"kind"'))
        (made / "label.labels.txt").rename(made / "kind.labels.txt")
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
        assert "insects" in (said := refused("tfds:insects@test"))
        assert "expected a label for each record" in said

    def test_that_are_damaged(self, prepared, tmp_path, monkeypatch):
        shutil.copytree(prepared, tmp_path / "copy")
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
        (tmp_path / "copy/insects/1.2.0/dataset_info.json").write_text("{")
        assert "expected a data set prepared by TFDS" in refused("tfds:insects@train")

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "array_record", None)
        said = refused("tfds:insects@train", ImportError)
        assert "array_record is not installed. Install them: pip install 'bitzoo[tfds]'" in said


TASKS = (
    *("caltech101", "cifar10", "cifar100", "dtd", "oxford_flowers102", "oxford_iiit_pet"),
    *("sun397/tfds", "svhn_cropped", "patch_camelyon", "eurosat/rgb", "resisc45"),
    *("diabetic_retinopathy_detection/btgraham-300", "dmlab", "imagenet2012"),
)


class TestMocked:
    @pytest.mark.parametrize("name", TASKS)
    def test_tasks_with_a_class_label(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        with tfds.testing.mock_data(num_examples=4):
            listing = read_listing(f"tfds:{name}@train[:800]+test")
            builder = tfds.builder(name)
            expected = builder.as_data_source("train")
            label = builder.info.features["label"]
            assert listing.classes == tuple(map(label.int2str, range(label.num_classes)))
            assert [row.label for row in listing.rows] == [
                label.int2str(int(record["label"])) for record in expected
            ]
            for index in (3, 0, 2):
                loaded = np.asarray(read_rgb(listing.rows[index].load()))
                pixels = expected[index]["image"]
                assert np.array_equal(loaded, np.broadcast_to(pixels, loaded.shape))

    @pytest.mark.parametrize(
        ("name", "label", "classes"),
        [
            ("dsprites", "label_x_position", 32),
            ("dsprites", "label_orientation", 40),
            ("smallnorb", "label_azimuth", 18),
            ("smallnorb", "label_elevation", 9),
        ],
    )
    def test_tasks_with_several_labels(self, name, label, classes, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        with tfds.testing.mock_data(num_examples=3):
            listing = read_listing(f"tfds:{name}@train?label={label}&image=image")
            assert len(listing.classes) == classes
            expected = tfds.builder(name).as_data_source("train")
            assert [row.label for row in listing.rows] == [str(int(r[label])) for r in expected]
            assert np.array_equal(np.asarray(listing.rows[1].load()), expected[1]["image"][..., 0])

    @pytest.mark.parametrize("name", ["clevr", "kitti"])
    def test_tasks_with_a_rule(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        rule = LabelRule("many", ("objects",), ("few", "many"), many)
        with tfds.testing.mock_data(num_examples=6):
            rows = read_listing(TfdsSource(name, "train", rule=rule)).rows
            expected = tfds.builder(name).as_data_source("train")
            assert [row.label for row in rows] == [
                ("few", "many")[many(record)] for record in expected
            ]


def many(record):
    objects = record["objects"]
    return int(len(objects["location" if "location" in objects else "size"]) > 25)


def test_splits_named_apart_in_one_text():
    images = read_dataset("train=tfds:insects@train[:9],val=tfds:insects@test[:4]")
    assert [e.key for e in images.val.examples] == [f"test[{n}]" for n in range(4)]
    assert len(images.train) == 9
    assert parts_of("photos,train=x") == {}
    assert parts_of("tfds:insects@train") == {}
    assert "must name each split once" in refused("val=tfds:a@x,val=tfds:b@y")
    assert "found 'val=photos'. From Python" in refused("train=tfds:insects@train,val=photos")
