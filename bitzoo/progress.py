"""Progress for people: one live line in a terminal or a notebook, plain lines elsewhere.

with live() as progress:
    progress("decoding", 120, 540)
    progress.show("training", 12, 40, facts=("loss 2.183", "214 images/s"))

There is never more than one line: the work that was reported last is the one shown, and a line is
left only when a piece of work of some length is finished. The cursor stands at the beginning of the
line, so that what other code prints takes its place, and a terminal that wraps the line when its
window becomes narrower has the rest below the cursor, where it can be erased. No colours and no
cursor movements but these are used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

from bitzoo.durations import duration
from bitzoo.progress_line import (
    Kind,
    columns_of,
    cut,
    finished,
    kind_of,
    line,
    plain_line,
)

REDRAW_SECONDS = 0.1
"""How often a terminal is redrawn."""

NOTEBOOK_SECONDS = 0.25
"""How often a notebook is: each time is a message to the browser."""

PLAIN_SECONDS = 5.0
"""Time between plain lines."""

TOLD_SECONDS = 1.0
"""Work that took as long leaves a line in a terminal; elsewhere `PLAIN_SECONDS` decide."""

_IDLE_SECONDS = 1.0
"""Time without a report after which a command's name and time are shown."""

_SLOW_STEP = 2.0
"""Steps that take as long in seconds show how far they are."""

_WINDOW = 60.0
"""The time left follows the speed of the last so many seconds."""

_lock = threading.RLock()
_current: list[Live] = []
"""The live line of this process, if there is one."""


@dataclass(frozen=True)
class _Answer:
    """What `shown` gave the outermost caller."""

    callback: Callable[[str, int, int], None] | None


_answered: ContextVar[_Answer | None] = ContextVar("answered", default=None)
"""What is reported to within a `shown`; None outside of any."""


class _Stage:
    """One piece of work: how far it is, and how fast it goes while it is what is worked on."""

    def __init__(self, task: str) -> None:
        self.task, self.kind = task, kind_of(task)
        self.done, self.total = 0.0, 0
        self.facts: Sequence[str] = ()
        self._before = 0.0  # seconds of work before the current stretch
        self._since: float | None = None
        self._samples: deque[tuple[float, float]] = deque()

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._since is not None else 0.0)

    def go_on(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def pause(self) -> None:
        self._before, self._since = self.seconds, None

    def update(self, done: float, total: int, facts: Sequence[str]) -> None:
        self.done, self.total, self.facts = done, total, facts
        now = self.seconds
        if not self._samples or done < self._samples[-1][1]:
            self._samples = deque([(now, done)])
        elif now - self._samples[-1][0] >= 0.25:
            self._samples.append((now, done))
            while len(self._samples) > 4 and now - self._samples[0][0] > _WINDOW:
                self._samples.popleft()

    @property
    def per_second(self) -> float:
        """How much is done in a second; 0.0 if that is not known yet."""
        if len(self._samples) < 2:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began)

    @property
    def seconds_left(self) -> float | None:
        speed = self.per_second
        if not self.total or speed <= 0:
            return None
        idle = self.seconds - self._samples[-1][0]  # within a long step the time goes on
        left = (self.total - self._samples[-1][1]) / speed - idle
        return max(left, 0.0)

    def line(self, width: int | None, *, is_ascii: bool = False) -> str:
        """Return the live line of at most `width` columns; None for the plain one."""
        facts, done = self.facts, self.done
        if not facts and self.kind.unit in ("images", "bytes") and self.per_second:
            facts = (_rate(self.kind, self.per_second),)
        if self.per_second and 1 / self.per_second < _SLOW_STEP:
            done = int(done)
        said = self.kind, done, self.total, facts, self.seconds_left
        if width is None:
            return plain_line(*said, elapsed=self.seconds)
        return line(*said, width, elapsed=self.seconds, is_ascii=is_ascii)


def _rate(kind: Kind, per_second: float) -> str:
    if kind.unit == "bytes":
        return f"{per_second / 1e6:,.1f} MB/s"
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"


class Live:
    """Shows progress; itself a `bitzoo.files.Progress`. Made by `live`; safe in threads."""

    told_seconds = PLAIN_SECONDS
    is_redrawn = False
    """Whether it is a line that changes, as in a terminal or a notebook."""

    def __init__(self) -> None:
        self.label = ""
        """What is shown with the time where nothing is reported for a while; empty for nothing."""
        self._stages: dict[str, _Stage] = {}
        self._stage: _Stage | None = None
        self._idle_since = time.monotonic()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show progress, as any `bitzoo.files.Progress` does."""
        self.show(task, done, total)

    def show(self, task: str, done: float, total: int, *, facts: Sequence[str] = ()) -> None:
        """Show progress, with numbers beside it.

        Args:
            task: Name of the work; the same name is the same work until that is done.
            done: How much is done; a fraction is part of the next.
            total: How much there is; 0 if that is not known. It may change.
            facts: More to say about the work now, the most important first.
        """
        with _lock:
            if self._stage is None or self._stage.task != task:
                self._interrupt()
                self._stage = self._stages.setdefault(task, _Stage(task))
                self._began()
            stage = self._stage
            stage.go_on()
            stage.update(done, total, facts)
            if 0 < total <= done:
                self._interrupt()
                del self._stages[task]
                self._finish(stage)
            else:
                self._progressed(stage)

    def _interrupt(self) -> None:
        if self._stage is not None:
            self._stage.pause()
            self._stage = None
            self._idle_since = time.monotonic()

    def _finish(self, stage: _Stage) -> None:
        if stage.kind.is_told or stage.seconds >= self.told_seconds:
            self._leave(finished(stage.kind, stage.total, stage.seconds, stage.facts))
        else:
            self._clear()

    def _began(self) -> None:
        """Take note that another stage is worked on."""

    def _progressed(self, stage: _Stage) -> None:
        """Show the stage, now or soon."""

    def _leave(self, text: str) -> None:
        """Write a line that stays."""

    def _clear(self) -> None:
        """Take away the line of a stage that leaves none."""

    def open(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End, without a trace of what was not finished."""


class _Plain(Live):
    """A line every few seconds, for files, pipes and terminals that can do no more."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._last = stream, time.monotonic()
        self._told: set[str] = set()

    def _progressed(self, stage: _Stage) -> None:
        now = time.monotonic()
        is_first = stage.kind.is_told and stage.task not in self._told and stage.done >= 1
        if is_first or now - self._last >= PLAIN_SECONDS:
            if stage.done >= 1:
                self._told.add(stage.task)
            self._last = now
            self._write(stage.line(None))

    def _leave(self, text: str) -> None:
        self._last = time.monotonic()
        self._write(text)

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Terminal(Live):
    """The last line of a terminal, redrawn by a thread; other output appears above it."""

    told_seconds = TOLD_SECONDS
    is_redrawn = True

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._is_ascii = not _can_encode(stream, "━─…")
        self._drawn, self._width = 0, 0
        self._is_dirty, self._mid_line, self._is_new = False, False, False
        self._ended = threading.Event()
        self._before: dict[str, TextIO] = {}
        self._thread = threading.Thread(target=self._redraw, name="progress", daemon=True)

    def open(self) -> None:
        """Begin, with the standard streams wrapped that are terminals."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._before[name] = stream
                setattr(sys, name, _Above(stream, self))
        self._thread.start()

    def close(self) -> None:
        """Erase the line and give the streams back."""
        self._ended.set()
        self._thread.join()
        with _lock:
            self._erase()
            for name, stream in self._before.items():
                setattr(sys, name, stream)

    def write_above(self, stream: TextIO, text: str) -> int:
        """Write what other code prints; the line comes back after the next line break."""
        with _lock:
            self._erase()
            count = stream.write(text)
            stream.flush()
            if text:
                self._mid_line = not text.endswith("\n")
            return count

    def _began(self) -> None:
        self._mid_line = False  # a question that was asked has been answered
        self._is_new = True

    def _progressed(self, stage: _Stage) -> None:
        self._is_dirty = True
        if self._is_new and stage.kind.is_told:  # others may be over before they can be read
            self._draw(_columns(self._stream))
        self._is_new = False

    def _leave(self, text: str) -> None:
        self._erase()
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _clear(self) -> None:
        self._is_dirty = True

    def _redraw(self) -> None:
        last = 0.0
        while not self._ended.wait(REDRAW_SECONDS):
            with _lock:
                now, width = time.monotonic(), _columns(self._stream)
                if self._ended.is_set():
                    return
                if self._is_dirty or width != self._width or now - last >= 0.5:
                    last = now
                    self._draw(width)

    def _draw(self, width: int) -> None:
        idle = time.monotonic() - self._idle_since
        if self._mid_line:
            return
        # One column stays free: in the last one, terminals differ in when they wrap.
        if self._stage is not None:
            text = self._stage.line(width - 1, is_ascii=self._is_ascii)
        elif self.label and idle > _IDLE_SECONDS:
            text = cut(f"{self.label}  {duration(idle)}", width - 1)
        else:
            self._erase()
            return
        resized = "\x1b[J" if self._drawn and width != self._width else ""
        padding = " " * (min(self._drawn, width - 1) - columns_of(text))
        self._put(f"\r{resized}{text}{padding}\r")
        self._drawn, self._width, self._is_dirty = columns_of(text), width, False

    def _erase(self) -> None:
        if self._drawn:
            width = _columns(self._stream)
            resized = "\x1b[J" if width != self._width else ""
            self._put(f"\r{resized}{' ' * min(self._drawn, width - 1)}\r")
            self._drawn, self._is_dirty = 0, True

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._stream.write(text)
            self._stream.flush()


class _Above:
    """A standard stream while there is a live line: what is written appears above that."""

    def __init__(self, stream: TextIO, terminal: _Terminal) -> None:
        self._stream, self._terminal = stream, terminal

    def write(self, text: str) -> int:
        return self._terminal.write_above(self._stream, text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Notebook(Live):
    """One output of a cell, updated in place: the lines that stay, and the live one."""

    told_seconds = TOLD_SECONDS
    is_redrawn = True

    def __init__(self, display: Callable[..., Any]) -> None:
        super().__init__()
        self._display, self._handle = display, None
        self._lines: list[str] = []
        self._last = 0.0

    def close(self) -> None:
        """Leave only the lines that stay."""
        self._stage = None
        if self._handle is not None:
            self._update()

    def _progressed(self, stage: _Stage) -> None:
        now = time.monotonic()
        if now - self._last >= NOTEBOOK_SECONDS:
            self._last = now
            self._update()

    def _leave(self, text: str) -> None:
        self._lines.append(text)
        self._update()

    def _update(self) -> None:
        shown = [self._stage.line(100)] if self._stage else []
        content = {"text/plain": "\n".join([*self._lines, *shown])}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


@contextlib.contextmanager
def live(*, plain: bool = True, label: str = "") -> Iterator[Live]:
    """Yield what shows progress: a live line, or plain lines on stderr.

    If there is a live line already, as around a command that downloads, it is that one.

    Args:
        plain: Whether to write plain lines where there is neither a terminal nor a notebook.
        label: What is shown, with the time, while nothing is reported: the name of the command.
    """
    with _lock:
        outer = _current[-1] if _current else None
        shown = outer or _new(plain)
        _current.append(shown)
    try:
        if not outer:
            shown.label = label
            shown.open()
        yield shown
    finally:
        _current.pop()
        if not outer:
            shown.close()


@contextlib.contextmanager
def shown(progress: Callable[[str, int, int], None] | bool | None) -> Iterator[Any]:
    """Yield the callback that a caller of the library wants.

    Each public function that may take long has this option, and what it calls follows it: within a
    `shown`, None means what that one yields.

    Args:
        progress: A callback, which is used; True for what `live` shows; False for nothing; None for
            a live line in a terminal or a notebook, and nothing elsewhere. Of several processes
            that share a terminal, only the first has one.
    """
    outer = _answered.get()
    with contextlib.ExitStack() as stack:
        if progress is None and outer:
            found = outer.callback
        elif progress is True or (progress is None and is_live() and _is_first_process()):
            found = stack.enter_context(live())
        else:
            found = progress or None
        token = _answered.set(_Answer(found))
        try:
            yield found
        finally:
            _answered.reset(token)


def _is_first_process() -> bool:
    """Whether no other process of torchrun or accelerate shows what this one would."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def is_live() -> bool:
    """Whether there is a place for a live line: a terminal on stderr, or a notebook."""
    return bool(_current) or _notebook_display() is not None or _is_terminal(sys.stderr)


def _new(plain: bool) -> Live:
    if display := _notebook_display():
        return _Notebook(display)
    if _is_terminal(sys.stderr):
        return _Terminal(sys.stderr)
    return _Plain(sys.stderr) if plain and sys.stderr is not None else Live()


def _is_terminal(stream: TextIO | None) -> bool:
    return bool(stream and stream.isatty()) and os.environ.get("TERM") != "dumb"


def _notebook_display() -> Callable[..., Any] | None:
    """Return IPython's `display` if this runs in the kernel of a notebook; nothing is imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    shows: Callable[..., Any] = display
    return shows


def _columns(stream: TextIO) -> int:
    """Return the width of the terminal now; at least 20."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return max(columns or shutil.get_terminal_size().columns, 20)


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
