"""Which classes of a list a name may mean: by WordNet id, as it is spelled, or by its words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

__all__ = ["NameIndex", "is_number", "synset_in"]

_SYNSET_FIRST = re.compile(r"(n\d{8})(?![0-9A-Za-z])")
_NUMBER = re.compile(r"\d{1,9}")
_NUMBERED_FOLDER = re.compile(r"/[a-z]/")
"""Before a class's name in SUN397: the folder of its first letter."""


def synset_in(name: str) -> str | None:
    """Return the WordNet id that a name is or begins with ("n01440764 tench"), or None."""
    found = _SYNSET_FIRST.match(name)
    return found[1] if found else None


def is_number(name: str) -> bool:
    """Whether a name is a whole number from 0 on, which may have leading zeros."""
    return name.isascii() and _NUMBER.fullmatch(name) is not None


def plain(name: str) -> str:
    """Return a name without what differs between published lists: case, separators, punctuation.

    What stands between two digits is kept as a space: 1.5 is not 15. A name of nothing but
    punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", _NUMBERED_FOLDER.sub("", name, count=1)).casefold()
    bare = re.sub(r"(?<=\d)[\W_]+(?=\d)", " ", folded)
    return re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", bare) or folded.strip()


class NameIndex:
    """The classes of a list by their names.

    Args:
        names: One name per class: words separated by commas if `words`, else one name.
        words: Whether each of a name's words is a name of the class, as in WordNet's lists.
        synsets: WordNet ids, one per class; None for a list without.
    """

    def __init__(
        self, names: Sequence[str], *, words: bool, synsets: Sequence[str] | None = None
    ) -> None:
        self.names = names
        self.words = words
        self.synsets = synsets

    @cached_property
    def _exact(self) -> Mapping[str, frozenset[int]]:
        return _inverted((name, index) for index, name in enumerate(self.names))

    @cached_property
    def by_synset(self) -> Mapping[str, int]:
        """WordNet id -> class; empty without ids."""
        return {synset: index for index, synset in enumerate(self.synsets or ())}

    @cached_property
    def _by_word(self) -> Mapping[str, frozenset[int]]:
        return _inverted(
            (word, index) for index, name in enumerate(self.names) for word in self._words_of(name)
        )

    def _words_of(self, name: str) -> list[str]:
        return [plain(word) for word in name.split(",")] if self.words else [plain(name)]

    def candidates(self, name: str) -> frozenset[int]:
        """Return the classes that a name may mean; several if it is ambiguous.

        An id means one class. A name with several words means the classes that have all of them. In
        a list without words, a name that is spelled exactly as one class means that class.
        """
        if self.synsets is not None and (synset := synset_in(name)):
            found = self.by_synset.get(synset)
            return frozenset() if found is None else frozenset([found])
        if not self.words and len(exact := self._exact.get(name, frozenset())) == 1:
            return exact
        sets = [self._by_word.get(word, frozenset()) for word in self._words_of(name)]
        return frozenset.intersection(*sets)

    def resolve(self, names: Sequence[str]) -> list[frozenset[int]]:
        """Return what each of several different classes may mean, given all of them.

        What one name must mean, no other can: where "maillot, tank suit" is a class too, "maillot"
        is the other of the two that have this word.
        """
        found = [self.candidates(name) for name in names]
        settled: set[int] = set()
        while new := {k for k, may in enumerate(found) if len(may) == 1} - settled:
            settled |= new
            taken = frozenset().union(*(found[k] for k in new))
            found = [may if k in settled else may - taken for k, may in enumerate(found)]
        return found

    def settled_by_order(
        self, found: Sequence[frozenset[int]]
    ) -> tuple[list[frozenset[int]], list[int]]:
        """Settle the few names that `resolve` leaves open by the order of the list.

        They are what stands at their position if there are as many names as classes, at least 95 %
        of them mean the class at their own position, and no name means only others.

        Returns:
            What each name means, and the positions that only the order settles.
        """
        open_ones = [k for k, may in enumerate(found) if len(may) != 1]
        few = len(found) == len(self.names) and 20 * len(open_ones) <= len(found)
        if not few or any(may and k not in may for k, may in enumerate(found)):
            return list(found), []
        return [frozenset([k]) for k in range(len(found))], open_ones


def _inverted(pairs: Iterable[tuple[str, int]]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for key, index in pairs:
        found.setdefault(key, set()).add(index)
    return {key: frozenset(indices) for key, indices in found.items()}
