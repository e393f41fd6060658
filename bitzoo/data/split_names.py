"""Which split a name means: the names that public data sets give to their splits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

SPLITS = ("train", "val", "test")
"""The splits, by bitzoo's names."""

_MEANINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("train", "training", "trn"), ("train",)),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "vld"), ("val",)),
    **dict.fromkeys(("test", "tests", "testing", "tst"), ("test",)),
    # These mean what no other name beside them means: `eval` is val beside train and test, and
    # test beside train and val.
    **dict.fromkeys(("eval", "evaluation", "dev", "devel", "development"), ("val", "test")),
    **dict.fromkeys(("holdout", "heldout"), ("test", "val")),
    "trainval": ("train",),
    "publictest": ("val",),  # of Kaggle's competitions, FER-2013
    "privatetest": ("test",),
}
"""Word -> the splits that it can mean, the likeliest first."""
_SECOND = frozenset(word for word, splits in _MEANINGS.items() if len(splits) > 1) | {"trainval"}
"""Words whose meaning depends on the names beside them."""
_ADDED = frozenset(
    (
        *("set", "data", "dataset", "split", "folder", "dir", "part", "subset"),
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pics"),
        *("sample", "samples", "example", "examples"),
    )
)
"""Words beside a split's that change nothing: `training_set`, `images_train`."""
_STUCK = re.compile(r"(?<=.)(dataset|set|data|images|imgs|img)$")
_OF_TWO_WORDS = re.compile(
    r"(?:(hold|held)[\W_]+(out)|(train)[\W_]+(val)|(public|private)[\W_]+(test))(?![^\W\d_])"
)

_COLUMNS = frozenset(("split", "splits", "subset", "partition", "fold", "folds", "usage", "set"))
"""Words in the names of columns that are splits, whatever their values are."""
_MAY_BE = _COLUMNS | {"phase", "stage", "purpose", "dataset", "sets", "subsets", "type"}
"""Words in the names of columns that are splits if their values are names of splits."""
_YES_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def resolve_splits(names: Iterable[str]) -> dict[str, str]:
    """Say which split each name means, of names that stand beside each other.

    Case, separators, numbers and words such as "set" do not count: `Training-Set`, `testData` and
    `val2017` are a train, a test and a val split. Names may share other words, if they say train
    and another split beside each other: `seg_train` and `seg_test`.

    Returns:
        Name -> one of `SPLITS`; without the names that mean none.
    """
    words = _by_rest(names)
    if "" in words:
        return _resolve(words[""])
    if len(words) == 1:
        found = _resolve(*words.values())
        if is_division(found):
            return found
    return {}


def splits_per_class(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return class -> its names and what they mean, if all names are a class's and a split's.

    Such as `cat_train`, `cat_test`, `dog_train`, `dog_test`; empty for any other names.
    """
    words = _by_rest(names)
    found = {rest: _resolve(group) for rest, group in words.items()}
    if len(found) < 2 or sum(map(len, found.values())) < len(names):
        return {}
    return found if all(map(is_division, found.values())) else {}


def _by_rest(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the other words of the names -> name -> its word for a split."""
    words: dict[str, dict[str, str]] = {}
    for name in names:
        word, rest = _parse(name)
        if word:
            words.setdefault(rest, {})[name] = word
    return words


def is_division(found: Mapping[str, str]) -> bool:
    """Whether the names that `resolve_splits` found are train and another split."""
    return "train" in found.values() and len(set(found.values())) > 1


def says_split(column: str, *, strictly: bool = False) -> bool:
    """Whether the name of a column says that it is a split.

    Args:
        column: Its name.
        strictly: Whether it must say so whatever the values are: `fold`, but not `type`.
    """
    words = set(_words(column))
    if words & (_COLUMNS if strictly else _MAY_BE):
        return True
    named = words & _MEANINGS.keys()
    return len(named) > 1 and named == words  # as `train_test`, `train/val/test`


def flag_splits(column: str, columns: Iterable[str], values: Collection[str]) -> dict[str, str]:
    """Return value -> split of a column that says yes or no to one split, as fastai's `is_valid`.

    Args:
        column: Its name.
        columns: All names: where others say yes or no to something else, as `is_bus` beside
            `is_train`, they are classes.
        values: Its distinct values; those must be yes and no.

    Returns:
        The splits, by value; empty if it is no such column.
    """
    word, rest = _parse(column)
    asks_else = any(_words(name)[:1] == ["is"] and not _parse(name)[0] for name in columns)
    said = {value: _YES_NO.get(value.lower()) for value in values}
    if rest != "is" or asks_else or {*said.values()} != {True, False}:
        return {}
    asked = _MEANINGS[word][0]
    others = "val" if asked == "train" else "train"
    return {value: asked if yes else others for value, yes in said.items()}


def is_plain(name: str) -> bool:
    """Whether everybody knows which split a name means, so that it need not be said."""
    return name.lower() in ("train", "val", "valid", "validation", "test")


def can_mean(name: str, split: str) -> bool:
    """Whether a name, seen without those beside it, can mean the split."""
    return split in _MEANINGS.get(_parse(name)[0], ())


def _resolve(words: dict[str, str]) -> dict[str, str]:
    found = {name: _MEANINGS[word][0] for name, word in words.items() if word not in _SECOND}
    taken = set(found.values())
    for name, word in words.items():
        if word in _SECOND:
            free = [split for split in _MEANINGS[word] if split not in taken]
            found |= {name: free[0]} if free else {}
    return {name: found[name] for name in words if name in found}


def _words(name: str) -> list[str]:
    """Return the words of a name, in lower case: `hold-out`, `trainVal` and such are one."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    together = _OF_TWO_WORDS.sub(lambda found: "".join(filter(None, found.groups())), apart)
    return re.findall(r"[^\W\d_]+", together)


def _parse(name: str) -> tuple[str, str]:
    """Return the one word for a split in a name, "" without one, and the words that remain."""
    tokens = [_unstuck(word) for word in _words(name) if word not in _ADDED]
    found = [token for token in tokens if token in _MEANINGS]
    if len(found) != 1:
        return "", ""
    return found[0], "_".join(token for token in tokens if token not in _MEANINGS)


def _unstuck(word: str) -> str:
    """Return the split's word in `trainset`; any other word as it is."""
    alone = _STUCK.sub("", word)
    return alone if alone in _MEANINGS else word
