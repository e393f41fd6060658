"""Pre-training and distillation that are killed (SIGKILL) at five moments, and then resumed.

Whatever the moment, the weights afterwards are those of a run that nothing disturbed, bit for bit,
and the metrics read as those of one run.
"""

import json
import os
import signal
from typing import Any

import numpy as np
import pytest
from images import write_digits
from safetensors.numpy import load_file
from training import InProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARCH = "R(1,1,1,1)x0.5"
OPTIONS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "micro_batch": 4,  # several, so that kernels are shared within a step
    "checkpoint_every": 2,
    "eval_every": 3,
    "workers": 1,
    "log": "none",
    "progress": False,
}
PRETRAIN: dict[str, Any] = {"recipe": "bit-s", "resolution": 32, "mixup": 0.1}
DISTILL: dict[str, Any] = {"resolution": 32, "temperature": 2.0, "lr": 0.003}
TEACHER = "teacher"


def run_of(command, folder, *, resume, callbacks=None):
    import bitzoo

    options = {**OPTIONS, "resume": resume, "callbacks": callbacks}
    if command == "pretrain":
        return bitzoo.pretrain(ARCH, "digits", folder, **PRETRAIN, **options)
    return bitzoo.distill(TEACHER, ARCH, "digits", folder, **DISTILL, **options)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(step):
    """Kill when a step is done: its weights are new, and nothing of it is recorded as finished."""
    from bitzoo.runs.config import Callbacks

    return Callbacks(on_step=lambda metrics: die() if metrics["step"] == step else None)


def dies_in(owner, name, *, call=1, before=False):
    """Kill in the given call of a function, when it is done or before it begins."""
    original, calls = getattr(owner, name), 0

    def dying(*args, **keywords):
        nonlocal calls
        calls += 1
        if before and calls == call:
            die()
        result = original(*args, **keywords)
        if calls == call:
            die()
        return result

    setattr(owner, name, dying)


def before_the_first_checkpoint():
    return dies_after(1)


def between_steps():
    return dies_after(5)


def while_a_checkpoint_is_written():
    """Of step 4, half of whose tensors are in the file without a name."""
    from bitzoo.converters.formats.safetensors import SafetensorsWriter
    from bitzoo.training import checkpointing

    class Dying(SafetensorsWriter):
        files = 0

        def __init__(self, path, shapes, *rest):
            super().__init__(path, shapes, *rest)
            Dying.files += 1
            self.left = len(shapes) // 2

        def write(self, *args):
            super().write(*args)
            self.left -= 1
            if Dying.files == 2 and self.left == 0:
                die()

    checkpointing.SafetensorsWriter = Dying  # type: ignore[attr-defined]


def in_an_evaluation():
    from bitzoo.runs import session

    dies_in(session, "evaluate_pixels")


def at_the_end():
    """The artifacts are written, but the run is not marked as finished."""
    from bitzoo.runs.run_dir import RunDir

    dies_in(RunDir, "finish", before=True)


MOMENTS = {
    before_the_first_checkpoint: [],
    while_a_checkpoint_is_written: ["step-00000002.safetensors"],
    between_steps: ["step-00000002.safetensors", "step-00000004.safetensors"],
    in_an_evaluation: ["step-00000002.safetensors"],
    at_the_end: ["step-00000004.safetensors", "step-00000006.safetensors"],
}
"""Moment -> checkpoints that are there then."""


def compute(report, place, command, folder, moment=None, *, resume=False):
    os.chdir(place)
    callbacks = moment() if moment else None
    result = run_of(command, folder, resume=resume, callbacks=callbacks)
    return result.steps, result.stopped, result.evaluation.correct


def environment(place):
    return {"BITZOO_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", params=["pretrain", "distill"])
def undisturbed(request, tmp_path_factory):
    """A place with data, the command, and what it finds when nothing disturbs it."""
    place = tmp_path_factory.mktemp(request.param)
    write_digits(place / "digits", per_class=8, val_per_class=3, classes=range(4), size=40)

    def finished(command, folder):
        return InProcess(
            compute, str(place), command, folder, environment=environment(place)
        ).result()

    if request.param == "distill":
        finished("pretrain", TEACHER)
    found = finished(request.param, "whole")
    assert found[:2] == (6, False)
    return place, request.param, found


def told(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        event: [
            {name: value for name, value in line.items() if name not in ("images_per_s", "run_id")}
            for line in lines
            if line["event"] == event
        ]
        for event in ("train", "eval")
    }


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_the_same_weights_bit_for_bit(undisturbed, moment):
    place, command, expected = undisturbed
    folder = moment.__name__
    arguments = (compute, str(place), command, folder)
    killed = InProcess(*arguments, moment, environment=environment(place))
    with pytest.raises(EOFError):
        killed.next(timeout=240)
    killed.process.join(60)
    assert killed.process.exitcode == -signal.SIGKILL
    checkpoints = sorted(path.name for path in (place / folder / "checkpoints").glob("step-*.s*"))
    assert [name for name in checkpoints if name.endswith(".safetensors")] == MOMENTS[moment]

    resumed = InProcess(*arguments, resume=True, environment=environment(place)).result()
    assert resumed == expected
    whole = load_file(place / "whole/model.safetensors")
    found = load_file(place / folder / "model.safetensors")
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert told(place / folder) == told(place / "whole")
    assert [line["step"] for line in told(place / folder)["train"]] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in told(place / folder)["eval"]] == [3, 6]
    assert not list((place / folder).rglob(".bitzoo-*"))
