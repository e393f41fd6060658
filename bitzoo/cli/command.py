"""The base of all commands: errors become one paragraph that names flags.

Exit codes: 0 success; 1 a proof failed, or some of the images could not be read; 2 bad input or
usage; 128 + the signal that ended it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import click

from bitzoo.cli.console import say
from bitzoo.display import visible
from bitzoo.errors import BitzooError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DEBUG = "bitzoo.debug"
"""Key of a context's `meta`: whether the traceback of an error is shown."""

_PYTHON_OPTION = re.compile(r"`(\w+)(?:=([^`]+))?`")


class Command(click.Command):
    """A command that reports errors of bitzoo and of the operating system.

    The library writes an option as Python code in backticks: `` `val_fraction` ``,
    `` `force=True` ``, `` `dtype="float16"` ``. If the command has that option, the user sees its
    flag: ``--val-fraction``, ``--force``, ``--dtype float16``.

    With ``logs=False``, this is not done for logged warnings: no warning can name an option of the
    command, and `logging`, whose import takes 5 ms, is left out.
    """

    def __init__(self, *arguments: Any, logs: bool = True, **options: Any) -> None:
        self._logs = logs
        options["context_settings"] = SETTINGS | (options.get("context_settings") or {})
        super().__init__(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click handles a broken pipe."""
        try:
            with _rewritten_warnings(self.with_flags) if self._logs else nullcontext():
                return super().invoke(ctx)
        except BitzooError as error:
            fail(ctx, self.with_flags(str(error)), error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            fail(ctx, describe_os_error(error))

    def with_flags(self, message: str) -> str:
        """Return a library message with Python options replaced by this command's flags."""
        return _PYTHON_OPTION.sub(self._flag, message)

    def _flag(self, match: re.Match[str]) -> str:
        name, value = match.groups()
        for option in self.params:
            if option.name == name and isinstance(option, click.Option):
                return _flag_of(option, value) or match[0]
        return match[0]


def _flag_of(option: click.Option, code: str | None) -> str | None:
    """Return an option as written on the command line, with its value if there is one.

    Args:
        option: The command's option.
        code: The value as Python code; None for the option itself.

    Returns:
        The text, or None if the command line cannot express it.
    """
    import ast

    flag = max(option.opts, key=len)
    if code is None:
        return flag
    try:
        value = ast.literal_eval(code)
    except (SyntaxError, ValueError):
        return None
    if not option.is_flag:
        return None if isinstance(value, bool) else f"{flag} {value}"
    if value is (option.flag_value is not False):  # unless declared otherwise, a flag means True
        return flag
    return option.secondary_opts[0] if option.secondary_opts and value is False else None


@contextmanager
def _rewritten_warnings(rewrite: Callable[[str], str]) -> Iterator[None]:
    """Rewrite the library's warnings too, if Python's last-resort handler prints them."""
    import logging

    class Rewritten(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(rewrite(super().format(record)))

    handler = logging.lastResort
    if handler is None:
        yield
        return
    before = handler.formatter
    handler.setFormatter(Rewritten())
    try:
        yield
    finally:
        handler.formatter = before


def fail(ctx: click.Context, message: str, code: int = 2) -> NoReturn:
    """Report the exception that is being handled, and exit."""
    if ctx.meta.get(DEBUG):
        import traceback

        say(traceback.format_exc().rstrip(), error=True)
    say(f"error: {message}", error=True)
    ctx.exit(code)


def as_flags(message: object) -> str:
    """Return a message of the library with the flags of the running command."""
    command = click.get_current_context().command
    return command.with_flags(str(message)) if isinstance(command, Command) else str(message)


def describe_error(error: BaseException | None) -> str:
    """Return an error's message with the flags of the running command."""
    return as_flags(error)


def describe_os_error(error: OSError) -> str:
    """Return what the operating system reported, and what to check."""
    what = f"{error.filename}: " if error.filename else ""
    return f"{what}{error.strerror or error}. Check the path, its permissions and the disk."
