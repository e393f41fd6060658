"""List data sets that TensorFlow Datasets has prepared, and read their records in any order.

The records are read from ArrayRecord files, which need no TensorFlow, in the order in which TFDS
stored them; slices are TFDS's own. An image is the bytes that are stored, decoded as a file is.
Nothing is downloaded or prepared here.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitzoo.data.folder import Listing, Row
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.record_labels import UNLABELLED, cached_labels
from bitzoo.data.source_names import TFDS, SourceName
from bitzoo.errors import MissingExtraError, UsageError
from bitzoo.models.image_files import open_image

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO, _FEATURES = "dataset_info.json", "features.json"


@dataclass(frozen=True)
class LabelRule:
    """A label derived from features of a record.

    Attributes:
        name: Identifies the rule; labels are kept under it, so a rule that changes needs a new one.
        features: The TFDS features that it needs, decoded.
        classes: Names of its classes, in order.
        label: A function of a module, from the features of a record to an index into the classes.
    """

    name: str
    features: tuple[str, ...]
    classes: tuple[str, ...]
    label: Callable[[Mapping[str, Any]], int]


@dataclass(frozen=True)
class TfdsSource:
    """Records of a data set that TFDS has prepared.

    Attributes:
        name: TFDS's name, and after a slash the config: "eurosat/rgb".
        split: Which records, in TFDS's language: "train[:800]+validation[:200]"; None for all
            splits, by their names.
        versions: Accepted versions, best first, each part a number or `*`; () for the newest that
            is prepared.
        rule: What a label is; None for that of a ClassLabel feature.
        image: Name of the Image feature; None for the only one or, of several, the one that the
            data set names as its input.
        scale: Factor of the pixels' values, for data sets that store 0 and 1.
        label: Name of the ClassLabel feature; None as for `image`.
    """

    name: str
    split: str | None
    versions: tuple[str, ...] = ()
    rule: LabelRule | None = None
    image: str | None = None
    scale: int = 1
    label: str | None = None

    def __str__(self) -> str:
        version = f":{self.versions[0]}" if len(self.versions) == 1 else ""
        return f"{TFDS}{self.name}{version}{'@' if self.split else ''}{self.split or ''}"


def source_of(name: SourceName) -> TfdsSource:
    """Return what a `tfds:` string names."""
    return TfdsSource(
        f"{name.name}/{name.config}" if name.config else name.name,
        name.split,
        (name.version,) if name.version else (),
        image=name.image,
        label=name.label,
    )


def tfds_version(source: TfdsSource) -> str:
    """Return the version that is prepared and used.

    Raises:
        DatasetError: If none of the accepted versions is prepared.
        MissingExtraError: If TFDS is not installed.
    """
    return str(_find(source).builder.version)


def tfds_splits(source: TfdsSource) -> tuple[str, ...]:
    """Return the names of the prepared splits.

    Raises:
        DatasetError: If it is not prepared.
        MissingExtraError: If TFDS is not installed.
    """
    return tuple(_find(source).builder.info.splits)


def split_sizes(source: TfdsSource) -> dict[str, int]:
    """Return the number of records of each prepared split; empty if it is not known.

    Raises:
        DatasetError: If it is not prepared.
        MissingExtraError: If TFDS is not installed.
    """
    splits = _find(source).builder.info.splits
    return {name: splits[name].num_examples for name in splits}


def read_records(source: TfdsSource) -> Listing:
    """List the records of one split or slice, in the order of the records.

    A slice in which every label is -1 is unlabelled, as some test splits are, and lists no rows.

    Raises:
        DatasetError: If it is not prepared, in files without random access, has no such split or
            slice, or several features may be meant.
        MissingExtraError: If TFDS is not installed.
    """
    if source.split is None:
        raise ValueError("a source without a split is read split by split")
    prepared = _find(source)
    return prepared.listing(source, source.split)


class Records:
    """Stored records by number.

    Safe to use from several threads. It pickles to the place of the files, and opens them when a
    record is first read.

    Args:
        folder: The folder of the prepared data set.
        split: Which of its records.
    """

    def __init__(self, folder: str, split: str) -> None:
        self.folder, self.split = folder, split
        self._lock = threading.RLock()
        self._parsers: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> tuple[str, str]:
        return self.folder, self.split

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @cached_property
    def _builder(self) -> Any:
        return _library().builder_from_directory(self.folder)

    @cached_property
    def _opened(self) -> Any:
        raw = _library().decode.DeserializeMethod.RAW_BYTES
        with self._lock:
            return self._builder.as_data_source(self.split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._opened)

    def image(self, index: int, feature: str) -> Image.Image:
        """Return an image, opened from its stored bytes as from a file's."""
        example = _messages().Example.FromString(self._opened[index])
        (content,) = example.features.feature[feature].bytes_list.value
        return open_image(io.BytesIO(content))

    def values(self, index: int, features: tuple[str, ...]) -> Mapping[str, Any]:
        """Return some features of a record, decoded."""
        parser = self._parsers.get(features)
        if parser is None:
            known = self._builder.info.features
            parser = _library().features.FeaturesDict({name: known[name] for name in features})
            self._parsers[features] = parser
        found: Mapping[str, Any] = parser.deserialize_example_np(self._opened[index])
        return found


class Examples:
    """The records of a builder without files, which yields them decoded.

    `tfds.testing.mock_data` makes such builders, with which whole programs are tested.

    Args:
        builder: The builder.
        split: Which of its records.
    """

    folder = ""

    def __init__(self, builder: Any, split: str) -> None:
        self.split = split
        self._opened = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._opened)

    def image(self, index: int, feature: str) -> Image.Image:
        """Return an image."""
        pixels = np.asarray(self._opened[index][feature])
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def values(self, index: int, features: tuple[str, ...]) -> Mapping[str, Any]:
        """Return some features of a record."""
        record = self._opened[index]
        return {name: record[name] for name in features}


@dataclass(frozen=True)
class RecordImage:
    """Loads the image of one record: the stored bytes, opened as a file's are."""

    records: Records | Examples
    index: int
    feature: str
    scale: int = 1

    def __call__(self) -> Image.Image:
        """Return the image."""
        image = self.records.image(self.index, self.feature)
        return image if self.scale == 1 else _scaled(image, self.scale)


@dataclass(frozen=True)
class _Cells(Mapping[str, str]):
    """The other features of a record, as text; read when one of them is asked for."""

    records: Records | Examples
    index: int
    features: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> str:
        names = getattr(self.features[name], "names", None)
        value = self.records.values(self.index, (name,))[name]
        if names and 0 <= int(value) < len(names):
            return str(names[int(value)])
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class _Prepared:
    """A prepared data set: its builder, and its folder ("" for one that is mocked in memory)."""

    name: str
    builder: Any
    folder: str
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return f"{TFDS}{self.name}:{self.builder.version}"

    def listing(self, source: TfdsSource, split: str) -> Listing:
        keys = self.keys(split)
        records = Records(self.folder, split) if self.folder else Examples(self.builder, split)
        if keys is None:
            keys = [f"{split}[{number}]" for number in range(len(records))]
        image, of_image = self.feature("Image", source.image, 0)
        notes = [*self.notes, *of_image]
        if source.rule is None:
            label, of_label = self.feature("ClassLabel", source.label, 1)
            notes += of_label
            classes = _names(self.builder.info.features[label])
        else:
            label, classes = "", source.rule.classes
        values = self.labels(records, split, label, source.rule)
        shown = repr(f"{self.shown}@{split}")
        if values and all(value == UNLABELLED for value in values):
            note = f"not used: the {len(values):,} images of {split} have no labels, only -1."
            return Listing((), classes, shown, (*notes, note))
        features = self.builder.info.features
        others = {n: features[n] for n in features if _is_text(features[n]) and n != label}
        rows, problems = [], []
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            if 0 <= value < len(classes):
                load = RecordImage(records, index, image, source.scale)
                cells = _Cells(records, index, others)
                rows.append(Row(key, classes[value], load=load, extra=cells))
            else:
                detail = f"expected a label of 0 to {len(classes) - 1}, found {value}"
                problems.append(Problem(Reason.LABEL, key, detail))
        return Listing(tuple(rows), classes, shown, tuple(notes), tuple(problems))

    def keys(self, split: str) -> list[str] | None:
        """Return the name of every record of a slice; None if the splits are not known."""
        splits = self.builder.info.splits
        if not splits:
            return None  # mocked: any split exists
        try:
            parts = _library().core.ReadInstruction.from_spec(split).to_absolute(splits)
        except Exception as error:
            raise self.bad_split(split, str(error).split("\n")[-1]) from error
        keys = []
        for part in parts:
            stop = splits[part.splitname].num_examples if part.to is None else part.to
            found = range(part.from_ or 0, stop)
            if not found:
                raise self.bad_split(split, f"nothing of {part.splitname} is in it")
            keys += [f"{part.splitname}[{number}]" for number in found]
        return keys

    def bad_split(self, split: str, why: str) -> DatasetError:
        splits = self.builder.info.splits
        there = ", ".join(f"{name} ({splits[name].num_examples:,})" for name in splits)
        return DatasetError(
            f"{self.shown} cannot be read by {split!r}: expected its splits, {there}, or slices of "
            f"them in TFDS's language, as train[:800]+validation[:200] or test[50%:], found: {why}."
        )

    def feature(self, kind: str, asked: str | None, place: int) -> tuple[str, list[str]]:
        """Return the name of the feature that is meant, and what is to be said of it.

        Args:
            kind: Its type.
            asked: Its name, if the user says so.
            place: Where it is in the pair of input and target that the data set states.
        """
        features = self.builder.info.features
        found = [name for name in features if type(features[name]).__name__ == kind]
        if asked is None and len(found) == 1:
            return found[0], []
        stated = self.builder.info.supervised_keys or ()
        name = asked or (stated[place] if len(stated) == 2 else None)
        word = ("image", "label")[place]
        if name not in found:
            problem = (
                f"found {asked!r}" if asked else "and the data set does not say which is meant"
            )
            raise DatasetError(
                f"{self.shown}: expected one feature of type {kind} to be the {word}, one of "
                f"{join_some(found, 20) or '(it has none)'}, {problem}. Choose one: "
                f"{TFDS}{self.name}?{word}=FEATURE."
            )
        if asked:
            return asked, []
        others = [other for other in found if other != name]
        return name, [
            f"The {word} is the feature {name}, as {self.shown} states; not {join_some(others)}. "
            f"Choose another with ?{word}=FEATURE."
        ]

    def labels(self, records: Records, split: str, label: str, rule: LabelRule | None) -> list[int]:
        """Return the label of every record, read once and kept."""
        features = self.builder.info.features
        wanted = rule.features if rule else (label,)
        missing = [name for name in wanted if name not in features]
        if missing:
            raise DatasetError(
                f"{self.shown}: expected the features {', '.join(wanted)}, found no "
                f"{', '.join(missing)} among {', '.join(features)}. Use another version."
            )

        def read() -> Iterator[int]:
            for index in range(len(records)):
                found = records.values(index, wanted)
                yield int(rule.label(found) if rule else found[label])

        what = ["rule", rule.name, *rule.features, *rule.classes] if rule else ["feature", label]
        return cached_labels(self.folder, split, what, read)


def _scaled(image: Image.Image, scale: int) -> Image.Image:
    if image.mode not in ("1", "L", "RGB"):
        raise UsageError(f"values are multiplied in images of 8 bits only, not mode {image.mode}")
    image = image.convert("L") if image.mode == "1" else image
    return image.point([min(255, value * scale) for value in range(256)] * len(image.getbands()))


def _names(feature: Any) -> tuple[str, ...]:
    return tuple(printable(feature.int2str(number)) for number in range(feature.num_classes))


def _is_text(feature: Any) -> bool:
    """Whether a feature is one number or text."""
    return feature.shape == () and type(feature).__name__ in (
        "Text",
        "ClassLabel",
        "Tensor",
        "Scalar",
    )


# --- finding what is prepared -------------------------------------------------------------------


def _library() -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {TFDS} data sets needs TensorFlow Datasets, which is not installed. Install "
            "it: pip install 'bitzoo[tfds]'. TensorFlow itself is not needed."
        ) from error


def _messages() -> Any:
    return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2


def _find(source: TfdsSource) -> _Prepared:
    """Return the prepared data set that is meant.

    Raises:
        DatasetError: If there is none.
    """
    library = _library()
    name, _, config = source.name.partition("/")
    there = [
        (version, folder) for data in _data_folders() for version, folder in _in(data, name, config)
    ]
    for pattern in source.versions or ("*",):
        fitting = sorted(
            (found for found in there if fnmatchcase(found[0], pattern)),
            key=lambda found: tuple(map(int, found[0].split("."))),
        )
        if fitting:
            _, folder = fitting[-1]
            builder = library.builder_from_directory(folder)
            return _Prepared(source.name, builder, str(folder))
    builder = _mocked(source)
    if builder is not None:
        return _Prepared(source.name, builder, "")
    raise DatasetError(f"{source} is not prepared. Prepare it: tfds build {source.name}")


def _mocked(source: TfdsSource) -> Any:
    """Return a builder that yields records without files; None if there is none."""
    try:
        builder = _library().builder(source.name)
        return builder if len(Examples(builder, source.split or "train")) else None
    except Exception:  # of an unprepared data set, by whatever way it is noticed
        return None


def _data_folders() -> list[Path]:
    """Return the folders in which TFDS looks for prepared data sets, as the environment is now."""
    files = importlib.import_module("tensorflow_datasets.core.utils.file_utils")
    own = os.environ.get("TFDS_DATA_DIR")
    listed = [own] if own else [os.fspath(folder) for folder in files.list_data_dirs()]
    return [Path(folder).expanduser() for folder in dict.fromkeys(listed)]


def _in(data: Path, name: str, config: str) -> list[tuple[str, Path]]:
    top = data / name / config if config else data / name
    try:
        folders = sorted(top.iterdir())
    except OSError:
        return []
    return [(f.name, f) for f in folders if _VERSION.fullmatch(f.name) and (f / _INFO).is_file()]
