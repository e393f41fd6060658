"""`bitzoo study`: killed at any moment it goes on, and ends in the same table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

import bitzoo
from bitzoo.cli.main import app
from bitzoo.errors import UsageError
from bitzoo.runs.study_cell import carry_out, read_cell
from bitzoo.runs.study_workers import claimed_cell, steps_done

pytestmark = pytest.mark.slow

STUDY = """
title = "A small study"
[grid]
norm = {norms}
seeds = {seeds}
[data]
up = "digits:0-2"
down = "digits:3-5"
[pretrain]
arch = "R(1,1,1,1)x0.5"
data = "up"
steps = {steps}
batch_size = 8
micro_batch = 8
lr = 0.03
resolution = 32
flip = false
fraction = 0.2
eval_every = 0
checkpoint_every = 1
workers = 1
log = "none"
[[transfer]]
name = "few"
kind = "fewshot"
method = "ridge"
data = "down"
shots = [2]
runs = 1
resolution = [36, 32]
workers = 1
[scales.more]
remarks = ["These are not the paper's."]
[scales.more.pretrain]
steps = 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def write_study(norms=("group",), seeds=1, steps=2, more=""):
    text = STUDY.format(norms=json.dumps(list(norms)), seeds=seeds, steps=steps)
    Path("s.toml").write_text(text + more)


def start(out, processes=2):
    command = [sys.executable, "-m", "bitzoo", "study", "s.toml", "--out", out]
    return subprocess.Popen(
        [*command, "--processes", str(processes)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(out, processes=2):
    running = start(out, processes)
    printed, errors = running.communicate(timeout=250)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    return printed


def cells_in(out):
    return sorted(path.parent for path in Path(out).glob("cells/*/*/cell.json"))


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def at_work(out):
    """Cells whose pre-training has begun and is not done."""
    runs = [cell / "pretrain" for cell in Path(out).glob("cells/*/*")]
    return [run for run in runs if 0 < steps_done(run) < 1]


def workers_of(running):
    return [
        process
        for process in psutil.Process(running.pid).children()
        if "--cell" in " ".join(process.cmdline())
    ]


def progressing(running, out):
    """Wait until a study trains; returns its workers."""
    before = {run: steps_done(run) for run in at_work(out)}
    wait_for(lambda: any(steps_done(run) > before.get(run, 0) for run in at_work(out)))
    return workers_of(running)


def run_ids(out):
    return {
        str(cell.relative_to(out)): json.loads((cell / "pretrain/run.json").read_text())["run_id"]
        for cell in cells_in(out)
        if (record := read_cell(cell)) and record.finished
    }


@pytest.mark.timeout(600)
def test_killed_twice_and_stopped_once_gives_the_same_table(here):
    write_study(norms=["batch", "group"], steps=12)
    expected = finish("whole")
    assert expected.count("\n") > 10

    # Everything is killed.
    running = start("often")
    assert progressing(running, "often")
    for process in [*psutil.Process(running.pid).children(recursive=True), running]:
        process.kill()
    running.communicate()
    finished = run_ids("often")

    # Only the study is killed: its workers hear of it, and stop with a checkpoint.
    running = start("often")
    workers = progressing(running, "often")
    assert workers
    running.kill()
    running.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

    # The study is asked to stop.
    running = start("often")
    workers = progressing(running, "often")
    running.send_signal(signal.SIGTERM)
    printed, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert "SIGTERM: stopping after a checkpoint of every cell" in errors
    assert "cells are not done. The same command goes on." in " ".join(printed.split())
    assert "Traceback" not in errors
    assert not any(map(psutil.Process.is_running, workers))

    printed = finish("often")
    assert printed.split("\n\n")[1:-1] == expected.split("\n\n")[1:-1]  # without folders
    for name in ("results.json", "results.csv"):
        assert Path("often", name).read_text() == Path("whole", name).read_text()
    after = run_ids("often")
    assert len(after) == 2
    assert finished.items() <= after.items()  # what was done was not done again
    sessions = [
        len(json.loads((cell / "pretrain/sessions.json").read_text())["sessions"])
        for cell in cells_in("often")
    ]
    assert max(sessions) > 1  # something did go on


def test_a_worker_that_is_killed_goes_on_and_a_bad_cell_does_not_end_the_others(here):
    more = '\n[[exclude]]\nsource = "bad"\nseed = 1\n'
    write_study(seeds=2, steps=12, more=more)
    grid = 'norm = ["group"]'
    sources = '[{name = "good", data = "up"}, {name = "bad", data = "nowhere"}]'
    Path("s.toml").write_text(Path("s.toml").read_text().replace(grid, f"source = {sources}"))
    running = start("out", processes=1)
    (worker,) = progressing(running, "out")
    worker.kill()
    printed, errors = running.communicate(timeout=250)
    assert running.returncode == 1, errors
    text = " ".join(printed.split())
    assert "source=good/seed-0: its process was killed (signal 9). It goes on." in text
    assert "source=bad/seed-0 failed: " in text
    assert "nowhere" in text
    assert "1 cells failed. 1 of 3 cells are not done." in text
    record = json.loads(Path("out/results.json").read_text())
    assert list(record["failed"]) == ["source=bad/seed-0"] or record["done"] == 2
    assert record["rows"][0]["seeds"] == [0, 1]


def test_two_studies_share_the_cells(here):
    write_study(seeds=3, steps=2)
    both = [start("out", processes=1) for _ in range(2)]
    for running in both:
        printed, errors = running.communicate(timeout=250)
        assert running.returncode == 0, errors
        assert "3 " in printed
    for cell in cells_in("out"):
        sessions = json.loads((cell / "pretrain/sessions.json").read_text())["sessions"]
        assert len(sessions) == 1


def cell_alone(**options):
    return bitzoo.study("s.toml", "out", cell="norm=group/seed-0", **options)


def test_a_cell_alone_and_what_its_record_says(here):
    write_study()
    result = cell_alone()
    (cell,) = cells_in("out")
    evaluation = json.loads((cell / "pretrain/evaluation.json").read_text())
    few = json.loads((cell / "few/fewshot.json").read_text())["summary"][0]
    found = result.scores["norm=group/seed-0"]
    assert found["upstream"].correct == evaluation["correct"]
    assert found["few, 2 a class"].top1 == few["median"]
    assert result.finished
    record = json.loads((cell / "cell.json").read_text())
    assert record["plan"]["pretrain"]["steps"] == 2
    assert "workers" not in record["plan"]["pretrain"]
    before = {path: path.stat().st_mtime_ns for path in cell.rglob("*") if path.is_file()}
    assert bitzoo.study("s.toml", "out").scores == result.scores  # and no process is needed
    assert {path: path.stat().st_mtime_ns for path in before} == before

    # Other options are refused, wherever they are; those that change no result are not.
    write_study(steps=3)
    with pytest.raises(UsageError, match=r"begun with other options(.|\n)*pretrain.steps: 2 -> 3"):
        bitzoo.study("s.toml", "out")
    with pytest.raises(UsageError, match=r"pretrain.steps: 2 -> 3"):
        cell_alone()
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("steps = 3", "steps = 2").replace("workers = 1", ""))
    assert bitzoo.study("s.toml", "out").finished

    # The same by a scale, with what must be known of it.
    write_study(steps=99)
    told: list[str] = []
    scaled = bitzoo.study("s.toml", "out", scale="more", say=told.append)
    assert told[0] == "These are not the paper's."
    assert scaled.finished

    # A cell that the study does not have any more stays, and is no part of the table.
    write_study(norms=["batch"], seeds=1)
    told.clear()
    plan = bitzoo.study("s.toml", "out", dry_run=True)
    assert not plan.finished
    shutil.rmtree(cell / "pretrain")
    assert read_cell(cell).finished is False  # its weights are gone: it is to be done again


def test_a_cell_that_others_work_on_is_left_to_them(here):
    write_study()
    folder = Path("out/cells/norm=group/seed-0")
    folder.mkdir(parents=True)
    with claimed_cell(folder) as kind:
        assert kind is not None
        with pytest.raises(UsageError, match="is being worked on by a study"):
            cell_alone()
    Path("run").mkdir()
    Path("run/run.json").write_text("{}")
    with pytest.raises(UsageError, match="run is the folder of a single run"):
        bitzoo.study("s.toml", "run")


def test_the_command_says_what_it_would_do(here):
    write_study(norms=["batch", "group"], seeds=2)
    shown = CliRunner().invoke(app, ["study", "s.toml", "--out", "out", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        "A small study",
        "4 cells:",
        "architecture       cell",
        "R(1,1,1,1)x0.5-BN  norm=batch/seed-0",
        "R(1,1,1,1)x0.5-BN  norm=batch/seed-1",
        "R(1,1,1,1)x0.5     norm=group/seed-0",
        "R(1,1,1,1)x0.5     norm=group/seed-1",
    ]
    assert not Path("out").exists()
    wrong = CliRunner().invoke(app, ["study", "s.toml", "--out", "out", "--data", "up"])
    assert wrong.exit_code == 2
    assert "expected NAME=SOURCE, found 'up'" in wrong.output
    named = CliRunner().invoke(
        app, ["study", "s.toml", "--out", "o", "--dry-run", "--data", "left=x"]
    )
    assert named.exit_code == 2
    assert "has no data called 'left' that --data could replace; it has up, down." in named.output
    assert os.listdir() == ["s.toml"]


def test_carry_out_stops_where_a_part_is_stopped(here, monkeypatch):
    """What is stopped is recorded as not done, and goes on from there."""
    write_study()
    (cell,) = bitzoo.study("s.toml", "out", dry_run=True).plan.cells
    parts = []

    def stopped(*args, **options):
        parts.append(args)
        return Stopped()

    monkeypatch.setattr("bitzoo.runs.fewshot.fewshot", stopped)
    assert carry_out(cell, Path("out")) is False
    record = read_cell(Path("out/cells") / cell.name)
    assert (list(record.parts), record.finished) == (["pretrain"], False)
    monkeypatch.undo()
    assert len(parts) == 1


class Stopped:
    stopped = True
