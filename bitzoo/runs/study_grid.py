"""A study as data: a TOML file, and the grid of runs that it stands for.

    [grid]                  # every combination of these, with every seed
    norm = ["batch", "group"]
    seeds = [0, 1, 2]
    [data]                  # names for data sets, so that others can be put in their place
    own = "photos/"
    [pretrain]              # options of `bitzoo.pretrain` that all runs have in common
    arch = "R50x1"
    data = "own"
    [[transfer]]            # what each pre-trained network is tried on
    name = "few-shot"
    kind = "fewshot"
    data = "other-photos/"

Nothing here runs anything: the same file, scale and data always give the same cells.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitzoo.display import list_names
from bitzoo.errors import ArchitectureError, UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.runs.study_words import (
    AXIS_WORDS,
    EXECUTION,
    KINDS,
    OWN_WORDS,
    TOP_WORDS,
    options_of_kind,
)

SHIPPED = Path(__file__).with_name("studies")
"""The folder of the studies that come with the package."""

_MOST_CELLS = 10_000
"""Each is a training run: a grid of more is a slip, and its list would take the memory."""
_PLAIN = re.compile(r"[A-Za-z0-9._=,()+\- ]{1,120}")
"""Names that every file system takes as they are."""


@dataclass(frozen=True)
class Transfer:
    """What a pre-trained network is tried on.

    Attributes:
        name: What the table calls it.
        kind: One of `KINDS`, a function of the package.
        options: The function's options; `data` among them, but for `vtab`.
    """

    name: str
    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One pre-training run and its transfers.

    Attributes:
        values: Axis of the grid -> the cell's value on it, as text.
        seed: Seed of everything random in it.
        arch: The architecture's name.
        pretrain: Options of `bitzoo.pretrain` besides architecture, folder and seed.
        transfers: What follows.
    """

    values: Mapping[str, str]
    seed: int
    arch: str
    pretrain: Mapping[str, Any]
    transfers: tuple[Transfer, ...]

    @property
    def group(self) -> str:
        """Name of all cells that differ from it only in their seed; also that of a folder."""
        text = ",".join(f"{axis}={value}" for axis, value in self.values.items()) or "all"
        if _PLAIN.fullmatch(text):
            return text
        safe = re.sub(r"[^A-Za-z0-9._=,()+\- ]", "_", text)[:100]
        return f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """Name of the cell, and its folder below ``cells``."""
        return f"{self.group}/seed-{self.seed}"

    def plan(self) -> dict[str, Any]:
        """Return what determines its result, as JSON-ready data."""
        # What a batch norm computes depends on how many images it sees at once.
        neutral = EXECUTION - (
            {"micro_batch"} if Architecture.parse(self.arch).norm != "group" else set()
        )

        def without(options: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in options.items() if name not in neutral}

        plan = {
            "arch": self.arch,
            "seed": self.seed,
            "pretrain": without(self.pretrain),
            "transfers": {
                transfer.name: {"kind": transfer.kind, **without(transfer.options)}
                for transfer in self.transfers
            },
        }
        return dict(json.loads(json.dumps(plan)))


@dataclass(frozen=True)
class Published:
    """A figure that somebody published about a group of cells.

    Attributes:
        where: Axis -> value as text; the groups that it is about.
        metric: What was measured, by the name that the table has for it.
        value: The figure, in percent.
        source: Where it stands.
    """

    where: Mapping[str, str]
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class StudyPlan:
    """What a study's file says, at one of its scales.

    Attributes:
        name: The file's name without its ending.
        title: What it is called.
        about: What it shows, as sentences.
        scale: Which of its scales; None for the file as it is.
        remarks: What must be known of figures at this scale, as sentences.
        axes: The names of the grid's axes, in the order of the table.
        cells: All cells, seeds of a group one after the other.
        published: Figures of others.
        claims: What others say without a figure, with the source.
    """

    name: str
    title: str
    about: str
    scale: str | None
    remarks: tuple[str, ...]
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    published: tuple[Published, ...]
    claims: tuple[str, ...]

    def cell(self, name: str) -> Cell:
        """Return a cell by its name.

        Raises:
            UsageError: If there is none of this name.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        names = [cell.name for cell in self.cells]
        near = difflib.get_close_matches(name, names, 3, 0.3) or names[:3]
        raise UsageError(f"The study has no cell {name!r}. Some that it has: {'; '.join(near)}.")


def shipped_studies() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_study(file: str) -> Path:
    """Return the file of a study.

    Args:
        file: A path, or the name of a study that comes with the package.

    Raises:
        UsageError: If there is neither.
    """
    if file in shipped_studies() and not Path(file).is_file():
        return SHIPPED / f"{file}.toml"
    if not Path(file).is_file():
        raise UsageError(
            f"{file}: expected a TOML file, or one of the studies that come with bitzoo "
            f"({', '.join(shipped_studies())}); found neither."
        )
    return Path(file)


def plan_study(
    name: str,
    document: Mapping[str, Any],
    *,
    scale: str | None = None,
    data: Mapping[str, str] | None = None,
) -> StudyPlan:
    """Expand a study.

    Args:
        name: What the file is called.
        document: Its content.
        scale: Name of the scale; None for the file as it is.
        data: Name in ``[data]`` -> the source to use in place of what stands there.

    Raises:
        UsageError: If the file is no study; the message says which key, what was expected, and what
            was found.
    """
    _known(document, TOP_WORDS, name)
    scales = _table(document, "scales", name)
    if scale is not None and scale not in scales:
        has = f"it has {list_names(list(scales))}" if scales else "it has none"
        raise UsageError(
            f"{name}: expected a scale of the study in `scale`, found {scale!r}; {has}."
        )
    base = {key: value for key, value in document.items() if key != "scales"}
    scaled = scales[scale] if scale is not None else {}
    if not isinstance(scaled, Mapping):
        raise _wrong(name, f"scales.{scale}", "a table", scaled)
    remarks = _texts(scaled, "remarks", f"{name}: scales.{scale}")
    _known(scaled, (TOP_WORDS - {"scales"}) | {"remarks"}, f"{name}: scales.{scale}")
    merged = _merged(base, {key: value for key, value in scaled.items() if key != "remarks"})
    sources = _sources(merged, data or {}, name)
    axes, seeds = _axes(_table(merged, "grid", name), name)
    common = dict(_table(merged, "pretrain", name))
    transfers = tuple(_transfers(merged, name))
    cells = [
        _cell(name, common, transfers, chosen, seed, sources)
        for chosen, seed in _combinations(axes, seeds, _list(merged, "exclude", name), name)
    ]
    _require_distinct(cells, name)
    claims = (_claim(entry, name) for entry in _list(merged, "claim", name))
    return StudyPlan(
        name,
        _text_at(merged, "title", name) or name,
        " ".join(_text_at(merged, "about", name).split()),
        scale,
        tuple(remarks),
        tuple(axes),
        tuple(cells),
        tuple(_published(entry, axes, name) for entry in _list(merged, "published", name)),
        tuple(claims),
    )


# --- the grid -------------------------------------------------------------------------------------

_Options = Mapping[str, Any]
_Value = tuple[str, _Options]
"""A value on an axis: as text, and the options that it stands for."""


def _axes(grid: Mapping[str, Any], name: str) -> tuple[dict[str, list[_Value]], list[int]]:
    axes = {axis: _values(axis, found, name) for axis, found in grid.items() if axis != "seeds"}
    seeds = grid.get("seeds", [0])
    if type(seeds) is int and 0 < seeds <= _MOST_CELLS:
        seeds = list(range(seeds))
    if not (isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)):
        raise _wrong(name, "grid.seeds", "a number of seeds, or a list of whole numbers", seeds)
    if len(set(seeds)) < len(seeds):
        raise _wrong(name, "grid.seeds", "every seed once", seeds)
    count = math.prod([len(seeds), *map(len, axes.values())])
    if count > _MOST_CELLS:
        raise UsageError(
            f"{name}: expected at most {_MOST_CELLS:,} cells in the grid, found {count:,}. Leave "
            "out values, or make several studies of it."
        )
    return axes, seeds


def _values(axis: str, found: object, name: str) -> list[_Value]:
    if not isinstance(found, list) or not found:
        raise _wrong(name, f"grid.{axis}", "a list of values", found)
    values: list[_Value] = []
    for value in found:
        if isinstance(value, Mapping):
            label = value.get("name")
            if not isinstance(label, str) or not label or len(value) < 2:
                raise _wrong(name, f"grid.{axis}", "tables with a `name` and options", value)
            options = {key: each for key, each in value.items() if key != "name"}
            _require_options(options, f"{name}: grid.{axis}")
            values.append((label, options))
        else:
            _require_options({axis: value}, f"{name}: grid")
            values.append((as_text(value), {axis: value}))
    texts = [text for text, _ in values]
    if len(set(texts)) < len(texts):
        raise _wrong(name, f"grid.{axis}", "every value once", texts)
    return values


def _require_options(options: _Options, where: str) -> None:
    _known(options, AXIS_WORDS | options_of_kind("pretrain"), where)


def _combinations(
    axes: Mapping[str, list[_Value]], seeds: Sequence[int], exclude: Sequence[Any], name: str
) -> Iterator[tuple[dict[str, _Value], int]]:
    """Yield all combinations but those that are excluded, seeds innermost."""
    unwanted = [_where(entry, {*axes, "seed"}, f"{name}: exclude") for entry in exclude]
    used = [False] * len(unwanted)
    found = 0
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        for seed in seeds:
            texts = {axis: text for axis, (text, _) in chosen.items()} | {"seed": str(seed)}
            hits = [all(texts[k] == v for k, v in entry.items()) for entry in unwanted]
            used = [before or hit for before, hit in zip(used, hits, strict=True)]
            if not any(hits):
                found += 1
                yield chosen, seed
    if not all(used):
        idle = unwanted[used.index(False)]
        raise _wrong(name, "exclude", "tables that each match a cell", idle)
    if not found:
        raise UsageError(f"{name}: `exclude` leaves no cell of the grid.")


def _cell(
    name: str,
    common: _Options,
    transfers: Sequence[Transfer],
    chosen: Mapping[str, _Value],
    seed: int,
    sources: Mapping[str, str],
) -> Cell:
    options = dict(common)
    for _, of_value in chosen.values():
        options |= of_value
    _require_options(options, f"{name}: pretrain")
    norm = {key: options.pop(key) for key in ("norm", "weight_standardization") if key in options}
    arch = options.pop("arch", None)
    if not isinstance(arch, str):
        raise _wrong(name, "pretrain.arch", "the name of an architecture, as R50x1", arch)
    try:
        architecture = replace(Architecture.parse(arch), **norm)
    except ArchitectureError as error:
        raise UsageError(f"{name}: pretrain: {error}") from error
    options["data"] = _source(options.get("data"), sources, f"{name}: pretrain.data")
    own = tuple(
        replace(
            transfer,
            options={
                **transfer.options,
                "data": _source(
                    transfer.options.get("data"), sources, f"{name}: transfer {transfer.name}"
                ),
            },
        )
        if KINDS[transfer.kind].takes_data
        else transfer
        for transfer in transfers
    )
    values = {axis: text for axis, (text, _) in chosen.items()}
    return Cell(values, seed, architecture.name, _plain(options), own)


def _plain(options: _Options) -> dict[str, Any]:
    """Return options as the functions take them: a resolution of two numbers is a tuple."""
    return {
        k: tuple(v) if k == "resolution" and isinstance(v, list) else v for k, v in options.items()
    }


def _require_distinct(cells: Sequence[Cell], name: str) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        key = json.dumps(cell.plan(), sort_keys=True)
        if key in seen:
            raise UsageError(
                f"{name}: the cells {seen[key].name} and {cell.name} would be the same run. Leave "
                "one out, by `exclude` or another grid."
            )
        seen[key] = cell


# --- parts of the file ----------------------------------------------------------------------------


def _transfers(document: Mapping[str, Any], name: str) -> Iterator[Transfer]:
    names: list[str] = []
    for entry in _list(document, "transfer", name):
        if not isinstance(entry, Mapping):
            raise _wrong(name, "transfer", "tables", entry)
        kind = entry.get("kind")
        if kind not in KINDS or kind == "pretrain":
            kinds = [known for known in KINDS if known != "pretrain"]
            raise _wrong(name, "transfer.kind", f"one of {', '.join(kinds)}", kind)
        own = entry.get("name", kind)
        if not isinstance(own, str) or not _PLAIN.fullmatch(own) or own in (*names, *OWN_WORDS):
            raise _wrong(name, "transfer.name", "a short name, each once", own)
        names.append(own)
        options = {key: value for key, value in entry.items() if key not in ("kind", "name")}
        _known(options, options_of_kind(kind), f"{name}: transfer {own!r}")
        yield Transfer(own, kind, _plain(options))


def _sources(document: Mapping[str, Any], given: Mapping[str, str], name: str) -> dict[str, str]:
    sources = _table(document, "data", name)
    for key, value in sources.items():
        if not isinstance(value, str):
            raise _wrong(name, f"data.{key}", "the source of a data set, as text", value)
    for key in given:
        if key not in sources:
            raise UsageError(
                f"{name} has no data called {key!r} that `data` could replace; it has "
                f"{list_names(list(sources)) or 'none'}."
            )
    return {**sources, **given}


def _source(found: object, sources: Mapping[str, str], where: str) -> str:
    if not isinstance(found, str) or not found:
        raise UsageError(f"{where}: expected a data set, found {found!r:.80}.")
    source = sources.get(found, found)
    if not source:
        raise UsageError(
            f"{where}: the study needs the data {found!r}, which nobody can get by a name. Give "
            f"yours with `data`, as {found}=SOURCE."
        )
    return source


def _published(entry: object, axes: Mapping[str, Any], name: str) -> Published:
    where = f"{name}: published"
    if not isinstance(entry, Mapping):
        raise _wrong(name, "published", "tables", entry)
    _known(entry, frozenset({"where", "metric", "value", "source"}), where)
    value, metric, source = (entry.get(key) for key in ("value", "metric", "source"))
    if (
        type(value) not in (int, float)
        or not isinstance(metric, str)
        or not isinstance(source, str)
    ):
        raise _wrong(name, "published", "`metric`, `value` in percent, and `source`", dict(entry))
    assert isinstance(value, (int, float))
    return Published(_where(entry.get("where", {}), set(axes), where), metric, float(value), source)


def _claim(entry: object, name: str) -> str:
    if not isinstance(entry, Mapping) or not all(
        isinstance(entry.get(key), str) for key in ("text", "source")
    ):
        raise _wrong(name, "claim", "tables with `text` and `source`", entry)
    return f"{' '.join(entry['text'].split())} ({entry['source']})"


def _where(entry: object, axes: set[str], where: str) -> dict[str, str]:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where}: expected a table of axes and values, found {entry!r:.80}.")
    _known(entry, frozenset(axes), where)
    return {axis: as_text(value) for axis, value in entry.items()}


def as_text(value: object) -> str:
    """Return a value on an axis as the table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(as_text, value))
    return str(value)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables merged key by key; everything else is replaced, lists as a whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _known(found: Mapping[str, Any], words: frozenset[str], where: str) -> None:
    for word in found:
        if word not in words:
            near = difflib.get_close_matches(word, words, 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"{where}: {word!r:.80} is not known here.{hint}")


def _table(document: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    found = document.get(key, {})
    if not isinstance(found, Mapping):
        raise _wrong(name, key, "a table", found)
    return found


def _list(document: Mapping[str, Any], key: str, name: str) -> list[Any]:
    found = document.get(key, [])
    if not isinstance(found, list):
        raise _wrong(name, key, f"a list of tables, [[{key}]]", found)
    return found


def _texts(document: Mapping[str, Any], key: str, where: str) -> list[str]:
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(f"{where}: expected a list of sentences in {key}, found {found!r:.80}.")
    return [" ".join(text.split()) for text in found]


def _text_at(document: Mapping[str, Any], key: str, name: str) -> str:
    found = document.get(key, "")
    if not isinstance(found, str):
        raise _wrong(name, key, "text", found)
    return found


def _wrong(name: str, key: str, expected: str, found: object) -> UsageError:
    return UsageError(f"{name}: expected {expected} in {key}, found {found!r:.120}.")
