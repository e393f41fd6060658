"""`bitzoo resume`, and what a run leaves alone: other people's files, other runs, other data."""

import json
import os
import re
import shutil
import time
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from commands import start
from images import write_digits
from safetensors.numpy import load_file

import bitzoo
from bitzoo.errors import UsageError
from bitzoo.runs.changes import Change, record_change
from bitzoo.runs.run_dir import RunDir
from bitzoo.training.trainer import TrainingError

pytestmark = pytest.mark.slow


STEPS = 5
OPTIONS = ["--steps", STEPS, "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]
OPTIONS += ["--checkpoint-every", "1", "--micro-batch", "8"]
WORDS = ["finetune", "--model", "small.npz", "--data", "digits", *OPTIONS]


def run(folder, *words, code=0):
    """Run `bitzoo WORDS`; returns stdout and stderr together."""
    running = start(*words, folder=folder)
    found, out, err = running.next(timeout=300)
    running.process.join(60)
    assert "Traceback" not in err
    assert found == code, err
    return out + err


def start_and_kill(folder, *words, after):
    """Start `bitzoo WORDS` and kill it when the file `after` is there."""
    running = start(*words, folder=folder)
    end = time.monotonic() + 200
    while not (folder / after).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    running.kill()


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def lines_of(folder, event="train"):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def assert_same_weights(one, other, **tolerance):
    found, expected = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, **{"rtol": 0, **tolerance}, err_msg=name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, a checkpoint, and a finished run of each of two learning rates."""
    folder = tmp_path_factory.mktemp("resume")
    write_digits(folder / "digits", per_class=8, val_per_class=3, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    run(folder, *WORDS, "--out", "whole")
    run(folder, *WORDS, "--out", "lower", "--lr", "0.01")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for record in tmp_path.glob("*/run.json"):  # as if it had been made there
        record.write_text(record.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_killed_run_ends_as_if_nothing_had_happened(place):
    """From any folder; the data set keeps the name that it was given."""
    start_and_kill(place, *WORDS, "--out", "run", after="run/checkpoints/step-00000002.safetensors")
    identity = record_of(place / "run")["run_id"]
    (place / "elsewhere").mkdir()
    said = run(place / "elsewhere", "resume", "../run")
    assert f"../run: {STEPS} steps, top-1" in said
    assert_same_weights(place / "run", place / "whole")
    assert [line["step"] for line in lines_of(place / "run")] == [1, 2, 3, 4, 5]
    assert {line["run_id"] for line in lines_of(place / "run")} == {identity}
    assert record_of(place / "run")["run_id"] == identity
    card = (place / "run/README.md").read_text()
    assert "fine-tuned from small.npz on 'digits'." in " ".join(card.split())
    assert str(place) not in card


def test_options_that_do_not_determine_the_result_can_be_others(place):
    start_and_kill(place, *WORDS, "--out", "run", after="run/checkpoints/step-00000002.safetensors")
    run(place, "resume", "run", "--cache-gb", "0", "--workers", "1", "--recompute-norms")
    config = record_of(place / "run")["options"]["config"]
    assert [config[key] for key in ("cache_gb", "workers", "recompute_norms")] == [0, 1, True]
    assert [config[key] for key in ("steps", "lr", "micro_batch")] == [STEPS, 0.03, 8]
    assert_same_weights(place / "run", place / "whole", atol=1e-5)


def test_a_finished_run_is_left_as_it_is(place):
    card = place / "whole/README.md"
    card.write_text("my own words")
    before = {p: p.stat().st_mtime_ns for p in (place / "whole").rglob("*") if p.is_file()}
    said = run(place, "resume", "whole")
    assert said == (
        "whole is finished: all 5 steps were made before. To train on, add --extend STEPS.\n"
    )
    result = bitzoo.resume("whole")
    assert (result.was_finished, result.steps, result.evaluation) == (True, STEPS, None)
    assert {p: p.stat().st_mtime_ns for p in (place / "whole").rglob("*") if p.is_file()} == before
    says = "whole is finished: all 5 steps are made, so there is nothing left to change. Add --ext"
    assert says in run(place, "resume", "whole", "--lr", "0.001", code=2)


def test_what_is_no_run(place):
    for name, found in (("none", "no such folder"), ("digits", "none with run.json")):
        said = run(place, "resume", name, code=2)
        assert said == (
            f"error: {name}: expected the folder of a run, found {found}. Give the folder that the "
            "run writes to.\n"
        )
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("fewshot", "fewshot.json"),
        ("probe", "probe.json"),
        ("reproduce", "reproduce.json"),
        ("study", "cells/norm/run.json"),
        ("vtab", "vtab.json"),
    ],
)
def test_what_goes_on_by_its_own_command(place, command, written):
    file = place / "several" / written
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert run(place, "resume", "several", code=2) == (
        f"error: several: expected the folder of one run, found what `bitzoo {command}` writes. "
        "Give that command again with the same options: it goes on where it was stopped.\n"
    )


def test_differences_are_a_line_each(place):
    words = [*WORDS, "--out", "whole", "--resume", "--lr", "0.001", "--steps", "50", "--seed", "3"]
    said = run(place, *words, code=2)
    assert said[said.index("error: ") :] == (
        "error: whole was started with other options, so it cannot continue (before -> now):\n"
        "  lr: 0.03 -> 0.001\n"
        "  steps: 5 -> 50\n"
        "  seed: 0 -> 3\n"
        "Use the same options (`bitzoo resume RUN` needs none), or start again in another --out.\n"
    )


def test_the_same_model_by_another_path_is_the_same(place):
    words = ["finetune", "--model", place / "small.npz", "--data", place / "digits", *OPTIONS]
    run(place, *words, "--out", "whole", "--resume")
    assert record_of(place / "whole")["model"] == "small.npz"


def test_data_that_moved(place):
    start_and_kill(place, *WORDS, "--out", "run", after="run/checkpoints/step-00000002.safetensors")
    (place / "digits").rename(place / "moved")
    said = run(place, "resume", "run", code=2)
    assert said == (
        f"error: run was trained on {place}/digits, where nothing is now. Give its new place with "
        "--data; the images, labels and splits must be the same.\n"
    )
    write_digits(place / "others", per_class=7, val_per_class=3, classes=range(4))
    said = run(place, "resume", "run", "--data", "others", code=2)
    assert re.search(
        r"\n  data: [0-9a-f]{12} -> [0-9a-f]{12} \(SHA-256 of images, labels and split\)\n", said
    )
    run(place, "resume", "run", "--data", "moved")
    assert_same_weights(place / "run", place / "whole")
    assert record_of(place / "run")["options"]["data"] == str(place / "moved")


def test_a_lower_rate_after_a_loss_that_is_not_finite(place):
    """The first update has rate 0, so from there on it is the run that had the lower rate."""
    said = run(place, *WORDS, "--out", "run", "--lr", "1e38", code=2)
    assert "must be a finite number, found nan" in said
    assert "continue with `bitzoo resume RUN --lr 3.3e+37` or `bitzoo resume RUN --dtype" in said
    newest = max((place / "run/checkpoints").iterdir())
    assert newest.name == "step-00000002.safetensors"
    newest.unlink()
    run(place, "resume", "run", "--lr", "0.01")
    assert_same_weights(place / "run", place / "lower")
    (change,) = record_of(place / "run")["changes"]
    date = change.pop("date")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", date)
    assert change == {"step": 1, "key": "lr", "old": 1e38, "new": 0.01}
    assert record_of(place / "run")["recipe"]["schedule"]["base_lr"] == 1e38
    rates = [line["lr"] for line in lines_of(place / "run")]
    assert rates == [0, *[line["lr"] for line in lines_of(place / "lower")][1:]]
    note = "The base learning rate was changed from 1e+38 to 0.01 after 1 steps."
    assert note in (place / "run/report.html").read_text()
    assert note in (place / "run/README.md").read_text().replace("\\", "")
    for lr in ("1e38", "0.01"):  # as it was started, or as it is now
        run(place, *WORDS, "--out", "run", "--lr", lr, "--resume")
        assert_same_weights(place / "run", place / "lower")
    said = run(place, *WORDS, "--out", "run", "--lr", "0.02", "--resume", code=2)
    assert "\n  lr: 1e+38 -> 0.02\n" in said


def test_more_steps_after_the_end(place):
    for name in ("killed", "repeated"):
        shutil.copytree(place / "whole", place / name)
    said = run(place, "resume", "whole", "--extend", "5")
    assert "whole: 10 steps, top-1" in said
    assert [line["step"] for line in lines_of(place / "whole")] == list(range(1, 11))
    schedule = bitzoo.hyperrule(32, (8, 8)).override(steps=10, lr=0.03).schedule
    rates = [line["lr"] for line in lines_of(place / "whole")]
    assert rates[5:] == [schedule.lr_at(step) for step in range(5, 10)]
    (change,) = record_of(place / "whole")["changes"]
    assert {key: change[key] for key in ("step", "key", "old", "new")} == {
        "step": 5, "key": "steps", "old": 5, "new": 10,
    }  # fmt: skip
    assert (
        "The run was extended from 5 to 10 steps after 5 steps"
        in (place / "whole/report.html").read_text()
    )
    assert "is finished: all 10 steps" in run(place, "resume", "whole")

    killed = RunDir(place / "killed")  # as soon as the change is recorded
    record = record_of(place / "killed")
    killed.open(
        {key: record[key] for key in record if key not in ("run_id", "started", "card")
         and key not in ("options", "finished", "changes")},
        resume=True, overwrite=False, options=record["options"],
    )  # fmt: skip
    record_change(killed, Change(extend=5))
    run(place, "resume", "killed", "--extend", "5")
    assert_same_weights(place / "killed", place / "whole")

    start_and_kill(
        place, "resume", "repeated", "--extend", "5",
        after="repeated/checkpoints/step-00000007.safetensors",
    )  # fmt: skip
    run(place, "resume", "repeated")
    assert_same_weights(place / "repeated", place / "whole")
    assert "`extend` must be a whole number of at least 1, found 0" in run(
        place, "resume", "whole", "--extend", "0", code=2
    ).replace("--extend must", "`extend` must")


def test_data_in_memory(place):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), [0, 1] * 6
    options: dict[str, Any] = {"steps": 3, "batch_size": 4, "resolution": 32, "val_fraction": 0.0}
    with pytest.raises(TrainingError):
        bitzoo.finetune("small.npz", data, "memory", lr=1e38, **options)
    says = (
        r"memory was trained on data that were in memory, which `bitzoo resume` cannot read again\."
        r" Call `bitzoo\.resume\(folder, data=\.\.\.\)` in Python with the same data\."
    )
    with pytest.raises(UsageError, match=says):
        bitzoo.resume("memory", lr=0.01)
    assert re.search(says, run(place, "resume", "memory", "--lr", "0.01", code=2))
    result = bitzoo.resume("memory", data=data, lr=0.01)
    assert (result.steps, result.was_finished) == (3, False)
    assert record_of(place / "memory")["changes"][0]["step"] == 0


def test_repeated_runs(place):
    start_and_kill(
        place, *WORDS, "--out", "many", "--repeats", "3",
        after="many/seed-1/checkpoints/step-00000002.safetensors",
    )  # fmt: skip
    says = "many has 3 runs. --lr, --extend and --dtype change one run: give one of the folders in"
    assert says in run(place, "resume", "many", "--extend", "2", code=2)
    said = run(place, "resume", "many")
    assert said.count(f": {STEPS} steps, top-1") == 3
    assert_same_weights(place / "many/seed-0", place / "whole")
    summary = json.loads((place / "many/repeats.json").read_text())
    assert summary["runs"] == [f"many/seed-{seed}" for seed in range(3)]
    assert len(summary["top1"]) == 3
    assert "seed-1 is finished" in run(place, "resume", "many/seed-1")


def test_a_run_of_an_earlier_version(place):
    """It recorded no options, and neither it nor its files have an id."""
    run_dir = place / "whole"
    record = record_of(run_dir)
    for key in ("run_id", "started", "options", "finished", "card"):
        del record[key]
    (run_dir / "run.json").write_text(json.dumps(record))
    text = re.sub(r', "run_id": "\w+"', "", (run_dir / "metrics.jsonl").read_text())
    (run_dir / "metrics.jsonl").write_text(text)
    said = run(place, "resume", "whole", code=2)
    assert "whole/run.json: expected all options of a run, but it cannot be read" in said
    assert "Use `bitzoo finetune --resume` with the options that the run was started with" in said
    run(place, *WORDS, "--out", "whole", "--resume")
    assert "is finished" in run(place, "resume", "whole")


# --- what is left alone ---------------------------------------------------------------------------


def test_overwriting_keeps_what_no_run_wrote(place):
    old = place / "whole"
    (old / "notes.txt").write_text("mine")
    (old / "labels").mkdir()
    (old / "labels/a.csv").write_text("mine")
    (old / "checkpoints/best.safetensors").write_text("mine")
    shutil.copytree(place / "lower", old / "later")
    card = old / "README.md"
    card.write_text(card.read_text() + "my own words")
    before = {path: path.read_bytes() for path in (old / "later").rglob("*") if path.is_file()}
    said = run(place, *WORDS, "--out", "whole", "--overwrite", "--seed", "1")
    assert (
        "Kept in whole, because no run wrote it: README.edited.md, checkpoints/, labels/, later/, "
        "notes.txt.\n"
    ) in said
    assert (old / "README.edited.md").read_text().endswith("my own words")
    for name in ("notes.txt", "labels/a.csv", "checkpoints/best.safetensors"):
        assert (old / name).read_text() == "mine"
    assert {p: p.read_bytes() for p in (old / "later").rglob("*") if p.is_file()} == before
    assert record_of(old)["seed"] == 1
    saved = sorted(path.name for path in (old / "checkpoints").iterdir())
    assert saved == ["best.safetensors", *(f"step-0000000{n}.safetensors" for n in (4, 5))]
    assert len(list((old / "tensorboard").iterdir())) == 1


def test_an_edited_card_is_kept_when_it_is_written_again(place):
    (place / "whole/README.md").write_text("my own words")
    said = run(place, *WORDS, "--out", "whole", "--resume")
    assert "The card was edited; it is kept as whole/README.edited.md.\n" in said
    assert (place / "whole/README.edited.md").read_text() == "my own words"
    assert "An image classifier" in (place / "whole/README.md").read_text()


def test_the_model_in_the_folder_is_not_deleted(place):
    before = (place / "whole/model.safetensors").read_bytes()
    for model in ("whole", "whole/model.safetensors"):
        said = run(place, *WORDS, "--out", "whole", "--model", model, "--overwrite", code=2)
        assert said == (
            f"error: --overwrite would delete the model that training starts from, {model}. Choose "
            "another --out.\n"
        )
    assert (place / "whole/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("data", "out"), [("digits/train", "run"), ("digits", "runs/a")])
def test_a_run_below_the_data_is_no_class(place, data, out):
    """Neither the folder of the run itself, nor that of an earlier one."""
    words = ["finetune", "--model", "small.npz", "--data", data, *OPTIONS]
    for name in (out, f"{out}-again"):
        run(place, *words, "--out", f"{data}/{name}")
        record = record_of(place / data / name)
        assert record["classes"] == ["0", "1", "2", "3"]
    assert record["data"] == record_of(place / data / out)["data"]
    said = run(place, *words, "--out", f"{data}/{name}", "--resume")
    ignored = ["runs"] if "/" in out else [out, f"{out}-again"]
    assert f"Ignored: run folders ({len(ignored)}): {', '.join(ignored)}.\n" in said


def test_a_folder_with_its_own_run_json_is_a_class(place):
    (place / "digits/train/0/run.json").write_text('{"lens": "50 mm"}')
    run(place, *WORDS, "--out", "run")
    assert record_of(place / "run")["classes"] == ["0", "1", "2", "3"]


# --- heads ----------------------------------------------------------------------------------------


def test_the_head_of_a_run_with_the_same_classes_is_kept(place):
    words = ["finetune", "--model", "whole", "--data", "digits", *OPTIONS]
    said = run(place, *words, "--out", "next", "--lr", "1e-30")
    assert "The head of whole is kept: its classes are the same.\n" in said
    assert "head             kept, because the classes are the same\n" in said
    assert record_of(place / "next")["recipe"]["head"] == "kept"
    assert_same_weights(place / "next", place / "whole", atol=1e-20)  # nothing is learned
    assert (
        json.loads((place / "next/evaluation.json").read_text())["top1"]
        == json.loads((place / "whole/evaluation.json").read_text())["top1"]
    )
    assert "is finished" in run(place, "resume", "next")


def test_the_head_of_a_run_with_other_classes_is_new(place):
    for split in ("train", "val"):
        os.rename(place / f"digits/{split}/3", place / f"digits/{split}/three")
    words = ["finetune", "--model", "whole", "--data", "digits", *OPTIONS]
    said = run(place, *words, "--out", "next", "--lr", "1e-30")
    assert (
        "The head of whole is replaced by a new one that starts at zero: its classes are others.\n"
    ) in said
    assert abs(load_file(place / "next/model.safetensors")["head.fc.weight"]).max() < 1e-20
    assert record_of(place / "next")["recipe"]["head"] == "zero"
