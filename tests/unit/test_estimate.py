"""What a run takes and which plan fits a time limit: arithmetic, by hand-computed values."""

from datetime import datetime

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bitzoo.errors import UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.models.cost import multiply_accumulates
from bitzoo.runs import time_limit
from bitzoo.runs.config import Callbacks
from bitzoo.runs.estimate import (
    Forecast,
    Speeds,
    Work,
    checkpoints_left,
    clock,
    estimate,
    evaluations_left,
)
from bitzoo.runs.total import Total
from bitzoo.training.hyperrule import hyperrule

NOON = datetime(2026, 11, 26, 12, 0)
FULL = Work(
    steps=500, batch_size=512, crop=384, evaluations=11, held_out=54, decoded=540, checkpoints=5,
    checkpoint_bytes=200_000_000, model_bytes=100_000_000, cache_bytes=300_000_000,
)  # fmt: skip
SPEEDS = Speeds(
    trained=1.25, update=0.05, judged=0.4, begun=0.4, decoded=0.01, head=0.002, images=2,
    memory_bytes=5_200_000_000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "classes"), [("R50x1", 64, 1000), ("R(1,2,1,1)x0.5", 75, 0)]
)
def test_multiply_accumulates_are_those_that_torch_counts(name, size, classes):
    architecture = Architecture.parse(name)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        BiT(architecture, classes).eval()(torch.zeros(1, 3, size, size))
    assert multiply_accumulates(architecture, size, classes) == counted.get_total_flops() / 2


class TestSeconds:
    def test_of_a_run(self):
        found = estimate(FULL, SPEEDS)
        assert found.parts == pytest.approx({
            "decoding": 5.4,  # 540 x 0.01
            "training": 320_025,  # 500 x (512 x 1.25 + 0.05)
            "evaluating": 242.0,  # 11 x (0.4 + 54 x 0.4)
            "writing": 10.5,  # 5 + (5 x 0.2 GB + 0.1 GB) / 0.2 GB/s
        })  # fmt: skip
        assert found.disk_bytes == 1_000_000_000  # 0.3 + 3 x 0.2 + 0.1 GB

    def test_of_the_head_alone(self):
        work = Work(steps=500, batch_size=512, crop=384, frozen=True, features=594, held_out=54)
        parts = estimate(work, SPEEDS).parts
        assert parts["features"] == pytest.approx(238.0)  # 0.4 + 594 x 0.4
        assert parts["training"] == pytest.approx(1.0)
        assert parts["evaluating"] == 0

    def test_of_cached_features(self):
        work = Work(steps=500, batch_size=512, crop=384, frozen=True, features=0)
        assert estimate(work, SPEEDS).seconds == pytest.approx(1.0 + 5.0)

    def test_processes_share_the_images_and_not_the_updates(self):
        work = Work(steps=10, batch_size=512, crop=384, held_out=54, evaluations=1, processes=4)
        parts = estimate(work, SPEEDS).parts
        assert parts["training"] == pytest.approx(1600.5)  # 10 x (128 x 1.25 + 0.05)
        assert parts["evaluating"] == pytest.approx(5.8)  # 0.4 + 13.5 x 0.4

    def test_repeats_decode_once(self):
        one, three = (
            estimate(Work(steps=1, batch_size=8, crop=32, decoded=100, repeats=n), SPEEDS)
            for n in (1, 3)
        )
        assert one.parts["decoding"] == three.parts["decoding"] == pytest.approx(1.0)
        assert three.parts["training"] == pytest.approx(3 * one.parts["training"])

    def test_another_size_costs_in_proportion_to_its_operations(self):
        assert SPEEDS.scaled(0.1).trained == pytest.approx(0.125)
        assert SPEEDS.scaled(0.1).judged == pytest.approx(0.04)
        assert SPEEDS.scaled(0.1).update == 0.05

    @pytest.mark.parametrize(
        ("step", "steps", "every", "left"),
        [(0, 10, 3, 4), (0, 9, 3, 3), (3, 9, 3, 2), (4, 9, 3, 2), (9, 9, 3, 1), (0, 9, 0, 1),
         (0, 1, 1, 1), (0, 500, 50, 10)],
    )  # fmt: skip
    def test_evaluations_that_are_left(self, step, steps, every, left):
        """At each multiple of `every` that is still to come, and at the end."""
        assert evaluations_left(step, steps, every) == left
        assert checkpoints_left(step, steps, every) == (left if step < steps else 0)


class TestWords:
    def test_of_a_run(self):
        assert estimate(FULL, SPEEDS, measured="two images").sentences(NOON) == [
            "This takes about 3 d 16 h, until about Mon 30 Nov, 04:58: 500 steps of 512 images at "
            "384 px (0.8 images/s), 5 s of decoding, 4 min of evaluating.",
            "Memory: about 5.2 GB; disk: about 1.0 GB, 300.0 MB of it decoded images in the cache.",
            "Estimated from two images.",
        ]

    def test_of_the_head_alone(self):
        work = Work(steps=500, batch_size=512, crop=384, frozen=True, features=594, repeats=2)
        first = estimate(work, SPEEDS, is_most=True).sentences(NOON)[0]
        assert first == (
            "This takes at most about 8 min, until about 12:08: 2 runs, each of 594 images at 384 "
            "px (2.5 images/s), then 500 steps of the head."
        )

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(60, "12:01"), (12 * 3600, "tomorrow, 00:00"), (3 * 86_400, "Sun 29 Nov, 12:00"),
         (400 * 86_400, "31 Dec 2027, 12:00")],
    )  # fmt: skip
    def test_when_it_ends(self, seconds, text):
        assert clock(NOON, seconds) == text


def takes(recipe):
    """One second per step at 384 px, in proportion to the area; ten seconds for the rest."""
    return 10 + recipe.schedule.steps * (recipe.crop / 384) ** 2


class TestALimit:
    """540 images: 500 steps of 512 at 384 px. The fewest steps are 50; a tenth is left for luck."""

    rule = hyperrule(540, (480, 640))

    def fitted(self, limit, spent=0.0, **given):
        limits = time_limit.Limits.of(
            self.rule, 540, **{"steps_given": False, "crop_given": False, **given}
        )
        found = time_limit.fit(limit, self.rule, limits, takes, spent)
        return found and (found.schedule.steps, found.resize, found.crop)

    def test_what_fits_stays(self):
        assert self.fitted(600) == (500, 448, 384)  # 510 of 540 seconds

    def test_steps_come_first(self):
        assert self.fitted(200) == (170, 448, 384)  # 10 + 170 = 0.9 x 200
        assert self.fitted(200, spent=60) == (110, 448, 384)
        assert self.fitted(67) == (50, 448, 384)  # 60.3 seconds

    def test_then_the_resolution(self):
        # 50 steps of 384 px take 60 s, of 320 px 44.7 s; 0.9 x 55 = 49.5 = 10 + 56.9 x (320/384)^2
        assert self.fitted(55) == (56, 373, 320)

    def test_nothing_fits(self):
        assert self.fitted(16) is None  # 50 steps of 128 px take 15.6 s, and there are 14.4

    def test_what_was_given_stays(self):
        assert self.fitted(200, steps_given=True) == (500, 224, 192)  # 224 px: 180.1 s
        assert self.fitted(55, crop_given=True) is None
        assert self.fitted(9000, steps_given=True, crop_given=True) == (500, 448, 384)

    def test_every_image_is_seen_once(self):
        limits = time_limit.Limits.of(
            hyperrule(19_999, (480, 640)).override(steps=40), 19_999,
            steps_given=False, crop_given=True,
        )  # fmt: skip
        assert limits.least_steps == 40  # 39.06 passes of 512 images, rounded up
        assert limits.crops == (384,)

    def test_it_is_recorded(self):
        short = self.rule.override(steps=170, crop=320)
        noted = time_limit.noted(self.rule, short, 3600)
        assert noted.notes[-1] == (
            "Made to end within 60 min, as asked for: 500 steps reduced to 170 and 384 px reduced "
            "to 320 px (resolution)."
        )
        assert noted.overrides["steps"] == {"from": 500, "to": 170}
        assert noted.overrides["crop"] == {"from": 384, "to": 320}
        assert time_limit.as_before(self.rule, noted) == noted
        assert time_limit.as_before(self.rule, self.rule) == self.rule

    def test_the_error_says_what_would_be_needed(self):
        limits = time_limit.Limits.of(self.rule, 540, steps_given=False, crop_given=False)
        error = time_limit.nothing_fits(600, self.rule, limits, 4000, 240)
        assert isinstance(error, UsageError)
        assert str(error) == (
            "No plan fits `time_limit=600` (10 min): the smallest, 50 steps of 512 images at 128 "
            "px, takes about 67 min with everything before and after. Give `time_limit=4500`, or "
            "`freeze=True`, which takes about 4 min."
        )


def test_the_total_of_many_runs_is_said_once():
    said: list[str] = []
    total = Total(20, said.append, "trial")
    total.left -= 5
    first, later = (total.begin(Callbacks(say=said.append)) for _ in range(2))
    assert (first.is_heard, later.is_heard) == (True, False)
    found = estimate(FULL, SPEEDS, measured="two images")
    assert first.confirm(Forecast(None, found, ()))
    (sentence,) = said
    # 15 x 320,282.9 s
    assert sentence.startswith("15 trials to go take about 55 d 14 h, until about ")
    assert sentence.endswith(
        ", each about as long as the first, 3 d 16 h. Estimated from two images."
    )
