"""The one live line: what it says, and where it appears: terminals, notebooks, files."""

import io
import re
import sys
import threading
import time
import types
from typing import Any

import pytest
from screens import Terminal

from bitzoo import progress as shows
from bitzoo.progress_line import (
    columns_of,
    finished,
    kind_of,
    line,
    plain_line,
    shorten,
    size_of,
)

TRAINING, FACTS = kind_of("training"), ("loss 0.513", "34 images/s")
ALL = "step 125/500  loss 0.513  34 images/s  5 min left"


class TestLine:
    @pytest.mark.parametrize(
        ("width", "expected"),
        [
            (120, f"training  {'━' * 10}{'─' * 30}  {ALL}"),
            (79, f"training  {'━' * 4}{'─' * 14}  {ALL}"),
            (59, "training  step 125/500  loss 0.513  34 images/s  5 min left"),
            (55, "training step 125/500 loss 0.513 34 images/s 5 min left"),
            (54, "training ━━──────── step 125/500 loss 0.513 5 min left"),
            (43, "training step 125/500 loss 0.513 5 min left"),
            (39, "training step 125/500 5 min left"),
            (25, "… step 125/500 5 min left"),
        ],
    )
    def test_what_does_not_fit_is_left_out(self, width, expected):
        assert line(TRAINING, 125, 500, FACTS, 300, width) == expected

    @pytest.mark.parametrize("width", range(10, 140))
    @pytest.mark.parametrize("task", ["training", "download: 文件的名字文件的名字.npz", "x" * 300])
    def test_it_fits(self, task, width):
        found = line(kind_of(task), 2_000_000, 9_000_000, FACTS, 8000, width)
        assert columns_of(found) <= width

    def test_a_long_name_is_shortened_before_numbers_go(self):
        found = line(
            kind_of(f"download: {'long-' * 30}end.npz"), 2 * 10**9, 4 * 10**9, ["93 MB/s"], 21, 79
        )
        assert found.startswith("downloading l")
        assert found.endswith(" 2.0/4.0 GB 93 MB/s 21 s left")

    def test_a_part_of_a_step(self):
        assert "step 12/40 25 % of the next" in line(TRAINING, 12.25, 40, (), None, 79)

    def test_names_from_files_act_on_nothing(self):
        found = line(kind_of("download: a\x1b[2Jb\n.npz"), 1, 2, (), None, 79)
        assert "\x1b" not in found
        assert "\n" not in found

    def test_without_unicode(self):
        found = line(TRAINING, 20, 40, FACTS, 300, 79, is_ascii=True)
        assert found.isascii()
        assert re.search(r"  (#+)(\.+)  ", found)

    def test_a_plain_one(self):
        assert plain_line(kind_of("decoding"), 120, 540, ("45/s",), 9.4) == (
            "decoding: 120/540 images, 45/s, 9 s left"
        )

    @pytest.mark.parametrize(
        ("task", "total", "expected"),
        [
            ("decoding", 540, "decoded 540 images in 12 s"),
            ("checking images", 1200, "checked 1,200 images in 12 s"),
            ("convert", 3_400_000_000, "converted 3.4 GB in 12 s"),
            ("download: a.npz", 1_234_567, "downloaded a.npz, 1.2 MB in 12 s"),
        ],
    )
    def test_what_is_left_of_finished_work(self, task, total, expected):
        assert finished(kind_of(task), total, 12.3) == expected

    def test_sizes(self):
        assert [size_of(n) for n in (999, 1000, 3.44e9)] == ["999 bytes", "1.0 KB", "3.4 GB"]

    def test_a_name_loses_its_middle(self):
        assert shorten("BiT-M-R152x4-ILSVRC2012.npz", 15) == "BiT-M-R…012.npz"
        assert columns_of(shorten("文件的名字文件的名字", 9)) <= 9


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class TestPlainLines:
    @pytest.fixture
    def said(self, capsys, clock):
        return lambda: capsys.readouterr().err.splitlines()

    def test_one_now_and_then_and_the_last(self, said, clock):
        with shows.live() as progress:
            for done in range(1, 31):
                progress("decoding", done, 30)
                clock[0] += 1
        assert said() == [
            "decoding: 6/30 images, 1.0/s, 24 s left",
            "decoding: 11/30 images, 1.0/s, 19 s left",
            "decoding: 16/30 images, 1.0/s, 14 s left",
            "decoding: 21/30 images, 1.0/s, 9 s left",
            "decoding: 26/30 images, 1.0/s, 4 s left",
            "decoded 30 images in 29 s",
        ]

    def test_short_work_says_nothing(self, said):
        with shows.live() as progress:
            progress("decoding", 30, 30)
        assert said() == []

    def test_totals_and_stages_begin_anew(self, said, clock):
        """Train and val are decoded one after the other; val is not 11 % of train."""
        with shows.live() as progress:
            for total in (540, 60):
                progress("decoding", 1, total)
                clock[0] += 6
                progress("decoding", total, total)
        assert said() == ["decoded 540 images in 6 s", "decoded 60 images in 6 s"]

    def test_an_evaluation_in_between_costs_training_no_time(self, said, clock):
        with shows.live() as progress:
            progress.show("training", 0, 2)
            clock[0] += 10
            progress.show("training", 1, 2, facts=["loss 2.000"])
            progress("evaluate", 0, 8)
            clock[0] += 100
            progress("evaluate", 8, 8)
            progress.show("training", 1, 2)
            clock[0] += 10
            progress.show("training", 2, 2, facts=["loss 1.000"])
        assert said() == [
            "training: step 1/2, loss 2.000, 10 s left",
            "evaluated 8 images in 2 min",
            "trained 2 steps in 20 s, loss 1.000",
        ]


SCRIPT = """
import sys, time, logging
from bitzoo.progress import live
with live(label="command") as progress:
    {body}
print("the end")
"""


def on_terminal(tmp_path, body, columns=80, environment=None):
    code = SCRIPT.format(body=body.strip().replace("\n", "\n    "))
    return Terminal(
        [sys.executable, "-c", code],
        columns=columns,
        rows=10,
        folder=tmp_path,
        environment=environment,
    )


class TestTerminal:
    def test_what_others_print_stays_above(self, tmp_path):
        body = """
for done in range(1, 12):
    progress("decoding", done, 12)
    time.sleep(0.15)
    if done == 4: print("a line")
    if done == 6: logging.warning("a warning")
    if done == 8: sys.stderr.write("two\\nlines\\n")
"""
        with on_terminal(tmp_path, body) as terminal:
            assert terminal.finish() == 0
        expected = ["a line", "WARNING:root:a warning", "two", "lines", "the end"]
        assert terminal.lines() == expected
        assert any(s.splitlines()[-1].startswith("decoding  ") for s in terminal.seen if s)
        assert all(s.count("images") <= 1 for s in terminal.seen)

    def test_a_question_is_not_overwritten(self, tmp_path):
        body = """
progress("decoding", 1, 12); time.sleep(0.5)
sys.stdout.write("Publish? "); sys.stdout.flush()
answer = input()
progress("convert", 1, 12); time.sleep(0.5)
"""
        with on_terminal(tmp_path, body) as terminal:
            terminal.until("Publish?")
            with pytest.raises(TimeoutError):
                terminal.until("never", timeout=1)
            assert terminal.text() == "Publish?"
            terminal.press(b"y\r")
            terminal.until("converting")
            assert terminal.finish() == 0
        assert terminal.lines() == ["Publish? y", "the end"]

    def test_it_follows_the_size_of_the_window(self, tmp_path):
        body = """
for done in range(1, 60):
    progress("decoding", done, 60)
    time.sleep(0.1)
    if done == 30: time.sleep(1)
"""
        with on_terminal(tmp_path, body, columns=120) as terminal:
            wide = terminal.until(lambda text: "left" in text)
            terminal.resize(30, 10)
            narrow = terminal.until(lambda text: 0 < len(text) < 30 and "left" in text)
            terminal.resize(60, 10)
            terminal.until(lambda text: 40 < len(text) < 60 and "left" in text)
            assert terminal.finish() == 0
        assert len(wide) > 60
        assert re.fullmatch(r"decoding +\d+/60( images)? .*left", narrow)
        assert terminal.lines() == ["the end"]

    def test_while_nothing_is_reported_the_command_and_the_time_are_shown(self, tmp_path):
        with on_terminal(tmp_path, "time.sleep(2.5)") as terminal:
            assert re.fullmatch(r"command  [12] s", terminal.until("command  "))
            assert terminal.finish() == 0
        assert terminal.lines() == ["the end"]

    @pytest.mark.parametrize(
        ("environment", "is_ascii"),
        [({"NO_COLOR": "1"}, False), ({"PYTHONIOENCODING": "ascii"}, True)],
    )
    def test_colours_and_encodings(self, tmp_path, environment, is_ascii):
        body = 'progress("decoding", 6, 12); time.sleep(1)'
        with on_terminal(tmp_path, body, environment=environment) as terminal:
            text = terminal.until("decoding")
            assert text.isascii() == is_ascii
            assert ("######......" in text) == is_ascii
            cells = [cell for row in terminal.screen.buffer.values() for cell in row.values()]
            assert {cell.fg for cell in cells} == {"default"}
            assert terminal.finish() == 0

    def test_the_dumb_one_gets_plain_lines(self, tmp_path):
        body = 'progress.show("training", 1, 2, facts=["loss 1.0"])'
        with on_terminal(tmp_path, body, environment={"TERM": "dumb"}) as terminal:
            assert terminal.finish() == 0
        assert terminal.lines() == ["training: step 1/2, loss 1.0", "the end"]

    def test_after_an_error_nothing_is_left(self, tmp_path):
        body = """
progress("decoding", 6, 12); time.sleep(0.5)
raise SystemExit(3)
"""
        with on_terminal(tmp_path, body) as terminal:
            assert terminal.finish() == 3
        assert terminal.lines() == []
        assert any("decoding" in screen for screen in terminal.seen)


class Display:
    """IPython's `display` with ids: what each output of the cell shows now, and how often."""

    def __init__(self):
        self.outputs, self.updates = [], 0

    def __call__(self, content, *, raw, display_id):
        assert raw
        assert display_id
        self.outputs.append(content)
        number = len(self.outputs) - 1

        def update(content, *, raw):
            assert raw
            self.updates += 1
            self.outputs[number] = content

        return types.SimpleNamespace(update=update)


@pytest.fixture
def notebook(monkeypatch):
    """As in a kernel: IPython is imported, and its shell has a kernel."""
    ipython: Any
    module: Any
    display, ipython = Display(), types.ModuleType("IPython")
    shell = types.SimpleNamespace(kernel=object())
    ipython.get_ipython = lambda: shell
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return display


class TestNotebook:
    def test_one_output_is_updated(self, notebook, clock):
        with shows.shown(None) as progress:
            for done in range(1, 11):
                progress("decoding", done, 10)
                clock[0] += 1
            progress.show("training", 1, 4, facts=["loss 2.000"])
            assert notebook.outputs[0]["text/plain"].splitlines()[0] == "decoded 10 images in 9 s"
            assert re.match(
                r"training  ━+─+  step 1/4  loss 2\.000$",
                notebook.outputs[0]["text/plain"].splitlines()[1],
            )
            clock[0] += 9
            progress.show("training", 4, 4, facts=["loss 1.000"])
        assert [output["text/plain"] for output in notebook.outputs] == [
            "decoded 10 images in 9 s\ntrained 4 steps in 9 s, loss 1.000"
        ]

    def test_not_more_often_than_a_browser_needs(self, notebook, clock):
        with shows.shown(None) as progress:
            for done in range(1, 10_000):
                progress("decoding", done, 10_000)
                clock[0] += 0.001
        assert 30 <= notebook.updates <= 50

    def test_a_plain_ipython_shell_is_none(self, notebook, monkeypatch):
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: object())
        assert not shows.is_live()


class TestShown:
    def test_a_callback_of_the_caller_is_used_as_it_is(self):
        def callback(task, done, total):
            raise AssertionError("not called")

        with shows.shown(callback) as progress:
            assert progress is callback

    @pytest.mark.parametrize("wanted", [None, False])
    def test_a_library_is_silent_in_a_pipe(self, wanted, monkeypatch):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with shows.shown(wanted) as progress:
            assert progress is None

    def test_true_asks_for_plain_lines(self, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        with shows.shown(True) as progress:
            progress("training", 2, 2)
        assert re.fullmatch(r"trained 2 steps in 0\.\d s\n", out.getvalue())

    def test_within_another_it_is_the_same(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with shows.live() as outer, shows.shown(None) as inner:
            assert inner is outer


def test_threads_may_report(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with shows.live() as progress:

        def report() -> None:
            for number in range(500):
                progress("training", number, 500)

        threads = [threading.Thread(target=report) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress("training", 500, 500)
    assert out.getvalue().splitlines()[-1].startswith("trained 500 steps in ")
