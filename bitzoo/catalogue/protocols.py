"""What a published figure is: a value, who published it, and the protocol that measures it again.

The figures themselves are in `bitzoo.catalogue.claims`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bitzoo.catalogue.metadata import Metric

Action = Literal["evaluate", "finetune", "fewshot", "vtab", "vtab-released"]
"""What is run: the function of `bitzoo` of that name; ``vtab-released`` evaluates the checkpoints
that were fine-tuned on the tasks of VTAB-1k, and trains nothing."""


@dataclass(frozen=True)
class Protocol:
    """What has to be run to measure a figure again.

    Attributes:
        action: What is run.
        data: The data source, or those of ``train`` and ``test``; None if there is no source that
            is known by name, so that the user has to say where the images are.
        needs: What the user's images have to be, where `data` is None.
        options: Options of the function that is run, by name.
        runs: How many runs the figure stands for.
        versions: How the version of the prepared TFDS data set has to begin, as ``"3."``, to be the
            data of the figure; "" where nobody stated one.
        differences: What bitzoo does otherwise than those who published the figure.
    """

    action: Action
    data: str | Mapping[str, str] | None = None
    needs: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    runs: int = 1
    versions: str = ""
    differences: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether something is fine-tuned, which takes long and leaves a folder."""
        return self.action in ("finetune", "fewshot", "vtab")

    @property
    def data_in_words(self) -> str:
        """The data as a phrase."""
        if isinstance(self.data, Mapping):
            return ", ".join(f"{split} {source}" for split, source in self.data.items())
        return self.data or self.needs or "the 19 tasks of VTAB-1k, by TFDS"

    def in_words(self) -> str:
        """Return what is run as a phrase."""
        if self.action == "evaluate":
            return "these weights are evaluated"
        if self.action == "vtab-released":
            return "the 57 released fine-tuned checkpoints are evaluated"
        edition = self.options.get("edition", "paper")
        rule = f"BiT-HyperRule of the {'paper' if edition == 'paper' else 'released code'}"
        changes = {"batch_size": "batch {}", "lr": "learning rate {:g}"}
        others = [
            text.format(self.options[key]) for key, text in changes.items() if key in self.options
        ]
        how = ", ".join([rule, *others])
        several = "" if self.runs == 1 else f", median of {self.runs} runs"
        if self.action == "fewshot":
            (shots,) = self.options["shots"]
            return f"fine-tuned on {shots} image{'s' * (shots > 1)} per class, {how}{several}"
        what = "on each of the 19 tasks" if self.action == "vtab" else "on all training images"
        return f"fine-tuned {what}, {how}{several}"


@dataclass(frozen=True)
class Claim:
    """One published figure.

    Attributes:
        model: The checkpoint's catalogue name.
        id: Its name; no other figure of the model has it.
        metric: ``top-1``, ``top-5`` or ``mean top-1`` (over the tasks of a benchmark).
        dataset: What it was measured on.
        value: Percent; of several runs the median.
        source: Citation or address.
        note: How it was measured, and on what if not on the released weights themselves.
        protocol: What is run to measure it again; None if that cannot be done.
        reason: Why it cannot be done; "" if it can.
        lowest, highest: Of the runs behind the figure; None where they were not published.
        resolution: Side of the evaluated crop in pixels, where the source states it.
        parts: Other means that were published with it, by name.
        remarks: What else is known about the figure, such as sources that differ.
    """

    model: str
    id: str
    metric: str
    dataset: str
    value: float
    source: str
    note: str
    protocol: Protocol | None = None
    reason: str = ""
    lowest: float | None = None
    highest: float | None = None
    resolution: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    remarks: tuple[str, ...] = ()

    @property
    def command(self) -> str | None:
        """The command that measures it again; None if there is none."""
        if self.protocol is None:
            return None
        data = " --data FOLDER" if self.protocol.needs else ""
        return f"bitzoo reproduce {self.model} --claim {self.id}{data}"

    @property
    def key(self) -> tuple[str, str, float]:
        """What the catalogue's entry has of it: metric, data set and value."""
        return self.metric, self.dataset, self.value

    @property
    def published(self) -> str:
        """The value as text, with the range of the runs where it was published."""
        if self.lowest is None or self.highest is None:
            return f"{self.value:g} %"
        return f"{self.value:g} % ({self.lowest:g} to {self.highest:g})"

    @property
    def metric_row(self) -> Metric:
        """The figure as the catalogue's entry of the checkpoint has it."""
        return Metric(
            name=self.metric,
            dataset=self.dataset,
            value=self.value,
            resolution=self.resolution,
            source=self.source,
            note=self.note,
            lowest=self.lowest,
            highest=self.highest,
            claim=self.id,
            command=self.command,
            reason=self.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        protocol = self.protocol
        return {
            "model": self.model,
            "claim": self.id,
            "metric": self.metric,
            "dataset": self.dataset,
            "value": self.value,
            "lowest": self.lowest,
            "highest": self.highest,
            "parts": dict(self.parts),
            "resolution": self.resolution,
            "source": self.source,
            "note": self.note,
            "remarks": list(self.remarks),
            "command": self.command,
            "reason": self.reason,
            "protocol": protocol
            and {
                "action": protocol.action,
                "in_words": protocol.in_words(),
                "data": dict(protocol.data)
                if isinstance(protocol.data, Mapping)
                else protocol.data,
                "needs": protocol.needs,
                "options": {
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in protocol.options.items()
                },
                "runs": protocol.runs,
                "versions": protocol.versions,
                "differences": list(protocol.differences),
            },
        }
