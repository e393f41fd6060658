"""What OpenVINO does to a process that only wants to compute: reports, files, stacks of signals."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("openvino")

SCRIPT = """
import json, os, sys, time
forks = []
os.register_at_fork(before=lambda: forks.append(1))
import torch
import bitzoo
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT

run = bitzoo.optimize(BiT(Architecture((1, 1, 1, 1), 0.5), 10).eval(), backend="openvino")
assert run(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
time.sleep(0.5)  # a report would be on its way in a thread
print(json.dumps([len(forks), "openvino_telemetry" in sys.modules]))
"""


SIGNALS = """
import signal, sys
import torch
import bitzoo
from bitzoo.exporters.openvino import export_openvino, load_openvino
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
network, images = BiT(Architecture((1, 1, 1, 1), 0.5), 10).eval(), torch.zeros(1, 3, 32, 32)
export_openvino(network, "a.xml")
one, two = (bitzoo.optimize(network, backend="openvino") for _ in range(2))
three = load_openvino("a.xml")
one(images), two(images), three.run(images.numpy())
del one
del two
del three
signal.raise_signal(signal.SIGTERM)
print(heard)
"""


def run(script, folder):
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_signal_is_heard_after_networks_are_gone(tmp_path):
    """In the order in which they came, which left a process that died of its next signal."""
    done = run(SIGNALS, tmp_path)
    assert (done.returncode, done.stdout) == (0, "[True]\n"), done.stderr


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_written(tmp_path):
    assert importlib.util.find_spec("openvino_telemetry"), "nothing there that could report"
    done = run(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, False]
    assert list(tmp_path.iterdir()) == []
