"""Pre-training and distillation in two and three processes (gloo) against one.

The batches are the same bit for bit, the weights within rounding.
"""

import json
import os
from pathlib import Path
from typing import Any

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
ADAM_SHARE = 0.05
"""Adam divides a gradient by its own size, so the rounding of one near zero, and its sign, moves a
weight by as much as a whole step: 2e-3 was seen, in 2 of 147,456 weights. So weights may differ by
this share of the way that Adam can go, in the root mean square of a tensor."""
OPTIONS: dict[str, Any] = {
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
    from bitzoo.data.loader import prefetch
    from bitzoo.training import trainer

    os.chdir(place)
    os.environ["BITZOO_CACHE"] = str(Path(place, "cache"))
    rows: list[tuple[Any, ...]] = []

    def recording(*args, **keywords):
        for part in prefetch(*args, **keywords):
            numbers = range(BATCH)[part.rows]
            images, targets = part.images.numpy().copy(), part.targets.numpy().copy()
            rows.extend(zip(numbers, images, targets, strict=True))
            yield part

    trainer.prefetch = recording  # type: ignore[attr-defined]
    if recipe == "distill":
        distilled = bitzoo.distill(TEACHER, ARCH, "digits", folder, temperature=2.0, **OPTIONS)
        found = distilled.evaluation
    else:
        found = bitzoo.pretrain(ARCH, "digits", folder, recipe=recipe, **OPTIONS).evaluation
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
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
    uses_adam = recipe == "distill"
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
        if uses_adam:
            apart = np.sqrt(np.mean((weights[name] - tensor) ** 2))
            assert apart < ADAM_SHARE * STEPS * OPTIONS["lr"], name
            continue
        np.testing.assert_allclose(
            weights[name], tensor, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    tolerance = 1e-3 if uses_adam else TOLERANCE
    for event, number in (("train", STEPS), ("eval", 2)):
        ours, expected = (losses_of(place / name, event) for name in (folder, "one"))
        assert [step for step, _ in ours] == [step for step, _ in expected]
        assert len(ours) == number
        for (_, ours_loss), (_, expected_loss) in zip(ours, expected, strict=True):
            assert ours_loss == pytest.approx(expected_loss, abs=tolerance)
    for _, own_rows, _, own_loss in found:
        assert own_rows == evaluated == list(range(12))
        assert own_loss == pytest.approx(loss, abs=tolerance)
