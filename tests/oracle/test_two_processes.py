"""Two processes (gloo, on one machine) against one: the same batches, losses and weights."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import (
    CROP,
    RESIZE,
    SMALL,
    InProcess,
    in_processes,
    make_data,
    make_model,
    make_recipe,
)

from bitzoo.data.loader import BatchPlan
from bitzoo.errors import UsageError
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.distributed import GradientSum
from bitzoo.training.trainer import TrainingError, train
from bitzoo.training.training_config import TrainingConfig

pytestmark = pytest.mark.slow


OPTIONS = TrainingConfig(micro_batch=2)
TOLERANCE = 1e-5
"""The order in which floats are added differs, nothing else."""


BATCH_NORM = replace(SMALL, norm="batch")
BATCH_NORM_TOLERANCE = 1e-3
"""The last maps are single pixels, so a variance is that of 6 numbers, which magnifies rounding:
4e-5 was seen. In float64 one layer agrees to 1e-12 (test_synchronized_norm.py)."""


def compute(
    report,
    recipe,
    options=OPTIONS,
    *,
    architecture=SMALL,
    folder=None,
    resume=False,
    most=None,
    stop=None,
    follow=True,
):
    """Train, as one process alone or as one of several, and return all there is to compare.

    Args:
        report: Where to.
        recipe: For `train`, as `options` and `folder`.
        options: See `recipe`.
        architecture: Of the network.
        folder: See `recipe`.
        resume: Whether to go on; only the main process then has the checkpoint and its weights.
        most: Images that fit into this process's memory.
        stop: Step at which this process gets SIGTERM.
        follow: Whether gradients are summed while others are computed, or all at the end.
    """
    if not follow:
        pytest.MonkeyPatch().setattr(GradientSum, "follow", lambda self: None)
    is_main = os.environ.get("RANK", "0") == "0"
    model, losses = make_model(0 if is_main else 9, architecture=architecture), []
    start = latest_checkpoint(Path(folder)) if resume and is_main else None
    forward = model.forward_features

    def limited(images):
        if most is not None and len(images) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    def on_step(metrics):
        losses.append(metrics["loss"])
        if metrics["step"] == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    model.forward_features = limited
    pixels, labels = make_data()
    folder = Path(folder) if folder else None
    arguments = (model, recipe, pixels, labels, options)
    result = train(*arguments, folder=folder, start=start, on_step=on_step)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {"losses": losses, "weights": weights, "asked": pixels.asked, "result": result}


def one(recipe, *args, **keywords):
    return InProcess(compute, recipe, *args, **keywords).result()


def two(recipe, *args, first=None, second=None, **keywords):
    """Both processes' outcomes; `first` and `second` are keywords for one of them."""
    return in_processes(2, compute, recipe, *args, own=[first or {}, second or {}], **keywords)


def assert_same_training(both, alone, tolerance=TOLERANCE):
    for found in both:
        assert found["losses"] == pytest.approx(alone["losses"], abs=tolerance)
        for name, weight in alone["weights"].items():
            np.testing.assert_allclose(
                found["weights"][name], weight, rtol=tolerance, atol=tolerance, err_msg=name
            )
    first, *others = both
    for other in others:
        assert_equal(first, other)


def assert_equal(first, second):
    assert first["losses"] == second["losses"]
    for name, weight in first["weights"].items():
        np.testing.assert_array_equal(second["weights"][name], weight, err_msg=name)


@pytest.mark.parametrize(
    ("batch_size", "options", "mixup"),
    [
        (8, OPTIONS, 0.2),
        (7, OPTIONS, 0.2),  # 3 rows and 4
        (1, OPTIONS, 0),  # none and 1
        (8, TrainingConfig(recompute_norms=True, checkpoint_blocks=True), 0.2),
        (8, TrainingConfig(micro_batch=2, freeze=True), 0.2),
    ],
)
def test_losses_and_weights(batch_size, options, mixup):
    recipe = make_recipe(batch_size=batch_size, mixup=mixup, steps=4)
    assert_same_training(two(recipe, options), one(recipe, options))


@pytest.mark.parametrize("options", [OPTIONS, TrainingConfig(recompute_norms=True)])
def test_sums_do_not_depend_on_when_gradients_are_sent(options, monkeypatch):
    """Bit for bit, also where three addends have an order."""
    recipe = make_recipe(batch_size=9, steps=3)
    early = in_processes(3, compute, recipe, options)
    late = in_processes(3, compute, recipe, options, follow=False)
    assert_equal(early[0], late[0])
    assert_same_training(early, one(recipe, options))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_batch_normalization_of_all_images(count, recompute):
    """Their statistics are those of the whole batch, where one process takes it at once."""
    recipe = make_recipe(batch_size=6, steps=4)
    options = TrainingConfig(micro_batch=6, recompute_norms=recompute, checkpoint_blocks=recompute)
    found = in_processes(count, compute, recipe, options, architecture=BATCH_NORM)
    assert any("running_var" in name for name in found[0]["weights"])
    alone = one(recipe, options, architecture=BATCH_NORM)
    assert_same_training(found, alone, BATCH_NORM_TOLERANCE)


def refused(report, *args, **keywords):
    try:
        compute(report, *args, **keywords)
    except (UsageError, TrainingError) as error:
        return str(error)


def test_batch_normalization_of_uneven_shares_is_refused():
    recipe = make_recipe(batch_size=7, steps=4)
    for message in in_processes(2, refused, recipe, architecture=BATCH_NORM):
        assert message == (
            "Batch normalization takes the images of all processes at once, so each must have the "
            "same number of them: expected a `batch_size` that 2 divides, found 7. Use 6, or "
            "another number of processes."
        )


def test_the_same_pictures_each_seen_by_one_of_them():
    recipe = make_recipe(mixup=0, steps=5)  # one epoch: 5 steps of 8 are all 40 images
    first, second = two(recipe)
    assert len(first["asked"]) == len(second["asked"]) == 20
    assert sorted(first["asked"] + second["asked"]) == list(range(40))
    plan = BatchPlan(40, 8, RESIZE, CROP, True, 0.0, OPTIONS.seed)
    halves = [plan.batch(step).indices.reshape(2, 4) for step in range(5)]
    for rank, found in enumerate((first, second)):
        assert sorted(found["asked"]) == sorted(np.ravel([half[rank] for half in halves]).tolist())


def test_memory_that_runs_out_in_one_of_them():
    recipe, options = make_recipe(steps=4), TrainingConfig()
    both = two(recipe, options, second={"most": 2})
    assert [found["result"].micro_batch for found in both] == [2, 2]
    assert_same_training(both, one(recipe, options))


def test_stop_of_one_stops_both_and_one_process_goes_on(tmp_path):
    recipe = make_recipe()
    whole, folder = one(recipe), str(tmp_path)
    both = two(recipe, folder=folder, second={"stop": 2})
    assert [found["result"].step for found in both] == [2, 2]
    assert all(found["result"].stopped for found in both)
    assert [found["result"].checkpoint is None for found in both] == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.safetensors"]
    rest = one(recipe, folder=folder, resume=True)
    assert both[0]["losses"] + rest["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)
    for name, weight in whole["weights"].items():
        np.testing.assert_allclose(rest["weights"][name], weight, rtol=TOLERANCE, atol=TOLERANCE)


def test_resume_needs_the_checkpoint_in_the_main_process_alone(tmp_path):
    recipe, folder = make_recipe(), str(tmp_path)
    uninterrupted = two(recipe)
    two(recipe, folder=folder, first={"stop": 3})
    both = two(recipe, folder=folder, resume=True)
    for found, expected in zip(both, uninterrupted, strict=True):
        assert found["losses"] == expected["losses"][3:]
        for name, weight in expected["weights"].items():
            np.testing.assert_array_equal(found["weights"][name], weight)
