"""`reproduce`: run the protocol of a published figure, and put what is measured beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitzoo.catalogue.claims import get_claim
from bitzoo.catalogue.protocols import Action, Claim, Protocol
from bitzoo.catalogue.registry import find_spec, get_spec
from bitzoo.data.dataset import DataSource
from bitzoo.display import Displayed
from bitzoo.errors import UsageError, WeightsUnavailableError
from bitzoo.files import Progress, write_json
from bitzoo.inference.processes import join_processes
from bitzoo.progress import shown
from bitzoo.runs.measuring import MEASURES, Measured, Setting
from bitzoo.training.hyperrule import Edition
from bitzoo.zoo.info import info
from bitzoo.zoo.resolve import is_location

RESULT_NAME = "reproduce.json"
"""In the folder of a figure that was measured again: the result."""


@dataclass(frozen=True, repr=False)
class Reproduction(Displayed):
    """A published figure, and what was measured by its protocol.

    Attributes:
        claim: The published figure.
        measured: What was measured; None if the work was stopped and can go on.
        departures: What was done otherwise than the protocol says, as sentences.
        folder: Where the result and the runs are; None if nothing was written.
    """

    claim: Claim
    measured: Measured | None
    departures: tuple[str, ...]
    folder: Path | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points; None if nothing was measured."""
        return self.measured.value - self.claim.value if self.measured else None

    @property
    def inside(self) -> bool | None:
        """Whether the published value lies in the interval of what was measured."""
        if self.measured is None or self.measured.lowest is None or self.measured.highest is None:
            return None
        return self.measured.lowest <= self.claim.value <= self.measured.highest

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data; figures are in percent."""
        return {
            "model": self.claim.model,
            "claim": self.claim.id,
            "published": self.claim.to_dict(),
            "measured": self.measured.to_dict() if self.measured else None,
            "difference": self.difference,
            "inside": self.inside,
            "departures": list(self.departures),
            "folder": str(self.folder) if self.folder else None,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        claim, found = self.claim, self.measured
        rows: list[tuple[str, object]] = [
            ("figure", f"{claim.metric} of {claim.model} on {claim.dataset} ({claim.id})"),
            ("published", f"{claim.published}, {claim.source}"),
        ]
        if found is None:
            rows.append(("measured", "nothing yet"))
        else:
            rows += [
                ("measured", found.in_words),
                ("difference", f"{self.difference:+.2f} points; {self._verdict}"),
                *((name, self._part(name, value)) for name, value in found.parts.items()),
            ]
        if self.departures:
            rows.append(("departures", list(self.departures)))
        if found and found.notes:
            rows.append(("notes", list(found.notes)))
        if claim.remarks:
            rows.append(("known", list(claim.remarks)))
        if self.folder:
            rows.append(("folder", self.folder))
        return rows

    @property
    def _verdict(self) -> str:
        where = {True: "inside", False: "outside", None: "not comparable with"}[self.inside]
        return f"the published value is {where} the interval"

    def _part(self, name: str, value: float) -> str:
        published = self.claim.parts.get(name)
        return f"{value:.2f} %" + (f" (published {published:g} %)" if published else "")


def reproduce(
    model: str | os.PathLike[str],
    claim: str | None = None,
    *,
    data: DataSource | None = None,
    out: str | os.PathLike[str] | None = None,
    runs: int | None = None,
    steps: int | None = None,
    freeze: bool = False,
    edition: Edition | None = None,
    tasks: str | Sequence[str] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str | None = None,
    cache_gb: float = 20.0,
    workers: int | None = None,
    micro_batch: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Reproduction:
    """Measure a published figure again, by the protocol behind it.

    `bitzoo reproduce` does the same; `bitzoo.list_claims` lists the figures. What differs from the
    protocol is in the result, whether it was chosen here or is how bitzoo works. If it is
    interrupted, the same call goes on.

    Args:
        model: A catalogue name, or a file that has the weights of one.
        claim: The figure's id, such as ``cifar10-full``. None is an error that lists those of the
            model.
        data: Other images than those of the figure, as for `bitzoo.finetune` or
            `bitzoo.evaluate`. None for its TFDS data set, which must have been prepared.
        out: Folder of the runs and of the result, `reproduce.json`. None for ``runs/MODEL-CLAIM``
            if something is trained; otherwise nothing is written.
        runs: Number of runs; None for as many as the figure stands for.
        steps: Updates of each run; None follows the rule.
        freeze: Whether to train only the head, on fixed features.
        edition: Edition of BiT-HyperRule; None for the figure's.
        tasks: Tasks or groups of VTAB, as for `bitzoo.vtab`; None for all 19.
        seed: Seed of the first run.
        dtype: Compute dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: Where to compute; None is a GPU if there is one.
        cache_gb: Most disk space for decoded images, in GB.
        workers: Processes that decode; None is one per core.
        micro_batch: Most images that are computed at once in training; None for as many as fit.
        skip_bad: Whether to leave out images that cannot be used.
        overwrite: Whether to delete earlier runs in `out` and start again.
        progress: As for `bitzoo.finetune`.
        say: Called with sentences for the user, during the work.

    Returns:
        What was measured, next to what was published, with an interval and all departures.

    Raises:
        UsageError: If there is no such figure, nothing that can be run stands behind it, or an
            option does not belong to its protocol.
        WeightsUnavailableError: If its weights were never released.
        BitzooError: As what is run raises: `bitzoo.evaluate`, `bitzoo.finetune`,
            `bitzoo.fewshot` or `bitzoo.vtab`.
    """
    name, doubt = released_name(model)
    figure = get_claim(name, claim)
    protocol = _protocol_of(figure, data)
    options = {
        "runs": runs,
        "steps": steps,
        "freeze": freeze or None,
        "edition": edition,
        "tasks": (tasks,) if isinstance(tasks, str) else tasks,
        "micro_batch": micro_batch,
        "overwrite": overwrite or None,
        "data": data,
    }
    given = {key: value for key, value in options.items() if value is not None}
    _require_fitting(figure, protocol, set(given))
    folder = Path(out) if out is not None else None
    if folder is None and protocol.trains:
        folder = Path("runs") / f"{name}-{figure.id}"
        say(f"Runs and result are written to {folder}.")
    with shown(progress) as report:
        setting = Setting(
            model=os.fspath(model),
            release=name,
            claim=figure,
            protocol=protocol,
            folder=folder / "runs" if folder else None,
            chosen=given,
            seed=seed,
            dtype=dtype,
            device=device,
            cache_gb=cache_gb,
            workers=workers,
            skip_bad=skip_bad,
            progress=report,
            say=say,
        )
        measured = MEASURES[protocol.action](setting)
    departures = (*doubt, *setting.departures(), *(measured.departures if measured else ()))
    result = Reproduction(figure, measured, (*departures, *protocol.differences), folder)
    if folder is not None and measured and join_processes(device).is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT_NAME, result.to_dict())
    return result


def _protocol_of(figure: Claim, data: DataSource | None) -> Protocol:
    """Return the protocol of a figure, once it is known that it can be run."""
    protocol, which = figure.protocol, f"The figure {figure.id} of {figure.model}"
    if protocol is None:
        released = get_spec(figure.model).released
        kind = UsageError if released else WeightsUnavailableError
        raise kind(f"{which} cannot be measured again: {figure.reason}")
    if data is None and protocol.needs:
        raise UsageError(f"{which} needs `data`: {protocol.needs}.")
    return protocol


def released_name(model: str | os.PathLike[str]) -> tuple[str, tuple[str, ...]]:
    """Return the catalogue name of the weights, and what is not certain about it as a departure.

    Args:
        model: A catalogue name, or a file that has the weights of one.

    Raises:
        UnknownModelError: If it is a name that the catalogue does not have.
        UsageError: If it is not known of which released checkpoint the file has the weights.
        BitzooError: If the file cannot be read.
    """
    if not is_location(model):
        return get_spec(os.fspath(model)).name, ()
    identity = info(model).identity
    spec = find_spec(identity.name) if identity.name else None
    if spec is None:
        raise UsageError(
            f"{model}: expected a catalogue name, or a file of weights that are known to be one's, "
            f"found {identity}. Published figures are about released checkpoints."
        )
    if identity.established:
        return spec.name, ()
    return spec.name, (f"The weights are those of {model}: {identity}.",)


_ALWAYS = {"data"}
_TRAINING = _ALWAYS | {"runs", "steps", "freeze", "edition", "micro_batch", "overwrite"}
_FITTING: dict[Action, set[str]] = {
    "evaluate": _ALWAYS,
    "finetune": _TRAINING,
    "fewshot": _TRAINING - {"overwrite"},
    "vtab": (_TRAINING | {"tasks"}) - {"data", "overwrite"},
    "vtab-released": {"tasks", "runs"},
}
"""Action -> the options that can be given for it."""


def _require_fitting(claim: Claim, protocol: Protocol, given: set[str]) -> None:
    if others := sorted(given - _FITTING[protocol.action]):
        raise UsageError(
            f"{', '.join(f'`{name}`' for name in others)} cannot be used with the figure "
            f"{claim.id} of {claim.model}, for which {protocol.in_words()}. Leave it out."
        )
