"""List tar shards in the WebDataset layout: indexed once, then read in any order.

`tar:shards/train-{000..127}.tar`, `tar:shards/*.tar` and `tar:shards` (a folder) name shards. They
are read through once, header by header, and what is found is kept in the cache: 40 bytes a record.
A shard is read again if its size, time or inode has changed. What a record is, says `tar_records`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.data.array_files import Array, read_arrays, write_arrays
from bitzoo.data.examples import RowTable
from bitzoo.data.file_ranges import ChangedFileError, FileIdentity, FileRange, StoredImage
from bitzoo.data.folder import Listing, Load, order_classes
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.record_table import Records, RecordTable
from bitzoo.data.source_names import TAR, SourceName
from bitzoo.data.split_names import resolve_splits
from bitzoo.data.tar_members import BLOCK
from bitzoo.data.tar_records import ShardRecords, read_shard
from bitzoo.errors import StorageError
from bitzoo.files import Progress, cache_dir, user_path
from bitzoo.locks import file_lock

TASK = "indexing shards"
"""The task that `progress` is called with: bytes of the shards that were not indexed yet."""
_FORM = 1
"""Part of the names of the kept indexes; to change with what they hold."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A shard that was indexed.

    Attributes:
        path: The file.
        name: Its display name, which no other shard has.
        identity: What the file was when it was indexed.
        count: Number of its records.
        digest: Of the names, places, sizes and labels of its records.
        others: Number of members that are of no record.
        problems: What cannot be used: the reason, the subject and the detail of each.
    """

    path: str
    name: str
    identity: FileIdentity
    count: int
    digest: str
    others: int = 0
    problems: tuple[tuple[str, str, str], ...] = ()


class TarRecords(Records):
    """The records of indexed shards.

    Args:
        shards: The shards, in order.
        arrays: `blocks`, `sizes`, `keys` and `key_ends` of all records, shard after shard; the
            ends count from the shard's first key.
    """

    def __init__(self, shards: Sequence[Shard], arrays: Mapping[str, Array]) -> None:
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.count for shard in shards])
        self._arrays = arrays
        lengths = [0]
        for end, shard in zip(self._ends.tolist(), shards, strict=True):
            lengths.append(int(arrays["key_ends"][end - 1]) if shard.count else 0)
        self._key_starts = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle to the places of the shards: another process maps the same index."""
        return _reopened, (
            [shard.path for shard in self._shards],
            [shard.name for shard in self._shards],
            self.digest,
        )

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right"))

    def key(self, number: int) -> str:
        """Return `SHARD/KEY`."""
        shard = self._shard_of(number)
        first = number == (self._ends[shard - 1] if shard else 0)
        ends, start = self._arrays["key_ends"], int(self._key_starts[shard])
        begin = 0 if first else int(ends[number - 1])
        key = bytes(self._arrays["keys"][start + begin : start + int(ends[number])])
        return f"{self._shards[shard].name}/{printable(key.decode())}"

    def load(self, number: int) -> Load:
        """Return what reads the image from its shard, in any thread or process."""
        shard = self._shards[self._shard_of(number)]
        offset = int(self._arrays["blocks"][number]) * BLOCK
        size = int(self._arrays["sizes"][number])
        return StoredImage(FileRange(shard.path, offset, size, shard.identity))

    def sizes(self, numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Return how many bytes the images have."""
        sizes: npt.NDArray[np.int64] = self._arrays["sizes"][numbers].astype(np.int64)
        return sizes

    @property
    def digest(self) -> str:
        """A digest of the shards' names and sizes and of what their headers and labels say."""
        known = [[shard.name, shard.identity.size, shard.digest] for shard in self._shards]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def read_shards(name: SourceName, progress: Progress | None = None) -> Listing:
    """List the records of shards.

    If the names of the shards, without their numbers, mean several splits, the rows have these.

    Args:
        name: A name with `TAR`.
        progress: Called with `TASK`, bytes done and in all, while shards are indexed.

    Raises:
        DatasetError: If there are no such shards, one cannot be opened, or there is no such split.
    """
    paths = list(dict.fromkeys(map(os.path.abspath, find_shards(str(user_path(name.name))))))
    shown = _shown_names(paths)
    splits = _splits(paths)
    if name.split is not None:
        paths = _of_split(paths, splits, name)
        splits = {}
    shards, arrays, names = _index(paths, [shown[path] for path in paths], progress)
    classes = order_classes(names)
    order = {label: number for number, label in enumerate(classes)}
    index = np.array([order[label] for label in names], np.int32)
    records = TarRecords(shards, arrays)
    values, counts = index[arrays["labels"]], arrays.get("label_counts")
    several = None
    if counts is not None:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        several, values = LabelSets(values, offsets), values[offsets[:-1]]
    meant = [splits.get(shard.path, "") for shard in shards]
    kinds = tuple(dict.fromkeys(meant)) or ("",)
    places = np.array([kinds.index(split) for split in meant], np.uint8)
    split_of = np.repeat(places, [shard.count for shard in shards]) if len(kinds) > 1 else None
    rows = RowTable(RecordTable.of(records, values, several), classes, kinds, split_of)
    problems = tuple(
        Problem(Reason[reason], subject, detail)
        for shard in shards
        for reason, subject, detail in shard.problems
    )
    source = repr(printable(f"{TAR}{name.name}" + (f"@{name.split}" if name.split else "")))
    return Listing(rows, classes, source, tuple(_notes(shards, splits)), problems)


def _reopened(paths: Sequence[str], shown: Sequence[str], digest: str) -> TarRecords:
    """Return the records that were pickled.

    Raises:
        ChangedFileError: If the shards have changed since.
    """
    records = TarRecords(*_index(paths, shown, None)[:2])
    if records.digest != digest:
        raise ChangedFileError(
            f"The shards {printable(paths[0])!r} and others have changed since they were listed. "
            "Leave the shards alone while they are used, and start again."
        )
    return records


def find_shards(pattern: str) -> list[str]:
    """Return the shards that a pattern names, in order.

    Args:
        pattern: A folder, whose `.tar` files are meant; or paths with `{000..127}` (numbers, with
            as many digits), `{a,b}` (alternatives) and the wildcards `*`, `?` and `[...]`.

    Raises:
        DatasetError: If there are none, or one that is named without a wildcard does not exist.
    """
    if Path(pattern).is_dir():
        found = sorted(str(path) for path in Path(pattern).glob("*.tar"))
        if not found:
            raise DatasetError(
                f"The folder {printable(pattern)!r} must hold shards, named *.tar, found none."
            )
        return found
    named = [pattern] if Path(pattern).exists() else list(_expanded(pattern))
    found, missing = [], []
    for path in named:
        if glob.has_magic(path) and not Path(path).exists():
            found += sorted(glob.glob(path))
        elif Path(path).exists():
            found.append(path)
        else:
            missing.append(path)
    if missing or not found:
        what = join_some([printable(path) for path in missing or named], 3)
        raise DatasetError(
            f"The shards {printable(pattern)!r} must exist, found no {what}. Check the pattern: "
            "{000..127} counts, {a,b} lists, * stands for any text."
        )
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the paths that braces in a pattern stand for; those of no known form stay."""
    for match in _BRACES.finditer(pattern):
        before, after, inside = pattern[: match.start()], pattern[match.end() :], match[1]
        numbers = _RANGE.fullmatch(inside)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            if abs(last - first) >= _MOST_SHARDS:
                raise DatasetError(f"The shards {printable(pattern)!r} are more than a million.")
            step, width = (1 if last >= first else -1), len(numbers[1])
            options = [f"{number:0{width}}" for number in range(first, last + step, step)]
        elif "," in inside:
            options = inside.split(",")
        else:
            continue
        for option in options:
            for rest in _expanded(after):
                yield before + option + rest
        return
    yield pattern


def _shown_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the display name of each shard: its file name, below what all paths begin with."""
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        around = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [Path(path).relative_to(around).as_posix() for path in paths]
    return {path: printable(name) for path, name in zip(paths, names, strict=True)}


def _splits(paths: Sequence[str]) -> dict[str, str]:
    """Return the split of each shard, if their names mean several; of folders, if these do."""
    parts: tuple[Callable[[Path], str], ...] = (
        lambda path: path.stem,
        lambda path: path.parent.name,
    )
    for part in parts:
        words = {path: re.sub(r"\d+", "", part(Path(path))) for path in paths}
        meant = resolve_splits(dict.fromkeys(words.values()))
        if len(set(meant.values())) > 1 and meant.keys() >= set(words.values()):
            return {path: meant[word] for path, word in words.items()}
    return {}


def _of_split(paths: Sequence[str], splits: Mapping[str, str], name: SourceName) -> list[str]:
    wanted = resolve_splits([str(name.split)]).get(str(name.split))
    found = [path for path in paths if splits.get(path) == wanted]
    if wanted is None or not found:
        there = ", ".join(dict.fromkeys(splits.values())) or "none"
        raise DatasetError(
            f"The shards {printable(name.name)!r} must be of several splits by their names, such "
            f"as train-000.tar and val-000.tar, to choose {printable(str(name.split))!r}; found "
            f"{there}. Correct what stands after @, or name the shards of each split: "
            f"train={TAR}...,val={TAR}...."
        )
    return found


def _notes(shards: Sequence[Shard], splits: Mapping[str, str]) -> Iterator[str]:
    others = sum(shard.others for shard in shards)
    if others:
        yield f"Ignored: members of the shards that are neither images nor labels ({others:,})."
    if splits:
        counts: dict[str, int] = {}
        for shard in shards:
            counts[splits[shard.path]] = counts.get(splits[shard.path], 0) + 1
        shown = ", ".join(f"{split} from {count:,} of them" for split, count in counts.items())
        yield f"Splits by the shards' names: {shown}."


# --- the index ----------------------------------------------------------------------------------


def _index(
    paths: Sequence[str], shown: Sequence[str], progress: Progress | None
) -> tuple[list[Shard], Mapping[str, Array], list[str]]:
    """Return the shards, their arrays and the names of classes, from the cache where it can."""
    identities = [_identity(path) for path in paths]
    place = _place(paths)
    kept = read_arrays(place) if place else None
    shards, arrays, names = _opened(kept)
    known = {(s.path, s.name, s.identity): number for number, s in enumerate(shards)}
    wanted = list(zip(paths, shown, identities, strict=True))
    if [*known] == wanted:
        return shards, arrays, names
    parts = _Parts(shards, arrays, names)
    total = sum(key[2].size for key in wanted if key not in known)
    done = 0
    try:
        for key in wanted:
            if key in known:
                parts.keep(known[key])
                continue
            parts.add(*key, _read(*key))
            done += key[2].size
            if progress is not None:
                progress(TASK, done, total)
    except BaseException:  # an interrupted indexing goes on from here
        parts.finish(place)
        raise
    return parts.finish(place)


def _identity(path: str) -> FileIdentity:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DatasetError(f"The shard {printable(path)!r} must be a file, found another kind.")
        return FileIdentity.of(status)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(path: str, shown: str, identity: FileIdentity) -> ShardRecords:
    try:
        with open(path, "rb", buffering=0) as file:
            found = read_shard(file.fileno(), shown)
            if FileIdentity.of(os.fstat(file.fileno())) != identity:
                raise DatasetError(
                    f"The shard {printable(path)!r} changed while it was indexed. Leave the shards "
                    "alone while they are used, and start again."
                )
            return found
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DatasetError:
    return DatasetError(
        f"The shard {printable(path)!r} cannot be read: {error.strerror or error}. Check its "
        "permissions and the disk."
    )


def _place(paths: Sequence[str]) -> Path | None:
    text = json.dumps([_FORM, *map(os.path.abspath, paths)])
    try:
        return cache_dir() / "shards" / f"{hashlib.sha256(text.encode()).hexdigest()}.index"
    except StorageError:
        return None


def _opened(
    kept: tuple[dict[str, Any], dict[str, Array]] | None,
) -> tuple[list[Shard], dict[str, Array], list[str]]:
    if kept is None:
        return [], {}, []
    about, arrays = kept
    shards = [
        Shard(
            **{
                **shard,
                "identity": FileIdentity(**shard["identity"]),
                "problems": tuple(map(tuple, shard["problems"])),
            }
        )
        for shard in about["shards"]
    ]
    return shards, arrays, about["names"]


class _Parts:
    """An index in the making, of shards that were indexed before and others."""

    def __init__(
        self, shards: Sequence[Shard], arrays: Mapping[str, Array], names: Sequence[str]
    ) -> None:
        self._before, self._arrays, self._old_names = shards, arrays, names
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])
        self._key_starts: npt.NDArray[np.int64] | None = None
        self._shards: list[Shard] = []
        self._names: dict[str, int] = {}
        self._parts: dict[str, list[Array]] = {
            name: [] for name in ("blocks", "sizes", "keys", "key_ends", "labels", "label_counts")
        }

    def keep(self, number: int) -> None:
        """Take over a shard that was indexed before."""
        shard, arrays = self._before[number], self._arrays
        start, end = self._starts[number], self._starts[number + 1]
        ends = arrays["key_ends"][start:end]
        if self._key_starts is None:
            lasts = [
                int(arrays["key_ends"][last - 1]) if old.count else 0
                for last, old in zip(self._starts[1:], self._before, strict=True)
            ]
            self._key_starts = np.cumsum([0, *lasts])
        counts = arrays.get("label_counts")
        if counts is None:
            values, counts = arrays["labels"][start:end], np.ones(end - start, np.uint16)
        else:
            offset = int(counts[:start].sum(dtype=np.int64))
            counts = counts[start:end]
            values = arrays["labels"][offset : offset + int(counts.sum(dtype=np.int64))]
        translated = np.array(
            [self._names.setdefault(name, len(self._names)) for name in self._old_names], np.int32
        )
        self._shards.append(shard)
        first = self._key_starts[number]
        self._append(
            blocks=arrays["blocks"][start:end],
            sizes=arrays["sizes"][start:end],
            keys=arrays["keys"][first : self._key_starts[number + 1]],
            key_ends=ends,
            labels=translated[values],
            label_counts=counts,
        )

    def add(self, path: str, shown: str, identity: FileIdentity, found: ShardRecords) -> None:
        """Add a shard that was read."""
        codes = [
            [self._names.setdefault(name, len(self._names)) for name in names]
            for names in found.labels
        ]
        sets = LabelSets.of(codes).take(found.cells)
        digest = hashlib.sha256(json.dumps(found.labels).encode())
        for part in (found.blocks, found.sizes, found.key_ends, found.cells):
            digest.update(part.astype(part.dtype.newbyteorder("<")).tobytes())
        digest.update(found.keys)
        problems = tuple((p.reason.name, p.subject, p.detail) for p in found.problems)
        self._shards.append(
            Shard(
                *(path, shown, identity, len(found.blocks), digest.hexdigest()),
                *(found.others, problems),
            )
        )
        self._append(
            blocks=found.blocks,
            sizes=found.sizes,
            keys=np.frombuffer(found.keys, np.uint8),
            key_ends=found.key_ends,
            labels=sets.values,
            label_counts=np.minimum(sets.counts, np.iinfo(np.uint16).max).astype(np.uint16),
        )

    def _append(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            self._parts[name].append(array)

    def finish(self, place: Path | None) -> tuple[list[Shard], Mapping[str, Array], list[str]]:
        """Keep the index, and return it as it would be opened."""
        if all((counts == 1).all() for counts in self._parts["label_counts"]):
            del self._parts["label_counts"]
        about = {"shards": [asdict(shard) for shard in self._shards], "names": [*self._names]}
        if place is not None:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with file_lock(place):
                    write_arrays(place, about, self._parts)
            except OSError as error:
                _log.warning(
                    "The shards are indexed again the next time: %s cannot be written: %s",
                    place,
                    error,
                )
            else:
                kept = read_arrays(place)
                if kept is not None:
                    self._parts.clear()
                    return _opened(kept)
        joined = {name: np.concatenate(parts) for name, parts in self._parts.items() if parts}
        return self._shards, joined, [*self._names]
