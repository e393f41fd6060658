"""What people expect of training: evaluations, the best weights, weights of classes, trackers.

Runs of a tiny network on digits, through `bitzoo.finetune` or the command.
"""

import csv
import json
import os
import re
import socket
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from checkpoints import make_checkpoint, write_npz
from commands import start
from images import write_digits
from safetensors.numpy import load_file
from training import InProcess

import bitzoo
from bitzoo.errors import BitzooError, UsageError
from bitzoo.inference.devices import available_devices
from bitzoo.runs.config import Callbacks
from bitzoo.runs.trackers import keep_tensorflow_out

pytestmark = pytest.mark.slow


SHORT: Any = {"batch_size": 8, "lr": 0.03, "resolution": (36, 32), "micro_batch": 8}
LONG_ENOUGH: Any = {"eval_every": 2, "steps": 12, **SHORT}


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory):
    """A checkpoint, and 32 images of 4 digits to train on with 12 held out."""
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", per_class=8, val_per_class=3, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder
    torch.set_num_threads(threads)


def tune(out, **options):
    """Fine-tune; returns the result and what was said."""
    said: list[str] = []
    result = bitzoo.finetune(
        "small.npz", "digits", out, callbacks=Callbacks(say=said.append), **{**SHORT, **options}
    )
    return result, said


def lines_of(run, event=None):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("run_id", None)
    return [line for line in lines if event in (None, line["event"])]


def weights(run):
    return Path(run, "model.safetensors").read_bytes()


# --- evaluations ----------------------------------------------------------------------------------


def test_about_ten_evaluations_by_default_or_fewer_and_it_is_said(workspace):
    _, said = tune("ten", steps=20, batch_size=32)
    steps = [line["step"] for line in lines_of("ten", "eval")]
    assert steps == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert "Evaluating on the 12 held-out images every 2 steps and at the end." in said
    _, said = tune("few", steps=20)
    assert [line["step"] for line in lines_of("few", "eval")] == [5, 10, 15, 20]
    assert (
        "Evaluating on the 12 held-out images every 5 steps and at the end, less often than 10 "
        "times a run: one evaluation costs about as much as 0.5 training steps. `eval_every` sets "
        "another interval."
    ) in said


def test_evaluations_leave_weights_and_random_numbers_alone(workspace):
    tune("never", steps=4, eval_every=0)
    torch.manual_seed(1)
    expected = torch.get_rng_state()
    tune("always", steps=4, eval_every=1)
    assert torch.get_rng_state().equal(expected)
    assert weights("never") == weights("always")
    assert [line["step"] for line in lines_of("never", "eval")] == [4]
    assert [line["step"] for line in lines_of("always", "eval")] == [1, 2, 3, 4]


def test_the_head_alone_is_evaluated_on_the_way(workspace):
    result, _ = tune("head", steps=6, eval_every=2, freeze=True)
    assert [line["step"] for line in lines_of("head", "eval")] == [2, 4, 6]
    again = bitzoo.evaluate("head", "digits")
    assert result.evaluation.correct == again.correct
    assert result.evaluation.loss == pytest.approx(again.loss, abs=1e-5)


def evaluated_by_several(report, folder, out):
    os.chdir(folder)
    result = bitzoo.finetune("small.npz", "digits", out, **LONG_ENOUGH, keep="best", log="none")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return result.evaluation.rows.tolist(), result.evaluation.correct, result.choice


def test_two_processes_share_an_evaluation_and_agree(workspace):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in "01":
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments = (evaluated_by_several, str(workspace), "two")
        processes.append(InProcess(*arguments, environment=environment))
    first, second = (process.result() for process in processes)
    assert first == second
    assert first[0] == list(range(12))
    alone = InProcess(evaluated_by_several, str(workspace), "one").result()
    assert alone == first


# --- the best weights -----------------------------------------------------------------------------


def best_of(lines):
    return min(lines, key=lambda line: (-line["top1"], line["loss"], line["step"]))


@pytest.mark.parametrize("freeze", [False, True])
def test_the_best_weights_are_kept_and_called_chosen(workspace, freeze):
    out = f"best-{freeze}"
    # So high a rate that the accuracy goes up and down.
    options = {"lr": 3.0 if freeze else 0.3, "freeze": freeze, "keep": "best"}
    result, _ = tune(out, **{**LONG_ENOUGH, **options, "steps": 16})
    evaluations = lines_of(out, "eval")
    best = best_of(evaluations)
    assert best["step"] < 16, "the last are the best: the test shows nothing"
    assert [line["step"] for line in evaluations] == list(range(2, 17, 2))
    assert (result.choice.keep, result.choice.step) == ("best", best["step"])
    assert result.evaluation.top1 == best["top1"]
    assert result.evaluation.loss == pytest.approx(best["loss"], abs=1e-6)
    found = bitzoo.evaluate(out, "digits")
    assert found.top1 == best["top1"]
    assert found.loss == pytest.approx(best["loss"], abs=1e-5)
    sentence = (
        f"The weights are those after step {best['step']} of 16, the best of 8 evaluations by "
        "top-1 accuracy: chosen on the same held-out images, so the figure is optimistic."
    )
    said = json.loads(Path(out, "evaluation.json").read_text())
    assert said["top1"] == best["top1"]
    assert (said["weights"]["optimistic"], said["weights"]["note"]) == (True, sentence)
    for name in ("report.html", "README.md"):
        text = re.sub(r"\s+", " ", Path(out, name).read_text())
        assert text.count("so the figure is optimistic") >= 2, name  # beside the figure, and below
    identity = json.loads(Path(out, "run.json").read_text())
    assert (identity["keep"], identity["eval_every"], identity["patience"]) == ("best", 2, None)
    shown = f"of step {best['step']}, the best of 8 evaluations, so optimistic"
    assert re.search(rf"^  weights +{shown}$", repr(result), re.MULTILINE)
    # Finished, it can be finished again.
    before = weights(out)
    tune(out, **{**LONG_ENOUGH, **options, "steps": 16}, resume=True)
    assert weights(out) == before
    assert lines_of(out, "eval") == evaluations


def test_the_last_weights_say_nothing_of_a_choice(workspace):
    result, _ = tune("last", **LONG_ENOUGH)
    assert (result.choice.keep, result.choice.step, result.choice.sentence) == ("last", 12, "")
    assert "weights" not in json.loads(Path("last/evaluation.json").read_text())
    assert "optimistic" not in Path("last/report.html").read_text()
    assert not {"keep", "patience", "eval_every"} & set(
        json.loads(Path("last/run.json").read_text())
    )


def test_a_killed_run_keeps_the_same_best_weights(workspace):
    words = ["finetune", "--model", "small.npz", "--data", "digits", "--steps", "16"]
    words += ["--batch-size", "8", "--lr", "0.3", "--resolution", "36,32", "--micro-batch", "8"]
    words += ["--eval-every", "2", "--keep", "best", "--checkpoint-every", "3"]
    code, out, err = start(*words, "--out", "whole", folder=workspace).result()
    assert code == 0, err
    assert "so the figure is optimistic." in out
    running = start(*words, "--out", "killed", folder=workspace)
    log = workspace / "killed/metrics.jsonl"
    while not (log.exists() and '"step": 9' in log.read_text()):
        assert running.process.is_alive()
    running.kill()
    code, _, err = start(*words, "--out", "killed", "--resume", folder=workspace).result()
    assert code == 0, err
    whole, killed = (
        load_file(workspace / run / "model.safetensors") for run in ("whole", "killed")
    )
    assert all((killed[name] == tensor).all() for name, tensor in whole.items())

    def untimed(run):
        return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines_of(run)]

    assert untimed("whole") == untimed("killed")
    assert table("killed") == rows_of(lines_of("killed"))


def test_patience_ends_a_run_for_good(workspace):
    options = {**LONG_ENOUGH, "lr": 1e-9, "steps": 100, "patience": 2}  # hardly anything is learned
    result, _ = tune("patient", **options)
    evaluations = lines_of("patient", "eval")
    top1 = [line["top1"] for line in evaluations]
    highest = top1.index(max(top1))
    assert highest == len(top1) - 3  # two more were made, and neither was higher
    end = evaluations[-1]["step"]
    best = best_of(evaluations)["step"]
    assert end < 100
    assert (result.steps, result.stopped, result.choice.step) == (end, False, best)
    assert result.choice.sentence.startswith(
        f"Training stopped after step {end} of 100, because 2 evaluations in a row brought no "
        "better top-1 accuracy."
    )
    before, told = weights("patient"), lines_of("patient")
    result, _ = tune("patient", **options, resume=True)
    assert (result.steps, weights("patient"), lines_of("patient")) == (end, before, told)
    with pytest.raises(UsageError, match=r"patience: 2 -> 3"):
        tune("patient", **{**options, "patience": 3}, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "best", "eval_every": 0}, "`eval_every=0` makes none before the end"),
        ({"keep": "best", "eval_every": 4}, "only after every 4 of 4 steps. Give a smaller"),
        ({"patience": 1, "val_fraction": 0.0}, "found no held-out images. Give `val_fraction`"),
        ({"steps": 3, "epochs": 2}, "`steps` and `epochs` both say how long to train"),
        ({"class_weights": "inverse"}, "`class_weights` must be 'balanced', found 'inverse'"),
        ({"log": "nonsense"}, "`log` must be one of .*tensorboard.*wandb, found 'nonsense'"),
        ({"log": ["none", "tensorboard"]}, "`log` names 'none' and others"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    workspace, tmp_path, options, message
):
    data: Any = "digits" if "val_fraction" not in options else "digits/train"
    with pytest.raises(UsageError, match=message):
        bitzoo.finetune("small.npz", data, tmp_path / "no", **{"steps": 4, **SHORT, **options})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1, found 0"),
        ({"epochs": 0}, "`epochs` must be a number above 0"),
        ({"steps": 2, "epochs": 1}, "`steps` and `epochs` both say"),
        ({"batch_size": 0}, "`batch_size` must be a whole number"),
        ({"lr": -1}, "the learning rate must be a number above 0"),
        ({"mixup": -1}, "MixUp's alpha must be a number of at least 0"),
        ({"resolution": 8}, "`crop` must be a whole number of at least 32"),
        ({"resolution": (100, 128)}, "`crop` must be at most `resize`"),
        ({"class_weights": "inverse"}, "`class_weights` must be 'balanced'"),
        ({"edition": "other"}, "`edition` must be one of"),
    ],
)
def test_what_no_data_allow_is_refused_before_they_are_read(workspace, tmp_path, given, named):
    with pytest.raises(UsageError, match=named):
        bitzoo.finetune("small.npz", tmp_path / "no data", tmp_path / "run", **given)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("BiT-M-R50", "'BiT-M-R50' is not a name in the catalogue"),
        ("smal.npz", "smal.npz: expected a checkpoint file, found nothing there"),
        ("no such folder/small.npz", "found nothing there"),
    ],
)
def test_a_model_that_is_none_is_refused_before_the_data_are_read(
    workspace, tmp_path, model, named
):
    with pytest.raises(BitzooError, match=named):
        bitzoo.finetune(model, tmp_path / "no data", tmp_path / "run")


# --- length, classes, device ----------------------------------------------------------------------


def test_epochs_say_how_long(workspace):
    result, _ = tune("epochs", epochs=1.1)  # 1.1 * 32 / 8 = 4.4
    assert result.steps == 5
    recipe = json.loads(Path("epochs/run.json").read_text())["recipe"]
    assert recipe["overrides"]["steps"] == {"from": 500, "to": 5}


def test_class_weights_are_a_departure_of_the_recipe(workspace):
    tune("weighted", steps=2, class_weights="balanced")
    recipe = json.loads(Path("weighted/run.json").read_text())["recipe"]
    assert recipe["overrides"]["class_weights"] == {"from": None, "to": "balanced"}
    assert recipe["loss_options"] == {"class_weights": "balanced"}
    assert "class weights from none to balanced" in Path("weighted/README.md").read_text()
    with pytest.raises(UsageError, match="started with other options"):
        tune("weighted", steps=2, resume=True)


def test_a_device_that_is_not_there(workspace):
    there = ", ".join(available_devices())
    for name in ("cuda:99", "mps:3", "tpu", "gpu", "cpu:1", ""):
        with pytest.raises(UsageError, match=f"this machine has: {there}; found {name!r}"):
            tune("nowhere", steps=1, device=name)
    assert not Path("nowhere").exists()
    words = ["--model", "small.npz", "--data", "digits", "--out", "nowhere", "--device", "cuda:99"]
    code, _, err = start("finetune", *words, folder=workspace).result()
    assert code == 2
    assert f"--device must be one that this machine has: {there}; found 'cuda:99'" in err
    assert not Path("nowhere").exists()


def test_the_device_is_that_of_this_run_alone(workspace, monkeypatch):
    result, _ = tune("cpu", steps=1, device="cpu")
    assert result.steps == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available_devices()[:3] == ["cpu", "cuda:0", "cuda:1"]
    from bitzoo.inference.processes import process_device

    assert process_device("cuda:1") == torch.device("cuda:1")
    assert process_device("cuda") == torch.device("cuda:0")


# --- metrics --------------------------------------------------------------------------------------


def table(run):
    with Path(run, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(lines):
    """What the table must be, from the lines."""
    names = ("loss", "lr", "images_per_s", "top1", "top5", "eval_loss", "eval_count")
    rows: dict[int, dict[str, str]] = {}
    for line in lines:
        row = rows.setdefault(line["step"], {"step": str(line["step"])} | dict.fromkeys(names, ""))
        for name, value in line.items():
            if name not in ("event", "step"):
                is_new = line["event"] == "eval" and name in ("loss", "count")
                row[f"eval_{name}" if is_new else name] = str(value)
    return [rows[step] for step in sorted(rows)]


def test_the_table_has_a_line_per_step(workspace):
    tune("table", **LONG_ENOUGH)
    rows = table("table")
    assert rows == rows_of(lines_of("table"))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["top1"]] == [2, 4, 6, 8, 10, 12]
    assert (
        float(rows[-1]["eval_loss"])
        == json.loads(Path("table/evaluation.json").read_text())["loss"]
    )


def test_the_table_is_rewound_with_the_lines(workspace):
    tune("rewound", **LONG_ENOUGH, checkpoint_every=4, keep_checkpoints=9)
    for step in (8, 12):
        Path(f"rewound/checkpoints/step-{step:08d}.safetensors").unlink()
    with Path("rewound/metrics.csv").open("a") as file:
        file.write("13,0.5")  # as if killed there
    seen = []

    def on_step(metrics):
        seen.append([int(row["step"]) for row in table("rewound")][-2:])

    bitzoo.finetune(
        "small.npz", "digits", "rewound", **LONG_ENOUGH, checkpoint_every=4, keep_checkpoints=9,
        resume=True, callbacks=Callbacks(on_step=on_step),
    )  # fmt: skip
    assert seen[0] == [4, 5]
    assert table("rewound") == rows_of(lines_of("rewound"))
    assert len(table("rewound")) == 12


# --- trackers -------------------------------------------------------------------------------------


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False
    told: ClassVar[dict[str, Any]] = {}
    fails_at: int | None = None

    def __init__(self, run_name="", **options):
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self.told

    def start(self):
        type(self).told = {"project": self.run_name, "log": [], "finished": 0}

    def store_init_configuration(self, values):
        self.told["options"] = values

    def log(self, values, step=None, **options):
        if step == self.fails_at:
            raise ConnectionError("the service is gone")
        self.told["log"].append((step, values))

    def finish(self):
        self.told["finished"] += 1


def test_any_tracker_of_accelerate_gets_the_metrics(workspace, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    tune("tracked", **LONG_ENOUGH, log=["recorder"])
    assert (Recorder.told["project"], Recorder.told["finished"]) == ("bitzoo", 1)
    assert Recorder.told["options"]["recipe/batch_size"] == 8
    assert Recorder.told["options"]["seed"] == 0
    lines = [(line["step"], line["event"], line) for line in lines_of("tracked")]
    assert Recorder.told["log"] == [
        (step, {f"{event}/{k}": v for k, v in line.items() if k not in ("event", "step")})
        for step, event, line in lines
    ]
    assert not Path("tracked/tensorboard").exists()


def test_a_tracker_that_fails_ends_no_training(workspace, monkeypatch, caplog):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "fails_at", 3)
    result, _ = tune("failing", **LONG_ENOUGH, log="recorder")
    assert result.steps == 12
    assert [step for step, _ in Recorder.told["log"]] == [1, 2, 2]
    assert (
        "recorder failed and gets no more metrics (the service is gone); training goes on"
        in caplog.text
    )


def test_a_tracker_that_cannot_start(workspace, tmp_path, monkeypatch):
    def refuse(self):
        raise ValueError("api_key not configured")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "start", refuse)
    with pytest.raises(UsageError, match=r"names recorder, .* \(api_key not configured\)"):
        bitzoo.finetune("small.npz", "digits", tmp_path / "x", steps=1, **SHORT, log="recorder")


def test_what_is_not_installed_is_said_with_the_command(workspace, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    for name, package in (("wandb", "wandb"), ("tensorboard", "'bitzoo[tensorboard]'")):
        with pytest.raises(UsageError, match="which is not installed") as refused:
            tune("no", steps=1, log=name)
        assert f"Install it with `pip install {package}`" in str(refused.value)
    tune("without", steps=1)  # TensorBoard is the default only where it is installed
    assert not Path("without/tensorboard").exists()


def test_tensorboard_goes_on_where_a_resumed_run_does(workspace):
    options = {**LONG_ENOUGH, "checkpoint_every": 4, "keep_checkpoints": 9, "log": "tensorboard"}
    tune("board", **options)
    for step in (8, 12):
        Path(f"board/checkpoints/step-{step:08d}.safetensors").unlink()
    tune("board", **options, resume=True)
    keep_tensorflow_out()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator("board/tensorboard").Reload()
    for event, name in (("train", "loss"), ("eval", "top1"), ("eval", "loss")):
        points = [(point.step, point.value) for point in board.Scalars(f"{event}/{name}")]
        expected = [(line["step"], line[name]) for line in lines_of("board", event)]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([v for _, v in expected], rel=1e-6)


def test_nothing_is_logged_if_that_is_asked_for(workspace):
    words = [
        "finetune",
        "--model",
        "small.npz",
        "--data",
        "digits",
        "--out",
        "quiet",
        "--log",
        "none",
    ]
    words += ["--steps", "2", "--batch-size", "8", "--resolution", "36,32"]
    code, _, err = start(*words, folder=workspace).result()
    assert code == 0, err
    assert not Path("quiet/tensorboard").exists()
