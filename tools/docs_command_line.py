"""A hook of MkDocs: the commands and their options into docs/reference/command-line.md, from click.

The page has a line `<!-- commands -->`. A list, unlike a table, reads well on a phone, and its
words are those of `--help`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

import click

import bitzoo
from bitzoo.cli.main import app

PAGE = "reference/command-line.md"
MARK = "<!-- commands -->"
_EXAMPLE = "Example: "
_AS_IT_IS = "\b\n"
"""What click has before a paragraph whose lines stay."""
_WIDTH = 60
"""Characters of a line of an example: few, for a phone."""
_OF_ALL = {"--debug", "--help"}
"""Options of every command, which the page's first lines tell of."""
_IN_PYTHON = {"list": "list_models"}
_SPECIAL = re.compile(r"([\\`*_<>\[\]|])")
_CODE = re.compile(
    r"'[^' ]*\*[^' ]*'|\"[^\" ]*\*[^\" ]*\"|(?<![\w-])--?[a-z][\w-]*|\bbitzoo [a-z]+"
    r"|(?<!\w)(?:hf|tfds|torchvision|tar):\w+(?:@\w+)?"
)
"""What is code in the words of a help: patterns, flags, commands, names of data sets."""


def on_page_markdown(markdown: str, page: object, **_: object) -> str | None:
    """Fill in the commands; called by MkDocs for each page."""
    if getattr(page, "file").src_uri != PAGE:  # noqa: B009  MkDocs is not needed to import this
        return None
    if MARK not in markdown:
        raise ValueError(f"{PAGE} has no line {MARK}")
    return markdown.replace(MARK, "\n".join(lines()))


def lines() -> Iterator[str]:
    """Yield the page's Markdown: a table of all commands, and a section for each."""
    context = click.Context(app, info_name="bitzoo")
    commands = [(name, command) for name, command in app.commands.items() if not command.hidden]
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in commands:
        yield f"| [`{name}`](#{name}) | {_text(command.get_short_help_str(200))} |"
    for name, command in commands:
        yield from _section(name, command, click.Context(command, context, info_name=name))


def _section(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n## bitzoo {name} {{ #{name} }}\n"
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"```text\nbitzoo {name} {pieces}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        words = " ".join(paragraph.split())
        if paragraph.startswith(_AS_IT_IS):
            yield f"```text\n{paragraph.removeprefix(_AS_IT_IS)}\n```\n"
        elif words.startswith(_EXAMPLE):
            yield f'```text title="Example"\n{_wrapped(words.removeprefix(_EXAMPLE))}\n```\n'
        else:
            yield f"{_text(words)}\n"
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if not _OF_ALL & {*parameter.opts}:
            yield _option(parameter, context)
    if python := _IN_PYTHON.get(name, name if name in bitzoo.__all__ else None):
        yield f"\nIn Python: [`bitzoo.{python}`][bitzoo.{python}]"


def _wrapped(command: str) -> str:
    """Return a long command in several lines, as a shell takes it."""
    lines = textwrap.wrap(
        command, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _option(option: click.Option, context: click.Context) -> str:
    """Return an item of the list: names, values, help, default."""
    extra = option.get_help_extra(context)
    names = ", ".join(option.opts)
    if option.secondary_opts:
        names = f"{names} / {', '.join(option.secondary_opts)}"
    value = "" if option.is_flag else f" {_value(option, context)}"
    words = _text(" ".join((option.help or "").split()))
    if "default" in extra:
        words += f" Default: `{extra['default']}`."
    if extra.get("required"):
        words += " **Required.**"
    return f"- `{names}{value}`: {words}"


def _value(option: click.Option, context: click.Context) -> str:
    if isinstance(option.type, click.Choice) and option.metavar is None:
        return "|".join(map(str, option.type.choices))
    return option.make_metavar(context)


def _text(words: str) -> str:
    """Return words of a help as Markdown: what is code, as code; what is special, escaped."""
    found, end = [], 0
    for code in _CODE.finditer(words):
        found += [_SPECIAL.sub(r"\\\1", words[end : code.start()]), f"`{code[0]}`"]
        end = code.end()
    return "".join([*found, _SPECIAL.sub(r"\\\1", words[end:])])
