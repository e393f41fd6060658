"""List the classification data sets of `torchvision.datasets`, from where they were downloaded to.

Nothing is downloaded here. Images that torchvision has as files are read as those files; others
(CIFAR, MNIST, SVHN) as the images that it makes of its arrays.
"""

from __future__ import annotations

import importlib
import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bitzoo.data.folder import Listing, Row, order_classes
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.source_names import TORCHVISION, SourceName
from bitzoo.errors import MissingExtraError, UsageError
from bitzoo.files import user_path

FOLDER_VARIABLE = "BITZOO_DATA"
"""Environment variable with the folder that holds torchvision's data sets: their `root`."""

_SPLITS: dict[str, tuple[str, ...]] = {
    "CLEVRClassification": ("train", "val"),
    "Country211": ("train", "valid", "test"),
    "DTD": ("train", "val", "test"),
    "FER2013": ("train", "test"),
    "FGVCAircraft": ("train", "val", "test", "trainval"),
    "Flowers102": ("train", "val", "test"),
    "Food101": ("train", "test"),
    "GTSRB": ("train", "test"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "PCAM": ("train", "val", "test"),
    "Places365": ("train-standard", "train-challenge", "val"),
    "RenderedSST2": ("train", "val", "test"),
    "STL10": ("train", "test", "unlabeled", "train+unlabeled"),
    "StanfordCars": ("train", "test"),
    "SVHN": ("train", "test", "extra"),
}
"""Values of the argument `split` of each class, from torchvision 0.29; it does not list them."""
_TWO = ("train", "test")
"""Splits of the classes with an argument `train`."""
_TARGETS = ("targets", "labels", "_labels", "y")
"""Attributes with the labels, of which each class has one, or the pairs below."""
_PAIRS = ("samples", "_samples")
"""Attributes with pairs of a path and a label."""
_FILES = ("_image_files", "_images")
"""Attributes with the paths alone."""
_NAMES = ("wnids", "classes", "categories")
"""Attributes with the classes' names; ImageNet's `classes` are lists of words."""


@dataclass(frozen=True)
class _Asked:
    """What is read: the class in `torchvision.datasets`, and its arguments."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def call(self, download: bool) -> str:
        """Return the Python expression that opens it."""
        shown = [f"{key}={value!r}" for key, value in self.arguments if key != "download"]
        more = ["download=True"] if download else []
        return f"torchvision.datasets.{self.name}({', '.join([*shown, *more])})"


def read_torchvision(name: SourceName, source: str) -> Listing | dict[str, Callable[[], Listing]]:
    """List what a name means; of one without a split, return what lists each of the splits.

    Args:
        name: The name.
        source: Its display name.

    Raises:
        DatasetError: If there is no such data set or split, or it was not downloaded.
        MissingExtraError: If torchvision is not installed.
    """
    if name.image or name.label:
        raise DatasetError(
            f"The data set {source} must be named without ?, because torchvision has one image and "
            "one label. Leave out what stands after ?."
        )
    kind = _class_of(name)
    parameters = inspect.signature(kind).parameters
    splits = _TWO if "train" in parameters else _SPLITS.get(name.name, ())
    if name.split is not None:
        return _read(name.name, name.split, parameters, source)
    if splits:
        return {split: partial(_read, name.name, split, parameters, source) for split in splits}
    if "split" in parameters:
        raise DatasetError(
            f"The data set {source} must be named with one of its splits: {TORCHVISION}{name.name}"
            "@SPLIT. torchvision's documentation lists them."
        )
    return _read(name.name, None, parameters, source)


def _class_of(name: SourceName) -> Any:
    try:
        library = importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {TORCHVISION}{name.name} needs torchvision, which is not installed. Install "
            "it: pip install torchvision."
        ) from error
    kind = getattr(library, name.name, None)
    if name.name not in library.__all__ or not inspect.isclass(kind):
        raise DatasetError(
            f"{TORCHVISION}{printable(name.name)} must name a class of torchvision.datasets, such "
            "as CIFAR10 or Flowers102, found none of this name. Case counts."
        )
    needed = [
        key
        for key, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and key not in ("root", "split")
    ]
    if needed or name.name in ("EMNIST", "ImageFolder", "DatasetFolder", "VisionDataset"):
        raise DatasetError(
            f"{TORCHVISION}{name.name} must be a data set of images with one label each that needs "
            f"no options beyond its split, found {', '.join(needed) or 'another kind'}. Give a "
            "folder of class folders or a manifest instead."
        )
    return kind


def _read(name: str, split: str | None, parameters: Mapping[str, Any], source: str) -> Listing:
    asked = _asked(name, split, parameters, source)
    data = _open(asked, source)
    labels = _labels(data, source)
    root = dict(asked.arguments).get("root")
    files = _files(data)
    named: Sequence[Any] = next((found for n in _NAMES if (found := getattr(data, n, None))), ())
    names = [printable(str(found)) for found in named]
    rows: list[Row] = []
    problems, unlabelled = [], bool(labels) and set(labels) == {-1}
    images = Images(asked)
    for index, label in enumerate(labels):
        path = files[index] if files else None
        key = f"{split or name}[{index}]" if path is None else _below(path, root)
        if not unlabelled and (label < 0 or (names and label >= len(names))):
            known = f"0 to {len(names) - 1}" if names else "0 or more"
            problems.append(Problem(Reason.LABEL, key, f"expected {known}, found {label}"))
            continue
        text = "" if unlabelled else names[label] if names else str(label)
        load = None if path else IndexedImage(images, index)
        rows.append(Row(key, text, path=path, load=load))
    if unlabelled:
        note = f"not used: its {len(labels):,} images have no labels, only -1."
        return Listing((), tuple(names), source, (note,), unlabelled=tuple(rows))
    classes = tuple(names) or order_classes(row.label for row in rows)
    return Listing(tuple(rows), classes, source, problems=tuple(problems))


def _asked(name: str, split: str | None, parameters: Mapping[str, Any], source: str) -> _Asked:
    """Return what opens a split.

    Raises:
        DatasetError: If it has no such split, or the folder of the data is not known.
    """
    arguments: dict[str, Any] = {}
    if "root" in parameters:
        place = os.environ.get(FOLDER_VARIABLE)
        if not place:
            raise DatasetError(
                f"The data set {source} must be in a folder that the environment variable "
                f"{FOLDER_VARIABLE} names, found it unset. Set it to the folder that torchvision "
                "downloads to."
            )
        arguments["root"] = os.path.abspath(user_path(place))
    known: tuple[str, ...] = ()
    if "train" in parameters:
        known = _TWO
        arguments["train"] = split == "train"
    elif "split" in parameters:
        known = _SPLITS.get(name, ())
        arguments["split"] = split
    if split is not None and split not in known and (known or "split" not in parameters):
        raise DatasetError(
            f"The data set {source} must be read by one of its splits, "
            f"{', '.join(known) or 'of which it has none'}, found {printable(split)!r}. Correct "
            "what stands after @."
        )
    if "download" in parameters:
        arguments["download"] = False
    return _Asked(name, tuple(arguments.items()))


def _open(asked: _Asked, source: str = "") -> Any:
    kind = getattr(importlib.import_module("torchvision.datasets"), asked.name)
    arguments = dict(asked.arguments)
    try:
        return kind(**arguments)
    except Exception as error:  # of several kinds, for what is not there or damaged
        said = " ".join(str(error).split())
        if "download" in arguments:
            step = f'download it: python -c "import torchvision; {asked.call(download=True)}"'
        else:
            step = "torchvision cannot download it, so its files must be put there by hand"
        raise DatasetError(
            f"The data set {source} must be in {arguments.get('root')!r} as torchvision stores it, "
            f"found {type(error).__name__}: {said}. If it is not there, {step}."
        ) from error


def _labels(data: Any, source: str) -> list[int]:
    """Return all labels, without the images if the data set has them apart.

    Raises:
        DatasetError: If a label is not one whole number.
    """
    count = len(data)
    found = next((v for n in _TARGETS if (v := getattr(data, n, None)) is not None), None)
    pairs = next((v for n in _PAIRS if (v := getattr(data, n, None)) is not None), None)
    if found is None and pairs is not None:
        found = [pair[1] for pair in pairs]
    try:
        if found is None or len(found) != count:
            found = [data[index][1] for index in range(count)]
        labels = [int(value) for value in found]
        ends = {0, count - 1} if count else set()
        wrong = [index for index in ends if int(data[index][1]) != labels[index]]
    except (TypeError, ValueError, IndexError) as error:
        raise DatasetError(
            f"The data set {source} must have one whole number as the label of each image, found "
            f"another form ({error}). Give the images in a manifest instead."
        ) from error
    if wrong:
        raise DatasetError(
            f"The data set {source} must have the labels of its images apart, found others for the "
            f"images {join_some(wrong)}. Use another version of torchvision."
        )
    return labels


def _files(data: Any) -> list[Path]:
    """Return the file of each image; nothing if they are not files."""
    found = next((v for n in _FILES if (v := getattr(data, n, None)) is not None), None)
    pairs = next((v for n in _PAIRS if (v := getattr(data, n, None)) is not None), None)
    if found is None and pairs is not None:
        found = [pair[0] for pair in pairs]
    if found is None or len(found) != len(data):
        return []
    if not all(isinstance(path, (str, os.PathLike)) for path in found):
        return []
    return [Path(path) for path in found]


def _below(path: Path, root: str | None) -> str:
    within = root is not None and path.is_relative_to(root)
    return printable((path.relative_to(root) if within else path).as_posix())  # type: ignore[arg-type]


_ONE_AT_A_TIME = threading.Lock()
"""Held while torchvision makes an image. Its data sets are made for processes, not for threads:
`FakeData` seeds the generator that all threads of a process share."""


class Images:
    """The images of a data set by number; pickles to what opens it, and opens it when used."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked
        self._opened: Any = None

    def __getstate__(self) -> _Asked:
        return self.asked

    def __setstate__(self, state: _Asked) -> None:
        self.__init__(state)  # type: ignore[misc]

    def image(self, index: int) -> Image.Image:
        """Return an image.

        Raises:
            UsageError: If torchvision has something else there.
        """
        with _ONE_AT_A_TIME:
            if self._opened is None:
                self._opened = _open(self.asked)
            image = self._opened[index][0]
        if not isinstance(image, Image.Image):
            raise UsageError(f"{self.asked.name} has {type(image).__name__}, not images")
        return image


@dataclass(frozen=True)
class IndexedImage:
    """Loads one image by its number."""

    images: Images
    index: int

    def __call__(self) -> Image.Image:
        """Return the image."""
        return self.images.image(self.index)
