"""List data sets that TensorFlow Datasets has prepared, and read their records in any order.

The records are read from ArrayRecord files, which need no TensorFlow, in the order in which TFDS
stored them; slices are TFDS's own. An image is the bytes that are stored, decoded as a file is.
"""

from __future__ import annotations

import importlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo._version import __version__
from bitzoo.data.examples import RowTable
from bitzoo.data.folder import Listing
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.record_labels import LabelCache, Labels, identity_of_files
from bitzoo.data.record_table import Records as StoredRecords
from bitzoo.data.record_table import RecordTable
from bitzoo.data.source_names import TFDS, SourceName
from bitzoo.data.tfds_prepared import Prepared, find_prepared, open_builder, tfds_library
from bitzoo.data.tfds_slices import Part, parts_of_slice
from bitzoo.errors import UsageError, damage_reported
from bitzoo.files import Progress
from bitzoo.models.image_files import open_image

_UNLABELLED = -1
"""TFDS's label of a record that has none."""
_ADVICE = "Prepare the data set again, or restore its files."
_MOST_VALUE = 255


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
            data set states as its input.
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
        asked = [f"{word}={name}" for word in _WORDS if (name := getattr(self, word))]
        return (
            f"{TFDS}{self.name}{version}"
            + (f"@{self.split}" if self.split else "")
            + (f"?{'&'.join(asked)}" if asked else "")
        )


_WORDS = ("image", "label")
"""What is wanted of a record, in the order of TFDS's pairs of input and target."""


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
    return str(find_prepared(source.name, source.versions).builder.version)


def tfds_splits(source: TfdsSource) -> dict[str, int]:
    """Return the names of the prepared splits, and how many records each has.

    Raises:
        DatasetError: If it is not prepared.
        MissingExtraError: If TFDS is not installed.
    """
    splits = find_prepared(source.name, source.versions).builder.info.splits
    return {name: splits[name].num_examples for name in splits}


def read_records(source: TfdsSource, progress: Progress | None = None) -> Listing:
    """List the records of one split or slice, in the order of the records.

    A slice in which every label is -1 is unlabelled, as some test splits are, and lists no rows.
    Labels are read once and kept, see `record_labels`.

    Args:
        source: Which records; its `split` must not be None.
        progress: Called while labels are read.

    Raises:
        DatasetError: If it is not prepared, in files without random access, has no such split or
            slice, or several features may be meant.
        MissingExtraError: If TFDS is not installed.
    """
    if source.split is None:
        raise ValueError("a source without a split is read split by split")
    found = find_prepared(source.name, source.versions)
    features = found.builder.info.features
    parts = parts_of_slice(found, source.split)
    records: Records | Examples
    if found.folder:
        records = Records(found.folder, source.split)
    else:
        records = Examples(found.builder, source.split)
        parts = [Part(source.split, len(records), range(len(records)))]
    image, notes = _feature(found, "Image", source.image)
    if source.rule is None:
        label, more = _feature(found, "ClassLabel", source.label)
        notes += more
        place = printable(found.folder)
        with damage_reported(place, "a name for each class", _ADVICE, DatasetError):
            classes = _names(features[label])
        wanted: tuple[str, ...] = (label,)
    else:
        label, classes, wanted = "", source.rule.classes, source.rule.features
        _require(found, wanted)
    values = _labels(found, source, parts, records, wanted, progress)
    shown, notes = repr(f"{found.shown}@{source.split}"), [*found.notes, *notes]
    others = {n: features[n] for n in features if n != label and _is_text(features[n])}
    listed = TfdsRecords(records, parts, image, source.scale, others)
    numbers = np.arange(len(values), dtype=np.uint32)
    if len(values) and (values == _UNLABELLED).all():
        notes.append(
            f"not used: the {len(values):,} images of {source.split} have no labels, only -1."
        )
        table = RecordTable((listed,), numbers, np.zeros(len(values), np.int32))
        return Listing((), classes, shown, tuple(notes), unlabelled=RowTable(table, ("",)))
    good = (values >= 0) & (values < len(classes))
    problems = tuple(
        Problem(
            Reason.LABEL,
            listed.key(number),
            f"expected a label of 0 to {len(classes) - 1}, found {values[number]}",
        )
        for number in np.flatnonzero(~good).tolist()
    )
    rows = RowTable(RecordTable((listed,), numbers[good], values[good]), classes)
    return Listing(rows, classes, shown, tuple(notes), problems)


# --- records ------------------------------------------------------------------------------------


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
        self._lock = threading.Lock()
        self._opened: tuple[Any, Any] | None = None
        self._parsers: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> tuple[str, str]:
        return self.folder, self.split

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _open(self) -> tuple[Any, Any]:
        """Return the builder and its source of records."""
        with self._lock:
            if self._opened is None:
                library = tfds_library()
                builder = open_builder(self.folder)
                source = builder.as_data_source(
                    self.split,
                    deserialize_method=library.decode.DeserializeMethod.RAW_BYTES,
                    file_format="array_record",
                )
                self._opened = builder, source
            return self._opened

    def __len__(self) -> int:
        return len(self._open()[1])

    def content(self, index: int, feature: str) -> bytes:
        """Return the bytes of an image, as they were stored.

        Raises:
            DatasetError: If the record cannot be read.
        """
        with damage_reported(self._place(index), "a stored record", _ADVICE, DatasetError):
            example = _messages().Example.FromString(self._open()[1][index])
            (content,) = example.features.feature[feature].bytes_list.value
        return bytes(content)

    def image(self, index: int, feature: str) -> Image.Image:
        """Return an image, opened from its stored bytes as from a file's."""
        return open_image(io.BytesIO(self.content(index, feature)))

    def values(self, index: int, features: tuple[str, ...]) -> Mapping[str, Any]:
        """Return some features of a record, decoded.

        Raises:
            DatasetError: If the record cannot be read.
        """
        with damage_reported(self._place(index), "a stored record", _ADVICE, DatasetError):
            builder, source = self._open()
            parser = self._parsers.get(features)
            if parser is None:
                known = builder.info.features
                parser = tfds_library().features.FeaturesDict({n: known[n] for n in features})
                self._parsers[features] = parser
            found: Mapping[str, Any] = parser.deserialize_example_np(source[index])
        return found

    def _place(self, index: int) -> str:
        return f"Record {index} of {self.split} in {printable(self.folder)!r}"


class Examples:
    """The records of a builder without files, which yields them decoded.

    Args:
        builder: The builder.
        split: Which of its records.
    """

    def __init__(self, builder: Any, split: str) -> None:
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


class TfdsRecords(StoredRecords):
    """The records of one split or slice.

    Args:
        records: Where they are stored.
        parts: What the slice consists of.
        image: Name of the image's feature.
        scale: Factor of the pixels' values.
        others: The other features.
    """

    def __init__(
        self,
        records: Records | Examples,
        parts: list[Part],
        image: str,
        scale: int,
        others: Mapping[str, Any],
    ) -> None:
        self._records, self._parts, self._image = records, parts, image
        self._scale, self._others = scale, others
        self._ends = np.cumsum([len(part.numbers) for part in parts])

    def __len__(self) -> int:
        return len(self._records)

    def key(self, number: int) -> str:
        """Return `SPLIT[17]`, the number being that in the whole split."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return f"{self._parts[part].split}[{self._parts[part].numbers[number - start]}]"

    def load(self, number: int) -> RecordImage:
        """Return what loads the image of a record."""
        return RecordImage(self._records, number, self._image, self._scale)

    def extra(self, number: int) -> Mapping[str, str]:
        """Return the other features of a record."""
        return _Cells(self._records, number, self._others)

    @property
    def digest(self) -> str:
        """The splits and numbers of the records: what they hold shows only when they are read."""
        return json.dumps([[p.split, p.numbers.start, p.numbers.stop] for p in self._parts])


@dataclass(frozen=True)
class RecordImage:
    """Loads the image of one record."""

    records: Records | Examples
    index: int
    feature: str
    scale: int = 1

    @property
    def content(self) -> Callable[[], bytes] | None:
        """What returns the stored bytes; None if the pixels are not theirs alone."""
        if self.scale != 1 or not isinstance(self.records, Records):
            return None
        return partial(self.records.content, self.index, self.feature)

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


def _messages() -> Any:
    """Return the module of the messages that records are."""
    return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2


def _scaled(image: Image.Image, scale: int) -> Image.Image:
    if image.mode not in ("1", "L", "RGB"):
        raise UsageError(f"values are multiplied in images of 8 bits only, not mode {image.mode}")
    image = image.convert("L") if image.mode == "1" else image
    table = [min(_MOST_VALUE, value * scale) for value in range(_MOST_VALUE + 1)]
    return image.point(table * len(image.getbands()))


# --- splits and features ------------------------------------------------------------------------


def _feature(found: Prepared, kind: str, asked: str | None) -> tuple[str, list[str]]:
    """Return the name of the feature of a kind that is meant, and what is to be said of it.

    Raises:
        DatasetError: If there is none, or several of which none is stated to be meant.
    """
    info, place = found.builder.info, ("Image", "ClassLabel").index(kind)
    word = _WORDS[place]
    names = sorted(name for name in info.features if type(info.features[name]).__name__ == kind)
    pair = info.supervised_keys or ()
    stated = pair[place] if len(pair) == len(_WORDS) else None
    name = str(asked or (names[0] if len(names) == 1 else stated))
    if name not in names:
        what = f"found {asked!r}" if asked else "and it does not state which is meant"
        advice = f" Choose one: {TFDS}{found.name}?{word}={names[0]}." if names else ""
        raise DatasetError(
            f"{found.shown} must have a feature of type {kind} that is the {word}; it has "
            f"{join_some(names, 20) or 'none of them'}, {what}.{advice}"
        )
    if asked or len(names) == 1:
        return name, []
    others = [other for other in names if other != name]
    note = f"The {word} is {name}, as {found.shown} states, not {join_some(others)}."
    return name, [note]


def _require(found: Prepared, wanted: tuple[str, ...]) -> None:
    features = found.builder.info.features
    missing = [name for name in wanted if name not in features]
    if missing:
        raise DatasetError(
            f"{found.shown} must have the features {', '.join(wanted)}, found no "
            f"{', '.join(missing)} among {', '.join(sorted(features))}. Use another version of it."
        )


def _names(feature: Any) -> tuple[str, ...]:
    return tuple(printable(feature.int2str(number)) for number in range(feature.num_classes))


def _is_text(feature: Any) -> bool:
    """Whether a feature is one number or a text."""
    kinds = ("Text", "ClassLabel", "Scalar", "Tensor")
    return type(feature).__name__ in kinds and feature.shape == ()


def _labels(
    found: Prepared,
    source: TfdsSource,
    parts: list[Part],
    records: Records | Examples,
    wanted: tuple[str, ...],
    progress: Progress | None,
) -> npt.NDArray[np.int32]:
    """Return the label of every record, (n,)."""
    rule = source.rule
    way = [rule.name, *rule.classes, __version__] if rule else []
    identity = [found.shown, identity_of_files(found.folder), *wanted, *way] if found.folder else []
    cache, values, start = LabelCache(identity), list[Labels](), 0

    def read(number: int) -> int:
        decoded = records.values(number - part.numbers.start + start, wanted)
        return int(rule.label(decoded) if rule else decoded[wanted[0]])

    for part in parts:
        with damage_reported(found.shown, "a label for each record", _ADVICE, DatasetError):
            values.append(cache.labels(part.split, part.count, part.numbers, read, progress))
        start += len(part.numbers)
    return np.concatenate(values)
