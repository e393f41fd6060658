"""One export: write aside, run what was written, judge it, and only then give it its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.errors import FoldedModelError, ParityError, UsageError
from bitzoo.exporters.export_formats import FORMATS, ExportFormat
from bitzoo.exporters.file_metadata import metadata_of
from bitzoo.exporters.graph import DTYPES
from bitzoo.exporters.probe import REASON, SEED, TOLERANCES, Probe, make_probes
from bitzoo.models.bit import BiT
from bitzoo.zoo.info import EXPORT_REPORT_SUFFIX

REPORT_SUFFIX = EXPORT_REPORT_SUFFIX


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the original; JSON by `to_dict`.

    Attributes:
        path: The file or folder.
        to: Its format, a key of `FORMATS`.
        dtype: What kernels are stored in.
        runtime: What ran it, in words.
        facts: What it says of itself.
        deviations: One for each set of probe images.
    """

    path: Path
    to: str
    dtype: str
    runtime: str
    facts: Mapping[str, str]
    deviations: tuple[Deviation, ...]

    @property
    def tolerance(self) -> float:
        """Largest relative L2 distance that passes."""
        return TOLERANCES[self.dtype]

    @property
    def passed(self) -> bool:
        """Whether every distance is within the tolerance."""
        return all(found.within(self.tolerance) for found in self.deviations)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "name": self.path.name,
            "format": self.to,
            "dtype": self.dtype,
            "bitzoo_version": __version__,
            "passed": self.passed,
            "runtime": self.runtime,
            "oracle": "NumPy float64 reference",
            "tolerance": self.tolerance,
            "tolerance_rule": REASON,
            "probes": [asdict(found) for found in self.deviations],
            "seed": SEED,
            "facts": {key: text for key, text in self.facts.items() if key != RECORD_KEY},
            RECORD_KEY: json.loads(self.facts[RECORD_KEY]),
        }

    def require(self) -> None:
        """Raise what failed.

        Raises:
            ParityError: Says which images, how far, and what was allowed.
        """
        for found in self.deviations:
            if not found.within(self.tolerance):
                raise ParityError(
                    f"{self.path.name}: at {found.size} px {self.runtime} computes outputs that "
                    f"are {found.relative_l2:.2e} away from the float64 reference (relative L2), "
                    f"expected at most {self.tolerance:.0e} with {self.dtype} kernels. The file "
                    "does not compute what the network does, so it was removed. Try another "
                    "version of the exporter or the runtime, or --dtype float32."
                )


def export(
    model: BiT, to: str, path: Path, *, dtype: str = "float32", force: bool = False
) -> ExportReport:
    """Write a network in another ecosystem's format and prove that it computes the same.

    The file runs on probe images in its own runtime before it gets its name; a report lies beside
    it under its name and `REPORT_SUFFIX`.

    Args:
        model: The network, unfolded.
        to: A key of `FORMATS`.
        path: The file to write (the folder, for ``savedmodel``), with the format's suffix.
        dtype: What kernels are stored in: ``float32``, ``float16`` or ``bfloat16``.
        force: Whether to replace what is there.

    Raises:
        UsageError: If options contradict each other or the path is taken.
        MissingExtraError: If the format's libraries are not installed.
        ParityError: If the deviation is beyond the tolerance; nothing is left then.
    """
    form = _check(model, to, path, dtype, force=force)
    probes = make_probes(model)
    facts = metadata_of(model, dtype)
    with _aside(path, form) as aside:
        form.writer()(model, aside, dtype=dtype, facts=facts)
        deviations, runtime = _judge(form, aside, probes)
        report = ExportReport(path, to, dtype, runtime, facts, deviations)
        report.require()
        text = json.dumps(report.to_dict(), indent=2) + "\n"
        _report_of(aside).write_text(text, encoding="utf-8")
    return report


def _check(model: BiT, to: str, path: Path, dtype: str, *, force: bool) -> ExportFormat:
    """Refuse what could only fail in the end."""
    if to not in FORMATS or dtype not in DTYPES:
        raise UsageError(
            f"An export is one of {', '.join(FORMATS)} with kernels in {', '.join(DTYPES)}, found "
            f"{to!r} and {dtype!r}."
        )
    if model.folded:
        raise FoldedModelError(
            "Expected the network as released, found a folded one: the proof standardizes its "
            "kernels itself. Export the model that was folded."
        )
    if model.output_stride != 32:
        raise UsageError(
            f"Expected output_stride 32, found {model.output_stride}: no reference knows dilated "
            "blocks. Create the model without output_stride."
        )
    form = FORMATS[to]
    if not path.name.endswith(form.suffix):
        raise UsageError(f"{path}: a file of format {to} must end in {form.suffix}. Rename --out.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    taken = [place for place in _places(form, path) if os.path.lexists(place)]
    if taken and not force:
        raise UsageError(
            f"{taken[0]} already exists. Choose another --out, or replace it: --force."
        )
    return form


def _judge(
    form: ExportFormat, path: Path, probes: list[Probe]
) -> tuple[tuple[Deviation, ...], str]:
    run, runtime = form.loader()(path)
    return tuple(probe.judge(run) for probe in probes), runtime


@contextmanager
def _aside(path: Path, form: ExportFormat) -> Iterator[Path]:
    """Lend a path of the same name in a folder beside; what lies there at the end is moved up.

    The name itself comes last, so that whoever sees it sees all of it.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder / path.name
        places = _places(form, path)
        for place in reversed(places):
            _remove(place)
        for place in places:
            if (folder / place.name).exists():
                os.replace(folder / place.name, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _places(form: ExportFormat, path: Path) -> list[Path]:
    return [_report_of(path), *form.places(path)]


def _report_of(path: Path) -> Path:
    return path.with_name(path.name + REPORT_SUFFIX)
