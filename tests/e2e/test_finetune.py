"""Fine-tuning as a user types it: digits as PNG folders, a small network, a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from images import write_digits

import bitzoo
from bitzoo.runs.trackers import keep_tensorflow_out

STEPS = ["--steps", "6", "--batch-size", "16", "--lr", "0.03", "--resolution", "36,32"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", per_class=12, val_per_class=5, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    return folder


def run(workspace: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bitzoo", *words],
        cwd=workspace,
        env={**os.environ, "BITZOO_CACHE": str(workspace / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def finished(workspace: Path) -> subprocess.CompletedProcess[str]:
    return run(
        workspace, "finetune", "--model", "small.npz", "--data", "digits", "--out", "run", *STEPS
    )


def test_a_run_leaves_a_model_that_evaluates_as_it_says(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    assert "6 steps, top-1" in finished.stdout
    left = {path.name for path in (workspace / "run").iterdir()}
    assert left == {
        "README.md", "checkpoints", "config.json", "evaluation.json", "metrics.csv",
        "metrics.jsonl", "model.safetensors", "report.html", "run.json", "sessions.json",
        "split.csv", "tensorboard",
    }  # fmt: skip
    said = json.loads((workspace / "run/evaluation.json").read_text())
    found = json.loads(
        run(workspace, "evaluate", "run", "--data", "digits", "--format", "json").stdout
    )
    assert said.pop("near_duplicates")["held_out_without_them"]["count"] <= said["count"]
    assert found.pop("loss") == pytest.approx(said.pop("loss"), abs=1e-5)
    assert (found.pop("notes"), said.pop("notes")) == (
        ["Not counted: train (48); choose with `split`."],
        [],
    )
    assert found == said
    assert found["count"] == 20
    assert sum(row["correct"] for row in found["per_class"]) == found["correct"]
    steps = [
        json.loads(line) for line in (workspace / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert [s["step"] for s in steps if s["event"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_a_model_folder(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    model = bitzoo.create_model(workspace / "run", pretrained=True)
    assert model.num_classes == 4
    assert bitzoo.labels(model) == ["0", "1", "2", "3"]
    transform = bitzoo.create_transform(model)
    assert (transform.crop, transform.resize, transform.square) == (32, 32, True)
    picture = next((workspace / "digits/val/2").iterdir())
    printed = json.loads(run(workspace, "predict", "run", str(picture), "--format", "json").stdout)
    scores = model(transform(picture)[None])[0].softmax(0).tolist()
    best = scores.index(max(scores))
    assert printed[0]["predictions"] == [
        {"label": str(best), "score": pytest.approx(scores[best], abs=1e-5)}
    ]


@pytest.mark.slow
def test_evaluating_and_predicting_from_python(
    workspace: Path, finished: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the commands do, with a run folder, a path or the model itself."""
    monkeypatch.setenv("BITZOO_CACHE", str(workspace / "cache"))
    words = ["evaluate", "run", "--data", "digits", "--format", "json"]
    said = json.loads(run(workspace, *words).stdout)
    tasks = set()
    found = bitzoo.evaluate(
        workspace / "run", workspace / "digits", progress=lambda task, done, total: tasks.add(task)
    )
    assert same_scores(found.to_dict(), said)
    assert "evaluate" in tasks
    model = bitzoo.create_model(workspace / "run", pretrained=True)
    again = bitzoo.evaluate(model, str(workspace / "digits"), batch_size=3)
    assert same_scores(again.to_dict(), said)
    assert repr(found).splitlines()[1] == (
        f"  top-1              {said['top1']:.2%} ({said['correct']} of {said['count']} images)"
    )
    unnamed = bitzoo.evaluate(workspace / "small.npz", workspace / "digits")
    assert "by number" in unnamed.matched  # its outputs have no names, and the data's are 0, 1, ...

    words = ["predict", "run", "digits/val", "--top", "2", "--format", "json"]
    said = json.loads(run(workspace, *words).stdout)
    monkeypatch.chdir(workspace)
    for source, paths in (("run", "digits/val"), (model, [Path("digits/val")])):
        predictions = bitzoo.predict(source, paths, top=2)
        assert [p.path for p in predictions] == [entry["path"] for entry in said]
        for prediction, entry in zip(predictions, said, strict=True):
            labels = [guess.label for guess in prediction.guesses]
            assert labels == [guess["label"] for guess in entry["predictions"]]
            scores = [guess.score for guess in prediction.guesses]
            assert scores == pytest.approx([g["score"] for g in entry["predictions"]], abs=1e-5)


def same_scores(found: dict[str, object], expected: dict[str, object]) -> bool:
    """Whether two evaluations count the same; losses differ by rounding."""
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    return {**found, "loss": None} == {**expected, "loss": None}


@pytest.mark.slow
def test_a_run_is_never_lost_by_accident(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    same = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    before = (workspace / "run/model.safetensors").read_bytes()
    refused = run(workspace, *same, *STEPS, code=2).stderr
    assert "Continue it with --resume, or delete it and start again with --overwrite." in refused
    changed = run(workspace, *same, *STEPS, "--seed", "7", "--resume", code=2).stderr
    assert "\n  seed: 0 -> 7\n" in changed
    assert (workspace / "run/model.safetensors").read_bytes() == before
    run(workspace, *same, *STEPS, "--resume")
    assert (workspace / "run/model.safetensors").read_bytes() == before


def test_another_numpy_may_draw_other_batches(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    record = workspace / "run/run.json"
    before = record.read_text()
    record.write_text(json.dumps(json.loads(before) | {"numpy": "1.0"}))
    same = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    assert "\n  numpy: 1.0 -> " in run(workspace, *same, *STEPS, "--resume", code=2).stderr
    record.write_text(before)


def test_tensorboard_has_the_metrics(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    keep_tensorflow_out()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [
        json.loads(line) for line in (workspace / "run/metrics.jsonl").read_text().splitlines()
    ]
    board = EventAccumulator(str(workspace / "run/tensorboard")).Reload()
    for event, names in (("train", ("loss", "lr", "images_per_s")), ("eval", ("top1", "loss"))):
        for name in names:
            recorded = {line["step"]: line[name] for line in lines if line["event"] == event}
            drawn = {point.step: point.value for point in board.Scalars(f"{event}/{name}")}
            assert drawn == pytest.approx(recorded, rel=1e-6)


def test_random_weights_are_the_seeds(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drawn before: else a run killed before its first checkpoint would differ."""
    monkeypatch.setenv("BITZOO_CACHE", str(workspace / "cache"))
    stems = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        result = bitzoo.finetune(
            workspace / "small.npz", workspace / "digits", tmp_path / str(number), pretrained=False,
            steps=1, batch_size=4, lr=1e-9, resolution=(36, 32), seed=seed,
        )  # fmt: skip
        stems.append(bitzoo.create_model(tmp_path / str(number), pretrained=True).stem.conv.weight)
        name, folder = repr(result).splitlines()[:2]
        assert (name, folder.split()) == ("FinetuneResult", ["folder", str(tmp_path / str(number))])
        said = json.loads((tmp_path / str(number) / "evaluation.json").read_text())
        made = json.loads(json.dumps(result.to_dict()))
        assert made["evaluation"] | {"near_duplicates": made["near_duplicates"]} == said
    assert stems[0].allclose(stems[1], atol=1e-6)
    assert not stems[0].allclose(stems[2], atol=1e-3)


@pytest.mark.slow
def test_the_head_alone(workspace: Path) -> None:
    run(
        workspace, "finetune", "--model", "small.npz", "--data", "digits", "--out", "frozen",
        *STEPS, "--freeze",
    )  # fmt: skip
    start = bitzoo.create_model(workspace / "small.npz", pretrained=True).state_dict()
    end = bitzoo.create_model(workspace / "frozen", pretrained=True).state_dict()
    changed = {name for name in start if not start[name].equal(end[name])}
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_bad_data_is_one_report_before_the_first_step(workspace: Path) -> None:
    bad = workspace / "bad"
    write_digits(bad, per_class=3, val_per_class=1, classes=range(2))
    (bad / "train/0/empty.png").write_bytes(b"")
    (bad / "train/1/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    done = run(
        workspace,
        "finetune",
        "--model",
        "small.npz",
        "--data",
        "bad",
        "--out",
        "none",
        *STEPS,
        code=2,
    )
    assert "empty.png" in done.stderr
    assert "torn.png" in done.stderr
    assert not (workspace / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--freeze"]], ids=["all", "head"])
def test_without_a_place_for_the_cache(workspace: Path, more: list[str]) -> None:
    """A user id without a home folder: images are decoded at each step, and the run says so."""
    code = "import os, sys; os.getuid = lambda: 54_321; from bitzoo.cli.main import main; main()"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    words = ["finetune", "--model", "small.npz", "--data", "digits", *STEPS, *more]
    words += ["--out", f"homeless{len(more)}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=workspace, env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "the cache of decoded images cannot be used: ~/.cache: expected a home" in done.stderr
    assert "Set BITZOO_CACHE to a folder that can be written." in done.stderr
    assert not (workspace / "~").exists()


def test_the_plan_is_printed(workspace: Path) -> None:
    plan = run(workspace, "hyperrule", "--examples", "20000", "--size", "95x96", "--json").stdout
    recipe = json.loads(plan)
    assert (recipe["resize"], recipe["crop"], recipe["mixup_alpha"]) == (160, 128, 0.1)
    assert recipe["schedule"]["steps"] == 10_000
