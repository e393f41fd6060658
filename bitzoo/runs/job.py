"""What a run is asked to do, and its form in `run.json`, from which `resume` does it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bitzoo.data.readers import DataSource
from bitzoo.data.source_names import HF, TAR, library_of, parse, parts_of
from bitzoo.errors import UsageError, damage_reported
from bitzoo.files import user_path
from bitzoo.runs.config import FinetuneConfig, RunConfig
from bitzoo.runs.teachers import Faculty
from bitzoo.zoo.resolve import is_location


@dataclass(frozen=True)
class Job:
    """What a run is asked to do.

    Attributes:
        model: What training starts from, as the user named it: a model, or an architecture.
        data: The data, in any form that `finetune` takes.
        config: All other options.
        place: Where the model is now, if that is another path than `model`.
        data_name: The data set's name in reports, if it was named before.
        faculty: The teachers, once they are loaded; None for runs without any.
    """

    model: str
    data: DataSource
    config: RunConfig
    place: str | None = None
    data_name: str | None = None
    faculty: Faculty | None = field(default=None, repr=False, compare=False)

    @property
    def _is_a_place(self) -> bool:
        return self.config.starts_from_weights and is_location(self.model)

    def to_dict(self, data_name: str) -> dict[str, Any]:
        """Return JSON-ready data, with absolute paths; data in memory are None."""
        return {
            "model": _absolute(self.place or self.model) if self._is_a_place else self.model,
            "data": place_of(self.data),
            "data_name": data_name,
            "config": asdict(self.config),
        }

    @classmethod
    def from_dict(
        cls,
        where: Path,
        model: object,
        options: object,
        data: DataSource | None = None,
        kind: type[RunConfig] = FinetuneConfig,
    ) -> Job:
        """Return the job that `to_dict` described.

        Args:
            where: The file that has it, for errors.
            model: The model as the user named it.
            options: The result of `to_dict`.
            data: Where the data are now; None for where they were.
            kind: Class of the options.

        Raises:
            CheckpointError: If `options` is something else.
            UsageError: If the data were in memory, or are not where they were.
        """
        advice = (
            "Use `bitzoo finetune --resume` with the options that the run was started with, if it "
            "is of an earlier version."
        )
        with damage_reported(where, "all options of a run", advice):
            if not isinstance(options, Mapping) or not isinstance(model, str):
                raise TypeError("there are none")
            config, place = _config(options["config"], kind), options["model"]
            before, name = options["data"], options["data_name"]
            parts = before.values() if isinstance(before, Mapping) else [before]
            for text in (place, name, *([] if before is None else parts)):
                if not isinstance(text, str):
                    raise TypeError(f"expected text, found {text!r:.80}")
        if data is None:
            data = _still_there(where.parent, before)
        return cls(model, data, config, place, name)


def _config(record: Mapping[str, Any], kind: type[RunConfig]) -> RunConfig:
    known = {option.name: option.default for option in fields(kind)}
    for name, value in record.items():
        if name not in known:
            raise KeyError(f"unknown option {name!r:.80}")
        if isinstance(known[name], tuple):
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise TypeError(f"option {name} must be a list of texts, found {value!r:.80}")
            continue
        usual = type(known[name])
        if value is not None and known[name] is not None and not _is_a(value, usual):
            raise TypeError(f"option {name} must be {usual.__name__}, found {value!r:.80}")
    size = record.get("resolution")
    lists = {name: tuple(record[name]) for name in record if isinstance(known[name], tuple)}
    size = tuple(size) if isinstance(size, list) else size
    return kind(**{**record, **lists, "resolution": size})


def _is_a(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _absolute(path: str) -> str:
    """Return where a local file or folder is, whatever the working folder; addresses stay."""
    place = user_path(path)
    return os.path.abspath(place) if place.exists() else path


def place_of(data: DataSource) -> str | dict[str, str] | None:
    """Return where data are, or each of their splits; None if that cannot be written down."""
    if isinstance(data, (str, os.PathLike)):
        return _data_place(os.fspath(data))
    if isinstance(data, Mapping):
        places = {str(split): place_of(part) for split, part in data.items()}
        found = {split: place for split, place in places.items() if isinstance(place, str)}
        return found if len(found) == len(data) else None
    return None


def _data_place(source: str) -> str:
    if parts := parts_of(source):
        return ",".join(f"{split}={_data_place(name)}" for split, name in parts.items())
    if library_of(source) is None:
        return _absolute(source)
    name = parse(source)
    if name.library == TAR:  # a pattern, of which nothing may exist
        return source.replace(name.name, os.path.abspath(user_path(name.name)), 1)
    if name.library != HF or not os.path.exists(name.name):
        return source
    return source.replace(name.name, _absolute(name.name), 1)


def _still_there(run: Path, data: str | Mapping[str, str] | None) -> DataSource:
    if data is None:
        raise UsageError(
            f"{run} was trained on data that were in memory, which `bitzoo resume` cannot read "
            "again. Call `bitzoo.resume(folder, data=...)` in Python with the same data."
        )
    for place in data.values() if isinstance(data, Mapping) else [data]:
        if not (library_of(place) or parts_of(place) or os.path.exists(place)):
            raise UsageError(
                f"{run} was trained on {place}, where nothing is now. Give its new place with "
                "`data`; the images, labels and splits must be the same."
            )
    return data
