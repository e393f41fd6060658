"""`bitzoo.export`: in floats proved against the reference, in int8 judged on held-out images."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitzoo.converters.dtypes import DTYPES
from bitzoo.data.dataset import DataSource
from bitzoo.data.decode_workers import count_cores
from bitzoo.data.image_store import Pixels, open_pixels
from bitzoo.errors import UsageError
from bitzoo.exporters.disk import disk_errors, require_room
from bitzoo.exporters.export import (
    ExportReport,
    aside_of,
    check_network,
    check_output,
    check_source,
    report_of,
)
from bitzoo.exporters.export import export as export_floats
from bitzoo.exporters.export_formats import ExportFormat, Opened
from bitzoo.exporters.file_metadata import metadata_of
from bitzoo.exporters.quantize import QUANTIZERS, require_quantizer
from bitzoo.files import Progress, sha256_of, temporary_folder, user_path
from bitzoo.inference.calibration import ChosenImages, choose_images, counts_by_class
from bitzoo.inference.evaluate import evaluate_pixels
from bitzoo.inference.int8_report import Compared, Int8Report, Speed, files_of
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.bit import BiT
from bitzoo.progress import shown
from bitzoo.zoo.classifier import Classifier, load_classifier, title_of
from bitzoo.zoo.info import labels

__all__ = ["EXPORT_DTYPES", "INT8", "Int8Report", "export"]

INT8 = "int8"
EXPORT_DTYPES = (*DTYPES, INT8)
"""Dtypes that an exported file's kernels may be stored in."""
_BATCH = 8
_SPEED_BATCHES = (1, 8)
_ROUNDS, _SECONDS = (5, 25), 10.0
"""Least and most rounds of a timing, and the time after which it has enough."""
_CACHE_BYTES = int(20e9)


def export(
    model: Classifier,
    to: str,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    calibrate: DataSource | None = None,
    max_loss: float = 0.01,
    calibration_images: int = 300,
    judged_images: int = 2000,
    seed: int = 0,
    skip_bad: bool = False,
    force: bool = False,
    weights: str | None = None,
    progress: Progress | bool | None = None,
) -> ExportReport | Int8Report:
    """Export a network for another runtime, and prove or judge what the file computes.

    In floats, the file is proved to compute the same function: it is run on probe images in its own
    runtime before it gets its name. In int8 it computes another one, so it is judged by what it is
    for: it and the float32 file classify images that it was not calibrated on, and the difference
    is recorded. A report is written next to the file, under its name with `EXPORT_REPORT_SUFFIX`.
    `bitzoo export` does the same.

    Args:
        model: A catalogue name, a checkpoint file, a run folder, or a model of
            `bitzoo.create_model`, unfolded.
        to: Format: ``onnx``, ``openvino``, ``torch-export`` or ``savedmodel``; the first two for
            int8.
        out: The file to write (the folder, for ``savedmodel``), with the format's suffix.
        dtype: Dtype that kernels are stored in: ``float32``, ``float16``, ``bfloat16``, or
            ``int8``, in which convolutions also compute.
        calibrate: For int8, images of the model's task in any form that `bitzoo.finetune` takes. A
            run is calibrated on those of its training images that are among them and judged on its
            held-out ones; data with a val or test split are judged on that; other data are divided.
            Without labels that are the model's, agreement with the float32 file is judged.
        max_loss: For int8, the largest share of the judged images, in [0, 1], that may be lost:
            right in float32 and wrong in int8, less those the other way round. The default is one
            percentage point, less than what another seed of a fine-tuning changes.
        calibration_images: For int8, how many images to calibrate on, as many of each class.
        judged_images: For int8, how many images to judge on at most.
        seed: For int8, seed of the choice of images.
        skip_bad: For int8, whether to leave out images that cannot be read.
        force: Whether to replace an existing output.
        weights: Which weights of a training checkpoint; as for `bitzoo.create_model`.
        progress: As for `bitzoo.finetune`.

    Returns:
        What was written, and how far its outputs are from the float64 reference, or from the
        float32 file on the judged images.

    Raises:
        UsageError: If options contradict each other, or the output exists.
        MissingExtraError: If the format's libraries are not installed.
        ParityError: If the deviation exceeds the tolerance; then no output is left.
        AccuracyLossError: If int8 loses more than `max_loss`; then no output is left.
        DatasetError: If the images cannot be read.
        StorageError: If the disk is full or the folder cannot be written; then no output is left.
        BitzooError: As `bitzoo.create_model` raises.
    """
    if dtype not in EXPORT_DTYPES:
        raise UsageError(f"`dtype` must be one of {', '.join(EXPORT_DTYPES)}, found {dtype!r}.")
    if dtype != INT8:
        if calibrate is not None:
            raise UsageError(
                f"`calibrate` is for int8 kernels, found it with {dtype}, which needs no images. "
                'Leave it out, or give `dtype="int8"`.'
            )
        with shown(progress) as told:
            return export_floats(
                model, to, out, dtype=dtype, force=force, weights=weights, progress=told
            )
    path = user_path(out)
    form = check_output(to, path, force=force)
    _check_options(to, calibrate, max_loss, calibration_images, judged_images)
    check_source(model, form, path)
    require_quantizer(to)
    with shown(progress) as told:
        network = load_classifier(model, weights)
        check_network(network)
        if not network.num_classes:
            raise UsageError(
                "An int8 file is judged by the first class of each image, but this model has no "
                "classes, only features. Give a model with its head."
            )
        chosen = choose_images(
            network,
            title_of(model),
            calibrate,
            to_calibrate=calibration_images,
            to_judge=judged_images,
            seed=seed,
            skip_bad=skip_bad,
            progress=told,
        )
        size = sum(parameter.numel() for parameter in network.parameters())
        require_room(path, size)
        job = _Job(network, to, form, path, chosen, max_loss, seed, told)
        with disk_errors(path, size), aside_of(path, form) as aside, temporary_folder() as folder:
            report = job.run(aside, folder / f"float32{form.suffix}")
            report.require()
            text = json.dumps(report.to_dict(), indent=2) + "\n"
            report_of(aside).write_text(text, encoding="utf-8")
        return report


def _check_options(
    to: str, calibrate: object, max_loss: float, calibration_images: int, judged_images: int
) -> None:
    if to not in QUANTIZERS:
        raise UsageError(
            f"int8 files are written as {' or '.join(QUANTIZERS)}, found {to!r}. Choose one of "
            "these as `to`, or another `dtype`."
        )
    if calibrate is None:
        raise UsageError(
            "An int8 file needs images of the model's task, on which the ranges of its maps are "
            "measured and what it loses is judged. Give them with `calibrate`, for a run the data "
            "that it was trained on."
        )
    if not 0 <= max_loss <= 1:
        raise UsageError(
            f"`max_loss` must be a share from 0 to 1 (0.01 is one percentage point), found "
            f"{max_loss}."
        )
    for name, number in (
        ("calibration_images", calibration_images),
        ("judged_images", judged_images),
    ):
        if number < 1:
            raise UsageError(f"`{name}` must be at least 1, found {number}.")


@dataclass
class _Job:
    """The making of one int8 file.

    Attributes:
        network: The network.
        to: The format's name.
        form: The format.
        path: Where the file is to be.
        images: What it is calibrated and judged on.
        max_loss: As for `export`.
        seed: As for `export`.
        progress: As for `export`.
    """

    network: BiT
    to: str
    form: ExportFormat
    path: Path
    images: ChosenImages
    max_loss: float
    seed: int
    progress: Progress | None
    calibration: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        split = self.images.calibration
        least, most = counts_by_class(split)
        self.calibration = {
            "images": len(split),
            "images_of_a_class": [least, most] if self.images.truth else None,
            "seed": self.seed,
            "fingerprint": self.images.fingerprint,
        }

    def run(self, aside: Path, plain: Path) -> Int8Report:
        """Write the float32 file, quantize it to `aside`, and compare the two."""
        proved = export_floats(self.network, self.to, plain, progress=self.progress)
        metadata = metadata_of(self.network, INT8) | {"calibration": json.dumps(self.calibration)}
        with self._open(self.images.calibration) as pixels:
            quantization = QUANTIZERS[self.to](
                self.network, plain, aside, self._batches(pixels), len(pixels), metadata
            )
        exact, defaults = self.form.settings[-1], self.form.settings[0]
        before = self.form.loader()(plain, exact.options)
        after = self.form.loader()(aside, defaults.options)
        with self._open(self.images.judged) as pixels:
            compared = Compared.of(
                self._evaluate("float32", before, pixels),
                self._evaluate(INT8, after, pixels),
                labelled=self.images.truth is not None,
            )
            speeds = tuple(_speed(before, after, pixels, batch) for batch in _SPEED_BATCHES)
        written = [place for place in self.form.places(aside) if place.is_file()]
        return Int8Report(
            self.path,
            self.to,
            metadata,
            quantization,
            compared,
            self.max_loss,
            _about_float32(proved),
            self.calibration,
            f"{compared.count:,} images: {self.images.chosen}",
            speeds,
            {
                "runtime": after.runtime,
                "device": after.device,
                "cores": count_cores(),
                "float32_file_in": before.precision,
                "int8_file_in": f"int8 convolutions, else {after.precision}",
                "side": self.images.transform.crop,
            },
            (files_of(self.form.places(plain)), files_of(written)),
            {place.name: sha256_of(place) for place in written},
            self.images.notes,
        )

    def _open(self, split: Any) -> Pixels:
        return open_pixels(
            split, self.images.transform, budget_bytes=_CACHE_BYTES, progress=self.progress
        )

    def _batches(self, pixels: Pixels) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(pixels), _BATCH):
            rows = range(start, min(start + _BATCH, len(pixels)))
            yield _scaled(pixels, rows)
            if self.progress is not None:
                self.progress("calibrate", rows.stop, len(pixels))

    def _evaluate(self, name: str, opened: Opened, pixels: Pixels) -> Evaluation:
        truth, examples = self.images.truth, self.images.judged.examples
        report = self.progress

        def tell(task: str, done: int, total: int) -> None:
            if report is not None:
                report(f"{task}: {name}", done, total)

        names = truth.names if truth else labels(self.network)
        return evaluate_pixels(
            _File(opened),
            pixels,
            [example.label if truth else 0 for example in examples],
            names or [str(output) for output in range(self.network.num_classes)],
            batch_size=_BATCH,
            device="cpu",
            keep_logits=True,
            outputs=truth.match.competing if truth else None,
            accepted=truth.accepted_by(examples) if truth else None,
            progress=tell,
        )


class _File(nn.Module):
    """An exported file as a module, for `evaluate_pixels`."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self._run = opened.run

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (batch, channels, height, width)."""
        return torch.from_numpy(self._run(np.ascontiguousarray(images.numpy())))


def _scaled(pixels: Pixels, rows: Any) -> npt.NDArray[np.float32]:
    images = pixels.take(rows).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(images / np.float32(127.5) - np.float32(1))


def _speed(before: Opened, after: Opened, pixels: Pixels, batch: int) -> Speed:
    """Time both files on the first images, in turn, so that a busy machine slows both."""
    images = _scaled(pixels, np.arange(batch) % len(pixels))
    seconds: tuple[list[float], list[float]] = [], []
    least, most = _ROUNDS
    began = time.perf_counter()
    for number in range(most):
        for opened, times in zip((before, after), seconds, strict=True):
            opened.run(images)  # warms its memory and caches after the other
            start = time.perf_counter()
            opened.run(images)
            times.append(time.perf_counter() - start)
        if number + 1 >= least and time.perf_counter() - began > _SECONDS:
            break
    return Speed(batch, *map(tuple, seconds))


def _about_float32(proved: ExportReport) -> Mapping[str, Any]:
    """Return what the report says of the float32 file that the int8 file was made from."""
    report = proved.to_dict()
    return {name: report[name] for name in ("oracle", "judged", "tolerance_rule", "seed")}
