"""What a run will take, before it begins: said, asked about, and made to fit a time limit."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from bitzoo.catalogue.registry import find_spec
from bitzoo.data import pixel_cache
from bitzoo.data.dataset import ImageSet, Split
from bitzoo.data.decode_workers import as_transform
from bitzoo.data.image_store import Contents
from bitzoo.data.validation import DataSummary
from bitzoo.errors import BitzooError, StorageError, UsageError
from bitzoo.files import cache_dir
from bitzoo.inference.features import count_missing
from bitzoo.inference.processes import in_main_process, join_processes, process_device
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.bit import BiT
from bitzoo.models.cost import multiply_accumulates
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.progress_line import size_of
from bitzoo.runs import time_limit
from bitzoo.runs.changes import changed
from bitzoo.runs.estimate import (
    TOLD_FROM,
    Estimate,
    Forecast,
    Speeds,
    Way,
    Work,
    checkpoints_left,
    estimate,
    evaluations_left,
)
from bitzoo.runs.job import Job
from bitzoo.runs.rehearsal import Rehearsal, decoding_seconds, head_step, rehearse
from bitzoo.runs.report.run_command import command_of
from bitzoo.runs.run_dir import CHECKPOINTS_NAME
from bitzoo.runs.session import training_labels
from bitzoo.runs.wanted_rows import evaluation_transform, training_size
from bitzoo.training.checkpointing import newest_loop
from bitzoo.training.memory_layout import MemoryLayout
from bitzoo.training.model_selection import evaluation_interval
from bitzoo.training.recipe import INCEPTION_CROP, Recipe

FASTER_STEPS = 10
"""A cheaper way has one in so many steps."""
FASTER_CROP = 128
"""And this resolution: what BiT-HyperRule uses for small images."""
MEASURED = "measured"
SCALED = "scaled from it by multiply-accumulates"


class Foresight:
    """Looks ahead at a run that is planned; used in all processes, of which the main one speaks.

    Attributes:
        recipe: The plan, made to fit by `fit_in`.
        layout: The memory format that was measured; None before, and if there was no choice.
    """

    def __init__(
        self,
        job: Job,
        recipe: Recipe,
        network: BiT,
        images: ImageSet,
        summary: DataSummary,
        out: Path,
        *,
        record: Mapping[str, Any] | None = None,
        extend: int | None = None,
        repeats: int = 1,
        overwrite: bool = False,
    ) -> None:
        """Look at nothing yet.

        Args:
            job: What is to be done.
            recipe: The plan.
            network: The network.
            images: The data.
            summary: Their properties.
            out: The run folder.
            record: What `run.json` says of a run that goes on; None for a new one.
            extend: Steps to train on after the end.
            repeats: How many such runs there are.
            overwrite: Whether a run in the folder is deleted.
        """
        self.recipe, self.layout = recipe, None  # type: Recipe, MemoryLayout | None
        self._job, self._config = job, job.config
        self._network, self._images, self._summary = network, images, summary
        self._out, self._repeats, self._overwrite = out, repeats, overwrite
        self._device = process_device(job.config.device)
        self._processes = join_processes(job.config.device).num_processes
        self._missing: dict[tuple[str, str], int] = {}
        self._step, self._loop = 0, dict[str, Any]()
        self._length: int | None = None
        if record is not None:
            self._go_on(record, extend)
        self._measured: Rehearsal | None = None
        self._decoding: float | None = None

    @property
    def steps_left(self) -> int:
        """Updates that are left."""
        return (self._length or self.recipe.schedule.steps) - self._step

    def fit_in(self, limit: float, spent: float) -> None:
        """Make the plan fit a time limit; see `bitzoo.runs.time_limit`.

        Args:
            limit: Seconds for the whole command.
            spent: Seconds that it has taken so far.

        Raises:
            UsageError: If nothing fits.
        """
        planned, config = self.recipe, self._config
        limits = time_limit.Limits.of(
            planned,
            len(self._images.train),
            steps_given=config.steps is not None or config.epochs is not None,
            crop_given=config.resolution is not None,
        )
        began = time.monotonic()
        tried = limits
        while True:
            self._rehearse()
            at = self.recipe.crop

            def fitted(tried: time_limit.Limits = tried) -> Recipe | None:
                now = spent + time.monotonic() - began
                return time_limit.fit(limit, planned, tried, self._seconds, now)

            found = in_main_process(fitted)
            if found is None:
                raise in_main_process(lambda: self._nothing_fits(limit, planned, limits, spent))
            if found.crop == at:
                break
            # Scaled from another resolution: measured there before it is taken.
            crops = limits.crops[limits.crops.index(found.crop) :]
            tried = time_limit.Limits(limits.least_steps, crops)
            self.recipe, self.layout, self._measured = found, None, None
        self.recipe = time_limit.noted(planned, found, limit)

    def forecast(self, *, told_from: float = TOLD_FROM) -> Forecast:
        """Return what the run will take; all processes call this, and get the same.

        Args:
            told_from: From how many seconds on there are lines to say.
        """
        self._rehearse()
        return in_main_process(lambda: self._forecast(told_from))

    def _go_on(self, record: Mapping[str, Any], extend: int | None) -> None:
        """Look at where a run is that goes on."""
        if not self._config.freeze:
            found = in_main_process(lambda: newest_loop(self._out / CHECKPOINTS_NAME))
            self._step, self._loop = found
        try:
            recipe, self._config = changed(
                record, record.get("changes", []), self.recipe, self._config
            )
            self._length = recipe.schedule.steps + (extend or 0)
        except (BitzooError, KeyError, TypeError, ValueError):
            return  # a damaged record, which is reported when the run is opened

    def _rehearse(self) -> None:
        if self._measured is not None:
            return
        examples, config = len(self._images.train), self._config
        self._decoding = in_main_process(self._measure_decoding)
        measured = rehearse(
            self._network,
            self.recipe,
            training_labels(self._images),
            examples,
            config,
            images_left=self.steps_left * max(1, self.recipe.batch_size // self._processes),
            layout=self._known_layout(),
            teacher=self._job.faculty.ensemble(self._device) if self._job.faculty else None,
            decoded_at_use=self._decoding if self._decodes_at_use else 0.0,
        )
        self._measured = measured
        if self._step == 0:
            self.layout = measured.layout

    def _known_layout(self) -> MemoryLayout | None:
        if self.layout is not None:
            return self.layout
        if record := self._loop.get("layout"):
            with contextlib.suppress(Exception):  # a damaged one, which is reported when it is used
                return MemoryLayout.from_dict(record)
        return MemoryLayout(True) if self._step and self._config.channels_last is None else None

    def _measure_decoding(self) -> float:
        if self._decoding is not None:
            return self._decoding
        split = self._images.train
        if not self._decodes_at_use and not self._to_decode(self.recipe, self._config.freeze):
            return 0.0
        size = as_transform(self.recipe.resize, self._summary.bit_depth)
        return decoding_seconds(split, size, self.recipe, self._config.workers)

    @property
    def _decodes_at_use(self) -> bool:
        """Whether images are decoded at each use: random boxes of them, or there is no room."""
        recipe, config = self.recipe, self._config
        if recipe.augmentation == INCEPTION_CROP or self._summary.checked is not None:
            return True
        return self._cache_bytes(recipe, config.freeze, 1) > config.cache_gb * 1e9

    def _parts(self, recipe: Recipe, frozen: bool) -> list[tuple[Split, EvalTransform]]:
        depth, images = self._summary.bit_depth, self._images
        seen = evaluation_transform(recipe, depth)
        parts = [] if images.val is None else [(images.val, seen)]
        if (size := training_size(recipe, freeze=frozen)) is not None:
            parts.append((images.train, as_transform(size, depth)))
        return parts

    def _cache_bytes(self, recipe: Recipe, frozen: bool, all_of_them: int = 0) -> int:
        """Return what decoding adds to the cache, or what all images take there."""
        return sum(
            pixel_cache.row_bytes(way.crop)
            * (len(split) if all_of_them else self._missing_of(split, way))
            for split, way in self._parts(recipe, frozen)
        )

    def _to_decode(self, recipe: Recipe, frozen: bool) -> int:
        return sum(self._missing_of(split, way) for split, way in self._parts(recipe, frozen))

    def _missing_of(self, split: Split, way: EvalTransform) -> int:
        """Return how many images of a split are not in the cache."""
        key = (split.name, pixel_cache.way_of(way))
        if key not in self._missing:
            known = {bytes.fromhex(e.sha256) for e in split.examples if e.sha256}
            left = known
            with contextlib.suppress(StorageError):  # there is no place for the cache
                left = set(pixel_cache.missing_from(cache_dir() / "pixels", way, known))
            self._missing[key] = len(left) + sum(not e.sha256 for e in split.examples)
        return self._missing[key]

    def _work(self, recipe: Recipe, frozen: bool) -> Work:
        config, images = self._config, self._images
        held_out = len(images.val) if images.val else 0
        steps = recipe.schedule.steps
        if self._length is not None:  # extended, or otherwise changed
            steps = self._length
        every = config.eval_every
        if every is None:
            every = evaluation_interval(steps, recipe.batch_size, held_out)
        step, measured = (0 if frozen else self._step), self._measured
        assert measured is not None
        cached = not self._decodes_at_use
        return Work(
            steps=max(0, steps - step),
            batch_size=recipe.batch_size,
            crop=recipe.crop,
            frozen=frozen,
            features=self._features_left(recipe) if frozen else 0,
            evaluations=evaluations_left(step, steps, every) if held_out else 0,
            held_out=held_out,
            teachers_judge=self._job.faculty is not None,
            decoded=self._to_decode(recipe, frozen) if cached else 0,
            checkpoints=0 if frozen else checkpoints_left(step, steps, config.checkpoint_every),
            checkpoint_bytes=measured.checkpoint_bytes,
            kept_checkpoints=config.keep_checkpoints + config.keeps_best,
            model_bytes=measured.model_bytes,
            cache_bytes=self._cache_bytes(recipe, frozen) if cached else 0,
            processes=self._processes,
            repeats=self._repeats,
        )

    def _features_left(self, recipe: Recipe) -> int:
        """Return how many images have no features in the cache."""
        left = 0
        for split, way in self._parts(recipe, True):
            hashes = [bytes.fromhex(example.sha256) for example in split.examples]
            if not all(hashes) or not self._config.cache_gb:
                left += len(split)
                continue
            contents = Contents(hashes, pixel_cache.way_of(way))
            left += count_missing(self._network, contents, self._device)
        return left

    def _operations(self, recipe: Recipe, architecture: Architecture | None = None) -> int:
        network = architecture or self._network.architecture
        return multiply_accumulates(network, recipe.crop, self._network.num_classes)

    def _speeds(self, recipe: Recipe, architecture: Architecture | None = None) -> Speeds:
        """Return the speeds for a plan, scaled if it is not the one that was measured."""
        assert self._measured is not None
        speeds = replace(self._measured.speeds, decoded=self._decoding or 0.0)
        now = self._operations(recipe, architecture)
        before = self._operations(self.recipe)
        return speeds if now == before else speeds.scaled(now / before)

    def _seconds(self, recipe: Recipe, frozen: bool | None = None) -> float:
        """Return what a plan takes from now on."""
        frozen = self._config.freeze if frozen is None else frozen
        speeds = self._speeds(recipe)
        if frozen and not self._config.freeze:
            examples = len(self._images.train)
            head = head_step(self._network, recipe, self._config, examples)
            speeds = replace(speeds, head=head)
        return estimate(self._work(recipe, frozen), speeds).seconds

    def _nothing_fits(
        self, limit: float, planned: Recipe, limits: time_limit.Limits, spent: float
    ) -> UsageError:
        smallest = planned
        if limits.crops[-1] != planned.crop:
            smallest = planned.override(crop=limits.crops[-1])
        smallest = time_limit.with_steps(smallest, limits.least_steps)
        needed = spent + self._seconds(smallest)
        frozen = spent + self._seconds(planned, True) if self._may_freeze else None
        fits = frozen is not None and frozen <= time_limit.USED_SHARE * limit
        return time_limit.nothing_fits(limit, planned, limits, needed, frozen if fits else None)

    @property
    def _may_freeze(self) -> bool:
        return self._config.kind == "finetune" and not self._config.freeze

    def _forecast(self, told_from: float) -> Forecast:
        config, measured = self._config, self._measured
        assert measured is not None
        found = estimate(
            self._work(self.recipe, config.freeze),
            self._speeds(self.recipe),
            device=self._device.type,
            measured=measured.how,
            is_most=config.patience is not None,
        )
        lines = found.sentences(datetime.now()) if found.seconds >= told_from else []
        if lines and (lacking := self._lacking(found)):
            lines.append(lacking)
        ways = self._ways() if found.is_long_on_cpu else []
        return Forecast(self.recipe, found, tuple(lines), tuple(ways))

    def _lacking(self, found: Estimate) -> str:
        """Say if the disk of the run folder has less room than is needed."""
        place = self._out.absolute()
        while not place.exists():
            place = place.parent
        free, needed = shutil.disk_usage(place).free, found.disk_bytes
        if needed <= free:
            return ""
        return f"The disk has only {size_of(free)} free, and the run needs {size_of(needed)}."

    def _ways(self) -> list[Way]:
        """Return cheaper ways, the cheapest first."""
        recipe, config = self.recipe, self._config
        ways = []

        def add(options: Mapping[str, Any], seconds: float, how: str, model: str = "") -> None:
            own = replace(config, **options)
            named = command_of(model or self._job.model, self._job.data, self._out, own)
            if named and self._overwrite:
                named += " --overwrite"
            words = [f"{key}={value!r}" for key, value in options.items()]
            python = ", ".join([*([f"model={model!r}"] if model else []), *words])
            ways.append(Way(python, named, seconds, how))

        if self._step == 0:
            if self._may_freeze and recipe.loss_options == {}:
                add({"freeze": True}, self._seconds(recipe, True), MEASURED)
            if recipe.crop > FASTER_CROP:
                smaller = recipe.override(crop=FASTER_CROP)
                size: Any = (smaller.resize, smaller.crop)
                given = {"resolution": size if config.kind == "finetune" else smaller.crop}
                add(given, self._seconds(smaller), SCALED)
            steps = -(-recipe.schedule.steps // FASTER_STEPS)
            if steps < recipe.schedule.steps:
                given = {"steps": steps, **({"epochs": None} if config.epochs else {})}
                add(given, self._seconds(recipe.override(steps=steps)), MEASURED)
            for name, architecture in self._smaller_models():
                work = self._work(recipe, config.freeze)
                seconds = estimate(work, self._speeds(recipe, architecture)).seconds
                add({}, seconds, SCALED, name)
            alone = self._processes == 1  # measuring takes all of them
            if alone and config.dtype == "float32" and has_bfloat16():
                add({"dtype": "bfloat16"}, self._in_bfloat16(), MEASURED)
        return sorted(ways, key=lambda way: way.seconds)

    def _smaller_models(self) -> list[tuple[str, Architecture]]:
        """Return the cheapest model of the same family, if it is cheaper than this one."""
        own = self._network.architecture
        spec = find_spec(self._job.model)
        if spec is not None:
            suffix = spec.name.split(spec.arch_name, 1)
            names = {
                known.arch_name: known.name
                for arch in ARCHITECTURES
                if (known := find_spec(arch.join(suffix))) and known.family == spec.family
            }
        elif self._config.starts_from_weights and self._job.model not in ARCHITECTURES:
            return []  # a file, whose smaller relatives nobody knows
        else:
            names = {name: name for name in ARCHITECTURES}
        if not names:
            return []
        cheapest = min(names, key=lambda name: multiply_accumulates(ARCHITECTURES[name], 224))
        found = ARCHITECTURES[cheapest]
        if multiply_accumulates(found, 224) >= multiply_accumulates(own, 224):
            return []
        return [(names[cheapest], found)]

    def _in_bfloat16(self) -> float:
        """Return what the run takes in bfloat16; measures, only in a single process."""
        assert self._measured is not None
        config = replace(self._config, dtype="bfloat16")
        layout = self._measured.layout
        found = rehearse(
            self._network,
            self.recipe,
            training_labels(self._images),
            len(self._images.train),
            config,
            images_left=0,
            layout=layout,
            teacher=self._job.faculty.ensemble(self._device) if self._job.faculty else None,
            decoded_at_use=(self._decoding or 0.0) if self._decodes_at_use else 0.0,
        )
        work = self._work(self.recipe, self._config.freeze)
        return estimate(work, replace(found.speeds, decoded=self._decoding or 0.0)).seconds


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16, so that it is faster than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
