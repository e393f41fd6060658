"""A real fine-tuning run on a terminal: one line that lives, at every width."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from screens import (
    MOMENTS,
    SIZES,
    STEPS,
    Terminal,
    finetune_words,
    folder_of_digits,
    watch_finetuning,
)

pytestmark = pytest.mark.slow


DOCUMENT = Path(__file__).parents[2] / "docs/reference/terminal.md"
WIDTHS = (*SIZES, (40, 24))
LIVE = re.compile(r"━|─| left$|step +\d+/|\d/\d+ images")
"""What only a live line has."""
LEFT = re.compile(r"^(checked|read|decoded|evaluated) ")
"""Lines of stages that took more than a second, which depends on the machine."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return folder_of_digits(tmp_path_factory.mktemp("digits"), size=160)


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda size: "x".join(map(str, size)))
def watched(request, digits):
    columns, rows = request.param
    return columns, rows, *watch_finetuning(digits, columns, rows)


def live_lines(screen):
    return [line for line in screen.splitlines() if LIVE.search(line)]


def test_there_is_never_more_than_one_live_line(watched):
    _, _, terminal, _ = watched
    assert len(terminal.seen) > 20
    assert max(len(live_lines(screen)) for screen in terminal.seen) == 1


def test_no_live_line_is_left_or_scrolls_away(watched):
    columns, _, terminal, _ = watched
    assert live_lines("\n".join(terminal.lines())) == []
    text = "\n".join(terminal.lines())
    assert text.count(f"trained {STEPS} steps in ") == 1
    assert len(re.findall(r"^trained|^checked|^decoded|^evaluated", text, re.M)) <= 6
    assert max(map(len, terminal.lines())) <= columns


def test_it_is_the_last_line_of_the_screen(watched):
    _, _, terminal, _ = watched
    for screen in terminal.seen:
        for line in live_lines(screen):
            assert line == screen.splitlines()[-1]


def test_every_moment_comes(watched):
    columns, _, _, screens = watched
    if columns < 80:  # where some of it is left out
        assert any("step" in line for line in live_lines(screens["training begins"]))
    else:
        assert [moment for moment in MOMENTS if not screens[moment]] == []


def test_the_evaluation_in_between_is_told(watched):
    columns, _, terminal, _ = watched
    scores = [
        json.loads(line)
        for line in (terminal.folder / "run/metrics.jsonl").read_text().splitlines()
    ]
    top1 = [round(200 * score["top1"]) for score in scores if score["event"] == "eval"]
    if columns >= 80:
        text = "\n".join(terminal.lines())
        assert f"step 20: top-1 {top1[0] / 2:.1f} % ({top1[0]} of 200 held-out images)" in text


def test_the_verdict_comes_last(watched):
    columns, _, terminal, _ = watched
    if columns < 80:
        pytest.skip("its lines are broken there")
    *_, verdict, report, following = terminal.lines()
    assert re.fullmatch(
        rf"run: {STEPS} steps, top-1 \d+\.\d % \(\d+ of 200 held-out images\)", verdict
    )
    assert report == "report  run/report.html"
    assert following == "next    bitzoo predict run IMAGES"


def normal(screen):
    """Return the lines of a screen without what differs from run to run."""
    lines = [line.strip("|+").rstrip() for line in screen.splitlines()]
    lines = [line for line in lines if line.strip("-") and not LEFT.match(line)]
    text = re.sub(r"[━─]+ *", "", "\n".join(lines))
    # How far the first step is, and what is known of its length, depends on the moment.
    text = re.sub(r"( \d+ ?% of the next)?( +[\d.]+ \w+ left)?$", "", text, flags=re.M)
    text = re.sub(r"\d[\d,.]*( ?%)?", "0", text)
    return re.sub(r" +", " ", re.sub(r"0 (s|min)\b", "0 s", text)).splitlines()


def test_the_documented_screens_are_those_of_a_run(watched):
    columns, rows, _, screens = watched
    if (columns, rows) not in SIZES:
        return
    _, found, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {columns} x {rows}\n")
    assert found
    documented = re.findall(r"```text\n(.*?)\n```", rest.split("\n## ")[0], re.S)
    assert len(documented) == len(MOMENTS)
    for moment, screen in zip(MOMENTS, documented, strict=True):
        edges = [line for line in screen.splitlines() if line.startswith("+-")]
        assert [len(edge) for edge in edges] == [columns + 2] * 2
        assert len(screen.splitlines()) == rows + 2
        # What stands above depends on how many lines have been left since.
        now, then = normal(screens[moment]), normal(screen)
        both = min(len(now), len(then))
        assert now[-both:] == then[-both:], moment


def test_frozen_training_shows_no_speed_that_nobody_measured(digits, tmp_path):
    environment = {"BITZOO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = finetune_words("--freeze", "--overwrite")
    with Terminal(words, columns=80, rows=24, folder=digits, environment=environment) as terminal:
        assert terminal.finish() == 0
    assert not any(re.search(r"\b0 images/s", screen) for screen in terminal.seen)
    assert re.search(rf"^trained {STEPS} steps in [\d.]+ s, loss \d", terminal.text(), re.M)


@pytest.mark.parametrize("where", ["pipe", "dumb terminal"])
def test_elsewhere_lines_are_plain(digits, tmp_path, where):
    environment = {"BITZOO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = finetune_words("--overwrite")
    if where == "pipe":
        command = [sys.executable, "-m", "bitzoo", *words]
        done = subprocess.run(
            command, cwd=digits, capture_output=True, env={**os.environ, **environment}, check=True
        )
        assert b"\r" not in done.stderr + done.stdout
        lines = done.stderr.decode().splitlines()
        assert b"training" not in done.stdout.split(b"learning rate")[1].split(b"run:")[0]
    else:
        environment["TERM"] = "dumb"
        with Terminal(
            words, columns=80, rows=24, folder=digits, environment=environment
        ) as terminal:
            assert terminal.finish() == 0
        lines = terminal.lines()
    steps = [line for line in lines if line.startswith("training: step ")]
    assert 1 <= len(steps) < STEPS
    first = rf"training: step +1/{STEPS}, loss \d\.\d{{3}}, [\d.,]+ images/s"
    assert sum(bool(re.match(first, line)) for line in steps) == 1
    assert sum(line.startswith(f"trained {STEPS} steps in ") for line in lines) == 1
    assert not any("━" in line or "─" in line for line in lines)
