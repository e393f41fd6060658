"""The published numbers of distillation, against the tables of the paper and its code."""

import math

import pytest
import torch

from bitzoo.catalogue.registry import get_spec
from bitzoo.errors import UsageError
from bitzoo.training.distillation_presets import (
    PRESETS,
    distillation_recipe,
    find_preset,
    preset_names,
)
from bitzoo.training.recipe import Recipe

TABLE = """
flowers-1000    1000     10   0.003   1e-3  0.33    77.51
flowers-fast    10000    10   0.003   3e-4  0.1     92.83
flowers-medium  100000   1    0.001   1e-4  0.1     95.54
flowers-long    1000000  1    0.0003  1e-5  0.033   96.93
pet-300         300      2    0.01    1e-5  0.001   82.75
pet-fast        1000     5    0.01    1e-3  0.1     88.01
pet-medium      3000     10   0.003   3e-4  0.1     90.08
pet-10000       10000    2    0.001   1e-4  0.1     90.98
pet-long        30000    2    0.003   1e-5  0.0033  91.06
food-fast       100      10   0.01    1e-3  0.1     83.29
food-medium     1000     10   0.001   3e-4  0.3     86.64
food-long       3000     5    0.01    1e-4  0.01    87.20
sun-fast        100      10   0.01    1e-3  0.1     68.28
sun-medium      1000     10   0.003   1e-4  0.033   73.46
sun-long        3000     10   0.01    3e-5  0.003   74.26
imagenet        1200     1    0.03    3e-4  0.01    81.54
"""
"""Name, epochs, T, lr, decoupled decay, that of AdamW, the student's top-1: copied from what was
published, not from the module."""

TRAIN_IMAGES = {"flowers": 1020, "pet": 3312, "food": 68175, "sun": 76128, "imagenet": 1255544}


@pytest.mark.parametrize("line", TABLE.split("\n")[1:-1])
def test_rows(line):
    name, *numbers = line.split()
    epochs, heat, rate, decay, adamw, student = map(float, numbers)
    row = PRESETS[name]
    assert (row.epochs, row.temperature, row.lr, row.weight_decay) == (epochs, heat, rate, decay)
    assert row.student == student
    big = name == "imagenet"
    assert (row.batch_size, row.warmup) == ((4096, 5000) if big else (512, 1500))
    assert (row.resize, row.crop) == ((256, 224) if big else (160, 128))
    assert get_spec(row.teacher).name == row.teacher
    recipe = distillation_recipe(name, TRAIN_IMAGES[name.split("-")[0]])
    assert recipe.weight_decay == pytest.approx(adamw, rel=0.011)  # the table rounds
    assert recipe.weight_decay * recipe.schedule.base_lr == pytest.approx(decay)
    assert not recipe.overrides
    assert any(f"{student:.2f} %" in note for note in recipe.notes)


def test_all_rows_are_in_the_table():
    assert set(PRESETS) == {line.split()[0] for line in TABLE.split("\n")[1:-1]}


def test_recipe_of_flowers_fast():
    """The whole of it: 10,000 epochs of 1,020 images in batches of 512 are 19,922 steps."""
    recipe = distillation_recipe("flowers-fast", 1020)
    schedule = recipe.schedule
    assert schedule.steps == math.ceil(10_000 * 1020 / 512) == 19_922
    assert (schedule.warmup, schedule.shape, schedule.boundaries) == (1500, "cosine", ())
    assert (recipe.optimizer, recipe.betas) == ("adamw", (0.9, 0.999))
    assert (recipe.decayed, recipe.clip_norm, recipe.mixup_alpha) == ("kernels", 1.0, 1.0)
    assert (recipe.crop, recipe.eval_resize, recipe.batch_size) == (128, 160, 512)
    assert (recipe.augmentation, recipe.flip) == ("inception_crop", True)
    assert (recipe.loss, recipe.loss_options) == ("distillation", {"temperature": 10})
    assert recipe.head == "zero"
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_rates_by_step():
    """Against big_vision's formula: linear to step 1,500, then half a cosine to the last step."""
    schedule = distillation_recipe("pet-fast", 3312).schedule
    assert schedule.steps == 6469
    for step in (0, 1, 749, 1499, 1500, 1501, 4000, 6468):
        rise = min(step / 1500, 1)
        progress = min(max((step - 1500) / (6469 - 1500), 0), 1)
        expected = 0.01 * 0.5 * (1 + math.cos(math.pi * progress)) * rise
        assert schedule.lr_at(step) == pytest.approx(expected, rel=1e-12)


def test_a_step_decays_as_published():
    """AdamW with a gradient of zero: the weight loses wd times the share of the schedule."""
    recipe = distillation_recipe("pet-long", 3312)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    step = 3000
    rate = recipe.schedule.lr_at(step)
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=recipe.weight_decay)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert float(1 - weight.detach()) == pytest.approx(1e-5 * rate / 0.003, rel=1e-6)


def test_short_names_mean_medium():
    for name in ("flowers", "pet", "food", "sun"):
        assert find_preset(name) is PRESETS[f"{name}-medium"]
        assert name in preset_names()
    assert find_preset("imagenet").epochs == 1200


def test_where_paper_and_code_differ_is_said():
    notes = distillation_recipe("sun-medium", 76128).notes
    assert any("big_vision's config has 0.001" in note for note in notes)
    notes = distillation_recipe("imagenet", 1000, teachers=2).notes
    assert any("train[98%:]" in note and "train[99%:]" in note for note in notes)
    assert any("averaged" in note and "adds their divergences" in note for note in notes)
    assert not any("averaged" in note for note in distillation_recipe("imagenet", 1000).notes)


class TestChanges:
    def test_length_keeps_the_shape(self):
        recipe = distillation_recipe("flowers-fast", 1020, steps=1992)
        assert (recipe.schedule.steps, recipe.schedule.warmup) == (1992, 150)
        assert recipe.overrides == {"steps": {"from": 19_922, "to": 1992}}

    def test_batch_size_keeps_the_epochs(self):
        recipe = distillation_recipe("pet-300", 3312, batch_size=64)
        assert recipe.schedule.steps == 300 * 3312 / 64 == 15_525

    def test_rate_keeps_the_decay_of_a_step(self):
        recipe = distillation_recipe("pet-fast", 3312, lr=0.001)
        assert recipe.weight_decay == pytest.approx(1.0)
        assert recipe.overrides == {
            "lr": {"from": 0.01, "to": 0.001},
            "weight_decay": {"from": 0.1, "to": 1.0},
        }

    def test_temperature_and_decay_are_recorded(self):
        recipe = distillation_recipe("pet-fast", 3312, temperature=2, weight_decay=1e-4)
        assert recipe.loss_options == {"temperature": 2}
        assert recipe.weight_decay == pytest.approx(0.01)
        assert recipe.overrides == {
            "weight_decay": {"from": 0.1, "to": 0.01},
            "temperature": {"from": 5, "to": 2},
        }

    def test_resolution(self):
        recipe = distillation_recipe("imagenet", 1000, crop=160)
        assert (recipe.crop, recipe.resize, recipe.eval_resize) == (160, 160, 183)
        assert recipe.overrides == {
            "crop": {"from": 224, "to": 160}, "resize": {"from": 224, "to": 160},
        }  # fmt: skip

    def test_a_warmup_longer_than_the_run(self):
        """300 epochs of 100 images are 59 steps."""
        recipe = distillation_recipe("pet-300", 100)
        assert (recipe.schedule.steps, recipe.schedule.warmup) == (59, 5)
        assert any("warmup of 1,500 steps is as long as" in note for note in recipe.notes)


class TestWithoutPreset:
    def test_length_must_be_said(self):
        with pytest.raises(UsageError, match=r"give `steps`, `epochs`, or a `preset` \(flowers, "):
            distillation_recipe(None, 100)

    def test_epochs(self):
        recipe = distillation_recipe(None, 1000, epochs=20, batch_size=50)
        assert (recipe.schedule.steps, recipe.schedule.warmup, recipe.batch_size) == (400, 40, 50)
        assert any("not known to be good for these images" in note for note in recipe.notes)
        assert recipe.overrides == {"batch_size": {"from": 512, "to": 50}}

    def test_long_runs_warm_up_as_published(self):
        assert distillation_recipe(None, 1000, steps=100_000).schedule.warmup == 1500

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"steps": 5, "epochs": 1}, "`steps` and `epochs` both say"),
            ({"steps": 0}, "`steps` must be a whole number of at least 1, found 0"),
            ({"steps": 5, "temperature": 0}, "`temperature` must be a number above 0, found 0"),
            ({"steps": 5, "weight_decay": -1}, "the weight decay must be a number of at least 0"),
            ({"steps": 5, "lr": 0}, "the learning rate must be a number above 0"),
        ],
    )
    def test_bad_numbers(self, given, said):
        with pytest.raises(UsageError, match=said):
            distillation_recipe(None, 100, **given)


def test_unknown_preset():
    with pytest.raises(UsageError, match=r"`preset` must be one of flowers, .*, found 'cifar'"):
        distillation_recipe("cifar", 100)


def test_no_claim_about_mixup_without_it():
    assert not any("MixUp" in note for note in distillation_recipe("pet", 3312, mixup=0).notes)
    (said,) = [note for note in distillation_recipe("pet", 3312).notes if "MixUp" in note]
    assert "uniform from 0 to 1" in said
    assert "whose partner is itself" in said
