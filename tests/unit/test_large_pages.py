"""Large pages for torch's tensors, as the kernel reports them for a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import sys
from bitzoo.large_pages import ask_before_torch
if sys.argv[1] == "ask":
    ask_before_torch()
import torch
maps = torch.ones(1 << 24)
address = maps.data_ptr()
inside = False
for line in open("/proc/self/smaps"):
    head = line.split()[0]
    if "-" in head and not head.endswith(":"):
        start, end = (int(part, 16) for part in head.split("-"))
        inside = start <= address + (1 << 22) < end
    elif inside and head == "VmFlags:":
        print("hg" in line.split())
"""


def is_advised(word, **environment):
    """Whether the kernel was advised to use large pages (its flag `hg`) for a tensor of 64 MiB."""
    known = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, word],
        env=known | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.strip()


@pytest.mark.skipif(not PAGES.exists(), reason="no transparent huge pages")
def test_torch_gets_them():
    assert is_advised("ask") == "True"
    assert is_advised("ask", THP_MEM_ALLOC_ENABLE="0") == "False"  # the user's word counts
    assert is_advised("do not ask") == "False"
