"""OpenVINO reports nothing to its makers when bitzoo uses it, and leaves nothing in the home."""

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


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_written(tmp_path):
    assert importlib.util.find_spec("openvino_telemetry"), "nothing there that could report"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, False]
    assert list(tmp_path.iterdir()) == []
