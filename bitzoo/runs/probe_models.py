"""Which models a probe compares: names, patterns, files and folders -> candidates, cheapest first.

Nothing is loaded here but the headers of files, and nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitzoo.catalogue.registry import find_spec, get_spec, list_models
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.display import list_names
from bitzoo.errors import BitzooError, UsageError
from bitzoo.fetch.hub_snapshot import is_hub_address
from bitzoo.files import user_path
from bitzoo.models.architecture import Architecture
from bitzoo.zoo.resolve import is_address, is_location, kept_weights, locate

_WILDCARDS = "*?["


@dataclass(frozen=True)
class Candidate:
    """A model that is to be tried.

    Attributes:
        name: What the user called it, which `create_model` takes.
        architecture: Its architecture; None if that is not known before it is fetched, or if it
            cannot be used.
        problem: Why it cannot be used; "" if nothing is known against it.
    """

    name: str
    architecture: Architecture | None = None
    problem: str = ""

    @property
    def params(self) -> int | None:
        """Number of parameters without a head; None as for `architecture`."""
        return self.architecture.num_params(0) if self.architecture else None


@dataclass(frozen=True)
class Candidates:
    """The models of a probe.

    Attributes:
        models: Each once: those with fewer parameters first, so that a time limit leaves the most
            answers; those of unknown size last.
        not_here: Names that match a pattern and whose weights are not on this machine.
        notes: What was chosen, as sentences.
    """

    models: tuple[Candidate, ...]
    not_here: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_candidates(
    models: Sequence[str | os.PathLike[str]] | None, *, download: bool = False
) -> Candidates:
    """Return the models that the user named.

    Args:
        models: Catalogue names, patterns over the catalogue (``BiT-M-*``), checkpoint files, run
            folders and addresses. None for all of the catalogue whose weights are on this machine.
        download: Whether a pattern also takes the models whose weights are not on this machine. One
            that is named is fetched in any case.

    Raises:
        UsageError: If no model is left to try.
    """
    if models is not None and not models:
        raise UsageError(
            "`models` must name at least one model, found none. Leave it out to try those whose "
            "weights are on this machine."
        )
    names: dict[str, None] = {}
    absent: dict[str, None] = {}
    notes: list[str] = []
    for model in models or ["*"]:
        text = os.fspath(model)
        if not _is_pattern(text):
            names[text] = None
            continue
        matching = list_models(text, released=True)
        if not matching:
            names[text] = None  # which then says that there is no such model
            continue
        here = [name for name in matching if download or _is_here(name)]
        names |= dict.fromkeys(here)
        absent |= dict.fromkeys(name for name in matching if name not in here)
    if models is None:
        absent = {}
        if not names:
            raise UsageError(
                "There are no weights of the catalogue on this machine to try. Name models, which "
                "are then fetched, such as BiT-M-R50x1, or files and run folders."
            )
        notes.append(
            f"Tried are the {len(names)} models of the catalogue whose weights are on this "
            "machine; nothing is fetched. Name others to try these."
        )
    if not names:
        raise UsageError(
            f"Of the {len(absent)} models that match {_patterns(models or ())}, none is on this "
            f"machine: {list_names(list(absent), 3)}. Fetch them with `download=True`, or name "
            "one, which is then fetched."
        )
    if absent:
        notes.append(
            f"Not tried, because their weights are not on this machine ({len(absent)}): "
            f"{list_names(list(absent), 3)}. Fetch them with `download=True`."
        )
    return Candidates(tuple(_ordered(map(_candidate, names))), tuple(absent), tuple(notes))


def _patterns(models: Iterable[str | os.PathLike[str]]) -> str:
    return list_names([repr(os.fspath(model)) for model in models if _is_pattern(os.fspath(model))])


def _is_pattern(text: str) -> bool:
    has_mark = any(mark in text for mark in _WILDCARDS)
    return has_mark and not os.path.exists(text) and find_spec(text) is None


def _is_here(name: str) -> bool:
    try:
        return kept_weights(get_spec(name)) is not None
    except BitzooError:  # a damaged file is there, and is reported when it is used
        return True


def _candidate(name: str) -> Candidate:
    try:
        if is_address(name) or is_hub_address(name):
            return Candidate(name)  # fetched when its turn comes
        if not is_location(name):
            if _is_pattern(name):
                raise UsageError(
                    f"No model of the catalogue matches {name!r}. `bitzoo list` shows all names."
                )
            return Candidate(name, get_spec(name).architecture)
        if not user_path(name).exists():
            raise UsageError(
                f"{name}: expected a checkpoint file or a run folder, found nothing there. Check "
                "the path."
            )
        with open_source(locate(name).path) as source:
            return Candidate(name, identify(source).architecture)
    except (BitzooError, OSError) as error:
        return Candidate(name, problem=str(error))


def _ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda own: (own.params is None, own.params or 0))
