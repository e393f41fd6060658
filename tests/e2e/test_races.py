"""Two fine-tuning runs that are started into one folder at the same time never mix.

BITZOO_TEST_RACES sets how many races are run; the default has every combination of the options.
"""

import itertools
import json
import os
import random
import re
import shutil
import socket
import time

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from commands import start
from images import write_digits
from safetensors import safe_open
from safetensors.numpy import load_file

RACES = int(os.environ.get("BITZOO_TEST_RACES", "20"))
STEPS = 4
WORDS = ["finetune", "--model", "small.npz", "--data", "digits", "--steps", STEPS]
WORDS += ["--batch-size", "8", "--lr", "0.03", "--resolution", "36,32", "--micro-batch", "8"]
WORDS += ["--checkpoint-every", "1", "--eval-every", "2"]
HOWS = ("", "--resume", "--overwrite")
CASES = list(itertools.product(HOWS, HOWS, ("another seed", "same seed")))
CASES += [("--resume", "--resume", "same seed"), ("--overwrite", "--overwrite", "another seed")]
IN_USE = re.compile(
    rf"error: run is in use by process \d+ on {re.escape(socket.gethostname())} \(since "
    r"\d{4}-\d\d-\d\d [\d:+-]+\)\. Only one run at a time can write there"
)
REFUSED = (IN_USE, re.compile("already has a run"), re.compile("was started with other options"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def ended(running):
    code, out, err = running.next(timeout=300)
    running.process.join(60)
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, a finished run of each of two seeds, and the same run of seed 0 after three steps."""
    folder = tmp_path_factory.mktemp("races")
    write_digits(folder / "digits", per_class=8, val_per_class=3, classes=range(4))
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    for seed in (0, 1):
        words = [*WORDS, "--out", f"seed-{seed}", "--seed", seed]
        assert ended(start(*words, folder=folder))[0] == 0
    shutil.copytree(folder / "seed-0", folder / "half")
    half = folder / "half"
    for name in ("model.safetensors", "config.json", "report.html", "README.md"):
        (half / name).unlink()
    (half / f"checkpoints/step-{STEPS:08}.safetensors").unlink()
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["step"] < STEPS))
    record = json.loads((half / "run.json").read_text())
    record.pop("finished", None)
    (half / "run.json").write_text(json.dumps(record))
    return folder


def require_one_run(place, seeds):
    """Everything in the folder is of the run that `run.json` describes."""
    run = place / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["seed"] in seeds
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "train"]
    assert steps == sorted(set(steps)), "metrics of two runs"
    saved = sorted((run / "checkpoints").iterdir())
    metas = []
    for path in saved:
        with safe_open(path, "np") as file:
            metas.append(json.loads(file.metadata()["bitzoo_checkpoint"])["meta"])
    assert {meta["loop"]["seed"] for meta in metas} == {record["seed"]}, "another run's checkpoint"
    if (run / "model.safetensors").exists():
        assert steps == list(range(1, STEPS + 1))
        found, expected = (load_file(f / "model.safetensors") for f in (run, expected_of(place)))
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg="the wrong model")
    identity = record["run_id"]
    assert re.fullmatch("[0-9a-f]{16}", identity)
    assert {meta["run_id"] for meta in metas} == {identity}
    assert {line["run_id"] for line in lines} == {identity}
    assert not [path for path in run.rglob("*") if path.name.startswith(".bitzoo-")]


def expected_of(place):
    return place / f"seed-{json.loads((place / 'run/run.json').read_text())['seed']}"


@pytest.mark.parametrize("number", range(RACES))
def test_two_runs_never_mix(place, number):
    first, second, seeds = CASES[number % len(CASES)]
    rng = random.Random(number)
    shutil.rmtree(place / "run", ignore_errors=True)
    is_there = rng.random() < 0.6
    if is_there:
        shutil.copytree(place / "half", place / "run")
    words = [[*WORDS, "--out", "run", *filter(None, [how])] for how in (first, second)]
    if seeds == "another seed":
        words[1] += ["--seed", "1"]
    running = [start(*words[0], folder=place)]
    time.sleep(rng.choice([0, rng.uniform(0, 1.5)]))
    running.append(start(*words[1], folder=place))
    outcomes = [ended(one) for one in running]
    for code, _, err in outcomes:
        assert code == 0 or (code == 2 and any(says.search(err) for says in REFUSED)), err
    if 0 not in [code for code, _, _ in outcomes]:
        # One was kept out by the other, which could not go on with the run that was there.
        assert is_there
        assert sorted(bool(IN_USE.search(err)) for _, _, err in outcomes) <= [False, True]
    require_one_run(place, {0, 1})


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["", "--resume", "--overwrite"])
def test_the_second_is_told_at_once_and_the_lock_goes_with_the_process(place, how):
    shutil.rmtree(place / "run", ignore_errors=True)
    words = [*WORDS, "--out", "run"]
    long = start(*words, "--steps", "5000", folder=place)
    wait_for(place / "run/checkpoints/step-00000002.safetensors")
    before = (place / "run/run.json").read_bytes()
    for second in ([*words, *filter(None, [how])], ["resume", "run"]):
        code, out, err = ended(start(*second, folder=place))
        assert (code, out) == (2, "")  # before the data are read
        assert IN_USE.search(err)
        assert f"process {long.process.pid} on" in err
    assert (place / "run/run.json").read_bytes() == before
    long.kill()
    assert (place / "run/.bitzoo-run.lock").exists()  # which does not count any more
    code, _, err = ended(start(*words, "--overwrite", folder=place))
    assert code == 0, err
    require_one_run(place, {0})
