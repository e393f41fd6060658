"""`export`: write to a temporary place, run the file, compare its outputs, then rename it."""

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
from bitzoo.converters.dtypes import DTYPES
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.display import Displayed
from bitzoo.errors import FoldedModelError, ParityError, UsageError
from bitzoo.exporters.export_formats import FORMATS, ExportFormat
from bitzoo.exporters.file_metadata import metadata_of
from bitzoo.exporters.probe import REASON, SEED, TOLERANCES, Probe, make_probes
from bitzoo.files import user_path, workspace
from bitzoo.models.bit import BiT
from bitzoo.zoo.classifier import Classifier, load_classifier
from bitzoo.zoo.info import EXPORT_REPORT_SUFFIX


@dataclass(frozen=True, repr=False)
class ExportReport(Displayed):
    """What was written and how far it deviates from the original; `to_dict` gives JSON.

    Attributes:
        path: The file or folder.
        to: Its format, a key of `FORMATS`.
        dtype: Dtype that kernels are stored in.
        runtime: The runtime that ran it, as a phrase.
        metadata: Its metadata.
        deviations: One per set of probe images.
    """

    path: Path
    to: str
    dtype: str
    runtime: str
    metadata: Mapping[str, str]
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
            "metadata": {key: text for key, text in self.metadata.items() if key != RECORD_KEY},
            RECORD_KEY: json.loads(self.metadata[RECORD_KEY]),
        }

    @property
    def report(self) -> Path:
        """The file next to it with these figures."""
        return _report_of(self.path)

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        found = ", ".join(
            f"{deviation.relative_l2:.1e} at {deviation.size} px" for deviation in self.deviations
        )
        return [
            ("output", self.path),
            ("format", self.to),
            ("network", self.metadata.get("architecture", "")),
            ("kernels", self.metadata.get("kernels", self.dtype)),
            ("run by", self.runtime),
            ("relative L2", f"{found} (allowed: {self.tolerance:.0e})"),
            ("passed", self.passed),
            ("report", self.report),
        ]

    def require(self) -> None:
        """Raise if a deviation exceeds the tolerance.

        Raises:
            ParityError: With the images, the deviation and the tolerance.
        """
        for found in self.deviations:
            if not found.within(self.tolerance):
                raise ParityError(
                    f"{self.path.name}: at {found.size} px {self.runtime} computes outputs that "
                    f"are {found.relative_l2:.2e} away from the float64 reference (relative L2), "
                    f"expected at most {self.tolerance:.0e} with {self.dtype} kernels. The file "
                    "does not compute what the network does, so it was removed. Try another "
                    'version of the exporter or the runtime, or `dtype="float32"`.'
                )


def export(
    model: Classifier,
    to: str,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    force: bool = False,
    weights: str | None = None,
) -> ExportReport:
    """Export a network for another runtime, and prove that the file computes the same function.

    The file is run on probe images in its own runtime before it gets its name. A report is written
    next to it, under its name with `EXPORT_REPORT_SUFFIX`. `bitzoo export` does the same.

    Args:
        model: A catalogue name, a checkpoint file, a run folder, or a model of
            `bitzoo.create_model`, unfolded.
        to: Format: ``onnx``, ``openvino``, ``torch-export`` or ``savedmodel``.
        out: The file to write (the folder, for ``savedmodel``), with the format's suffix.
        dtype: Dtype that kernels are stored in: ``float32``, ``float16`` or ``bfloat16``.
        force: Whether to replace an existing output.
        weights: Which weights of a training checkpoint; as for `bitzoo.create_model`.

    Returns:
        What was written, and how far its outputs are from the float64 reference.

    Raises:
        UsageError: If options contradict each other, or the output exists.
        MissingExtraError: If the format's libraries are not installed.
        ParityError: If the deviation exceeds the tolerance; then no output is left.
        BitzooError: As `bitzoo.create_model` raises.
    """
    path = user_path(out)
    form = _check_output(to, path, dtype, force=force)
    network = load_classifier(model, weights)
    _check_network(network)
    probes = make_probes(network)
    metadata = metadata_of(network, dtype)
    with _aside(path, form) as aside:
        form.writer()(network, aside, dtype=dtype, metadata=metadata)
        deviations, runtime = _judge(form, aside, probes)
        report = ExportReport(path, to, dtype, runtime, metadata, deviations)
        report.require()
        text = json.dumps(report.to_dict(), indent=2) + "\n"
        _report_of(aside).write_text(text, encoding="utf-8")
    return report


def _check_output(to: str, path: Path, dtype: str, *, force: bool) -> ExportFormat:
    """Raise what would fail in the end anyway, before weights are fetched and read."""
    if to not in FORMATS or dtype not in DTYPES:
        raise UsageError(
            f"`to` must be one of {', '.join(FORMATS)} and `dtype` one of {', '.join(DTYPES)}, "
            f"found {to!r} and {dtype!r}."
        )
    form = FORMATS[to]
    if not path.name.endswith(form.suffix):
        raise UsageError(f"{path}: a file of format {to} must end in {form.suffix}. Rename `out`.")
    if not form.suffix and path.suffix in {other.suffix for other in FORMATS.values()} - {""}:
        raise UsageError(f"{path}: {to} is a folder, but this is a file's name. Rename `out`.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    taken = [place for place in _places(form, path) if os.path.lexists(place)]
    if taken and not force:
        raise UsageError(
            f"{taken[0]} already exists. Choose another `out`, or replace it with `force=True`."
        )
    return form


def _check_network(model: BiT) -> None:
    """Raise if the reference cannot compute the network."""
    if model.folded:
        raise FoldedModelError(
            "Expected an unfolded network, found a folded one. The export folds it itself, and the "
            "proof needs the original kernels. Export the model before `fold`."
        )
    if model.output_stride != 32:
        raise UsageError(
            f"Expected output_stride 32, found {model.output_stride}: the reference does not "
            "support dilated blocks. Create the model without `output_stride`."
        )


def _judge(
    form: ExportFormat, path: Path, probes: list[Probe]
) -> tuple[tuple[Deviation, ...], str]:
    run, runtime = form.loader()(path)
    return tuple(probe.judge(run) for probe in probes), runtime


@contextmanager
def _aside(path: Path, form: ExportFormat) -> Iterator[Path]:
    """Provide a path of the same name in a temporary folder; its files are then moved to `path`.

    `path` itself is moved last, so that it appears only when everything is complete.
    """
    with workspace(path.parent) as folder:
        yield folder / path.name
        places = _places(form, path)
        for place in reversed(places):
            _remove(place)
        for place in places:
            if (folder / place.name).exists():
                os.replace(folder / place.name, place)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _places(form: ExportFormat, path: Path) -> list[Path]:
    return [_report_of(path), *form.places(path)]


def _report_of(path: Path) -> Path:
    return path.with_name(path.name + EXPORT_REPORT_SUFFIX)
