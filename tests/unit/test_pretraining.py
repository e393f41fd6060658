"""Pre-training recipes against a table made by hand, and how they scale."""

import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from bitzoo.errors import UsageError
from bitzoo.training.pretraining import pretraining
from bitzoo.training.recipe import Recipe
from bitzoo.training.recipe_text import explain
from bitzoo.training.schedule import Schedule

ILSVRC, I21K, JFT = 1_281_167, 14_197_122, 300_000_000

# Steps: epochs x images / 4096, rounded up. The base rate is 0.03 x 4096 / 256 = 0.48. An epoch's
# end e lies within step e x images / 4096: for S 30 x 1,281,167 / 4096 = 9,383.5, so that step
# 9,383 begins before it and step 9,384 after it.
TABLE: dict[str, dict[str, Any]] = {
    "bit-s": {
        "steps": 28_151,
        "loss": "softmax_cross_entropy",
        "rates": [
            (0, 0.0),
            (1, 0.48 / 5000),
            (2500, 0.24),
            (4999, 0.48 * 4999 / 5000),
            (5000, 0.48),
            (9383, 0.48),
            (9384, 0.048),
            (18767, 0.048),
            (18768, 0.0048),
            (25022, 0.0048),
            (25023, 0.00048),
            (28150, 0.00048),
        ],
    },
    "bit-m": {
        "steps": 311_949,
        "loss": "sigmoid_cross_entropy",
        "rates": [
            (0, 0.0),
            (2500, 0.24),
            (5000, 0.48),
            (103_982, 0.48),
            (103_983, 0.048),
            (207_965, 0.048),
            (207_966, 0.0048),
            (277_287, 0.0048),
            (277_288, 0.00048),
            (311_948, 0.00048),
        ],
    },
    "bit-l": {
        "steps": 2_929_688,
        "loss": "sigmoid_cross_entropy",
        "rates": [
            (0, 0.0),
            (5000, 0.48),
            (732_421, 0.48),
            (732_422, 0.048),
            (1_684_570, 0.048),
            (1_684_571, 0.0048),
            (2_197_265, 0.0048),
            (2_197_266, 0.00048),
            (2_709_960, 0.00048),
            (2_709_961, 0.000048),
            (2_929_687, 0.000048),
        ],
    },
}
IMAGES = {"bit-s": ILSVRC, "bit-m": I21K, "bit-l": JFT}


@pytest.mark.parametrize("name", TABLE)
class TestOfThePaper:
    def test_rates_by_step(self, name):
        schedule = pretraining(name, IMAGES[name]).schedule
        assert schedule.steps == TABLE[name]["steps"]
        for step, rate in TABLE[name]["rates"]:
            assert schedule.lr_at(step) == pytest.approx(rate, rel=1e-12), step

    def test_everything_else(self, name):
        recipe = pretraining(name, IMAGES[name])
        assert recipe.loss == TABLE[name]["loss"]
        assert (recipe.batch_size, recipe.optimizer, recipe.momentum) == (4096, "sgd", 0.9)
        assert (recipe.weight_decay, recipe.decayed) == (1e-4, "kernels")
        assert (recipe.augmentation, recipe.resize, recipe.crop) == ("inception_crop", 224, 224)
        assert (recipe.eval_resize, recipe.flip, recipe.mixup_alpha) == (256, True, 0.0)
        assert (recipe.clip_norm, recipe.head, recipe.head_bias) == (None, "zero", 0.0)
        assert recipe.overrides == {}

    def test_says_what_is_inferred_and_nothing_of_a_departure(self, name):
        notes = pretraining(name, IMAGES[name]).notes
        assert any("inferred" in note and "Weight decay on kernels" in note for note in notes)
        assert any("not Google's" in note for note in notes)
        assert not any("instead of" in note for note in notes)

    def test_survives_json(self, name):
        recipe = pretraining(name, IMAGES[name])
        assert Recipe.from_dict(recipe.to_dict()) == recipe


class TestOtherSizes:
    def test_shares_stay(self):
        """90 epochs of 10,000 images by 100: 9,000 steps, decays at 3,000, 6,000 and 8,000."""
        recipe = pretraining("bit-s", 10_000, batch_size=100)
        schedule = recipe.schedule
        assert (schedule.steps, schedule.boundaries) == (9000, (3000, 6000, 8000))
        assert schedule.warmup == round(9000 * 5000 / 28_151)  # 17.8 %
        assert schedule.base_lr == pytest.approx(0.03 * 100 / 256, rel=1e-12)
        assert recipe.overrides == {
            "batch_size": {"from": 4096, "to": 100},
            "lr": {"from": 0.48, "to": schedule.base_lr},
        }

    def test_the_departure_is_said(self):
        recipe = pretraining("bit-s", 10_000, batch_size=100)
        assert recipe.notes[0] == (
            "10,000 training images instead of the 1,281,167 of ILSVRC-2012 and batches of 100 "
            "instead of 4,096: the recipe's length is 90 epochs of these, and the warmup keeps its "
            "share of the steps, 18 % (5,000 of 28,151)."
        )
        rows = dict(explain(recipe))
        assert rows["changed"] == "batch size from 4096 to 100; lr from 0.48 to 0.0117188"
        assert rows["epochs"].startswith("90.0: 900,000 images")

    def test_steps_keep_the_shape(self):
        recipe = pretraining("bit-l", 10_000, batch_size=100).override(steps=400)
        assert recipe.schedule.boundaries == (100, 230, 300, 370)
        assert recipe.overrides["steps"] == {"from": 4000, "to": 400}

    def test_a_resolution_keeps_the_ratio_of_test_images(self):
        recipe = pretraining("bit-s", 100, batch_size=10).override(crop=32)
        assert (recipe.crop, recipe.resize, recipe.eval_resize) == (32, 32, 37)  # 36.57
        assert dict(explain(recipe))["test images"] == "shorter side to 37, central 32x32"
        assert Recipe.from_dict(recipe.to_dict()) == recipe


class TestBigVision:
    def test_of_one_label(self):
        """configs/bit_i1k.py on train[:99%]: 0.1 x 16, warmup 1000 of 27,870."""
        recipe = pretraining("big_vision", 1_268_355)
        schedule = recipe.schedule
        assert (schedule.steps, schedule.warmup, schedule.shape) == (27_870, 1000, "cosine")
        assert schedule.base_lr == pytest.approx(1.6, rel=1e-12)
        assert (recipe.loss, recipe.head_bias) == ("softmax_cross_entropy", 0.0)
        assert (recipe.clip_norm, recipe.weight_decay) == (1.0, 1e-4)
        assert any("big_vision's bit_i1k" in note for note in recipe.notes)

    def test_of_several_labels(self):
        recipe = pretraining("big_vision", I21K - 51_200, several=True)
        assert recipe.schedule.base_lr == pytest.approx(0.48, rel=1e-12)
        assert (recipe.schedule.warmup, recipe.schedule.boundaries) == (5000, ())
        assert (recipe.loss, recipe.head_bias) == ("sigmoid_cross_entropy", -10.0)

    def test_decay_is_what_equals_theirs_at_first_order(self):
        """Theirs is apart: 1.6e-3 and 4.8e-4 at a rate of 1.6 and 0.48 and momentum 0.9."""
        for several, apart in ((False, 1.6e-3), (True, 4.8e-4)):
            recipe = pretraining("big_vision", 10**6, several=several)
            coupled = apart * (1 - 0.9) / recipe.schedule.base_lr
            assert recipe.weight_decay == pytest.approx(coupled, rel=1e-12)

    def test_rates_follow_half_a_cosine(self):
        schedule = Schedule(2.0, 110, 10, shape="cosine")
        assert schedule.lr_at(5) == 1.0
        assert schedule.lr_at(10) == 2.0
        assert schedule.lr_at(60) == pytest.approx(1.0)
        assert schedule.lr_at(35) == pytest.approx(1 + math.sqrt(0.5))
        assert schedule.lr_at(109) == pytest.approx(1 - math.cos(math.pi / 100), rel=1e-9)
        assert Schedule.from_dict(schedule.to_dict()) == schedule


class TestOldRecords:
    def test_new_fields_are_left_out_at_their_defaults(self):
        """So that runs of earlier versions keep their identity."""
        record = Recipe("r", 36, 32, 8, Schedule(0.1, 5)).to_dict()
        later = {"decayed", "clip_norm", "eval_resize", "betas", "head_bias"}
        assert {field.name for field in fields(Recipe)} - record.keys() == later
        assert sorted(record["schedule"]) == ["base_lr", "boundaries", "decay", "steps", "warmup"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("bit-x", 10), "must be one of bit-s, bit-m, bit-l, big_vision, found 'bit-x'"),
            (("bit-s", 0), "`num_examples` must be a whole number of at least 1, found 0"),
        ],
    )
    def test_of_arguments(self, arguments, says):
        with pytest.raises(UsageError, match=says):
            pretraining(*arguments)

    def test_of_a_softmax_for_several_labels(self):
        with pytest.raises(UsageError, match="Use the recipe bit-m, bit-l or big_vision"):
            pretraining("bit-s", 10, several=True)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"decayed": "some"}, "`decayed` must be one of all, kernels"),
            ({"clip_norm": 0}, "`clip_norm` must be a number above 0, found 0"),
            ({"eval_resize": 31}, "`eval_resize` must be a whole number of at least 32, found 31"),
            ({"betas": (0.9, 1)}, r"two numbers from 0 to below 1, found \[0\.9, 1\.0\]"),
            ({"augmentation": "inception_crop"}, "`resize` must be `crop`, .* found 36 and 32"),
        ],
    )
    def test_of_recipes(self, changes, says):
        with pytest.raises(UsageError, match=says):
            Recipe("r", 36, 32, 8, Schedule(0.1, 5), **changes)

    def test_of_schedules(self):
        with pytest.raises(UsageError, match="one of step, cosine, found 'linear'"):
            Schedule(0.1, 5, shape="linear")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"has no boundaries, found \[2\]"):
            Schedule(0.1, 5, boundaries=(2,), shape="cosine")


def test_recipes_need_neither_torch_nor_numpy():
    code = (
        "import sys; from bitzoo.training.pretraining import pretraining; "
        "from bitzoo.training.recipe_text import explain; "
        "explain(pretraining('bit-s', 10)); print(sorted(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "'torch'" not in result.stdout
    assert "'numpy'" not in result.stdout
