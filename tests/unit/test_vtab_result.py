"""VTAB scores: medians, means and what they may be called, recomputed in exact fractions."""

import json
import random
import statistics
from fractions import Fraction
from pathlib import Path

import pytest

from bitzoo.catalogue.vtab_published import PUBLISHED
from bitzoo.catalogue.vtab_tasks import GROUPS, TASKS
from bitzoo.data.problems import DatasetError
from bitzoo.errors import UsageError
from bitzoo.runs.config import FinetuneConfig
from bitzoo.runs.vtab import chosen_tasks, departures_of
from bitzoo.runs.vtab_result import Mean, RunScore, TaskScore, VtabResult

SIZES = {"natural": 7, "specialized": 4, "structured": 8}


def made(names, runs=3, seed=0):
    """Results of these tasks with random counts, and the exact shares of each task's runs."""
    rng = random.Random(seed)
    scores, exact = {}, {}
    for name in names:
        count = TASKS[name].counts[2]
        correct = [rng.randrange(count + 1) for _ in range(runs)]
        scores[name] = TaskScore(
            name,
            TASKS[name].versions[0],
            tuple(RunScore(k, f"{name}/seed-{k}", c, count) for k, c in enumerate(correct)),
        )
        exact[name] = [Fraction(c, count) for c in correct]
    return VtabResult("m", Path("out"), scores), exact


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_medians_and_means_of_all_19_tasks(runs):
    result, exact = made(TASKS, runs)
    medians = {name: statistics.median(shares) for name, shares in exact.items()}
    for name, score in result.tasks.items():
        assert score.top1 == pytest.approx(float(medians[name]), abs=1e-15)
    for group, size in SIZES.items():
        members = [name for name, task in TASKS.items() if task.group == group]
        assert len(members) == size
        mean = result.groups[group]
        assert (mean.tasks, mean.of, mean.is_complete) == (size, size, True)
        assert mean.top1 == pytest.approx(float(sum(medians[n] for n in members) / size))
    assert result.mean == pytest.approx(float(sum(medians.values()) / 19))
    weighted = sum(SIZES[group] * result.groups[group].top1 for group in GROUPS) / 19
    assert result.mean == pytest.approx(weighted)
    assert result.claim == "VTAB-1k: mean of all 19 tasks"


def test_both_readings_of_the_median_are_given_where_they_differ():
    result, exact = made(TASKS)
    by_run = [sum(shares[run] for shares in exact.values()) / 19 for run in range(3)]
    overall = result.overall
    assert overall.of_runs == pytest.approx(float(statistics.median(by_run)))
    assert overall.readings_differ
    one, _ = made(TASKS, runs=1)
    assert one.overall.of_runs == pytest.approx(one.overall.top1)
    assert not one.overall.readings_differ
    unequal = [*made(["dtd"], 2)[0].tasks.values(), *made(["svhn"], 3)[0].tasks.values()]
    assert Mean.over(unequal, 19).of_runs is None


def test_no_mean_over_all_is_claimed_of_fewer():
    result, _ = made([name for name in TASKS if name != "resisc45"])
    assert result.mean is None
    assert result.claim == "Mean of 18 of the 19 tasks, which is no VTAB-1k score"
    assert result.to_dict()["mean"] is None
    assert result.to_dict()["means"]["all"]["tasks"] == 18
    assert not result.groups["specialized"].is_complete
    nothing = VtabResult("m", Path("out"), {})
    assert (nothing.mean, nothing.overall, nothing.claim) == (None, None, "No task was run")
    json.dumps(nothing.to_dict(), allow_nan=False)


def test_departures_are_part_of_the_claim():
    result, _ = made(TASKS)
    departed = VtabResult("m", Path("out"), result.tasks, departures=("steps: 5 instead of 500",))
    assert departed.claim == "Mean of all 19 tasks, not by the paper's protocol (see departures)"


def test_the_result_has_no_places_and_times():
    result, _ = made(TASKS)
    text = json.dumps(result.to_dict())
    assert "out" not in json.loads(text)
    assert text == json.dumps(made(TASKS)[0].to_dict())


def test_departures_are_told_from_what_the_runs_recorded():
    def record(**overrides):
        return {"recipe": {"overrides": overrides}, "changes": []}

    crop = {"from": 384, "to": 64}
    records = [record(crop=crop), record(crop={"from": 128, "to": 64})]
    assert departures_of(records, 3, FinetuneConfig()) == ("crop: 64 instead of 128 or 384",)
    assert departures_of([record()] * 3, 3, FinetuneConfig()) == ()
    many = FinetuneConfig(freeze=True, pretrained=False, edition="released", dtype="bfloat16")
    changed = {**record(), "changes": [{"key": "lr"}]}
    assert departures_of([changed], 5, many) == (
        "only the head was trained, on features of images without crops and flips",
        "random weights instead of pre-trained ones",
        "HyperRule of the released code",
        "dtype: bfloat16 instead of float32",
        "runs: 5 of each task instead of 3",
        "changed in the middle of runs: lr",
    )


def test_tasks_are_chosen_by_name_and_group():
    def names(tasks):
        return [task.name for task in chosen_tasks(tasks)]

    assert len(names(None)) == 19
    assert [TASKS[name].group for name in names(None)] == [
        group for group, size in SIZES.items() for _ in range(size)
    ]
    assert names("kitti-distance, dtd,dtd") == ["dtd", "kitti-distance"]
    assert names(["specialized", "svhn"]) == names("svhn,specialized")
    assert len(names(["specialized", "svhn", "eurosat"])) == 5
    with pytest.raises(DatasetError, match="VTAB has no task 'smallnorb'"):
        names(["smallnorb"])
    with pytest.raises(UsageError, match="must name at least one task"):
        names([])


def test_published_means_are_consistent_with_their_groups():
    with_groups = [row for row in PUBLISHED if row.groups]
    assert [row.model for row in with_groups] == ["BiT-M-R152x4", "BiT-M-R101x3"]
    for row in with_groups:
        weighted = sum(SIZES[group] * row.groups[group] for group in GROUPS) / 19
        assert row.mean == pytest.approx(weighted, abs=0.011)  # as far as two decimals tell
    assert {row.mean for row in PUBLISHED} == {66.87, 70.64, 76.29, 78.72, 73.51, 72.65}
