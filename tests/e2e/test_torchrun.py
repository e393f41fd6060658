"""Processes that torchrun started: they end well, fail at once, and stop with a checkpoint.

BITZOO_TEST_ENDINGS sets how many groups are started only to end.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from checkpoints import make_checkpoint, write_npz
from images import write_digits
from training import in_processes

from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.training.checkpointing import latest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENDINGS = int(os.environ.get("BITZOO_TEST_ENDINGS", "2"))
AT_ONCE = 20
"""Seconds that an end may take, on a busy machine; torch's own patience is half an hour."""

EXCHANGES = """
import torch
from bitzoo.inference.processes import gather, join_processes

state = join_processes("cpu")
for number in range(30):
    assert gather(number + state.process_index) == [number, number + 1]
    torch.distributed.all_reduce(torch.ones(100_000))
print("done", flush=True)
"""

FAILS_WITHIN_AN_EXCHANGE = """
import time
import torch
from bitzoo.inference.processes import join_processes
from bitzoo.training.distributed import GradientSum

model = torch.nn.Linear(1000, 1000)
if join_processes("cpu").is_main_process:
    with GradientSum(model) as gradients:
        gradients.follow()
        model(torch.ones(1, 1000)).sum().backward()
        print("failing", flush=True)
        raise RuntimeError("failed")
time.sleep(500)
"""


def start(folder, *words):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *launch, *map(str, words)],
        cwd=folder,
        env={**os.environ, "BITZOO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_are_done_end_without_a_fault(tmp_path):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    for _ in range(ENDINGS):
        run = start(tmp_path, "exchanges.py")
        out, err = run.communicate(timeout=240)
        assert (run.returncode, out.count("done")) == (0, 2), err  # their lines may be mixed


def test_one_that_fails_while_others_owe_it_an_exchange_does_not_wait_for_them(tmp_path):
    (tmp_path / "fails.py").write_text(FAILS_WITHIN_AN_EXCHANGE)
    run = start(tmp_path, "fails.py")
    assert run.stdout.readline() == "failing\n"
    began = time.monotonic()
    _, err = run.communicate(timeout=240)
    assert time.monotonic() - began < AT_ONCE
    assert run.returncode == 1
    assert "RuntimeError: failed" in err


def trained_steps(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [record["step"] for record in map(json.loads, lines) if record["event"] == "train"]


def test_sigterm_of_a_scheduler_ends_in_a_checkpoint_within_a_step(tmp_path):
    write_npz(tmp_path / "small.npz", make_checkpoint(num_classes=4))
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3, classes=range(4))
    words = ["-m", "bitzoo", "finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    words += ["--steps", "500", "--batch-size", "512", "--micro-batch", "64", "--lr", "0.003"]
    words += ["--resolution", "36,32", "--checkpoint-every", "0", "--eval-every", "0"]
    running, run = start(tmp_path, *words), tmp_path / "run"
    while len(trained_steps(run)) < 2:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)  # torchrun passes it on to both, and kills after 30 s
    before = len(trained_steps(run))
    out, err = running.communicate(timeout=240)
    assert "SIGTERM: stopping after this step" in err
    assert "SIGKILL" not in err
    steps = trained_steps(run)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) <= before + 2
    assert out.count(f"Stopped after step {len(steps)}.") == 1
    start_of_rest = latest_checkpoint(run / "checkpoints")
    assert start_of_rest.step == len(steps)
    facts = start_of_rest.meta["loop"]
    expected = {"processes": 2, "machines": 1, "backend": "gloo", "device": "cpu", "threads": 1}
    assert {name: facts[name] for name in expected} == expected
    assert facts["micro_batch"] == 64


def open_cold(report, folder, cache):
    """Open the images and return which tasks were reported, and the pixels."""
    from bitzoo.inference.processes import join_processes

    join_processes("cpu").wait_for_everyone()
    done = []
    images = read_dataset(folder)
    with open_pixels(
        images.train,
        20,
        cache=cache,
        budget_bytes=10**9,
        workers=1,
        progress=lambda task, number, total: done.append((task, number, total)),
    ) as pixels:
        found = pixels.take(range(len(pixels)))
    return [step for step in done if step[0] == "decoding"], type(pixels).__name__, found.tobytes()


@pytest.mark.parametrize("machines", [1, 2])
def test_processes_of_a_machine_share_one_cache_that_one_of_them_fills(tmp_path, machines):
    """A machine is a place of its own for the cache; processes of two share nothing."""
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3, classes=range(4))
    caches = [tmp_path / f"cache-{rank % machines}" for rank in range(2)]
    found = in_processes(2, open_cold, tmp_path / "digits", own=[{"cache": c} for c in caches])
    decoded = [[number for _, number, _ in steps] for steps, _, _ in found]
    assert sorted(map(len, decoded), reverse=True) == ([32, 32] if machines == 2 else [32, 0])
    assert {kind for _, kind, _ in found} == {"CachedPixels"}
    assert found[0][2] == found[1][2]
