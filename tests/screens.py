"""A command on a terminal of its own: a pseudo-terminal, whose screen `pyte` emulates.

terminal = Terminal(["finetune", ...], columns=80, rows=24, folder=tmp_path)
terminal.until("training")
print(terminal.text())
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte


class Terminal:
    """A running command and its screen.

    Attributes:
        screen: The emulated screen, with everything that scrolled off in `screen.history.top`.
        process: The command.
        seen: Every different screen, in order, as text.
        folder: Where it runs.
    """

    def __init__(self, command, *, columns, rows, folder, environment=None):
        """Start a command, or `bitzoo` with these arguments if the first is no path."""
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self.seen: list[str] = []
        self.folder = Path(folder)
        self._stream = pyte.ByteStream(self.screen)
        self._main, child = pty.openpty()
        self._set_size(child, columns, rows)
        if not os.path.isabs(command[0]):
            command = [sys.executable, "-m", "bitzoo", *command]
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=folder,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
            # The command's own session, with this terminal: Ctrl-C reaches it and nothing else.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size, as if its window were dragged."""
        self.screen.resize(rows, columns)
        self._set_size(self._main, columns, rows)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def press(self, keys: bytes) -> None:
        """Type; ``b"\\x03"`` is Ctrl-C."""
        os.write(self._main, keys)

    def text(self) -> str:
        """Return the screen without the empty lines at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def lines(self) -> list[str]:
        """Return all lines, those that scrolled off first."""
        gone = [
            "".join(line[column].data for column in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return [*gone, *self.text().splitlines()]

    def until(self, text: str | Callable[[str], object], timeout: float = 120) -> str:
        """Wait until a text is on the screen, or it meets a condition; returns the screen."""
        met = text if callable(text) else lambda screen: text in screen
        end = time.monotonic() + timeout
        while not met(self.text()):
            if not self._read(end) and not met(self.text()):
                raise AssertionError(f"never came: {text}\n{self.text()}")
        return self.text()

    def finish(self, timeout: float = 180) -> int:
        """Read until the command has ended; returns its status."""
        end = time.monotonic() + timeout
        while self._read(end):
            pass
        os.close(self._main)
        return self.process.wait(max(0.1, end - time.monotonic()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._main)

    def _read(self, end: float) -> bool:
        """Feed what has come to the screen; False at the end of the output, or of the time."""
        ready, _, _ = select.select([self._main], [], [], max(0, end - time.monotonic()))
        if not ready:
            raise TimeoutError(f"nothing new on the screen:\n{self.text()}")
        try:
            data = os.read(self._main, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return False
        # A busy machine gives several drawings at once; each is seen, as a person would see it.
        for drawing in re.findall(rb"[^\r\n]*[\r\n]+|[^\r\n]+", data):
            self._stream.feed(drawing)
            if not self.seen or self.seen[-1] != self.text():
                self.seen.append(self.text())
        return bool(data)

    @staticmethod
    def _set_size(descriptor: int, columns: int, rows: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def image_of(text: str, columns: int, rows: int) -> str:
    """Return a screen with a frame, as in the documentation."""
    lines = text.splitlines()
    lines += [""] * (rows - len(lines))
    edge = "+" + "-" * columns + "+"
    return "\n".join([edge, *(f"|{line:<{columns}}|" for line in lines), edge])


def folder_of_digits(folder: Path, size: int = 8) -> Path:
    """Make a small checkpoint and a folder of 700 digits; returns `folder`."""
    from checkpoints import make_checkpoint, write_npz
    from images import write_digits

    write_digits(folder / "digits", per_class=50, val_per_class=20, size=size)
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    return folder


# --- the screens of docs/reference/terminal.md ------------------------------------------------

SIZES = ((80, 24), (120, 40))
STEPS = 40
MOMENTS: dict[str, str] = {
    "checking": r"^checking .*\d/700 images  .* left$",
    "training begins": rf"^training .*step  0/{STEPS}",
    "training in the middle": rf"^training .*step 2\d/{STEPS}  loss .* images/s  .* left$",
    "trained, not yet judged": rf"^trained {STEPS} steps in .*\Z",
    "finished": r"^next ",
}
"""A moment of a run, and the line by which its screen is known."""


def finetune_words(*more):
    """A run of a small network, in the folder of `folder_of_digits`."""
    words = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    words += ["--steps", str(STEPS), "--batch-size", "32", "--lr", "0.03", "--micro-batch", "16"]
    return [*words, "--resolution", "36,32", "--eval-every", "20", *more]


def watch_finetuning(folder, columns, rows, **environment):
    """Run it; returns the finished terminal, and the screen of each moment."""
    own = {"BITZOO_CACHE": str(folder / f"cache-{columns}"), "OMP_NUM_THREADS": "1", **environment}
    words = finetune_words("--overwrite")
    with Terminal(words, columns=columns, rows=rows, folder=folder, environment=own) as terminal:
        assert terminal.finish(300) == 0, terminal.text()
    screens = {}
    for moment, line in MOMENTS.items():
        found = [screen for screen in terminal.seen if re.search(line, screen, re.M)]
        screens[moment] = found[len(found) // 2] if found else ""
    return terminal, screens


def write_document(path: Path) -> None:
    """Put new screens into the document, between its headings and its prose."""
    with tempfile.TemporaryDirectory() as name:
        folder = folder_of_digits(Path(name), size=160)
        parts = [path.read_text(encoding="utf-8").split("\n## 80 x 24")[0]]
        for columns, rows in SIZES:
            parts.append(f"\n## {columns} x {rows}\n")
            _, screens = watch_finetuning(folder, columns, rows)
            for moment, screen in screens.items():
                parts.append(
                    f"\n{moment.capitalize()}:\n\n```text\n{image_of(screen, columns, rows)}\n```\n"
                )
    path.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    write_document(Path(sys.argv[1]))
