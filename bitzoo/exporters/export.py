"""`export`: write to a temporary place, run the file, compare its outputs, then rename it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitzoo._version import __version__
from bitzoo.converters.dtypes import DTYPES
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.display import Displayed
from bitzoo.errors import FoldedModelError, ParityError, UsageError
from bitzoo.exporters.disk import disk_errors, require_room
from bitzoo.exporters.export_formats import FORMATS, ExportFormat, Setting
from bitzoo.exporters.file_metadata import EXACT_KEY, metadata_of
from bitzoo.exporters.probe import REASON, SEED, Probe, make_probes, tolerance_for
from bitzoo.files import Progress, check_replaceable, user_path, workspace
from bitzoo.models.bit import BiT
from bitzoo.zoo.classifier import Classifier, load_classifier
from bitzoo.zoo.info import EXPORT_REPORT_SUFFIX


@dataclass(frozen=True)
class Judged:
    """A file, run under one setting.

    Attributes:
        setting: The setting's name.
        options: What the runtime was given; nothing for its defaults.
        runtime: The runtime and its version.
        device: What it ran on.
        precision: What it computed in, as the runtime says.
        tolerance: Largest relative L2 distance that passes.
        deviations: One per set of probe images.
    """

    setting: str
    options: Mapping[str, str]
    runtime: str
    device: str
    precision: str
    tolerance: float
    deviations: tuple[Deviation, ...]

    @property
    def passed(self) -> bool:
        """Whether every distance is within the tolerance."""
        return not self.failed()

    def failed(self) -> list[Deviation]:
        """Return the deviations beyond the tolerance."""
        return [found for found in self.deviations if not found.within(self.tolerance)]

    def in_words(self) -> str:
        """Return setting, device and distances as a line."""
        found = ", ".join(f"{one.relative_l2:.1e} at {one.size} px" for one in self.deviations)
        return (
            f"{self.runtime} on {self.device}, in {self.precision}: {found} relative L2 "
            f"(allowed: {self.tolerance:.0e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        probes = [asdict(found) for found in self.deviations]
        own = {name: getattr(self, name) for name in ("setting", "runtime", "device", "precision")}
        return own | {
            "options": dict(self.options),
            "tolerance": self.tolerance,
            "passed": self.passed,
            "probes": probes,
        }


@dataclass(frozen=True, repr=False)
class ExportReport(Displayed):
    """What was written and how far it deviates from the original; `to_dict` gives JSON.

    Attributes:
        path: The file or folder.
        to: Its format, a key of `FORMATS`.
        dtype: Dtype that kernels are stored in.
        metadata: Its metadata.
        judged: How it was run and how far it deviated; the runtime's defaults come first, and the
            most exact setting last.
    """

    path: Path
    to: str
    dtype: str
    metadata: Mapping[str, str]
    judged: tuple[Judged, ...]

    @property
    def runtime(self) -> str:
        """The runtime that ran it, as a phrase."""
        return self.judged[-1].runtime

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """The deviations under the most exact setting, one per set of probe images."""
        return self.judged[-1].deviations

    @property
    def tolerance(self) -> float:
        """Largest relative L2 distance that passes under the most exact setting."""
        return self.judged[-1].tolerance

    @property
    def passed(self) -> bool:
        """Whether every distance is within its tolerance, under every setting."""
        return all(judged.passed for judged in self.judged)

    @property
    def exact(self) -> str:
        """The line of Python that runs it in float32; empty if the defaults always do."""
        return self.metadata.get(EXACT_KEY, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "name": self.path.name,
            "format": self.to,
            "dtype": self.dtype,
            "bitzoo_version": __version__,
            "passed": self.passed,
            "oracle": "NumPy float64 reference",
            "judged": [judged.to_dict() for judged in self.judged],
            "not_judged": list(FORMATS[self.to].not_judged),
            "tolerance_rule": REASON,
            "seed": SEED,
            "metadata": {key: text for key, text in self.metadata.items() if key != RECORD_KEY},
            RECORD_KEY: json.loads(self.metadata[RECORD_KEY]),
        }

    @property
    def report(self) -> Path:
        """The file next to it with these figures."""
        return report_of(self.path)

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        return [
            ("output", self.path),
            ("format", self.to),
            ("network", self.metadata.get("architecture", "")),
            ("kernels", self.metadata.get("kernels", self.dtype)),
            *((judged.setting, judged.in_words()) for judged in self.judged),
            *([("exact with", self.exact)] if self.exact else []),
            ("passed", self.passed),
            ("report", self.report),
        ]

    def require(self) -> None:
        """Raise if a deviation exceeds the tolerance.

        Raises:
            ParityError: With the images, the deviation and the tolerance.
        """
        for judged in self.judged:
            for found in judged.failed():
                raise ParityError(
                    f"{self.path.name}: at {found.size} px {judged.runtime} ({judged.setting}, in "
                    f"{judged.precision}) computes outputs that are {found.relative_l2:.2e} away "
                    "from the float64 reference (relative L2), expected at most "
                    f"{judged.tolerance:.0e} with {self.dtype} kernels. The file does not compute "
                    "what the network does, so it was removed. Try another version of the exporter "
                    'or the runtime, or `dtype="float32"`.'
                )


def export(
    model: Classifier,
    to: str,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    force: bool = False,
    weights: str | None = None,
    progress: Progress | None = None,
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
        progress: Called with ``"export"`` and the parts of the work: the reference's outputs, the
            file, and each setting that it is judged under.

    Returns:
        What was written, and how far its outputs are from the float64 reference.

    Raises:
        UsageError: If options contradict each other, or the output exists.
        MissingExtraError: If the format's libraries are not installed.
        ParityError: If the deviation exceeds the tolerance; then no output is left.
        StorageError: If the disk is full or the folder cannot be written; then no output is left.
        BitzooError: As `bitzoo.create_model` raises.
    """
    path = user_path(out)
    _check_dtype(dtype)
    form = check_output(to, path, force=force)
    check_source(model, form, path)
    network = load_classifier(model, weights)
    check_network(network)
    size = _stored_bytes(network, dtype)
    require_room(path, size)
    done = _counted(2 + len(form.settings), progress)
    probes = make_probes(network)
    done()
    metadata = metadata_of(network, dtype)
    if form.exact:
        metadata[EXACT_KEY] = form.exact.format(name=path.name)
    with disk_errors(path, size), aside_of(path, form) as aside:
        form.writer()(network, aside, dtype=dtype, metadata=metadata)
        done()
        judged = []
        for setting in form.settings:
            judged.append(_judge(form, setting, aside, probes, dtype))
            done()
        report = ExportReport(path, to, dtype, metadata, tuple(judged))
        report.require()
        text = json.dumps(report.to_dict(), indent=2) + "\n"
        report_of(aside).write_text(text, encoding="utf-8")
    return report


def _counted(total: int, progress: Progress | None) -> Callable[[], None]:
    """Report none of `total` parts of the export; return what reports one more."""
    numbers = iter(range(total + 1))

    def tell() -> None:
        number = next(numbers)
        if progress is not None:
            progress("export", number, total)

    tell()
    return tell


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"`dtype` must be one of {', '.join(DTYPES)}, found {dtype!r}.")


def check_output(to: str, path: Path, *, force: bool) -> ExportFormat:
    """Raise what would fail in the end anyway, before weights are fetched and read.

    Args:
        to: A key of `FORMATS`.
        path: The output.
        force: Whether it may replace an earlier one.

    Raises:
        UsageError: If there is no such format, or the output cannot be there.
    """
    if to not in FORMATS:
        raise UsageError(f"`to` must be one of {', '.join(FORMATS)}, found {to!r}.")
    form = FORMATS[to]
    if not path.name.endswith(form.suffix):
        raise UsageError(f"{path}: a file of format {to} must end in {form.suffix}. Rename `out`.")
    if not form.suffix and path.suffix in {other.suffix for other in FORMATS.values()} - {""}:
        raise UsageError(f"{path}: {to} is a folder, but this is a file's name. Rename `out`.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    for place in form.places(path)[:-1]:
        if os.path.lexists(place) and not path.exists():
            raise UsageError(
                f"{place} exists without {path.name}, so it is not of an earlier export, and this "
                "one would replace it. Choose another `out`."
            )
    for place in _places(form, path):
        contents = form.contents if place == path else None
        check_replaceable(place, option="out", force=force, contents=contents)
    return form


def check_source(model: Classifier, form: ExportFormat, path: Path) -> None:
    """Raise if the output would replace what the model is read from."""
    if not isinstance(model, (str, os.PathLike)):
        return
    source = Path(model).expanduser()
    for place in _places(form, path):
        if source.exists() and place.exists() and source.samefile(place):
            raise UsageError(
                f"{place}: the export would replace the model that it is made from. Choose another "
                "`out`."
            )


def _stored_bytes(model: BiT, dtype: str) -> int:
    """Return the bytes of the parameters in the file."""
    width = getattr(torch, dtype).itemsize
    return sum(
        parameter.numel() * (width if parameter.ndim == 4 else torch.float32.itemsize)
        for parameter in model.parameters()
    )


def check_network(model: BiT) -> None:
    """Raise if the reference cannot compute the network."""
    if model.folded:
        raise FoldedModelError(
            "Expected an unfolded network, found a folded one. The export folds it itself, and the "
            "proof needs the original kernels. Export the model before `fold`."
        )
    if model.stem.border != 0:
        raise UsageError(
            "Expected a network with BiT's own numbers, found one with timm's: the reference that "
            "judges exports does not compute those. `with_timm_numbers` models run in torch, and "
            "as `bitzoo.optimize` makes them."
        )
    if model.output_stride != 32:
        raise UsageError(
            f"Expected output_stride 32, found {model.output_stride}: the reference does not "
            "support dilated blocks. Create the model without `output_stride`."
        )


def _judge(
    form: ExportFormat, setting: Setting, path: Path, probes: list[Probe], dtype: str
) -> Judged:
    opened = form.loader()(path, setting.options)
    return Judged(
        setting.name,
        setting.options,
        opened.runtime,
        opened.device,
        opened.precision,
        tolerance_for(dtype, opened.precision),
        tuple(probe.judge(opened.run) for probe in probes),
    )


@contextmanager
def aside_of(path: Path, form: ExportFormat) -> Iterator[Path]:
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
    return [report_of(path), *form.places(path)]


def report_of(path: Path) -> Path:
    """Return the path of the report on an exported file."""
    return path.with_name(path.name + EXPORT_REPORT_SUFFIX)
