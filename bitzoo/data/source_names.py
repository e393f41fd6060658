"""Names of data sets that libraries manage: `tfds:dtd@train[:800]`, `hf:beans@train`.

The grammar is `LIBRARY:NAME[/CONFIG][:VERSION][@SPLIT][?image=COLUMN&label=COLUMN]`. Only TFDS has
versions. `tar:SHARDS[@SPLIT]` names shards, see `tar_shards`. Splits of several such names are
joined as `train=NAME,test=NAME`. What a name means is for the library's reader to say; here it is
only taken apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitzoo.data.problems import DatasetError, printable

TFDS, HF, TORCHVISION, VTAB, TAR = "tfds:", "hf:", "torchvision:", "vtab:", "tar:"
PREFIXES = (TFDS, HF, TORCHVISION, VTAB, TAR)
"""What the names of data sets begin with that are no paths."""

_TFDS_NAME = re.compile(
    r"(?P<name>\w+)(?:/(?P<config>[^:@\s]+))?(?::(?P<version>[\d*]+(?:\.[\d*]+){2}))?"
)
_PART = re.compile(rf"\w+=(?:{'|'.join(PREFIXES)})")
_NEXT = re.compile(rf",(?={_PART.pattern})")
_NO_LIBRARY = re.compile(r",(?P<part>\w+=[^,]*)")
_COLUMNS = ("image", "label")
_SPLIT = re.compile(r"\w+")


@dataclass(frozen=True)
class SourceName:
    """The parts of a data set's name.

    Attributes:
        library: One of `PREFIXES`.
        name: The library's name of the data set; for `hf:` also a folder; for `tar:` a folder or a
            pattern of paths.
        config: Its variant; None if none is named.
        version: Its version, each part a number or `*`; None if none is named.
        split: The part of it, in the library's language; None for all splits.
        image: Name of the column with the images; None if none is named.
        label: Name of the column with the labels; None if none is named.
    """

    library: str
    name: str
    config: str | None = None
    version: str | None = None
    split: str | None = None
    image: str | None = None
    label: str | None = None


def parts_of(text: str) -> dict[str, str]:
    """Return split -> name, of a text that names them apart: `train=tfds:A@x,test=tfds:B@y`.

    Returns:
        The names; nothing for any other text.

    Raises:
        DatasetError: If a split occurs twice, or is not of a library beside others that are.
    """
    pieces = _NEXT.split(text)
    if not all(map(_PART.match, pieces)):
        return {}
    if other := next(filter(None, map(_NO_LIBRARY.search, pieces)), None):
        raise DatasetError(
            f"The data set {printable(text)!r} must name each split by one of "
            f"{', '.join(PREFIXES)}, found {printable(other['part'])!r}. From Python, a mapping "
            "of splits may have folders and manifests too."
        )
    parts = dict(piece.split("=", 1) for piece in pieces)
    if len(parts) < len(pieces):
        raise DatasetError(f"The data set {printable(text)!r} must name each split once.")
    return parts


def library_of(text: str) -> str | None:
    """Return the prefix of a library's data set, one of `PREFIXES`; None for a path."""
    return next((prefix for prefix in PREFIXES if text.startswith(prefix)), None)


def parse(text: str) -> SourceName:
    """Take a name apart that begins with one of `PREFIXES`.

    Raises:
        DatasetError: If it does not follow the grammar.
    """
    library = library_of(text)
    if library is None:
        raise ValueError(f"{text!r} begins with none of {PREFIXES}")
    if library == TAR:
        return _shards(text)
    rest, columns = _columns(text.removeprefix(library), text)
    if library == HF and Path(rest).exists():  # a folder's name may have any character in it
        return SourceName(library, rest, **columns)
    rest, at, split = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not rest or (at and not split):
        raise _malformed(text, "a name, and a split after @")
    parts: dict[str, Any] = {"split": split or None, **columns}
    if library == HF:
        return SourceName(library, *_name_and_config(rest), **parts)
    if library == TFDS:
        match = _TFDS_NAME.fullmatch(rest)
        if match is None:
            raise _malformed(text, f"{TFDS}NAME[/CONFIG][:VERSION][@SPLIT]")
        return SourceName(library, **match.groupdict(), **parts)
    if library == VTAB:
        return SourceName(library, rest, **parts)
    if not rest.isidentifier():
        raise _malformed(text, f"{TORCHVISION}NAME[@SPLIT], NAME a class in torchvision.datasets")
    return SourceName(library, rest, **parts)


def _shards(text: str) -> SourceName:
    """Take `tar:PATTERN@SPLIT` apart; paths may have any of the other marks in them."""
    rest = text.removeprefix(TAR)
    before, _, split = rest.rpartition("@")
    if before and _SPLIT.fullmatch(split) and not Path(rest).exists():
        rest = before
    else:
        split = ""
    if not rest:
        raise _malformed(text, f"{TAR}SHARDS[@SPLIT], such as tar:data/train-{{000..127}}.tar")
    return SourceName(TAR, rest, split=split or None)


def _columns(rest: str, text: str) -> tuple[str, dict[str, Any]]:
    rest, mark, asked = rest.partition("?")
    columns: dict[str, Any] = {}
    for part in asked.split("&") if mark else ():
        column, _, value = part.partition("=")
        if column not in _COLUMNS or not value or column in columns:
            raise _malformed(text, "image=COLUMN or label=COLUMN after ?, joined by &")
        columns[column] = value
    return rest, columns


def _name_and_config(rest: str) -> tuple[str, str | None]:
    """Take `OWNER/NAME/CONFIG` or `FOLDER/CONFIG` apart; of two words, the first is the owner."""
    if Path(rest).exists():
        return rest, None
    folder, _, config = rest.rpartition("/")
    if folder and (Path(folder).is_dir() or folder.count("/") == 1):
        return folder, config
    return rest, None


def _malformed(text: str, expected: str) -> DatasetError:
    return DatasetError(
        f"The data set {printable(text)!r} must be named by {expected}. Examples: "
        "tfds:dtd@train[:800], tfds:eurosat/rgb:2.0.0, hf:uoft-cs/cifar100@train?label=fine_label, "
        "torchvision:CIFAR10@test, vtab:clevr-count, tar:shards/train-{000..127}.tar."
    )
