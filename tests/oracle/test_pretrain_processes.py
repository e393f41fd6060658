"""Pre-training and distillation in two and three processes (gloo) against one.

The batches are the same bit for bit, the weights within rounding.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images import write_digits
from safetensors.numpy import load_file
from training import InProcess, in_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARCH, STEPS, BATCH, TEACHER = "R(1,1,1,1)x0.5", 4, 6, "teacher"
TOLERANCE = 1e-5
"""The order in which the gradients' addends, float32, are added differs, and nothing else."""
ADAM_TOLERANCE = 1e-4
"""Adam divides each gradient by its own size, and so magnifies the rounding of those near zero: of
four steps of at most 3e-3, one value of 4,096 differed by 1.2e-5."""
OPTIONS = {
    "steps": STEPS,
    "batch_size": BATCH,
    "micro_batch": 2,  # 3, 2 and 1 of them in one, two and three processes
    "resolution": 32,
    "mixup": 0.2,
    "lr": 0.003,
    "eval_every": 2,
    "checkpoint_every": 2,
    "workers": 1,
    "log": "none",
    "progress": False,
}


def compute(report, place, recipe, folder):
    """Pre-train, and return the rows that this process computed: of each, step, pixels, targets."""
    import bitzoo
    from bitzoo.training import trainer

    os.chdir(place)
    os.environ["BITZOO_CACHE"] = str(Path(place, "cache"))
    original, rows = trainer.prefetch, []

    def recording(*args, **keywords):
        for part in original(*args, **keywords):
            numbers = range(BATCH)[part.rows]
            images, targets = part.images.numpy().copy(), part.targets.numpy().copy()
            rows.extend(zip(numbers, images, targets, strict=True))
            yield part

    trainer.prefetch = recording
    if recipe == "distill":
        result = bitzoo.distill(TEACHER, ARCH, "digits", folder, temperature=2.0, **OPTIONS)
    else:
        result = bitzoo.pretrain(ARCH, "digits", folder, recipe=recipe, **OPTIONS)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    found = result.evaluation
    return rows, found.rows.tolist(), found.correct, found.loss


def losses_of(run, event="train"):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == event]


@pytest.fixture(scope="module", params=["bit-s", "big_vision", "distill"])
def alone(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    write_digits(place / "digits", per_class=8, val_per_class=3, classes=range(4), size=40)
    if request.param == "distill":
        InProcess(compute, str(place), "bit-s", TEACHER).result()
    return place, request.param, InProcess(compute, str(place), request.param, "one").result()


@pytest.mark.parametrize("count", [2, 3])
def test_the_same_as_one(alone, count):
    place, recipe, (rows, evaluated, _, loss) = alone
    tolerance = ADAM_TOLERANCE if recipe == "distill" else TOLERANCE
    folder = f"of-{count}"
    found = in_processes(count, compute, str(place), recipe, folder)

    # The batches, bit for bit: images after crop, flip and MixUp, and their targets.
    share, steps = BATCH // count, range(STEPS)
    assert [len(own) for own, *_ in found] == [STEPS * share] * count
    together = [
        row for step in steps for own, *_ in found for row in own[step * share : (step + 1) * share]
    ]
    assert [number for number, *_ in together] == [*range(BATCH)] * STEPS
    for (number, images, targets), expected in zip(together, rows, strict=True):
        assert number == expected[0]
        np.testing.assert_array_equal(images, expected[1])
        np.testing.assert_array_equal(targets, expected[2])
    mixed = [np.count_nonzero(targets) > 1 for _, _, targets in rows]
    assert any(mixed), "without MixUp the test shows less than it says"

    # The weights within rounding, and the evaluation, which they share.
    weights, whole = (load_file(place / name / "model.safetensors") for name in (folder, "one"))
    assert weights.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_allclose(
            weights[name], tensor, rtol=tolerance, atol=tolerance, err_msg=name
        )
    for event, number in (("train", STEPS), ("eval", 2)):
        ours, expected = (losses_of(place / name, event) for name in (folder, "one"))
        assert [step for step, _ in ours] == [step for step, _ in expected]
        assert len(ours) == number
        for (_, ours_loss), (_, expected_loss) in zip(ours, expected, strict=True):
            assert ours_loss == pytest.approx(expected_loss, abs=tolerance)
    for _, own_rows, _, own_loss in found:
        assert own_rows == evaluated == list(range(12))
        assert own_loss == pytest.approx(loss, abs=tolerance)
