"""The card of a fine-tuned run: the draft that the run wrote, completed for a repository.

The sections of the draft, and those that its author added, are kept. The comment and the section on
loading from a folder are removed; curves, the proof, loading from the repository, licence and
citation are added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bitzoo._version import __version__
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.errors import UsageError
from bitzoo.model_cards import facts
from bitzoo.model_cards.text import (
    clean,
    environment,
    metadata_reported,
    proof_rows,
    read_metadata,
    snippets,
    spark,
)

_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)
_COMMENT = re.compile(r"<!--\s*A draft, written by bitzoo.*?-->\s*", re.DOTALL)
_LICENSE = re.compile(r"^license:.*$", re.MULTILINE)
_WRITTEN = re.compile(r"^Written by bitzoo \S+\.\s*\Z", re.MULTILINE)
_REPLACED = (
    "How to load it",
    "Curves",
    "Equal to the source",
    "How to use it",
    "Licence",
    "Citation",
)
_POINTS = 12
_BARS = 40


def complete_draft(
    draft: str,
    *,
    repo: str,
    info: ModelInfo,
    history: Sequence[Mapping[str, Any]],
    proof: Mapping[str, Any] | None,
) -> str:
    """Return a run's card for a repository.

    Args:
        draft: The run's README.md.
        repo: Full name of the repository.
        info: What is known about the model.
        history: The run's metrics.
        proof: The parity report; None if there is none yet.

    Raises:
        UsageError: If the draft has no metadata.
    """
    match = _FRONT.match(draft)
    if not match:
        raise UsageError(
            "The run's README.md has no metadata: expected a YAML block between two lines of --- "
            "at the very beginning. Add it, or remove the file so that bitzoo writes a card."
        )
    body = _WRITTEN.sub("", _COMMENT.sub("", draft[match.end() :])).strip()
    # "## " inside a fenced block, such as a comment in Python, does not begin a section.
    parts = re.split(r"^## (?=[A-Z])", body, flags=re.MULTILINE)
    kept = [part for part in parts[1:] if part.partition("\n")[0].strip() not in _REPLACED]
    made = environment().get_template("run.md.j2")
    return clean(
        made.render(
            front_matter=_with_license(match[1], info.license),
            head=parts[0].strip(),
            sections=["## " + part.strip() for part in kept],
            repo=repo,
            curves=_curves(history),
            proofs=proof_rows(proof) if proof else None,
            proof=proof,
            snippets=snippets(repo, info),
            numerics=facts.NUMERICS,
            license=info.license,
            citations=facts.citations(None),
            version=__version__,
        )
    )


def _with_license(front_matter: str, license_id: str | None) -> str:
    """Set the licence in the metadata if it differs; everything else stays as its author wrote it.

    Raises:
        UsageError: If the metadata cannot be read.
    """
    import yaml

    if license_id is None:
        return front_matter
    with metadata_reported():
        before = read_metadata(front_matter)
        if before.get("license") == license_id:
            return front_matter
        wanted, line = before | {"license": license_id}, f"license: {license_id}"
        edited, found = _LICENSE.subn(lambda match: line, front_matter)
        edited = edited if found else f"{front_matter}\n{line}"
        with suppress(yaml.YAMLError):  # in another notation than a line for each entry
            if read_metadata(edited) == wanted:
                return edited
        return str(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)).rstrip()


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    train, held_out = _series(history, "train"), _series(history, "eval")
    losses = [row["loss"] for row in train.values() if "loss" in row]
    if not losses:
        return None
    steps = sorted({*_chosen(sorted(train)), *_chosen(sorted(held_out))})
    rows = []
    for step in steps:
        here, there = train.get(step, {}), held_out.get(step, {})
        share = there.get("top1")
        rows.append(
            (
                f"{step:,}",
                f"{here['loss']:.4f}" if "loss" in here else "",
                f"{here['lr']:.2e}" if "lr" in here else "",
                f"{there['loss']:.4f}" if "loss" in there else "",
                f"{100 * share:.2f} %" if share is not None else "",
            )
        )
    return {
        "loss": spark([losses[index] for index in _chosen(range(len(losses)), _BARS)]),
        "rows": rows,
    }


def _series(history: Sequence[Mapping[str, Any]], event: str) -> dict[int, dict[str, float]]:
    """Return the finite numbers of each step, from the last of several records for a step."""
    return {
        int(record["step"]): {
            key: float(value) for key, value in record.items() if _is_finite(value)
        }
        for record in history
        if record.get("event") == event and isinstance(record.get("step"), int)
    }


def _is_finite(value: object) -> bool:
    """Whether it is a number that a float can be."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _chosen(steps: Sequence[int], count: int = _POINTS) -> list[int]:
    """Return at most `count` of the steps, evenly spaced, including the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]
