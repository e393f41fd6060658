"""Two proofs that a converted file is the original.

*Weights*: every output tensor, mapped back to the source's name and axis order, equals the source
bit for bit. *Logits*: the network that loads the output computes what a float64 NumPy reference
computes from the source's own names and layouts; the reference shares no code with the mapping, so
an error in the name table cannot hide from it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.converters.blocks import crew
from bitzoo.converters.inventory import identify
from bitzoo.converters.pipeline import Conversion, convert
from bitzoo.converters.proofs import (
    LOGITS_REASON,
    SEED,
    LogitsProof,
    WeightsProof,
    prove_logits,
    prove_weights,
)
from bitzoo.converters.sources import open_source
from bitzoo.converters.tensors import Progress
from bitzoo.errors import ParityError, UsageError

REPORT_NAME = "parity.json"


class Check(str, Enum):
    """How much to prove."""

    NONE = "none"
    WEIGHTS = "weights"
    LOGITS = "logits"


@dataclass(frozen=True)
class Report:
    """Everything that was proven about a pair of files; JSON by `to_dict`."""

    source: Mapping[str, Any]
    output: Mapping[str, Any]
    architecture: str
    num_classes: int
    weights: WeightsProof
    logits: tuple[LogitsProof, ...]

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal."""
        return self.weights.passed and all(proof.passed for proof in self.logits)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data, with thresholds and their reasons."""
        return {
            "passed": self.passed,
            "bitzoo_version": __version__,
            "source": dict(self.source),
            "output": dict(self.output),
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "weights": asdict(self.weights) | {"passed": self.weights.passed},
            "weights_rule": "every output tensor mapped back equals the source bit for bit",
            "logits": [asdict(proof) | {"passed": proof.passed} for proof in self.logits],
            "logits_rule": LOGITS_REASON,
            "seed": SEED,
        }

    def require(self) -> None:
        """Raise what failed.

        Raises:
            ParityError: Names the tensors or figures that differ.
        """
        if not self.weights.passed:
            listed = ", ".join(self.weights.differing[:5])
            more = len(self.weights.differing) - 5
            raise ParityError(
                f"{self.output['name']}: {len(self.weights.differing)} of {self.weights.tensors} "
                f"tensors differ from {self.source['name']}: {listed}"
                + (f" and {more} more" if more > 0 else "")
                + ". Expected every bit equal. Do not use the output; convert again."
            )
        for proof in self.logits:
            if not proof.passed:
                raise ParityError(
                    f"{self.output['name']}: logits at {proof.size} px are "
                    f"{proof.relative_l2:.2e} away from {proof.oracle} (relative L2), expected at "
                    f"most {proof.tolerance:.0e}. The network does not compute what "
                    f"{self.source['name']} does; do not use the output."
                )


def convert_and_prove(
    source: Path,
    output: Path,
    *,
    check: Check = Check.LOGITS,
    force: bool = False,
    model: str | None = None,
    progress: Progress | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> tuple[Conversion, Report | None]:
    """Convert a checkpoint; the output gets its name only if it passes the proofs asked for.

    Args:
        source: A checkpoint of any format that bitzoo reads.
        output: The safetensors file to write.
        check: What to prove.
        force: Whether an existing output may be replaced.
        model: Catalogue name of the release, if it is known.
        progress: Called as bytes move.
        on_report: Called with the figures before they are judged.

    Raises:
        ParityError: If a proof fails; nothing is left under the output's name.
        BitzooError: As `convert` raises.
    """
    report: Report | None = None

    def prove(conversion: Conversion) -> None:
        nonlocal report
        if check is Check.NONE:
            return
        report = verify(
            source,
            conversion.output,
            check=check,
            progress=progress,
            source_sha256=conversion.sha256,
        )
        report = replace(report, output={**report.output, "name": output.name})
        if on_report:
            on_report(report)
        report.require()

    conversion = convert(source, output, prove=prove, force=force, model=model, progress=progress)
    return conversion, report


def verify(
    source: Path,
    output: Path,
    *,
    check: Check = Check.LOGITS,
    progress: Progress | None = None,
    source_sha256: str | None = None,
) -> Report:
    """Prove that two checkpoint files, of any formats that bitzoo reads, hold one model.

    Args:
        source: The original.
        output: What was made of it.
        check: `Check.WEIGHTS`, or `Check.LOGITS` for both proofs.
        progress: Called as bytes are read.
        source_sha256: The source's checksum, if it was just computed.

    Returns:
        The figures; `Report.require` raises if any fails.

    Raises:
        CheckpointError: If a file cannot be read.
        ParityError: If the files hold different architectures.
    """
    with open_source(source) as first, open_source(output) as second:
        inventory, result = identify(first), identify(second)
        if inventory.title != result.title:
            raise ParityError(
                f"{output}: expected {inventory.title} as in {source}, found {result.title}."
            )
        unhashed = [second] if source_sha256 else [first, second]
        with crew("hash", sum(file.size for file in unhashed), progress) as team:
            digests = [team.submit(partial(file.sha256, team.advance)) for file in unhashed]
            weights = prove_weights(first, inventory, second, result, progress)
            sums = ([source_sha256] if source_sha256 else []) + [d.result() for d in digests]
        wanted = check is Check.LOGITS and weights.passed
        logits = prove_logits(first, inventory, second, result, progress) if wanted else ()
        return Report(
            {"name": source.name, "bytes": first.size, "sha256": sums[0]},
            {"name": output.name, "bytes": second.size, "sha256": sums[1]},
            inventory.architecture.name,
            inventory.num_classes,
            weights,
            logits,
        )


def save_report(report: Report, path: Path) -> None:
    """Write a report as JSON, in one piece.

    `parity.json` in a folder keeps one entry an output file, so that converting a second file
    beside the first loses no proof.

    Raises:
        UsageError: If the file cannot be written.
    """
    name = str(report.output["name"])
    try:
        with _locked(path.parent):
            entries = load_reports(path)
            entries[name] = report.to_dict()
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}).") from error


def load_reports(path: Path) -> dict[str, Any]:
    """Return the reports of a `parity.json`, by output file name; none if there is no such file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder: two conversions may end in the same moment."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
