"""BiT-HyperRule against the paper and the released code, both transcribed again here."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from bitzoo.errors import UnknownModelError, UsageError
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.training.hyperrule import hyperrule
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.recipe_text import explain

LARGE_IMAGE = (375, 500)


def rows(recipe):
    """The rows of `explain`, without the notes."""
    return {subject: text for subject, text in explain(recipe) if subject != "note"}


def notes(recipe):
    return [text for subject, text in explain(recipe) if subject == "note"]


# The number of examples: steps, warmup, MixUp (arXiv 1912.11370 section 3.3; bit_hyperrule.py).


@pytest.mark.parametrize("edition", ["paper", "released"])
@pytest.mark.parametrize(
    ("examples", "steps", "warmup", "mixup"),
    [
        (1, 500, 100, 0.0),
        (19_999, 500, 100, 0.0),
        (20_000, 10_000, 500, 0.1),
        (499_999, 10_000, 500, 0.1),
        (500_000, 20_000, 500, 0.1),
        (1_281_167, 20_000, 500, 0.1),
    ],
)
def test_the_number_of_examples_determines_length_warmup_and_mixup(
    examples, steps, warmup, mixup, edition
):
    recipe = hyperrule(examples, LARGE_IMAGE, edition)
    assert (recipe.schedule.steps, recipe.schedule.warmup) == (steps, warmup)
    assert recipe.mixup_alpha == mixup
    assert recipe.num_examples == examples


@pytest.mark.parametrize(
    ("edition", "boundaries"),
    [
        ("paper", [(150, 300, 450), (3000, 6000, 9000), (6000, 12000, 18000)]),
        ("released", [(200, 300, 400), (3000, 6000, 9000), (6000, 12000, 18000)]),
    ],
)
def test_decay_steps_of_both_editions(edition, boundaries):
    sizes = (19_999, 499_999, 500_000)
    assert [hyperrule(n, LARGE_IMAGE, edition).schedule.boundaries for n in sizes] == boundaries


# The size of the images: resize and crop.


@pytest.mark.parametrize(
    ("resolution", "small"),
    [
        ((96, 96), False),
        ((95, 96), True),
        ((96, 95), True),
        ((96, 97), False),
        ((1, 9215), True),
        ((9216, 1), False),
        ((95.99, 96.0), True),
        ((32, 32), True),
        ((224, 224), False),
    ],
)
def test_the_area_determines_the_resolution(resolution, small):
    paper, released = (hyperrule(100, resolution, e) for e in ("paper", "released"))
    assert (paper.resize, paper.crop) == ((160, 128) if small else (448, 384))
    assert (released.resize, released.crop) == ((160, 128) if small else (512, 480))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("BiT-M-R152x4", (512, 480)),
        ("bit_s_r152x4", (512, 480)),
        ("resnetv2_152x4_bit.goog_in21k", (512, 480)),
        ("R152x4", (512, 480)),
        (ARCHITECTURES["R152x4"], (512, 480)),
        ("BiT-M-R152x2", (448, 384)),
        ("R50x1", (448, 384)),
        (Architecture((1, 1, 1, 1), 0.5), (448, 384)),
        (None, (448, 384)),
    ],
)
def test_the_largest_network_sees_larger_images_in_the_paper(model, sizes):
    paper = hyperrule(100, LARGE_IMAGE, model=model)
    assert (paper.resize, paper.crop) == sizes
    released = hyperrule(100, LARGE_IMAGE, "released", model)
    assert (released.resize, released.crop) == (512, 480)


def test_small_images_stay_small_in_the_largest_network():
    recipe = hyperrule(100, (32, 32), model="R152x4")
    assert (recipe.resize, recipe.crop) == (160, 128)


@pytest.mark.parametrize("edition", ["paper", "released"])
def test_what_never_changes(edition):
    recipe = hyperrule(100, LARGE_IMAGE, edition)
    assert recipe.schedule.base_lr == 0.003
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (512, 0.9, 0.0)
    assert (recipe.optimizer, recipe.head, recipe.flip) == ("sgd", "zero", True)
    assert recipe.loss == "softmax_cross_entropy"
    assert recipe.augmentation == "resize_crop"
    assert recipe.overrides == {}
    assert recipe.name == f"BiT-HyperRule ({edition})"


def test_only_the_paper_edition_says_that_its_warmup_is_borrowed():
    borrowed = "The paper gives no warmup for fine-tuning; this one is from its authors' code."
    assert borrowed in hyperrule(100, LARGE_IMAGE).notes
    assert borrowed not in hyperrule(100, LARGE_IMAGE, "released").notes


# The learning rate, step by step. The numbers are those that get_lr of bit_hyperrule.py gives.

STAIRCASE_STEPS = {
    19_999: (100, 199, 200, 201, 299, 300, 301, 399, 400, 401, 499),
    499_999: (500, 2999, 3000, 3001, 5999, 6000, 6001, 8999, 9000, 9001, 9999),
    500_000: (500, 5999, 6000, 6001, 11999, 12000, 12001, 17999, 18000, 18001, 19999),
}
WARMUP_RATES = {
    19_999: {0: 0, 1: 0.00003, 50: 0.0015, 99: 0.00297},
    499_999: {0: 0, 1: 0.000006, 250: 0.0015, 499: 0.002994},
    500_000: {0: 0, 1: 0.000006, 250: 0.0015, 499: 0.002994},
}
STAIRCASE = (3e-3, 3e-3, 3e-3, 3e-4, 3e-4, 3e-4, 3e-5, 3e-5, 3e-5, 3e-6, 3e-6)


@pytest.mark.parametrize("examples", STAIRCASE_STEPS)
def test_the_released_rate_around_every_boundary(examples):
    schedule = hyperrule(examples, LARGE_IMAGE, "released").schedule
    expected = WARMUP_RATES[examples] | dict(zip(STAIRCASE_STEPS[examples], STAIRCASE, strict=True))
    rates = {step: schedule.lr_at(step) for step in expected}
    assert rates == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("examples", "edition", "warmup", "plateaus"),
    [
        # How many steps have rate 3e-3, 3e-4, 3e-5, 3e-6.
        (100, "released", 100, (101, 100, 100, 99)),
        (20_000, "released", 500, (2501, 3000, 3000, 999)),
        (500_000, "released", 500, (5501, 6000, 6000, 1999)),
        (100, "paper", 100, (51, 150, 150, 49)),
        (20_000, "paper", 500, (2501, 3000, 3000, 999)),
        (500_000, "paper", 500, (5501, 6000, 6000, 1999)),
    ],
)
def test_the_rate_of_every_step(examples, edition, warmup, plateaus):
    schedule = hyperrule(examples, LARGE_IMAGE, edition).schedule
    expected = [0.003 * (step / warmup) for step in range(warmup)]
    for count, rate in zip(plateaus, (3e-3, 3e-4, 3e-5, 3e-6), strict=True):
        expected += [rate] * count
    assert len(expected) == schedule.steps
    found = [schedule.lr_at(step) for step in range(schedule.steps)]
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_boundary_divides_as_the_released_code_does():
    # Three divisions by 10 give another float than three products with 0.1.
    schedule = Schedule(0.007, 10, boundaries=(2, 4, 6))
    rates = [schedule.lr_at(step) for step in (2, 3, 5, 7)]
    assert rates == [0.007, 0.007 / 10, 0.007 / 10 / 10, 0.007 / 10 / 10 / 10]
    assert 0.007 / 10 != 0.007 * 0.1


@pytest.mark.parametrize("step", [-1, 500, 501])
def test_no_rate_outside_the_schedule(step):
    schedule = hyperrule(100, LARGE_IMAGE).schedule
    with pytest.raises(
        UsageError, match=rf"`step` must be from 0 to 499, the steps of the schedule, found {step}"
    ):
        schedule.lr_at(step)


# Overrides keep everything else and are recorded.


@pytest.mark.parametrize(
    ("edition", "steps", "warmup", "boundaries"),
    [
        ("paper", 50, 10, (15, 30, 45)),
        ("released", 50, 10, (20, 30, 40)),
        ("paper", 500, 100, (150, 300, 450)),
        ("paper", 1000, 200, (300, 600, 900)),
        ("paper", 25, 5, (8, 15, 23)),  # 7.5 and 22.5 round up
        ("paper", 3, 1, (1, 2, 3)),  # 0.6, 0.9, 1.8, 2.7
        ("paper", 2, 0, (1, 1, 2)),
        ("paper", 1, 0, (0, 1, 1)),
        ("paper", 7, 1, (2, 4, 6)),  # 1.4, 2.1, 4.2, 6.3
    ],
)
def test_another_length_keeps_the_shape_of_the_schedule(edition, steps, warmup, boundaries):
    schedule = hyperrule(100, LARGE_IMAGE, edition).override(steps=steps).schedule
    assert schedule == Schedule(0.003, steps, warmup, boundaries)


def test_fifty_steps_have_a_tenth_of_the_steps_of_each_rate():
    schedule = hyperrule(100, LARGE_IMAGE).override(steps=50).schedule
    expected = [0.0003 * step for step in range(10)]
    expected += [3e-3] * 6 + [3e-4] * 15 + [3e-5] * 15 + [3e-6] * 4
    found = [schedule.lr_at(step) for step in range(50)]
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


def test_one_step_is_one_step_at_the_full_rate():
    assert hyperrule(100, LARGE_IMAGE).override(steps=1).schedule.lr_at(0) == 0.003


def test_overrides_change_what_they_name_and_are_recorded():
    rule = hyperrule(20_000, LARGE_IMAGE)
    recipe = rule.override(
        steps=1000, batch_size=64, lr=0.03, mixup=0, resize=80, crop=64, flip=False
    )
    assert recipe.schedule == Schedule(0.03, 1000, 50, (300, 600, 900))
    assert (recipe.batch_size, recipe.mixup_alpha, recipe.flip) == (64, 0.0, False)
    assert (recipe.resize, recipe.crop) == (80, 64)
    assert recipe.overrides == {
        "steps": {"from": 10_000, "to": 1000},
        "batch_size": {"from": 512, "to": 64},
        "lr": {"from": 0.003, "to": 0.03},
        "mixup": {"from": 0.1, "to": 0.0},
        "resize": {"from": 448, "to": 80},
        "crop": {"from": 384, "to": 64},
        "flip": {"from": True, "to": False},
    }
    untouched = {"name", "momentum", "weight_decay", "loss", "head", "notes", "num_examples"}
    assert {n: getattr(recipe, n) for n in untouched} == {n: getattr(rule, n) for n in untouched}


def test_a_smaller_batch_keeps_the_learning_rate():
    recipe = hyperrule(100, LARGE_IMAGE).override(batch_size=128)
    assert recipe.schedule == hyperrule(100, LARGE_IMAGE).schedule


@pytest.mark.parametrize(
    ("resolution", "edition", "crop", "resize"),
    [
        (LARGE_IMAGE, "paper", 64, 75),  # 74.67
        (LARGE_IMAGE, "paper", 224, 261),  # 261.33
        ((32, 32), "paper", 64, 80),
        (LARGE_IMAGE, "released", 240, 256),
        (LARGE_IMAGE, "paper", 384, 448),
    ],
)
def test_a_crop_alone_scales_the_resize(resolution, edition, crop, resize):
    recipe = hyperrule(100, resolution, edition).override(crop=crop)
    assert (recipe.resize, recipe.crop) == (resize, crop)


def test_a_resize_alone_keeps_the_crop():
    recipe = hyperrule(100, (32, 32)).override(resize=128)
    assert (recipe.resize, recipe.crop) == (128, 128)
    assert recipe.overrides == {"resize": {"from": 160, "to": 128}}


def test_the_record_names_the_rules_number_however_often_it_changes():
    recipe = hyperrule(100, LARGE_IMAGE).override(steps=50, lr=0.01).override(steps=80)
    assert recipe.overrides == {
        "steps": {"from": 500, "to": 80},
        "lr": {"from": 0.003, "to": 0.01},
    }
    back = recipe.override(steps=500, lr=0.003)
    assert back == hyperrule(100, LARGE_IMAGE)


def test_no_override_is_the_rule_itself():
    rule = hyperrule(100, LARGE_IMAGE)
    assert rule.override() == rule
    assert rule.override(steps=500, batch_size=512, lr=0.003, mixup=0.0, crop=384) == rule


# On disk: JSON and back.

UPSTREAM_S = Recipe(
    # arXiv 1912.11370 section 3.3 on ILSVRC-2012: 1,281,167 images, 90 epochs of batch 4096.
    name="BiT-S upstream",
    resize=224,
    crop=224,
    batch_size=4096,
    schedule=Schedule(0.03 * 4096 / 256, 28_151, 5000, (9384, 18767, 25023)),
    weight_decay=1e-4,
    augmentation="inception_crop",
    head="zero",
)
DISTILLATION = Recipe(
    # Not a published recipe: it has the kinds of words and numbers that distillation needs.
    name="patient teacher",
    resize=224,
    crop=224,
    batch_size=512,
    schedule=Schedule(0.003, 1000),
    optimizer="adam",
    mixup_alpha=1.0,
    augmentation="inception_crop",
    loss="distillation",
    loss_options={"teacher": "BiT-R152x2_T_224", "temperature": 1.5, "labels": False},
    head="keep",
)


@pytest.mark.parametrize(
    "recipe",
    [
        hyperrule(3000, LARGE_IMAGE),
        hyperrule(500_000, (32, 32), "released", "BiT-M-R50x1"),
        hyperrule(3000, LARGE_IMAGE).override(steps=51, lr=0.1 + 0.2, mixup=1 / 3, crop=64),
        UPSTREAM_S,
        DISTILLATION,
    ],
    ids=lambda recipe: recipe.name,
)
def test_json_and_back(recipe):
    text = json.dumps(recipe.to_dict(), allow_nan=False)
    back = Recipe.from_dict(json.loads(text))
    assert back == recipe
    assert json.dumps(back.to_dict()) == text
    rates = [recipe.schedule.lr_at(step) for step in range(0, recipe.schedule.steps, 50)]
    assert [back.schedule.lr_at(step) for step in range(0, back.schedule.steps, 50)] == rates


def test_the_json_is_readable():
    record = hyperrule(3000, LARGE_IMAGE).override(steps=50).to_dict()
    assert record["schedule"] == {
        "base_lr": 0.003,
        "steps": 50,
        "warmup": 10,
        "boundaries": [15, 30, 45],
        "decay": 10.0,
    }
    assert record["overrides"] == {"steps": {"from": 500, "to": 50}}
    assert (record["resize"], record["crop"], record["mixup_alpha"]) == (448, 384, 0.0)


def test_an_older_record_without_the_optional_entries_can_be_read():
    schedule = {"base_lr": 0.01, "steps": 5}
    record = {"name": "x", "resize": 64, "crop": 64, "batch_size": 2, "schedule": schedule}
    assert Recipe.from_dict(record) == Recipe("x", 64, 64, 2, Schedule(0.01, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, r"a recipe has unknown \(\+\) or missing \(-\) entries: \+ speed\. It may"),
        ({"crop": 500}, "`crop` must be at most `resize`, found crop 500 and resize 448"),
        ({"schedule": 3}, "a recipe's schedule must be a mapping, found 3"),
        ({"schedule": {"steps": 5, "warm": 1}}, r"schedule has .*: \+ warm, - base_lr\. It may"),
        ({"schedule": {"base_lr": 1, "steps": "5"}}, "`steps` must be a whole number .* found '5'"),
        ({"name": 5}, "`name` of a recipe must be a word, found 5"),
        ({"flip": 1}, "`flip` of a recipe must be true or false, found 1"),
        ({"notes": "abc"}, "`notes` of a recipe must be a list of sentences, found 'abc'"),
        ({"overrides": []}, r"`overrides` of a recipe must be a mapping, found \[\]"),
    ],
)
def test_a_damaged_record_is_refused(change, message):
    record = hyperrule(3000, LARGE_IMAGE).to_dict()
    with pytest.raises(UsageError, match=message):
        Recipe.from_dict(record | change)


def test_a_record_without_its_crop_is_refused():
    record = hyperrule(3000, LARGE_IMAGE).to_dict()
    del record["crop"]
    with pytest.raises(UsageError, match=r"entries: - crop\. It may come from another version"):
        Recipe.from_dict(record)


# Bad numbers.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1, found 0. Give"),
        ({"steps": 2.5}, "`steps` must be a whole number of at least 1, found 2.5"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, found 0"),
        ({"batch_size": True}, "`batch_size` must be a whole number of at least 1, found True"),
        ({"lr": 0}, "the learning rate must be a number above 0, found 0"),
        ({"lr": -0.1}, "the learning rate must be a number above 0, found -0.1"),
        ({"lr": float("nan")}, "the learning rate must be a number above 0, found nan"),
        ({"lr": float("inf")}, "the learning rate must be a number above 0, found inf"),
        ({"lr": "fast"}, "the learning rate must be a number above 0, found 'fast'"),
        ({"mixup": -0.1}, "MixUp's alpha must be a number of at least 0, found -0.1"),
        ({"crop": 31}, "`crop` must be a whole number of at least 32, found 31"),
        ({"crop": 449, "resize": 448}, "found crop 449 and resize 448.*to at least 449"),
        ({"resize": 383}, "`crop` must be at most `resize`, found crop 384 and resize 383"),
        ({"resize": 0, "crop": 64}, "`resize` must be a whole number of at least 32, found 0"),
    ],
)
def test_a_bad_override_is_refused(override, message):
    with pytest.raises(UsageError, match=message):
        hyperrule(100, LARGE_IMAGE).override(**override)


def test_the_smallest_numbers_that_are_allowed():
    recipe = hyperrule(1, (1, 1)).override(
        steps=1, batch_size=1, lr=1e-30, mixup=0, crop=32, resize=32
    )
    assert (recipe.schedule.steps, recipe.batch_size, recipe.crop) == (1, 1, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, LARGE_IMAGE), "`num_examples` must be a whole number of at least 1, found 0"),
        ((10.5, LARGE_IMAGE), "`num_examples` must be a whole number of at least 1, found 10.5"),
        ((10, (0, 96)), "height of the images must be a number of at least 1, found 0"),
        ((10, (96, 0.5)), "width of the images must be a number of at least 1, found 0.5"),
        ((10, (96,)), r"`resolution` must be \(height, width\) in pixels, found \(96,\)"),
        ((10, 96), r"`resolution` must be \(height, width\) in pixels, found 96"),
        ((10, LARGE_IMAGE, "Paper"), "`edition` must be one of paper, released, found 'Paper'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        hyperrule(*arguments)


def test_an_unknown_model_is_refused():
    with pytest.raises(UnknownModelError, match=r"'BiT-M-R152x44' is not .*BiT-M-R152x4"):
        hyperrule(10, LARGE_IMAGE, model="BiT-M-R152x44")


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"boundaries": (6, 5)}, r"`boundaries` must ascend .* 10 steps .*, found \[6, 5\]"),
        ({"boundaries": (5, 11)}, r"`boundaries` must ascend .* 10 steps .*, found \[5, 11\]"),
        ({"boundaries": (-1,)}, "a boundary of the schedule must be .* at least 0, found -1"),
        ({"boundaries": 5}, "`boundaries` of a recipe must be a list of steps, found 5"),
        ({"warmup": 11}, "`warmup` must fit into the 10 steps of the schedule, found 11"),
        ({"warmup": -1}, "`warmup` must be a whole number of at least 0, found -1"),
        ({"decay": 0.1}, "`decay` must be a number of at least 1, found 0.1"),
    ],
)
def test_an_impossible_schedule_is_refused(schedule, message):
    with pytest.raises(UsageError, match=message):
        Schedule(0.1, 10, **schedule)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1}, "`momentum` must be below 1, found 1"),
        ({"momentum": -0.1}, "`momentum` must be a number of at least 0, found -0.1"),
        ({"weight_decay": -1e-4}, "`weight_decay` must be a number of at least 0, found -0.0001"),
        ({"num_examples": 0}, "`num_examples` must be a whole number of at least 1, found 0"),
    ],
)
def test_an_impossible_recipe_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(UPSTREAM_S, **change)


def test_what_would_change_labels_is_left_out_by_the_rule_itself():
    still = hyperrule(1000, LARGE_IMAGE, flip=False)
    assert (still.flip, still.resize, still.crop) == (False, 448, 384)
    whole = hyperrule(1000, LARGE_IMAGE, model="R152x4", crop=False)
    assert (whole.flip, whole.resize, whole.crop) == (True, 480, 480)
    both = hyperrule(1000, (32, 32), flip=False, crop=False)
    assert rows(both)["training images"] == "resize to 128x128"
    why = "they would change this task's labels (paper, supplementary section F)."
    assert [note for note in both.notes if note.endswith(why)] == [
        f"No flips: {why}",
        f"No crops: {why}",
    ]
    for recipe in (still, whole, both):  # no departures
        assert not recipe.overrides
    # Another crop stays without random crops, and asking for flips is a departure.
    assert (both.override(crop=64).resize, both.override(crop=64).crop) == (64, 64)
    assert both.override(flip=True).overrides == {"flip": {"from": False, "to": True}}


# Descriptions.


def test_explain_shows_the_whole_plan():
    assert explain(hyperrule(3000, LARGE_IMAGE)) == [
        ("recipe", "BiT-HyperRule (paper)"),
        (
            "training images",
            "resize to 448x448, random crop of 384x384, random horizontal flip",
        ),
        ("test images", "resize to 384x384"),
        ("length", "500 steps of 512 images"),
        ("epochs", "85.3: 256,000 images are drawn from 3,000 examples"),
        (
            "learning rate",
            "from 0 to 0.003 over the first 100 steps, "
            "divided by 10 after steps 150, 300 and 450 (the first is step 0)",
        ),
        ("optimizer", "SGD, momentum 0.9, no weight decay"),
        ("mixup", "off"),
        ("head", "new, zero-initialised"),
        ("loss", "softmax cross entropy"),
        ("note", "3,000 examples make a small task (fewer than 20,000)."),
        ("note", "Images of 375x500 (height x width) are at least 96x96 in area."),
        (
            "note",
            "The paper gives no warmup for fine-tuning; this one is from its authors' code.",
        ),
    ]


@pytest.mark.parametrize(
    ("examples", "changes", "epochs"),
    [
        (1, {}, "256,000.0: 256,000 images are drawn from 1 example"),
        (256, {"steps": 3, "batch_size": 128}, "1.5: 384 images are drawn from 256 examples"),
        (1_281_167, {}, "8.0: 10,240,000 images are drawn from 1,281,167 examples"),
        (1000, {"steps": 1, "batch_size": 64}, "0.064: 64 images are drawn from 1,000 examples"),
    ],
)
def test_explain_states_the_number_of_epochs(examples, changes, epochs):
    recipe = hyperrule(examples, LARGE_IMAGE).override(**changes)
    assert rows(recipe)["epochs"] == epochs


def test_explain_states_what_was_changed():
    recipe = hyperrule(30_000, (32, 32)).override(steps=50, batch_size=64, lr=0.01, flip=False)
    assert rows(recipe)["changed"] == (
        "steps from 10000 to 50; batch size from 512 to 64; lr from 0.003 to 0.01; "
        "flip from True to False"
    )
    assert rows(recipe)["mixup"] == "alpha 0.1, one lambda per batch"
    assert rows(recipe)["training images"] == "resize to 160x160, random crop of 128x128"
    assert "changed" not in rows(hyperrule(30_000, (32, 32)))


def test_explain_gives_the_reasons():
    assert notes(hyperrule(500_000, LARGE_IMAGE, model="R152x4"))[:2] == [
        "500,000 examples make a large task (at least 500,000).",
        "Images of 375x500 (height x width) are at least 96x96 in area; R152x4 has its own size.",
    ]
    assert notes(hyperrule(100, LARGE_IMAGE, "released", "R152x4")) == [
        "100 examples make a small task (fewer than 20,000).",
        "Images of 375x500 (height x width) are at least 96x96 in area.",
    ]
    assert notes(hyperrule(20_000, (32, 32.5), "released")) == [
        "20,000 examples make a medium task (fewer than 500,000).",
        "Images of 32x32.5 (height x width) are small: their area is below 96x96.",
    ]


def test_explain_of_other_recipes():
    upstream = rows(UPSTREAM_S)
    assert upstream["training images"] == (
        "inception crop: a random box of 5 to 100 % of the area, resized to 224x224, "
        "random horizontal flip"
    )
    assert upstream["optimizer"] == "SGD, momentum 0.9, weight decay 0.0001"
    assert upstream["learning rate"] == (
        "from 0 to 0.48 over the first 5,000 steps, "
        "divided by 10 after steps 9,384, 18,767 and 25,023 (the first is step 0)"
    )
    assert "epochs" not in upstream
    distilled = rows(DISTILLATION)
    assert (distilled["learning rate"], distilled["head"]) == ("0.003", "keep")
    one = replace(DISTILLATION, schedule=Schedule(1, 10, boundaries=(5,)))
    assert rows(one)["learning rate"] == "1, divided by 10 after step 5 (the first is step 0)"


def test_the_plan_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from bitzoo.training.hyperrule import hyperrule; "
        "from bitzoo.training.recipe_text import explain; "
        "explain(hyperrule(10, (32, 32), model='BiT-M-R152x4')); print(sorted(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not re.findall(r"'(torch|numpy|timm|PIL)'", shown.stdout)
