"""Small data sets in the form of VTAB's, prepared on disk by TFDS's own machinery for builders.

Names, versions, features and splits are TFDS's (tensorflow-datasets 4.9.10); images are a few
pixels, and record n of every split can be told by its image, which is `image_of(salt, n)`. Nothing
is imported from bitzoo.
"""

import io
import logging
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIDE = 6


@dataclass(frozen=True)
class DataSet:
    """A data set as TFDS prepares it.

    Attributes:
        version: The version that the installed TFDS prepares.
        splits: Split -> number of records, the fewest with which every part is what it is called.
        classes: Of its ClassLabel `label`; 0 for none.
        channels: Of its images.
        others: What makes the other features, from the library; and their values, from a generator.
    """

    version: str
    splits: dict
    classes: int = 0
    channels: int = 3
    others: tuple = field(default=(lambda tfds: {}, lambda rng: {}))


def _clevr_features(tfds):
    features = tfds.features
    coordinates = features.Tensor(shape=(3,), dtype=np.float32)
    shape = features.ClassLabel(names=["cube", "sphere", "cylinder"])
    return {"objects": features.Sequence({"pixel_coords": coordinates, "shape": shape})}


def _clevr_values(rng):
    count = rng.integers(3, 11)
    on_a_threshold = rng.choice([8.0, 8.5, 9.0, 9.5, 10.0], count)
    depths = np.where(rng.random(count) < 0.3, on_a_threshold, rng.uniform(7, 12, count))
    return {
        "objects": [
            {"pixel_coords": np.array((3, 4, depth), np.float32), "shape": int(rng.integers(3))}
            for depth in depths
        ]
    }


KITTI_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")


def _kitti_features(tfds):
    features = tfds.features
    place = features.Tensor(shape=(3,), dtype=np.float32)
    kind = features.ClassLabel(names=KITTI_TYPES)
    return {"objects": features.Sequence({"type": kind, "location": place})}


def _kitti_values(rng):
    count = rng.integers(0, 4)
    depths = np.where(rng.random(count) < 0.3, rng.choice([8.0, 20.0], count), rng.uniform(2, 60))
    return {
        "objects": [
            {"type": int(rng.integers(8)), "location": np.array((1, 2, depth), np.float32)}
            for depth in depths
        ]
    }


def _labels(**counts):
    def features(tfds):
        made = {name: tfds.features.ClassLabel(num_classes=n) for name, n in counts.items()}
        if "label_azimuth" in counts:  # the second camera's image
            made["image2"] = tfds.features.Image(shape=(None, None, 1))
        return made

    def values(rng):
        made = {name: int(rng.integers(n)) for name, n in counts.items()}
        if "label_azimuth" in counts:
            made["image2"] = _png(rng.integers(0, 256, (SIDE, SIDE, 1)))
        return made

    return features, values


def _own_validation(test=30):
    return {"train": 807, "validation": 203, "test": test}


DATA_SETS = {
    "caltech101": DataSet("3.0.2", {"train": 2_009, "test": 30}, 102),
    "cifar100": DataSet(
        "3.0.2", {"train": 2_009, "test": 30}, 100, others=_labels(coarse_label=20)
    ),
    "clevr": DataSet(
        "3.1.0",
        {"train": 2_009, "validation": 30, "test": 5},
        others=(_clevr_features, _clevr_values),
    ),
    "diabetic_retinopathy_detection/btgraham-300": DataSet("3.0.0", _own_validation(), 5),
    "dmlab": DataSet("2.0.1", _own_validation(), 6),
    "dsprites": DataSet(
        "2.0.0",
        {"train": 2_015},
        channels=1,
        others=_labels(label_orientation=40, label_x_position=32, label_y_position=32),
    ),
    "dtd": DataSet("3.0.1", _own_validation(), 47),
    "eurosat/rgb": DataSet("2.0.0", {"train": 1_349}, 10),
    "kitti": DataSet("3.3.0", _own_validation(), others=(_kitti_features, _kitti_values)),
    "oxford_flowers102": DataSet("2.1.1", _own_validation(), 102),
    "oxford_iiit_pet": DataSet(
        "4.0.0", {"train": 1_009, "test": 30}, 37, others=_labels(species=2)
    ),
    "patch_camelyon": DataSet("2.0.0", _own_validation(), 2),
    "resisc45": DataSet("3.0.0", {"train": 1_349}, 45),
    "smallnorb": DataSet(
        "2.0.0",
        {"train": 807, "test": 407},
        channels=1,
        others=_labels(label_category=5, label_azimuth=18, label_elevation=9),
    ),
    "sun397/tfds": DataSet("4.0.0", _own_validation(), 397),
    "svhn_cropped": DataSet("3.1.0", {"train": 2_009, "test": 30}, 10),
}
"""All data sets of VTAB, by TFDS's names."""


def image_of(salt, number, channels=3, scale=1):
    """The image of a record: uint8 (SIDE, SIDE, channels); of 0 and 1 for a `scale` of 255."""
    rng = np.random.default_rng([zlib.crc32(salt.encode()), number])
    values = rng.integers(0, 256 if scale == 1 else 2, (SIDE, SIDE, channels))
    return values.astype(np.uint8)


def _png(values):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8).squeeze()).save(file, "PNG")
    file.seek(0)
    return file


def prepare(folder, name, *, file_format="array_record", version=None, splits=None, num_shards=1):
    """Prepare one of `DATA_SETS` below a folder, and return TFDS's builder of it.

    Args:
        folder: TFDS's folder of data sets.
        name: Its name, with its config.
        file_format: Of its files.
        version: Another version than the usual.
        splits: Other numbers of records.
        num_shards: Number of files of each split.
    """
    import tensorflow_datasets as tfds

    data_set = DATA_SETS[name]
    name, _, config = name.partition("/")
    version = version or data_set.version
    features, values = data_set.others

    def info(self):
        image = tfds.features.Image(shape=(None, None, data_set.channels), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=data_set.classes) if data_set.classes else None
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"image": image, **({"label": label} if label else {}), **features(tfds)}
            ),
        )

    def generate(self, split, count):
        scale = 255 if name == "dsprites" else 1
        for number in range(count):
            rng = np.random.default_rng([number, zlib.crc32(split.encode())])
            image = image_of(f"{name} {split}", number, data_set.channels, scale)
            record = {"image": _png(image), **values(rng)}
            if data_set.classes:
                record["label"] = int(rng.integers(data_set.classes))
            yield f"{split} {number}", record

    def split_generators(self, manager):
        wanted = splits or data_set.splits
        return {split: self._generate_examples(split, count) for split, count in wanted.items()}

    body = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": split_generators,
        "__module__": __name__,
    }
    if config:
        body["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config, version=version)]
    with tfds.core.registered.skip_registration():
        kind = type("Small", (tfds.core.GeneratorBasedBuilder,), body)
    builder = kind(
        data_dir=folder, file_format=file_format, **({"config": config} if config else {})
    )
    tfds.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=num_shards)
        )
    finally:
        logging.disable(before)
    return builder


def prepare_all(folder, *names):
    """Prepare these data sets, or all, below a folder; returns it."""
    for name in names or DATA_SETS:
        prepare(folder, name)
    return folder
