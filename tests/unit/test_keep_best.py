"""Which evaluation is the best, when training ends early, and that its weights survive."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from training import InProcess, make_data, make_model, make_recipe, sha256

from bitzoo.errors import UsageError
from bitzoo.training.checkpointing import latest_checkpoint, read_checkpoint
from bitzoo.training.model_selection import (
    Choice,
    ModelSelection,
    evaluation_interval,
    explain_interval,
)
from bitzoo.training.recipe import steps_of
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Score:
    top1: float
    loss: float = 1.0


# --- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "batch_size", "held_out", "every"),
    [
        (500, 512, 0, 50),
        (500, 512, 2_000, 50),
        (500, 512, 7_680, 50),  # one evaluation counts as 5 steps of training
        (500, 512, 7_681, 51),
        (500, 512, 50_000, 326),
        (10_000, 512, 50_000, 1_000),
        (505, 512, 10, 51),
        (7, 512, 10, 1),
        (1, 1, 1, 4),  # none before the end
    ],
)
def test_the_interval_is_a_tenth_unless_evaluations_are_dear(steps, batch_size, held_out, every):
    assert evaluation_interval(steps, batch_size, held_out) == every
    # By the rule's own measure an evaluation takes at most a tenth of the training in between.
    assert 3 * every * batch_size >= 10 * held_out


def test_what_is_said_of_it():
    assert explain_interval(50, 500, 512, 2_000, True) == (
        "Evaluating on the 2,000 held-out images every 50 steps and at the end."
    )
    assert explain_interval(326, 500, 512, 50_000, True) == (
        "Evaluating on the 50,000 held-out images every 326 steps and at the end, less often than "
        "10 times a run: one evaluation costs about as much as 33 training steps. `eval_every` "
        "sets another interval."
    )
    assert explain_interval(0, 500, 512, 1, False) == (
        "Evaluating on the 1 held-out image only at the end."
    )


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "steps"),
    [
        (1, 100, 10, 10),
        (1, 101, 10, 11),
        (0.7, 10, 1, 7),  # in floats 0.7 * 10 is above 7
        (3, 7, 512, 1),
        (2.5, 1_000, 512, 5),
    ],
)
def test_epochs_are_rounded_up_to_steps(epochs, images, batch, steps):
    assert steps_of(epochs, images, batch) == steps


def test_epochs_and_steps_contradict_each_other():
    recipe = make_recipe(num_examples=100)
    assert recipe.override(epochs=2, batch_size=30).overrides["steps"] == {"from": 6, "to": 7}
    with pytest.raises(UsageError, match="`steps` and `epochs` both say how long to train"):
        recipe.override(epochs=2, steps=7)
    with pytest.raises(UsageError, match="`epochs` must be a number above 0, found 0"):
        recipe.override(epochs=0)


# --- which ----------------------------------------------------------------------------------------


def test_the_best_is_the_highest_top1_then_the_lowest_loss_then_the_first():
    selection = ModelSelection()
    scores = [(0.5, 1.0), (0.7, 2.0), (0.7, 1.5), (0.7, 1.5), (0.6, 0.1)]
    news = [selection.add(step, Score(*score)) for step, score in enumerate(scores)]
    assert news == [True, True, True, False, False]
    assert selection.best is not None
    assert (selection.best.step, selection.best.top1, selection.best.loss) == (2, 0.7, 1.5)
    assert selection.without_better == 3  # a lower loss alone is no better accuracy
    assert selection.evaluations == 5
    assert ModelSelection(3, selection.to_dict()).is_exhausted
    assert not ModelSelection(4, selection.to_dict()).is_exhausted
    assert not ModelSelection(None, selection.to_dict()).is_exhausted


def test_a_chosen_figure_says_that_it_is_optimistic():
    last = Choice("last", 10, 10, 10, 4)
    assert (last.sentence, last.is_optimistic) == ("", False)
    best = Choice("best", 4, 6, 10, 3, patience=1)
    assert best.sentence == (
        "Training stopped after step 6 of 10, because 1 evaluation in a row brought no better "
        "top-1 accuracy. The weights are those after step 4 of 6, the best of 3 evaluations by "
        "top-1 accuracy: chosen on the same held-out images, so the figure is optimistic."
    )
    assert best.to_dict()["optimistic"] is True
    only = Choice("best", 10, 10, 10, 1)
    assert (only.is_optimistic, "no choice" in only.sentence) == (False, True)


# --- in training ----------------------------------------------------------------------------------

TOP1 = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.6, 10: 0.2}


def run(folder, *, report=lambda step: None, top1=TOP1, steps=12, **options):
    """Train with accuracies as given; reports each step."""
    model, at = make_model(), {}
    pixels, labels = make_data()
    config = TrainingConfig(
        **{"micro_batch": 4, "eval_every": 2, "checkpoint_every": 3, "keep_checkpoints": 1}
        | options
    )

    def on_eval(step):
        at[step] = sha256(model)
        return Score(top1[step])

    result = train(
        model, make_recipe(steps=steps, batch_size=4), pixels, labels, config,
        folder=Path(folder), start=latest_checkpoint(Path(folder)),
        on_step=lambda metrics: report(metrics["step"]), on_eval=on_eval,
    )  # fmt: skip
    return model, result, at


def steps_in(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in Path(folder).iterdir())


def weights_at(folder, step):
    stored = read_checkpoint(Path(folder) / f"step-{step:08d}.safetensors").state
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(stored[f"model.{name}"])
    return sha256(model)


def test_the_best_weights_stay_however_few_checkpoints_are_kept(tmp_path):
    model, result, at = run(tmp_path, keep="best")
    assert steps_in(tmp_path) == [4, 12]
    assert result.selection.best.step == 4
    assert weights_at(tmp_path, 4) == at[4] != at[6]
    assert weights_at(tmp_path, 12) == sha256(model)
    assert result.selection.evaluations == 5


def test_the_last_weights_are_kept_by_default(tmp_path):
    run(tmp_path)
    assert steps_in(tmp_path) == [12]
    assert "selection" not in latest_checkpoint(tmp_path).meta["loop"]


def test_evaluations_change_nothing(tmp_path):
    trained = {
        sha256(run(tmp_path / name, **options)[0])  # type: ignore[arg-type]
        for name, options in {
            "none": {"eval_every": 0},
            "some": {"eval_every": 2},
            "best": {"keep": "best"},
        }.items()
    }
    assert len(trained) == 1


def test_patience_ends_training_and_stays_ended(tmp_path):
    _, result, at = run(tmp_path, patience=2)  # 0.3, 0.6, 0.5, and 0.6 again, which is no better
    assert (result.step, result.stopped) == (8, False)
    assert sorted(at) == [2, 4, 6, 8]
    assert result.selection.is_exhausted
    assert steps_in(tmp_path) == [4, 8]  # the best weights are kept unless `keep` says otherwise
    _, again, at = run(tmp_path, patience=2)
    assert (again.step, again.stopped, at) == (8, False, {})
    assert again.selection.best.step == 4


def test_patience_may_keep_the_last_weights(tmp_path):
    _, result, _ = run(tmp_path, patience=2, keep="last")
    assert (result.step, steps_in(tmp_path)) == (8, [8])


def killed(report, folder):
    run(folder, report=report, keep="best")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 7, 11])
def test_a_killed_run_keeps_the_best_of_all(tmp_path, step):
    expected = run(tmp_path / "whole", keep="best")
    running = InProcess(killed, str(tmp_path / "killed"))
    while running.next() != step:
        pass
    running.kill()
    model, result, _ = run(tmp_path / "killed", keep="best")
    assert sha256(model) == sha256(expected[0])
    assert result.selection.to_dict() == expected[1].selection.to_dict()
    assert steps_in(tmp_path / "killed") == [4, 12]
    assert weights_at(tmp_path / "killed", 4) == weights_at(tmp_path / "whole", 4)


def test_the_best_before_stays_while_the_better_one_could_be_damaged(tmp_path):
    rising = {2: 0.1, 4: 0.2, 6: 0.3, 8: 0.1, 10: 0.1}

    class Killed(BaseException):
        pass

    def die(step):
        if step == 7:  # after the checkpoint of the best so far, step 6
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, report=die, top1=rising, keep="best")
    assert steps_in(tmp_path) == [4, 6]
    damaged = tmp_path / "step-00000006.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = latest_checkpoint(tmp_path)
    assert found.meta["loop"]["selection"]["best"]["step"] == 4
    _, result, _ = run(tmp_path, top1=rising, keep="best")
    assert result.selection.best.step == 6
    assert steps_in(tmp_path) == [6, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "first"}, "`keep` must be one of best, last, found 'first'"),
        ({"patience": 0}, "`patience` must be at least 1, found 0"),
        ({"eval_every": -1}, "`eval_every` must be at least 0, found -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        TrainingConfig(**options)
