"""A learning rate or a length that changes during a run: still a function of the step."""

import json
from dataclasses import replace

import pytest

from bitzoo.errors import UsageError
from bitzoo.runs.changes import changed
from bitzoo.runs.config import FinetuneConfig
from bitzoo.training.hyperrule import hyperrule
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.recipe_text import explain

RULE = hyperrule(100, (300, 400))  # 500 steps, warmup 100, divided after 150, 300 and 450


def rates(schedule):
    return [schedule.lr_at(step) for step in range(schedule.steps)]


def test_another_rate_holds_from_its_step_on():
    changed = RULE.schedule.changed_at(200, lr=0.001)
    assert rates(changed)[:200] == rates(RULE.schedule)[:200]
    assert rates(changed)[200:] == rates(replace(RULE.schedule, base_lr=0.001))[200:]
    assert changed.lr_at(199) == pytest.approx(3e-4)
    assert changed.lr_at(200) == pytest.approx(1e-4)


def test_an_extended_run_goes_on_where_a_longer_one_would_be():
    changed = RULE.schedule.changed_at(500, steps=1000)
    assert rates(changed)[:500] == rates(RULE.schedule)
    assert rates(changed)[500:] == rates(RULE.schedule.scaled(1000))[500:]
    assert [changed.lr_at(step) for step in (499, 500, 600, 601, 901)] == pytest.approx(
        [3e-6, 3e-4, 3e-4, 3e-5, 3e-6]
    )


def test_changes_add_up_and_going_back_repeats_the_steps_as_they_were():
    first = RULE.schedule.changed_at(200, lr=0.001)
    second = first.changed_at(500, steps=600)
    third = second.changed_at(500, lr=0.0002)
    assert rates(third)[:500] == rates(first)
    assert rates(third)[500:] == [rate / 5 for rate in rates(second)[500:]]
    earlier = first.changed_at(100, lr=0.01)  # the newest checkpoint was damaged
    assert rates(earlier)[:100] == rates(RULE.schedule)[:100]
    assert rates(earlier)[100:] == rates(replace(RULE.schedule, base_lr=0.01))[100:]


def test_before_the_first_step_it_is_another_schedule():
    assert RULE.schedule.changed_at(0, lr=0.01) == replace(RULE.schedule, base_lr=0.01)


def test_a_changed_recipe_says_so_and_is_stored():
    recipe = RULE.changed_at(200, lr=0.001).changed_at(500, steps=1000)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.overrides == {
        "steps": {"from": 500, "to": 1000},
        "lr": {"from": 0.003, "to": 0.001},
    }
    rows = explain(recipe)
    assert ("changed", "steps from 500 to 1000; lr from 0.003 to 0.001") in rows
    said = dict(rows)["learning rate"]
    assert said == (
        "from 0 to 0.001 over the first 200 steps, divided by 10 after steps 300, 600 and 900 (the "
        "first is step 0); until step 500: from 0 to 0.001 over the first 100 steps, divided by 10 "
        "after steps 150, 300 and 450 (the first is step 0); until step 200: from 0 to 0.003 over "
        "the first 100 steps, divided by 10 after steps 150, 300 and 450 (the first is step 0)"
    )
    assert [text for name, text in rows if name == "note"][-2:] == [
        "The base learning rate was changed from 0.003 to 0.001 after 200 steps.",
        "The run was extended from 500 to 1,000 steps after 500 steps; from there on it follows "
        "the schedule of a run of 1,000 steps.",
    ]


def test_a_recipe_without_changes_is_stored_as_before():
    assert set(RULE.to_dict()["schedule"]) == {"base_lr", "steps", "warmup", "boundaries", "decay"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": 3},
        {"before": RULE.schedule},
        {"since": 501, "before": RULE.schedule},
        {"since": -1, "before": RULE.schedule},
    ],
)
def test_a_schedule_that_contradicts_itself(wrong):
    with pytest.raises(UsageError, match="`since`"):
        Schedule(0.1, 1000, **wrong)


@pytest.mark.parametrize(
    ("step", "change", "says"),
    [
        (3, {"lr": 0}, "the learning rate must be a number above 0, found 0"),
        (600, {"lr": 0.1}, "`since` of a schedule must be a step of it"),
        (500, {"steps": 400}, "`since` of a schedule must be a step of it"),
        (500, {"steps": 1.5}, "`steps` must be a whole number"),
    ],
)
def test_impossible_changes(step, change, says):
    with pytest.raises(UsageError, match=says):
        RULE.changed_at(step, **change)


def test_a_change_of_a_later_version():
    started = {"recipe": RULE.to_dict(), "dtype": "float32"}
    later = [{"step": 1, "key": "momentum", "old": 0.9, "new": 0.8}]
    with pytest.raises(UsageError, match="changed in 'momentum', which this version of bitzoo"):
        changed(started, later, RULE, FinetuneConfig())
