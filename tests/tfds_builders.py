"""Data sets that TFDS's own machinery prepares in a folder, of images and labels that a test makes.

`prepare` runs a `tfds.core.GeneratorBasedBuilder` as `download_and_prepare` does for any data set:
records are shuffled by their keys and written to several shards of ArrayRecord files.
"""

import io
import types

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ("ant", "bee", "wasp")


def image_bytes(number, size=(12, 10), kind="PNG", seed=0):
    """An image file of noise: its bytes."""
    pixels = np.random.default_rng([seed, number]).integers(0, 256, (*size[::-1], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def features_of(classes=CLASSES):
    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(classes)),
        "number": tfds.features.Scalar(np.int64),
    }


def records(count, classes=3, seed=0, kind="PNG"):
    """`count` records of `features_of`; `number` says which one it is."""
    labels = np.random.default_rng(seed).integers(0, classes, count)
    return [
        {"image": image_bytes(n, kind=kind, seed=seed), "label": int(labels[n]), "number": n}
        for n in range(count)
    ]


def prepare(
    folder,
    splits,
    name="insects",
    version="1.2.0",
    config=None,
    features=None,
    supervised_keys=None,
    shards=3,
    file_format="array_record",
):
    """Prepare a data set.

    Args:
        folder: The folder of prepared data sets, as TFDS_DATA_DIR names it.
        splits: Split name -> its records, each a dict of what `features` has.
        name: Name of the data set, in snake case.
        version: Its version.
        config: Name of its config.
        features: Its features; None for `features_of()`.
        supervised_keys: Its input and target, if it states them.
        shards: Files of each split.
        file_format: How records are stored.

    Returns:
        The folder of its files.
    """
    features = features or features_of()

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised_keys,
        )

    def _generate_examples(self, rows):
        for number, row in enumerate(rows):
            yield number, {key: _stored(value) for key, value in row.items()}

    def _split_generators(self, _):
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    body = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": _info,
        "_generate_examples": _generate_examples,
        "_split_generators": _split_generators,
        "__module__": __name__,
    }
    if config:
        body["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config, version=version)]
    # unregistered, because several data sets of a test may have one name
    bases, options = (tfds.core.GeneratorBasedBuilder,), {"skip_registration": True}
    builder_class = types.new_class("Prepared", bases, options, lambda names: names.update(body))
    builder = builder_class(data_dir=str(folder), file_format=file_format)
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
    )
    return builder.data_path


def _stored(value):
    return io.BytesIO(value) if isinstance(value, bytes) else value
