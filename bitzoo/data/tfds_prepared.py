"""Find data sets that TensorFlow Datasets has prepared on this disk; say what prepares the others.

Nothing is downloaded or prepared here. A data set is found by its files, whatever versions the
installed TFDS would prepare today: what was prepared with an older one stays readable.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitzoo.data.problems import DatasetError, join_some, printable
from bitzoo.data.source_names import TFDS
from bitzoo.errors import MissingExtraError, damage_reported
from bitzoo.small_files import read_json

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FILES = ("dataset_info.json", "features.json")
"""What TFDS writes beside the records of every data set."""
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_OWN_MODULES = "tensorflow_datasets."
_RANDOM_ACCESS = "array_record"


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        name: Its name, with its config.
        builder: TFDS's builder of it.
        folder: The folder of its files; "" for a builder that makes records up in memory.
        notes: What was chosen for the user.
    """

    name: str
    builder: Any
    folder: str
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Its name with the version, as the user would ask for it."""
        return f"{TFDS}{self.name}:{self.builder.version}"


def tfds_library() -> Any:
    """Import TensorFlow Datasets, which imports TensorFlow only for what needs it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        importlib.import_module("array_record")
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {TFDS} data sets needs TensorFlow Datasets and array_record, and "
            f"{error.name} is not installed. Install them: pip install 'bitzoo[tfds]'. TensorFlow "
            "itself is not needed."
        ) from error


def find_prepared(name: str, versions: Sequence[str] = ()) -> Prepared:
    """Return a prepared data set.

    Args:
        name: Its name, with or without a config.
        versions: Accepted versions, best first, each part a number or `*`; () for the newest.

    Raises:
        DatasetError: If it is not prepared, not in such a version, or not for random access.
        MissingExtraError: If TFDS is not installed.
    """
    library = tfds_library()
    places = _data_folders()
    name, notes = _with_config(name, places)
    there = _versions(name, places)
    if not there:
        _require_known(library, name, places)
        builder = _in_memory(library, name)
        if builder is None:
            raise _unprepared(library, name, versions, places)
        return Prepared(name, builder, "")
    version = _choose(list(there), versions)
    if version is None:
        raise DatasetError(
            f"{TFDS}{name} must be prepared in the version {' or '.join(versions)}, found "
            f"{', '.join(there)} in {_shown(places)}. Ask for one of these, or prepare the other: "
            f"{preparation_command(name, versions)}."
        )
    if len(there) > 1 and not versions:
        others = [other for other in there if other != version]
        notes += (f"Of {name}, {version} is read, the newest; also prepared: {join_some(others)}.",)
    folder = there[version]
    advice = "Prepare it again, or restore it."
    with damage_reported(folder, "a data set prepared by TFDS", advice, DatasetError):
        builder = open_builder(folder)
        formats = {str(found.value) for found in builder.info.available_file_formats()}
    if _RANDOM_ACCESS not in formats:
        raise DatasetError(
            f"{TFDS}{name}:{version} must be prepared as ArrayRecord files, which can be read in "
            f"any order, found {', '.join(sorted(formats))} files in {printable(str(folder))!r}. "
            "Move this folder away and prepare it anew; what was downloaded for it is used again: "
            f"{preparation_command(name, versions)}."
        )
    return Prepared(name, builder, os.fspath(folder), notes)


def open_builder(folder: str | os.PathLike[str]) -> Any:
    """Return TFDS's builder of a prepared data set, without importing what its files name.

    TFDS imports the module of every class that `features.json` names, and a data set may be from
    anywhere: only TFDS's own are left to it, and those of modules that the user has imported.

    Raises:
        DatasetError: If it names another one.
        Exception: Of several kinds, if it cannot be read.
    """
    place = Path(folder) / _FILES[1]
    for name in _class_names(read_json(place)):
        module = name.rpartition(".")[0]
        if not module.startswith(_OWN_MODULES) and module not in sys.modules:
            raise DatasetError(
                f"{place}: expected features of TensorFlow Datasets, found {name!r:.80}, whose "
                "module TFDS would import. If you trust it, import it before, in Python."
            )
    return tfds_library().builder_from_directory(folder)


def _class_names(content: Any) -> Iterator[str]:
    """Yield what stands where `features.json` names a class, in its present and its old form."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _CLASS_KEYS and isinstance(value, str):
                yield value
            yield from _class_names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _class_names(value)


def _data_folders() -> list[Path]:
    """Return the folders in which TFDS keeps data sets, by the environment as it is now."""
    files = importlib.import_module("tensorflow_datasets.core.utils.file_utils")
    own = os.environ.get("TFDS_DATA_DIR")
    listed = [*([own] if own else ()), *map(os.fspath, files.list_data_dirs())]
    return list(dict.fromkeys(Path(folder).expanduser() for folder in listed))


def _versions(name: str, places: Sequence[Path]) -> dict[str, Path]:
    """Return the prepared versions and their folders, the newest first."""
    found: dict[str, Path] = {}
    for place in places:
        for folder in _folders(place / name):
            if _VERSION.fullmatch(folder.name) and all((folder / f).is_file() for f in _FILES):
                found.setdefault(folder.name, folder)
    return dict(sorted(found.items(), key=lambda item: _as_numbers(item[0]), reverse=True))


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(folder for folder in place.iterdir() if folder.is_dir())
    except OSError:
        return []


def _choose(there: Sequence[str], versions: Sequence[str]) -> str | None:
    """Return the version to read, of those that are there, the newest first."""
    wanted = (
        version for pattern in versions or "*" for version in there if _fits(version, pattern)
    )
    return next(wanted, None)


def _fits(version: str, pattern: str) -> bool:
    return fnmatchcase(version, pattern)


def _with_config(name: str, places: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """Add the config to a name without one, if the data set is prepared in only one.

    Raises:
        DatasetError: If it is prepared in several.
    """
    if "/" in name or _versions(name, places):
        return name, ()
    configs = dict.fromkeys(
        folder.name
        for place in places
        for folder in _folders(place / name)
        if _versions(f"{name}/{folder.name}", places)
    )
    if len(configs) > 1:
        raise DatasetError(
            f"{TFDS}{name} is prepared in several variants, found {join_some(list(configs), 20)}. "
            f"Choose one: {TFDS}{name}/{next(iter(configs))}."
        )
    for config in configs:
        return f"{name}/{config}", (f"Of {name}, the variant {config} is read, the only one here.",)
    return name, ()


def _in_memory(library: Any, name: str) -> Any:
    """Return a builder that has records without files; None if there is none.

    `tfds.testing.mock_data` makes such builders, with which whole programs are tested.
    """
    try:
        builder = library.builder(name)
        return builder if len(builder.as_data_source("train")) else None
    except Exception:  # of an unprepared or unknown data set, whatever shows it first
        return None


def _unprepared(
    library: Any, name: str, versions: Sequence[str], places: Sequence[Path]
) -> DatasetError:
    shown = f"{TFDS}{name}" + (f" in the version {' or '.join(versions)}" if versions else "")
    by_hand = library.builder_cls(name.partition("/")[0]).MANUAL_DOWNLOAD_INSTRUCTIONS
    more = (
        "Some of its files must be downloaded by hand before that, as the command will say."
        if by_hand
        else "This downloads it."
    )
    return DatasetError(
        f"{shown} must be prepared in {_shown(places)} (TFDS_DATA_DIR), found nothing there. "
        f"Prepare it once: {preparation_command(name, versions)}. {more}"
    )


def _require_known(library: Any, name: str, places: Sequence[Path]) -> None:
    """Raise if TFDS cannot prepare a data set of that name; its community's are not looked up."""
    top, _, config = name.partition("/")
    known = library.list_builders(with_community_datasets=False)
    if top not in known:
        near = difflib.get_close_matches(top, known, 3)
        meant = f"Did you mean {' or '.join(near)}?" if near else "Check the name."
        raise DatasetError(
            f"{TFDS}{name} must be the name of a data set that is prepared in {_shown(places)} "
            f"(TFDS_DATA_DIR) or that TFDS can prepare, found neither. {meant}"
        )
    configs = [found.name for found in library.builder_cls(top).BUILDER_CONFIGS]
    if config and config not in configs:
        there = join_some(configs, 20) or "it has none"
        raise DatasetError(
            f"{TFDS}{name} must name a variant of {top} that is prepared in {_shown(places)} "
            f"(TFDS_DATA_DIR) or that TFDS can prepare ({there}), found {config!r}. Check the name."
        )


def preparation_command(name: str, versions: Sequence[str] = ()) -> str:
    """Return the shell command that downloads and prepares a data set.

    Args:
        name: Its name, with its config.
        versions: Accepted versions, best first; the first that TFDS can prepare is named.
    """
    offered = _offered(name)  # of older versions, only files that are there already can be read
    exact = next((f":{version}" for version in versions if version in offered), "")
    call = f"tfds.builder('{name}{exact}', file_format='{_RANDOM_ACCESS}').download_and_prepare()"
    return f'python -c "import tensorflow_datasets as tfds; {call}"'


def _offered(name: str) -> set[str]:
    """Return the versions that the installed TFDS can prepare."""
    top, _, config = name.partition("/")
    try:
        kind = tfds_library().builder_cls(top)
        own = [one.version for one in kind.BUILDER_CONFIGS if one.name == config]
        return {str(version) for version in (kind.VERSION, *kind.SUPPORTED_VERSIONS, *own)}
    except Exception:  # of an unknown data set, or a builder of another kind
        return set()


def _shown(places: Sequence[Path]) -> str:
    return " or ".join(repr(printable(os.fspath(place))) for place in places)
