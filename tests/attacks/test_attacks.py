"""A short attack on everything, and proof that the suite would see a fault.

`make attack BUDGET=100000` goes on for longer; docs/reference/attacks.md says what it does.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from attacks.engine import FINDINGS
from attacks.known_faults import EXPECTED
from attacks.readers import COMMANDS, READERS, TARGETS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a busy machine, and everything in one process
]
INPUTS = 1_200
"""Over all readers; the commands have their share of that."""
TESTS = Path(__file__).parents[1]


def start(*words):
    """The suite forks, which a process with threads must not do: it has one of its own."""
    search = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=850, env=environment
    )
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Target -> the results of its inputs."""
    out = tmp_path_factory.mktemp("attacks") / "results.jsonl"
    said, errors = start("-m", "attacks", str(INPUTS), "--workers", "1", "--results", str(out))
    assert out.is_file(), said + errors
    found: dict[str, list] = {name: [] for name in TARGETS}
    for line in out.read_text().splitlines():
        result = json.loads(line)
        found[result["target"]].append(result)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_harm(results, target):
    mine = results[target]
    assert [r for r in mine if r["outcome"] in FINDINGS] == []
    assert [r["number"] for r in sorted(mine, key=lambda r: r["number"])] == list(range(len(mine)))


@pytest.mark.parametrize("target", [target.name for target in READERS])
def test_some_inputs_are_read_and_some_refused(results, target):
    """Else nothing would be compared, or nothing was damaged."""
    counts = Counter(result["outcome"] for result in results[target])
    assert len(results[target]) >= INPUTS / len(TARGETS)
    assert counts["equal"] >= 3
    # Of a damaged shard, the records before the damage are read.
    assert counts["refused"] >= (3 if target == "images" else 10)


def test_commands_are_attacked_too(results):
    assert all(len(results[target.name]) >= 1 for target in COMMANDS)


@pytest.fixture(scope="module")
def seen():
    said, errors = start("-m", "attacks.known_faults")
    found: dict[str, list] = {name: [] for name in EXPECTED}
    for line in said.splitlines():
        name, outcome, detail = line.split("\t")
        found[name].append((outcome, detail))
    assert any(found.values()), errors
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_the_suite_sees_each_kind_of_fault(seen, name):
    _, outcome, words = EXPECTED[name]
    assert [found for found, _ in seen[name]] == [outcome, outcome]
    assert all(words in detail for _, detail in seen[name])


def test_an_input_is_made_of_its_number_alone(tmp_path):
    files: list[dict[str, bytes]] = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        start("-m", "attacks", "--replay", "npz:7", "--replay", "tar:5", "--keep", str(folder))
        made = (path for path in folder.rglob("*") if path.is_file())
        files.append({str(path.relative_to(folder)): path.read_bytes() for path in made})
    assert len(files[0]) >= 2
    assert files[0] == files[1]
