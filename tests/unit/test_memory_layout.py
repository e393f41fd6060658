"""The memory format of training: measured where it pays, kept over a resume, changing no number."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from training import SMALL, in_processes, make_data, make_model, make_recipe, sha256, weights_of

from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.work_log import WorkLog
from bitzoo.training import memory_layout
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.memory_layout import MemoryLayout, choose_layout
from bitzoo.training.trainer import Trainer, train
from bitzoo.training.training_config import TrainingConfig

LAST, CONTIGUOUS = True, False
FUSED = "fused"


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: two on a busy machine wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Clock:
    """Passes of known duration: `seconds` per image by form, and `start` for each first one."""

    def __init__(self, last, contiguous, start=0.0, most=10**9, fused=None):
        self.each = {LAST: last, CONTIGUOUS: contiguous, FUSED: fused}
        self.start, self.most = start, most
        self.calls = []

    def __call__(self, form, count):
        name = FUSED if form.fused else form.channels_last
        warm_up = (name, count) not in self.calls
        self.calls.append((name, count))
        if count > self.most:
            return math.inf
        return self.each[name] * count + (self.start if warm_up else 0)


class TestChoice:
    @pytest.mark.parametrize(
        ("last", "contiguous", "is_last"),
        [(0.1, 0.2, True), (0.2, 0.1, False), (0.1, 0.098, True), (0.1, 0.096, False)],
    )
    def test_the_clearly_faster_one(self, last, contiguous, is_last):
        clock = Clock(last, contiguous, start=50.0)
        found = choose_layout(clock, 10**6, most=8)
        assert found.channels_last is is_last
        assert found.images == 8
        assert found.seconds == pytest.approx({LAST: 8 * last, CONTIGUOUS: 8 * contiguous})
        assert found.seconds_per_image == pytest.approx(last if is_last else contiguous)
        # The first pass of either format and size is a warm-up, whose time counts nowhere.
        assert clock.calls == [(LAST, 1)] * 2 + [(LAST, 8)] * 2 + [(CONTIGUOUS, 8)] * 2

    def test_a_pass_takes_no_longer_than_its_time(self):
        clock = Clock(0.5, 0.4)
        assert choose_layout(clock, 10**6, most=512).images == 4  # of 0.5 s, in 2 s
        assert choose_layout(Clock(12, 10), 10**6, most=512).images == 1
        assert choose_layout(Clock(12, 10), 10**6, most=512, fewest=2).images == 2

    def test_a_short_run_is_not_measured(self):
        clock = Clock(0.5, 0.1)
        assert choose_layout(clock, 599, most=512) == MemoryLayout(LAST, 1, {LAST: 0.5})
        assert clock.calls == [(LAST, 1)] * 2
        assert choose_layout(clock, 600, most=512).channels_last is False

    @pytest.mark.parametrize("most", [0, 3])
    def test_what_does_not_fit_is_not_chosen(self, most):
        found = choose_layout(Clock(0.5, 0.1, most=most), 10**6, most=512)
        assert found == MemoryLayout(LAST, 1, {LAST: 0.5} if most else {})

    @pytest.mark.parametrize(
        ("seconds", "chosen", "kept"),
        [
            ((0.2, math.inf, 0.1), FUSED, 2),
            ((math.inf, 0.2, math.inf), CONTIGUOUS, 1),
            ((0.2, 0.1, math.inf), CONTIGUOUS, 2),
            ((0.2, math.inf, math.inf), LAST, 1),
        ],
    )
    def test_a_form_that_does_not_fit_leaves_the_others_compared(self, seconds, chosen, kept):
        last, contiguous, fused = seconds
        clock = Clock(last, contiguous, fused=fused)

        def time_pass(form, count):
            return 0.1 if count == 1 else clock(form, count)

        found = choose_layout(time_pass, 10**6, most=8, can_fuse=lambda: True)
        assert (found.channels_last, found.fused) == (chosen in (LAST, FUSED), chosen == FUSED)
        assert found.is_compared is (kept > 1)
        assert math.isfinite(found.pass_seconds)
        json.dumps(found.to_dict(), allow_nan=False)
        assert "inf" not in found.describe()

    @pytest.mark.parametrize(
        ("last", "contiguous", "fused", "chosen"),
        [
            (0.2, 0.3, 0.15, FUSED),
            (0.2, 0.1, 0.09, FUSED),
            (0.2, 0.1, 0.15, CONTIGUOUS),
            (0.2, 0.3, 0.198, LAST),
            (0.2, 0.3, 0.4, LAST),
        ],
    )
    def test_the_compiled_operator_is_measured_too(self, last, contiguous, fused, chosen):
        clock = Clock(last, contiguous, fused=fused)
        found = choose_layout(clock, 10**6, most=8, can_fuse=lambda: True)
        assert found == MemoryLayout(
            chosen in (LAST, FUSED),
            8,
            {LAST: 8 * last, CONTIGUOUS: 8 * contiguous},
            chosen == FUSED,
            8 * fused,
        )
        best = {LAST: last, CONTIGUOUS: contiguous, FUSED: fused}[chosen]
        assert found.seconds_per_image == pytest.approx(best)

    def test_nothing_is_compiled_for_a_short_run(self):
        def compile_it():
            raise AssertionError

        choose_layout(Clock(0.5, 0.1), 599, most=512, can_fuse=compile_it)
        only = choose_layout(
            Clock(0.5, 0.1), 10**6, most=512, formats=[CONTIGUOUS], can_fuse=compile_it
        )
        assert only.fused_seconds is None

    def test_one_format_only(self):
        clock = Clock(0.5, 0.1)
        found = choose_layout(clock, 10**6, most=512, formats=[CONTIGUOUS])
        assert found == MemoryLayout(CONTIGUOUS, 20, {CONTIGUOUS: 2.0})
        assert {channels_last for channels_last, _ in clock.calls} == {CONTIGUOUS}

    def test_words_and_json(self):
        compared = MemoryLayout(CONTIGUOUS, 8, {LAST: 0.61234, CONTIGUOUS: 0.5})
        assert compared.describe() == "contiguous (0.5 s for 8 images, channels last 0.612 s)"
        record = json.loads(json.dumps(compared.to_dict()))
        assert record == {
            "channels_last": False,
            "images": 8,
            "seconds": {"channels last": 0.6123, "contiguous": 0.5},
        }
        again = MemoryLayout.from_dict(record)
        assert again == MemoryLayout(CONTIGUOUS, 8, {LAST: 0.6123, CONTIGUOUS: 0.5})
        fused = MemoryLayout(LAST, 8, {LAST: 0.6, CONTIGUOUS: 0.5}, True, 0.25)
        assert fused.describe() == (
            "channels last, fused norms (0.25 s for 8 images, channels last 0.6 s, "
            "contiguous 0.5 s)"
        )
        assert MemoryLayout.from_dict(json.loads(json.dumps(fused.to_dict()))) == fused
        fixed = MemoryLayout(LAST)
        assert (fixed.describe(), fixed.to_dict()) == ("channels last", {"channels_last": True})
        assert MemoryLayout.from_dict(fixed.to_dict()) == fixed


def prefer(monkeypatch, channels_last):
    """Let training measure both formats, with real passes, and find this one faster."""
    real = Trainer.time_pass

    def time_pass(trainer, form, count):
        assert 0 < real(trainer, form, count) < math.inf
        return 1.0 if form.channels_last is channels_last else 2.0

    monkeypatch.setattr(Trainer, "time_pass", time_pass)
    monkeypatch.setattr(Trainer, "can_fuse", lambda trainer: False)
    monkeypatch.setattr(memory_layout, "WORTH_MEASURING", 0)


def run(options=None, steps=4, **keywords):
    """Train; return the model, its losses and the layouts that were told."""
    told: list[Any] = []
    model, losses = keywords.pop("model", None) or make_model(), []
    pixels, labels = make_data()
    recipe = make_recipe(steps=steps)
    train(
        model, recipe, pixels, labels, options or TrainingConfig(),
        on_layout=told.append, on_step=lambda metrics: losses.append(metrics["loss"]), **keywords,
    )  # fmt: skip
    return model, losses, told


class TestTraining:
    @pytest.mark.parametrize("channels_last", [True, False])
    @pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16", "recompute_norms": True}])
    def test_measuring_changes_no_number(self, monkeypatch, channels_last, more):
        """Bit for bit that of the option, and torch's random numbers are where they were."""
        wanted, losses, told = run(TrainingConfig(channels_last=channels_last, **more))
        assert told == [MemoryLayout(channels_last)]
        prefer(monkeypatch, channels_last)
        model = make_model()
        before = torch.get_rng_state()
        found, measured_losses, told = run(TrainingConfig(**more), model=model)
        assert torch.equal(torch.get_rng_state(), before)
        assert (told[0].channels_last, told[0].is_compared) == (channels_last, True)
        assert measured_losses == losses
        assert sha256(found) == sha256(wanted)

    def test_running_statistics_stay(self, monkeypatch):
        def weights():
            return weights_of(run(model=make_model(architecture=replace(SMALL, norm="batch")))[0])

        wanted = weights()
        prefer(monkeypatch, LAST)
        assert any("running_var" in name for name in wanted)
        for name, tensor in weights().items():
            assert torch.equal(tensor, wanted[name]), name

    def test_a_short_run_is_channels_last(self):
        """Whatever the clock says: the tests' networks take milliseconds."""
        _, _, told = run()
        assert (told[0].channels_last, told[0].is_compared) == (LAST, False)

    @pytest.mark.parametrize("channels_last", [True, False])
    def test_resume_goes_on_in_the_same_format(self, monkeypatch, tmp_path, channels_last):
        prefer(monkeypatch, channels_last)
        whole, losses, _ = run(steps=4)
        folder = tmp_path / "checkpoints"
        options = TrainingConfig(checkpoint_every=2)

        class KilledError(Exception):
            pass

        def die(metrics):
            if metrics["step"] == 3:
                raise KilledError

        pixels, labels = make_data()
        recipe = make_recipe(steps=4)
        with pytest.raises(KilledError):
            train(make_model(), recipe, pixels, labels, options, folder=folder, on_step=die)
        start = latest_checkpoint(folder)
        assert start.step == 2
        assert start.meta["loop"]["layout"]["seconds"] == {
            "channels last": 1.0 if channels_last else 2.0,
            "contiguous": 2.0 if channels_last else 1.0,
        }
        prefer(monkeypatch, not channels_last)  # which must not be asked
        found, rest, told = run(options, steps=4, folder=folder, start=start)
        assert told[0].channels_last is channels_last
        assert rest == losses[2:]
        assert sha256(found) == sha256(whole)

    def test_old_checkpoints_resume_as_they_were(self, monkeypatch, tmp_path):
        run(TrainingConfig(), steps=2, folder=tmp_path)
        start = latest_checkpoint(tmp_path)
        del start.meta["loop"]["layout"]
        prefer(monkeypatch, CONTIGUOUS)
        _, _, told = run(steps=4, folder=tmp_path, start=start)
        assert told == [MemoryLayout(LAST)]

    def test_the_format_of_another_kind_of_device_does_not_count(self, monkeypatch, tmp_path):
        run(TrainingConfig(channels_last=True), steps=2, folder=tmp_path)
        start = latest_checkpoint(tmp_path)
        start.meta["loop"] |= {"device": "cuda"}
        prefer(monkeypatch, CONTIGUOUS)
        _, _, told = run(steps=4, folder=tmp_path, start=start)
        assert (told[0].channels_last, told[0].is_compared) == (CONTIGUOUS, True)

    def test_a_pass_that_does_not_fit(self, monkeypatch):
        model = make_model()
        pixels, labels = make_data()
        trainer = Trainer(model, make_recipe(), pixels, labels, TrainingConfig())

        def fails(images):
            raise MemoryError("out of memory")

        monkeypatch.setattr(trainer, "_features", fails)
        assert trainer.time_pass(MemoryLayout(LAST), 1) == math.inf


def measured(report):
    """In one of several processes: each finds another format faster."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(memory_layout, "WORTH_MEASURING", 0)
    real, own = Trainer.time_pass, [{LAST: 1.0, CONTIGUOUS: 0.1}, {LAST: 0.2, CONTIGUOUS: 3.0}]

    def time_pass(trainer, form, count):
        real(trainer, form, count)
        seconds = own[trainer.processes.process_index][form.channels_last]
        return trainer._sum(seconds)[0] / 2

    monkeypatch.setattr(Trainer, "time_pass", time_pass)
    monkeypatch.setattr(Trainer, "can_fuse", lambda trainer: False)
    model, losses, told = run()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return rank, told[0], losses, {name: t.numpy() for name, t in weights_of(model).items()}


@pytest.mark.slow
def test_several_processes_take_the_same():
    """By the mean of their times: 0.6 s for channels last against 1.55 s."""
    found = in_processes(2, measured)
    for _, layout, losses, weights in found:
        assert layout == MemoryLayout(LAST, 3, {LAST: 0.6, CONTIGUOUS: 1.55}), layout
        assert losses == found[0][2]
        for name, weight in weights.items():
            np.testing.assert_array_equal(weight, found[0][3][name])


def test_sessions_say_the_format(tmp_path):
    log = WorkLog(RunDir(tmp_path))
    log.start("CPU, 1 thread", 0)
    assert "memory format" not in dict(log.rows())
    log.describe(memory_format="contiguous (0.5 s for 8 images, channels last 0.612 s)")
    again = WorkLog(RunDir(tmp_path))
    again.start("CPU, 1 thread", 3)
    again.describe(memory_format="contiguous (0.5 s for 8 images, channels last 0.612 s)")
    assert dict(again.rows())["memory format"] == (
        "contiguous (0.5 s for 8 images, channels last 0.612 s)"
    )
