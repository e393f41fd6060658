"""Two proofs that a converted file equals the original.

*Weights*: every output tensor, mapped back to the source's name and axis order, equals the source
bit for bit; numbers that the output's dtype lacks are the nearest that it has. *Logits*: the
network that loads the output computes what a float64 NumPy reference computes from the source's own
names and layouts; the reference shares no code with the key mapping, so it exposes errors in that
mapping.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.catalogue.model_info import Identity
from bitzoo.converters.convert import Conversion, convert, record_logits_distance
from bitzoo.converters.formats.checkpoint_formats import Target, choose_format
from bitzoo.converters.identify import Inventory, identify
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.logits import (
    LOGITS_REASON,
    SEED,
    UNROUNDED_REASON,
    LogitsProof,
    numbers_of,
    prove_logits,
)
from bitzoo.converters.parity.weights import NEAREST, WeightsProof, prove_weights
from bitzoo.converters.source import Source
from bitzoo.converters.streaming import worker_pool
from bitzoo.display import Displayed
from bitzoo.errors import BitzooError, ParityError, UsageError
from bitzoo.files import Progress, reason_of, sha256_of, workspace, write_json
from bitzoo.locks import folder_lock
from bitzoo.models.architecture import Architecture
from bitzoo.small_files import read_json

REPORT_NAME = "parity.json"


class Check(str, Enum):
    """How much to prove."""

    NONE = "none"
    WEIGHTS = "weights"
    LOGITS = "logits"


@dataclass(frozen=True, repr=False)
class ParityReport(Displayed):
    """Everything that was proven about a pair of files; `to_dict` gives JSON.

    Attributes:
        source: Name, bytes and SHA-256 of the original.
        output: The same for the output, and how its numbers are stored.
        architecture: Name of the architecture of both.
        num_classes: Outputs of its head.
        weights: The comparison of weights.
        logits: The comparisons of logits; empty if they were not requested.
        identity: Which release the original is, and how that is known; None if not determined.
        absent: A sentence about each oracle that there is and that did not testify.
    """

    source: Mapping[str, Any]
    output: Mapping[str, Any]
    architecture: str
    num_classes: int
    weights: WeightsProof
    logits: tuple[LogitsProof, ...]
    identity: Identity | None = None
    absent: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal within its tolerance."""
        return self.weights.passed and all(proof.passed for proof in self.logits)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data, with thresholds and their reasons."""
        rule = self.weights.rule
        return {
            "passed": self.passed,
            "bitzoo_version": __version__,
            "source": dict(self.source),
            "output": dict(self.output),
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "weights": self.weights.to_dict(),
            "weights_rule": f"every output tensor mapped back equals the source {rule}",
            "logits": [_json_numbers(proof.to_dict()) for proof in self.logits if proof.judged],
            "logits_rule": LOGITS_REASON,
            **self._unrounded(),
            "seed": SEED,
            **({"logits_absent": list(self.absent)} if self.absent else {}),
            **({"identity": asdict(self.identity)} if self.identity else {}),
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        count, differing = self.weights.tensors, len(self.weights.differing)
        equal = f"all {count} tensors equal the source {self.weights.rule}"
        return [
            ("result", "passed" if self.passed else "FAILED"),
            ("source", self.source["name"]),
            ("output", self.output["name"]),
            ("weights", f"{differing} of {count} tensors differ" if differing else equal),
            *(
                (
                    f"logits at {proof.size} px, {proof.dtype}",
                    f"{proof.relative_l2:.1e} from {proof.oracle}, "
                    + (f"allowed {proof.tolerance:.0e}" if proof.judged else "unrounded"),
                )
                for proof in self.logits
            ),
            *(("no witness", sentence) for sentence in self.absent),
        ]

    def _unrounded(self) -> dict[str, Any]:
        """Return what rounding did to the outputs, if the weights were rounded."""
        stated = [_json_numbers(proof.to_dict()) for proof in self.logits if not proof.judged]
        return {"unrounded": stated, "unrounded_rule": UNROUNDED_REASON} if stated else {}

    @property
    def _expected(self) -> str:
        rounded = self.weights.rounded_to
        return f"numbers rounded to {rounded}: {NEAREST}" if rounded else "every bit equal"

    def require(self) -> None:
        """Raise if a proof failed.

        Raises:
            ParityError: With the tensors or figures that differ.
        """
        if not self.weights.passed:
            listed = ", ".join(self.weights.differing[:5])
            more = len(self.weights.differing) - 5
            raise ParityError(
                f"{self.output['name']}: {len(self.weights.differing)} of {self.weights.tensors} "
                f"tensors differ from {self.source['name']}: {listed}"
                + (f" and {more} more" if more > 0 else "")
                + f". Expected {self._expected}. Do not use the output; convert again."
            )
        for proof in self.logits:
            if not proof.passed:
                raise ParityError(
                    f"{self.output['name']}: {proof.dtype} logits at {proof.size} px are "
                    f"{proof.relative_l2:.2e} away from {proof.oracle} (relative L2), expected at "
                    f"most {proof.tolerance:.0e}. The network does not compute what "
                    f"{self.source['name']} does; do not use the output."
                )


def convert_and_prove(
    source: Path | Source,
    output: Path,
    target: Target | None = None,
    *,
    check: Check = Check.LOGITS,
    identity: Identity | None = None,
    force: bool = False,
    hash_output: bool | None = None,
    progress: Progress | None = None,
    on_report: Callable[[ParityReport], None] | None = None,
    report_path: Path | None = None,
) -> tuple[Conversion, ParityReport | None]:
    """Convert a checkpoint; the output gets its name only if it passes the requested proofs.

    Args:
        source: A checkpoint in any format that bitzoo reads, or an open one.
        output: The file or folder to write.
        target: What to write; default the format of the output's ending, else safetensors.
        check: What to prove.
        identity: Which release the source is, if the caller knows it from the bytes.
        force: Whether an existing output may be replaced.
        hash_output: Whether the report has the output's SHA-256; None for yes if logits are
            compared. The bits are proven without it, and it takes longer than proving them.
        progress: Called with the progress in bytes.
        on_report: Called with the figures before they are checked.
        report_path: Where the proof is written, as `report_replaced` does; None for nowhere.

    Raises:
        ParityError: If a proof fails; then no output is left.
        BitzooError: As `convert` raises.
    """
    target = target or Target(choose_format(output))
    report: ParityReport | None = None
    wanted = check is Check.LOGITS if hash_output is None else hash_output

    def prove(original: Source, conversion: Conversion) -> None:
        nonlocal report
        if conversion.weights is None:
            return
        with open_source(conversion.output) as written:
            pair = _Pair(original, conversion.inventory, written, identify(written))
            report = _judge(pair, check, progress, conversion, hash_output=wanted)
        stated = [proof.relative_l2 for proof in report.logits if not proof.judged]
        if stated and conversion.rounded:
            moved = max(stated)
            weights = record_logits_distance(conversion, target, moved)
            if wanted:
                report = replace(report, output={**report.output, "sha256": sha256_of(weights)})
        report = replace(report, output={**report.output, "name": output.name})
        if on_report:
            on_report(report)
        report.require()

    def naming() -> AbstractContextManager[object]:
        return report_replaced(report_path, output.name, report) if report_path else nullcontext()

    conversion = convert(
        source,
        output,
        target,
        identity=identity,
        compare=check is not Check.NONE,
        prove=prove,
        naming=naming,
        force=force,
        progress=progress,
    )
    return conversion, report


def verify(
    source: Path,
    output: Path,
    *,
    check: Check = Check.LOGITS,
    weights: str | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Prove that two checkpoint files, in any formats that bitzoo reads, hold the same model.

    Args:
        source: The original.
        output: What was made from it.
        check: `Check.WEIGHTS`, or `Check.LOGITS` for both proofs.
        weights: Which weights of the original; see `open_source`.
        progress: Called with the progress in bytes.

    Returns:
        The figures; `ParityReport.require` raises if any proof failed.

    Raises:
        CheckpointError: If a file cannot be read.
        ParityError: If the files have different architectures.
    """
    with open_source(source, weights=weights) as first, open_source(output) as second:
        return _judge(_Pair(first, identify(first), second, identify(second)), check, progress)


@dataclass(frozen=True)
class _Pair:
    """Two open files, and the networks found in them."""

    source: Source
    inventory: Inventory
    output: Source
    result: Inventory


def _judge(
    pair: _Pair,
    check: Check,
    progress: Progress | None,
    known: Conversion | None = None,
    *,
    hash_output: bool = True,
) -> ParityReport:
    """Prove a pair of open files; `known` has the results of the conversion that just ended."""
    source, output = pair.source, pair.output
    if _network(pair.inventory) != _network(pair.result):
        raise ParityError(
            f"{output.path}: expected {pair.inventory.title} as in {source.path}, found "
            f"{pair.result.title}."
        )
    absent: list[str] = []
    wanted = {output: hash_output, source: known is None}
    with worker_pool("hash", sum(file.size for file in wanted if wanted[file]), progress) as pool:
        sums = {file: pool.hash(file) for file in wanted if wanted[file]}
        files = (source, pair.inventory, output, pair.result)
        weights = (known.weights if known else None) or prove_weights(*files, progress)
        compared = check is Check.LOGITS and weights.passed
        logits = prove_logits(*files, progress, absent) if compared else ()
        hashes = {file: digest.result() for file, digest in sums.items()}
    if known:
        hashes[source] = known.sha256
    numbers = numbers_of(source, output, pair.result)
    return ParityReport(
        _describe(source, hashes.get(source)),
        _describe(output, hashes.get(output)) | {"numbers": numbers},
        pair.inventory.architecture.name,
        pair.inventory.num_classes,
        weights,
        logits,
        known.info.identity if known else None,
        tuple(absent),
    )


def _network(inventory: Inventory) -> tuple[Architecture, int]:
    return inventory.architecture, inventory.num_classes


def _json_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON cannot express, such as the distance of logits that are NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _describe(file: Source, sha256: str | None) -> dict[str, Any]:
    return {"name": file.path.name, "bytes": file.size, "sha256": sha256}


def save_report(report: ParityReport, path: Path) -> None:
    """Write a report as JSON, atomically.

    `parity.json` in a folder has one entry per output file, so that converting a second file in
    the same folder keeps the first proof.

    Raises:
        UsageError: If the file cannot be written, or contains something else.
    """
    with report_replaced(path, str(report.output["name"]), report):
        pass


@contextmanager
def report_replaced(path: Path, name: str, report: ParityReport | None) -> Iterator[None]:
    """Replace the proof of an output around the body, which gives the output its name.

    The old proof is removed before the body and the new one appears after it, so that there is
    never a proof beside a file that it does not describe, even if the process is killed. Both are
    written beforehand: a full disk is noticed while the old output and its proof are there.

    Args:
        path: The `parity.json`, or the file in its place.
        name: The output's name.
        report: The new proof; None if the output is not proven.

    Raises:
        UsageError: If the proof cannot be written, or the file contains something else.
    """
    with ExitStack() as stack:
        with _write_errors(path):
            stack.enter_context(folder_lock(path.parent))
            place = stack.enter_context(workspace(path.parent))
            before = load_reports(path)
            others = {key: entry for key, entry in before.items() if key != name}
            versions = {"before": before, "without": others}
            if report:
                versions["after"] = {**before, name: report.to_dict()}
            for version, entries in versions.items():
                write_json(place / version, entries)
            if name in before:
                os.replace(place / "without", path)
        try:
            yield
        except BaseException:
            if name in before:
                os.replace(place / "before", path)
            raise
        if report:
            with _write_errors(path):
                os.replace(place / "after", path)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BitzooError):
            raise
        raise UsageError(f"{path}: cannot be written ({reason_of(error)}).") from error


def load_reports(path: Path) -> dict[str, Any]:
    """Return the reports in a `parity.json` by output file name; empty if there is no such file.

    Raises:
        UsageError: If the file contains anything but reports, which a new report would replace.
    """
    entries: Any = None
    try:
        entries = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        pass  # rejected below, like JSON of another form
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and "weights_rule" in entry for entry in entries.values()
    ):
        raise UsageError(
            f"{path}: expected reports of earlier proofs, found something else. Move it away, or "
            "choose another file with `report`."
        )
    return entries
