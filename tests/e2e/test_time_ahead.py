"""What a run takes, said before step 1: it changes nothing, asks where it should, fits a limit."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import write_digits
from screens import Terminal

import bitzoo
from bitzoo.cli import finetune as command
from bitzoo.cli.main import app
from bitzoo.errors import UsageError
from bitzoo.runs import foresight
from bitzoo.runs.config import Callbacks
from bitzoo.runs.estimate import Estimate, Forecast, Speeds, Way, Work
from bitzoo.runs.rehearsal import Rehearsal

SHORT: dict[str, Any] = {
    "steps": 3,
    "batch_size": 16,
    "lr": 0.03,
    "resolution": (36, 32),
    "log": "none",
}
BATCH: dict[str, Any] = {"batch_size": 16, "lr": 0.03, "log": "none"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", per_class=12, val_per_class=5, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    return folder


@pytest.fixture(autouse=True)
def there(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("BITZOO_CACHE", str(workspace / "cache"))


def train(out, **options):
    return bitzoo.finetune("small.npz", "digits", out, **{**SHORT, **options})


def results_of(folder):
    """The weights, and what every step recorded besides its speed."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    told = [
        {k: v for k, v in line.items() if k not in ("images_per_s", "run_id")} for line in lines
    ]
    return Path(folder, "model.safetensors").read_bytes(), told


class TestTheMeasurement:
    @pytest.mark.parametrize("freeze", [False, True])
    def test_changes_no_bit(self, tmp_path, freeze):
        seen: list[Forecast] = []

        def confirm(forecast):
            seen.append(forecast)
            return True

        train(tmp_path / "without", freeze=freeze)
        train(tmp_path / "with", freeze=freeze, callbacks=Callbacks(confirm=confirm))
        assert results_of(tmp_path / "without") == results_of(tmp_path / "with")
        (forecast,) = seen
        assert forecast.estimate.seconds > 0
        assert forecast.estimate.work.steps == 3
        assert forecast.lines == ()  # of seconds nothing is said

    def test_leaves_the_random_numbers_alone(self):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        states: Any = np.random.get_state()
        before = torch.get_rng_state(), states[1].copy(), random.getstate()
        found = bitzoo.forecast("small.npz", "digits", **_without(SHORT, "lr", "log"))
        assert torch.equal(torch.get_rng_state(), before[0])
        states = np.random.get_state()
        assert (states[1] == before[1]).all()
        assert random.getstate() == before[2]
        assert found.recipe.schedule.steps == 3
        assert found.lines[0].startswith("This takes about ")

    def test_nobody_hears_so_nothing_is_measured(self, tmp_path, monkeypatch):
        monkeypatch.setattr(foresight, "rehearse", None)  # which cannot be called
        assert train(tmp_path / "run").steps == 3


def _without(options, *names):
    return {name: value for name, value in options.items() if name not in names}


@pytest.fixture
def slow(monkeypatch):
    """A network that takes one second per trained image, and a quarter per judged one."""

    def rehearse(*_, images_left, layout=None, **__):
        speeds = Speeds(trained=1.0, judged=0.25, head=0.01, images=4, memory_bytes=10**9)
        return Rehearsal(speeds, layout, 4_000_000, 2_000_000, "a stand-in")

    monkeypatch.setattr(foresight, "rehearse", rehearse)
    monkeypatch.setattr(foresight, "decoding_seconds", lambda *_: 0.0)
    monkeypatch.setattr(foresight, "head_step", lambda *_: 0.01)
    # The command has taken no time so far, however busy the machine is.
    fit_in = foresight.Foresight.fit_in
    monkeypatch.setattr(
        foresight.Foresight, "fit_in", lambda self, limit, _: fit_in(self, limit, 0)
    )


class TestALimit:
    def test_is_obeyed_recorded_and_kept(self, tmp_path, slow, monkeypatch):
        """48 images: 500 steps by the rule. Of 20 min, 18 are for the plan, mostly 16 s a step."""
        said: list[str] = []
        out = tmp_path / "run"
        limited = {**BATCH, "resolution": (36, 32), "time_limit": "20m", "eval_every": 0}
        callbacks = Callbacks(say=said.append, on_step=lambda metrics: _stop_at(1, metrics))
        with pytest.raises(KeyboardInterrupt):
            bitzoo.finetune("small.npz", "digits", out, **limited, callbacks=callbacks)
        record = json.loads((out / "run.json").read_text())
        steps = record["recipe"]["schedule"]["steps"]
        assert steps == 66  # (1080 - 5 - 5.03) / 16 = 66.9
        assert record["recipe"]["overrides"]["steps"] == {"from": 500, "to": 66}
        note = "Made to end within 20 min, as asked for: 500 steps reduced to 66."
        assert note in record["recipe"]["notes"]
        assert record["options"]["config"]["steps"] == 66
        assert any("66 steps of 16 images at 32 px" in text for text in said)

        # A run that goes on keeps its plan, however fast the machine is then, and however it is
        # continued; only the rest of it is announced.
        said.clear()
        monkeypatch.setattr(foresight, "TOLD_FROM", 0.0)
        limited["time_limit"] = "10h"
        with pytest.raises(KeyboardInterrupt):
            bitzoo.finetune("small.npz", "digits", out, **limited, resume=True, callbacks=callbacks)
        assert "The run goes on with the plan that it has; `time_limit` changes nothing." in said
        with pytest.raises(KeyboardInterrupt):
            bitzoo.resume(out, callbacks=callbacks)
        assert json.loads((out / "run.json").read_text())["recipe"] == record["recipe"]

    def test_that_cannot_be_kept_is_refused_before_anything_is_written(
        self, tmp_path, slow, monkeypatch
    ):
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))  # where there are no features
        with pytest.raises(UsageError) as error:
            bitzoo.finetune(
                "small.npz", "digits", tmp_path / "run", **BATCH, resolution=(36, 32),
                time_limit=100,
            )  # fmt: skip
        # 50 steps of 16 s, an evaluation of 5 s, 5 s for the report; the head alone: 68 images of
        # 0.25 s, 500 steps of 0.01 s, 5 s for the report. Plus what was done before: seconds.
        text = str(error.value)
        assert text.startswith(
            "No plan fits `time_limit=100` (2 min): the smallest, 50 steps of 16 images at 32 px, "
            "takes about 14 min with everything before and after; resolution cannot be reduced. "
            "Give `time_limit="
        )
        assert text.endswith(", or `freeze=True`, which takes about 27 s.")
        assert not (tmp_path / "run").exists()


def _stop_at(step, metrics):
    if metrics["step"] >= step:
        raise KeyboardInterrupt


FORECAST = Forecast(
    recipe=None,
    estimate=Estimate(Work(1, 1, 32), {"training": 4000.0}),
    lines=("This takes about 67 min, until about 18:20: all of it.",),
    ways=(Way("freeze=True", "bitzoo finetune m --data d --out r --freeze", 90.0, "measured"),),
)


class TestTheQuestion:
    def test_without_a_terminal_it_begins_and_says_so(self, capsys, monkeypatch):
        monkeypatch.setattr(command, "as_flags", str)
        assert command._confirmed(False, FORECAST)
        assert capsys.readouterr().out == (
            "This takes about 67 min, until about 18:20: all of it.\n"
            "Cheaper ways:\n"
            "  about 90 s  measured  bitzoo finetune m --data d --out r --freeze\n"
            "There is no terminal to ask on, so it begins. Stop it as any other command.\n"
        )

    def test_yes_asks_nothing(self, capsys, monkeypatch):
        monkeypatch.setattr(command, "as_flags", str)
        monkeypatch.setattr(command, "ask", None)  # which cannot be called
        monkeypatch.setattr(command, "is_answered", lambda: True)
        assert command._confirmed(True, FORECAST)
        assert "no terminal" not in capsys.readouterr().out

    @pytest.mark.slow
    def test_on_a_terminal(self, workspace, tmp_path):
        """A million steps take hours on any machine; the answer is no."""
        words = ["finetune", "small.npz", "--data", "digits", "--out", str(tmp_path / "run")]
        words += ["--steps", "10000000", "--batch-size", "16", "--resolution", "36,32"]
        own = {"BITZOO_CACHE": str(workspace / "cache"), "OMP_NUM_THREADS": "1"}
        with Terminal(words, columns=200, rows=40, folder=workspace, environment=own) as terminal:
            screen = terminal.until("Begin? [y/N]")
            assert "This takes about " in screen
            assert f"{words[0]} small.npz --data digits --out {tmp_path / 'run'} --freeze" in screen
            terminal.press(b"n\n")
            assert terminal.finish() == 2
            assert "Not confirmed; nothing was started. Use --yes to skip" in terminal.text()
        assert not (tmp_path / "run").exists()


class TestHyperrule:
    def test_prints_the_estimate_alone(self, workspace):
        words = ["hyperrule", "small.npz", "--data", "digits", "--measure", "--json"]
        words += ["--steps", "20", "--batch-size", "16", "--resolution", "36,32"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["recipe"]["overrides"]["steps"] == {"from": 500, "to": 20}
        assert (found["steps"], found["crop"], found["device"]) == (20, 32, "cpu")
        assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=0.3)
        assert found["cheaper"] == []
        assert sorted(path.name for path in workspace.iterdir()) == ["cache", "digits", "small.npz"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--measure"], "--measure needs a MODEL and --data. Give both."),
            (["--data", "digits"], "--data is for --measure."),
            (["--steps", "5"], "--steps is for --measure."),
            (["--examples", "5"], "Missing option '--size'."),
            (["small.npz", "--data", "digits", "--measure", "--size", "64"], "follow from --data"),
        ],
    )
    def test_options_that_do_not_go_together(self, words, message):
        done = CliRunner().invoke(app, ["hyperrule", *words])
        assert done.exit_code == 2
        assert message in done.output
