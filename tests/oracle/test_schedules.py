"""Learning rate, decay and momentum by step, against tables made by hand from the papers' numbers.

Of BiT (arXiv 1912.11370): 0.03 x batch / 256, batches of 4096, 5000 steps of linear warmup, a
tenth after each of some epochs. Step n, from 0, is made after n x 4096 images. On which side of a
boundary the step falls that begins exactly there is inferred: the authors' fine-tuning code and
TensorFlow's `piecewise_constant` leave it the higher rate.
"""

import math

import pytest

from bitzoo.training.distillation_presets import distillation_recipe
from bitzoo.training.pretraining import pretraining

S_IMAGES = 1_281_167
M_IMAGES = 14_197_122
L_IMAGES = 300_000_000

# 0.03 x 4096 / 256 = 0.48; a step of the warmup adds 0.48 / 5000 = 0.000096
WARMUP = {0: 0.0, 1: 0.000096, 2499: 0.239904, 2500: 0.24, 4999: 0.479904, 5000: 0.48}

# 30 x 1281167 / 4096 = 9383.55, 60: 18767.09, 80: 25022.79, 90: 28150.64
S_TABLE = {
    9383: 0.48, 9384: 0.048, 18767: 0.048, 18768: 0.0048, 25022: 0.0048, 25023: 0.00048,
    28150: 0.00048,
}  # fmt: skip
# 30 x 14197122 / 4096 = 103982.83, 60: 207965.66, 80: 277287.54, 90: 311948.48
M_TABLE = {
    103982: 0.48, 103983: 0.048, 207965: 0.048, 207966: 0.0048, 277287: 0.0048, 277288: 0.00048,
    311948: 0.00048,
}  # fmt: skip
# 10 x 3e8 / 4096 = 732421.9, 23: 1684570.3, 30: 2197265.6, 37: 2709960.9, 40: 2929687.5
L_TABLE = {
    732421: 0.48, 732422: 0.048, 1684570: 0.048, 1684571: 0.0048, 2197265: 0.0048,
    2197266: 0.00048, 2709960: 0.00048, 2709961: 0.000048, 2929687: 0.000048,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "images", "steps", "table", "loss"),
    [
        ("bit-s", S_IMAGES, 28_151, S_TABLE, "softmax_cross_entropy"),
        ("bit-m", M_IMAGES, 311_949, M_TABLE, "sigmoid_cross_entropy"),
        ("bit-l", L_IMAGES, 2_929_688, L_TABLE, "sigmoid_cross_entropy"),
    ],
)
def test_the_papers_recipes(name, images, steps, table, loss):
    recipe = pretraining(name, images)
    assert recipe.schedule.steps == steps
    rates = {step: recipe.schedule.lr_at(step) for step in {**WARMUP, **table}}
    assert rates == pytest.approx({**WARMUP, **table}, rel=1e-12)
    # decay and momentum are the same at every step
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 1e-4)
    assert recipe.decayed == "kernels"
    assert (recipe.batch_size, recipe.crop, recipe.eval_resize) == (4096, 224, 256)
    assert (recipe.augmentation, recipe.flip, recipe.mixup_alpha) == ("inception_crop", True, 0.0)
    assert recipe.loss == loss
    assert (recipe.clip_norm, recipe.head_bias, recipe.head) == (None, 0.0, "zero")
    assert recipe.overrides == {}


def test_every_step_of_s():
    """The rate never changes but where the table says."""
    schedule = pretraining("bit-s", S_IMAGES).schedule
    rates = [schedule.lr_at(step) for step in range(28_151)]
    wanted = [0.48 * step / 5000 for step in range(5000)]
    wanted += [0.48] * (9384 - 5000) + [0.048] * (18768 - 9384)
    wanted += [0.0048] * (25023 - 18768) + [0.00048] * (28151 - 25023)
    assert rates == pytest.approx(wanted, rel=1e-12)


def test_shares_are_kept_for_other_data_and_batches():
    """10,000 images by 64: 0.03 x 64 / 256 = 0.0075.

    90 x 10000 / 64 = 14062.5 steps, of which 5000 / 28151 = 17.76 % are 2497.8. Epoch 30 ends at
    4687.5, 60 at 9375 exactly, and 80 at 12500 exactly: these steps keep the higher rate.
    """
    recipe = pretraining("bit-s", 10_000, batch_size=64)
    schedule = recipe.schedule
    assert (schedule.steps, schedule.warmup) == (14_063, 2_498)
    table = {
        0: 0.0, 1249: 0.0075 / 2, 2497: 0.0075 * 2497 / 2498, 2498: 0.0075, 4687: 0.0075,
        4688: 0.00075, 9375: 0.00075, 9376: 0.000075, 12_500: 0.000075, 12_501: 0.0000075,
        14_062: 0.0000075,
    }  # fmt: skip
    assert {step: schedule.lr_at(step) for step in table} == pytest.approx(table, rel=1e-12)
    assert recipe.overrides["batch_size"] == {"from": 4096, "to": 64}
    assert recipe.overrides["lr"] == {"from": pytest.approx(0.48), "to": pytest.approx(0.0075)}
    assert any("share" in note and "5,000 of 28,151" in note for note in recipe.notes)


def test_shares_are_kept_for_another_length():
    """2,000 of 28,151 steps: 355.2 of warmup, and 666.6, 1333.3, 1777.7 for the boundaries."""
    recipe = pretraining("bit-s", S_IMAGES).override(steps=2_000)
    schedule = recipe.schedule
    assert (schedule.steps, schedule.warmup) == (2_000, 355)
    assert schedule.boundaries == (667, 1333, 1778)
    assert schedule.base_lr == pytest.approx(0.48)
    assert recipe.overrides == {"steps": {"from": 28_151, "to": 2_000}}


@pytest.mark.parametrize("name", ["bit-s", "bit-m", "bit-l"])
def test_what_is_inferred_is_said(name):
    notes = pretraining(name, 10_000).notes
    assert any("kernels only is inferred" in note for note in notes)
    assert any("keeps the higher rate: inferred" in note for note in notes)
    said = {"bit-s": "softmax, is inferred", "bit-m": "issue 26", "bit-l": "sigmoid, is inferred"}
    assert any(said[name] in note for note in notes)


@pytest.mark.parametrize(
    ("several", "images", "lr", "warmup", "bias"),
    [(False, 1_268_355, 1.6, 1000, 0.0), (True, M_IMAGES - 51_200, 0.48, 5000, -10.0)],
)
def test_big_vision(several, images, lr, warmup, bias):
    """A cosine from the end of the warmup to 0; its decays 1.6e-3 and 4.8e-4 are both 1e-4 here."""
    recipe = pretraining("big_vision", images, several=several)
    schedule, steps = recipe.schedule, math.ceil(90 * images / 4096)
    assert (schedule.steps, schedule.warmup) == (steps, warmup)
    middle = warmup + (steps - warmup) // 2
    table = {
        0: 0.0,
        warmup // 2: lr / 2,
        warmup: lr,
        middle: lr / 2 * (1 + math.cos(math.pi * (middle - warmup) / (steps - warmup))),
        steps - 1: lr / 2 * (1 - math.cos(math.pi / (steps - warmup))),
    }
    found = {step: schedule.lr_at(step) for step in table}
    assert found == pytest.approx(table, rel=1e-6)
    assert found[middle] == pytest.approx(lr / 2, rel=1e-4)
    assert (recipe.clip_norm, recipe.head_bias) == (1.0, bias)
    assert (recipe.optimizer, recipe.momentum, recipe.decayed) == ("sgd", 0.9, "kernels")
    decoupled = {1.6: 1.6e-3, 0.48: 4.8e-4}[lr]
    # SGD adds decay x kernel to a gradient, of which momentum makes 1 / (1 - 0.9) in the long run
    assert recipe.weight_decay * lr / (1 - 0.9) == pytest.approx(decoupled)


# arXiv 2106.05237: name, images, epochs, temperature, lr, decay, and decay / lr to two digits
PRESETS = [
    ("flowers-1000", 1_020, 1_000, 10, 0.003, 1e-3, 0.33),
    ("flowers-fast", 1_020, 10_000, 10, 0.003, 3e-4, 0.1),
    ("flowers-medium", 1_020, 100_000, 1, 0.001, 1e-4, 0.1),
    ("flowers-long", 1_020, 1_000_000, 1, 0.0003, 1e-5, 0.033),
    ("pet-300", 3_312, 300, 2, 0.01, 1e-5, 0.001),
    ("pet-fast", 3_312, 1_000, 5, 0.01, 1e-3, 0.1),
    ("pet-medium", 3_312, 3_000, 10, 0.003, 3e-4, 0.1),
    ("pet-10000", 3_312, 10_000, 2, 0.001, 1e-4, 0.1),
    ("pet-long", 3_312, 30_000, 2, 0.003, 1e-5, 0.0033),
    ("food-fast", 68_175, 100, 10, 0.01, 1e-3, 0.1),
    ("food-medium", 68_175, 1_000, 10, 0.001, 3e-4, 0.3),
    ("food-long", 68_175, 3_000, 5, 0.01, 1e-4, 0.01),
    ("sun-fast", 76_128, 100, 10, 0.01, 1e-3, 0.1),
    ("sun-medium", 76_128, 1_000, 10, 0.003, 1e-4, 0.033),
    ("sun-long", 76_128, 3_000, 10, 0.01, 3e-5, 0.003),
    ("imagenet", 1_255_544, 1_200, 1, 0.03, 3e-4, 0.01),
]


@pytest.mark.parametrize(("name", "images", "epochs", "heat", "lr", "decay", "torchs"), PRESETS)
def test_distillation(name, images, epochs, heat, lr, decay, torchs):
    recipe = distillation_recipe(name, images)
    batch, warmup, short, crop = (
        (4096, 5000, 256, 224) if name == "imagenet" else (512, 1500, 160, 128)
    )
    steps = math.ceil(epochs * images / batch)
    schedule = recipe.schedule
    assert (recipe.batch_size, schedule.steps, schedule.warmup) == (batch, steps, warmup)
    assert (recipe.eval_resize, recipe.crop, recipe.augmentation) == (short, crop, "inception_crop")
    assert (recipe.optimizer, recipe.betas, recipe.decayed) == ("adamw", (0.9, 0.999), "kernels")
    assert (recipe.clip_norm, recipe.mixup_alpha, recipe.flip) == (1.0, 1.0, True)
    assert recipe.loss == "distillation"
    assert recipe.loss_options == {"temperature": heat}
    # a step at the base rate takes `decay` of a kernel; torch's AdamW multiplies by the rate
    assert recipe.weight_decay * lr == pytest.approx(decay, rel=1e-12)
    assert recipe.weight_decay == pytest.approx(torchs, rel=0.02)
    middle = warmup + (steps - warmup) // 2
    table = {
        0: 0.0,
        warmup // 2: lr / 2,
        warmup: lr,
        middle: lr / 2 * (1 + math.cos(math.pi * (middle - warmup) / (steps - warmup))),
    }
    found = {step: schedule.lr_at(step) for step in table}
    assert found == pytest.approx(table, rel=1e-9)
    assert 0 < schedule.lr_at(steps - 1) < lr * 3 / (steps - warmup) ** 2


def test_another_rate_keeps_what_a_step_takes():
    recipe = distillation_recipe("pet-medium", 3_312, lr=0.001)
    assert recipe.weight_decay * 0.001 == pytest.approx(3e-4)
