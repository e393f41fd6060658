"""What a report says of how a run was made: first batch, command, time and device."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from training import CLASSES, CROP, make_data, make_model, make_recipe

from bitzoo.cli.finetune import finetune as command
from bitzoo.cli.finetune import parse_resolution
from bitzoo.cli.pretrain import pretrain
from bitzoo.data.sampler import BatchPlan
from bitzoo.runs import work_log
from bitzoo.runs.config import FinetuneConfig, PretrainConfig
from bitzoo.runs.report.first_batch import show_first_batch
from bitzoo.runs.report.run_command import command_of
from bitzoo.runs.run_dir import SESSIONS_NAME, RunDir
from bitzoo.runs.work_log import WorkLog
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

NAMES = [f"digit {number}" for number in range(CLASSES)]


class TestFirstBatch:
    @pytest.mark.parametrize("mixup", [0.0, 0.4])
    def test_is_what_the_network_saw(self, mixup):
        """The images that go into the stem at the first step, and the targets of the loss."""
        recipe, (pixels, labels) = make_recipe(steps=1, mixup=mixup), make_data()
        model, seen = make_model(), []
        handle = model.stem.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
        train(model, recipe, pixels, labels, TrainingConfig(seed=5, micro_batch=8))
        handle.remove()
        (images,) = [batch for batch in seen if len(batch) == 8]
        gallery = show_first_batch(recipe, pixels, labels, NAMES, seed=5)
        assert len(gallery.tiles) == 8
        for tile, image in zip(gallery.tiles, images, strict=True):
            expected = (image.permute(1, 2, 0).detach().numpy() + 1) * 127.5
            assert isinstance(tile.image, np.ndarray)
            np.testing.assert_allclose(tile.image, expected, atol=0.51)
            assert tile.image.shape == (CROP, CROP, 3)
            assert tile.image.dtype == np.uint8

    def test_labels_and_shares(self):
        recipe, (pixels, labels) = make_recipe(mixup=0.4), make_data()
        gallery = show_first_batch(recipe, pixels, labels, NAMES, seed=5)
        batch = BatchPlan(40, 8, 36, 32, True, 0.4, 5).batch(0)
        for row, tile in enumerate(gallery.tiles):
            own, other = labels[batch.indices[row]], labels[batch.indices[batch.mix[row]]]
            assert tile.lines == [
                f"{100 * batch.lam:.1f}\N{NO-BREAK SPACE}% digit {own}",
                f"{100 - 100 * batch.lam:.1f}\N{NO-BREAK SPACE}% digit {other}",
            ]

    def test_only_the_head(self):
        recipe, (pixels, labels) = make_recipe(mixup=0.4), make_data()
        gallery = show_first_batch(recipe, pixels, labels, NAMES, seed=5, freeze=True)
        for tile in gallery.tiles:
            digit = int(tile.lines[0].removeprefix("digit "))
            same = [np.array_equal(tile.image, image) for image in pixels.images]
            assert digit in labels[same]  # whole images, as they are
        assert gallery.note.endswith("MixUp mixed their features, not their pixels.")

    def test_at_most_sixteen(self):
        recipe, (pixels, labels) = make_recipe(batch_size=33), make_data()
        gallery = show_first_batch(recipe, pixels, labels, NAMES, seed=5)
        assert len(gallery.tiles) == 16
        assert gallery.note.startswith("The first 16 of the 33 images of the first step")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pretrained": False, "steps": 7, "lr": 0.01, "mixup": 0.0},
        {"resolution": (36, 32), "flip": False, "seed": 3, "val_fraction": 0.25},
        {"resolution": (None, 64), "flip": True, "channels_last": False},
        {"resolution": 64, "channels_last": True, "freeze": True, "dtype": "bfloat16"},
        {"skip_bad": True, "compile": True, "recompute_norms": True, "examples_per_class": 5},
        {"split_seed": 0, "eval_split": "test"},
        {"edition": "released", "checkpoint_every": 0, "eval_every": 50, "cache_gb": 0.0},
        {"workers": 2, "micro_batch": 8, "checkpoint_blocks": True, "batch_size": 16},
    ],
)
def test_the_command_means_the_same_options(changes: Any):
    """The command line is parsed by the command itself."""
    config = FinetuneConfig(**changes)
    text = command_of("a model", Path("my photos"), Path("runs/it's"), config)
    words = shlex.split(text)
    assert words[:2] == ["bitzoo", "finetune"]
    with click.Context(command) as context:
        values = command.make_context("finetune", words[2:], parent=context).params
    assert (values.pop("model_argument"), values.pop("data")) == ("a model", "my photos")
    assert values.pop("out") == Path("runs/it's")
    options: Any = {
        key: parse_resolution(value) if key == "resolution" else value
        for key, value in values.items()
        if key in FinetuneConfig.__dataclass_fields__
    }
    found = FinetuneConfig(**options)
    assert found.resize_and_crop == config.resize_and_crop
    for name in FinetuneConfig.__dataclass_fields__:
        if name != "resolution":
            assert getattr(found, name) == getattr(config, name), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recipe": "big_vision", "fraction": 0.5, "weight_decay": 0.001, "resolution": 64},
        {"batch_size": 64, "epochs": 3.0, "flip": False, "seed": 3, "dtype": "bfloat16"},
        {"skip_bad": True, "fixed_split": True, "checkpoint_every": 0, "channels_last": False},
    ],
)
def test_the_command_of_a_pretraining_run_means_the_same_options(changes: Any):
    config = PretrainConfig(**changes)
    text = command_of("R(1,1,1,1)x0.5", Path("photos"), Path("runs/s"), config)
    words = shlex.split(text)
    assert words[:3] == ["bitzoo", "pretrain", "R(1,1,1,1)x0.5"]
    with click.Context(pretrain) as context:
        values = pretrain.make_context("pretrain", words[2:], parent=context).params
    options = {k: v for k, v in values.items() if k in PretrainConfig.__dataclass_fields__}
    assert PretrainConfig(**options) == config


def test_data_without_a_name_have_no_command():
    assert command_of("m", ([], []), Path("out"), FinetuneConfig()) is None


class TestWorkLog:
    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 1_767_323_040.0  # 2026-01-02 03:04 UTC

            def time(self):
                return self.now

            perf_counter = time

        clock = Clock()
        monkeypatch.setattr(work_log, "time", clock)
        return clock

    def test_one_session(self, tmp_path, clock):
        log = WorkLog(RunDir(tmp_path))
        clock.now += 20  # decoding
        log.start("CPU, 2 threads", 0)
        clock.now += 100
        log.keep(now=True)
        assert log.rows() == [
            ("started", "2026-01-02 03:04 UTC"),
            ("finished", "2026-01-02 03:06 UTC"),
            ("duration", "2 min 00 s to decode, train and evaluate"),
            ("device", "CPU, 2 threads"),
        ]

    def test_a_killed_session_counts_until_it_was_last_seen(self, tmp_path, clock):
        log = WorkLog(RunDir(tmp_path))
        log.start("CPU, 2 threads", 0)
        for _ in range(3700):
            clock.now += 1
            log.keep()
        clock.now += 86_400  # killed; a day later
        log = WorkLog(RunDir(tmp_path))
        log.start("NVIDIA H100", 30)
        clock.now += 60
        log.keep(now=True)
        rows = dict(log.rows())
        assert rows["duration"] == "1 h 02 min to decode, train and evaluate, in 2 sessions"
        assert rows["device"] == "CPU, 2 threads; NVIDIA H100"
        assert rows["started"] == "2026-01-02 03:04 UTC"
        assert rows["finished"] == "2026-01-03 04:06 UTC"

    def test_is_written_every_few_seconds_only(self, tmp_path, clock):
        log = WorkLog(RunDir(tmp_path))
        log.start("CPU", 0)
        seconds = []
        for _ in range(30):
            clock.now += 1
            log.keep()
            (session,) = json.loads((tmp_path / SESSIONS_NAME).read_text())["sessions"]
            seconds.append(session["seconds"])
        assert sorted(set(seconds)) == [0, 11, 22]

    @pytest.mark.parametrize(
        "content", ["", "[]", '{"sessions": 3}', '{"sessions": [{"started": "no"}, 7]}', "\0" * 9]
    )
    def test_a_damaged_log_costs_its_own_content_only(self, tmp_path, clock, content):
        (tmp_path / SESSIONS_NAME).write_text(content)
        log = WorkLog(RunDir(tmp_path))
        log.start("CPU", 70)
        assert dict(log.rows())["duration"] == (
            "0.0 s to decode, train and evaluate, without the first 70 steps"
        )

    def test_nothing_started(self, tmp_path):
        log = WorkLog(RunDir(tmp_path))
        log.keep(now=True)
        assert log.rows() == []
        assert list(tmp_path.iterdir()) == []

    def test_names_of_devices(self):
        with contextlib.ExitStack() as stack:
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(1)
            cpu = torch.device("cpu")
            assert work_log.device_name(cpu) == "CPU, 1 thread"
            assert work_log.device_name(cpu, 2) == "2 processes, each with CPU, 1 thread"
