"""What a page of the documentation asks for: its blocks, and the files that it assumes.

    ```bash             commands; exit status 0, or that of `<!-- exit: 2 -->` before the block
    ```python           a snippet; all of a page run in one interpreter
    ```toml title="x"   written as the file x, in any language but text
    ```text             shown, not run, and so is every other language

and in the front matter `given: [photos/, new.jpg]`, or in a comment in the first line, as in the
README, whose front matter GitHub would show. What looks like a command but would not be run
is a fault: another name of a language that is run, a block without a language, four spaces without
a fence. A text block may begin with a command if its title ends in "not run here".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from markdown_it import MarkdownIt

Kind = Literal["bash", "python", "file", "shown"]

OTHER_NAMES = {
    **dict.fromkeys(("sh", "shell", "zsh", "console", "shell-session", "terminal"), "bash"),
    **dict.fromkeys(("py", "python3", "pycon", "ipython", "py3"), "python"),
}
NOT_RUN = "not run here"
"""How the title of a block ends whose commands are shown as text."""
_COMMAND = re.compile(
    r"(\$ |>>> )?((bitzoo|bitzoo-convert|pip|pip3|python|python3|torchrun|accelerate|hf|make|git|"
    r"curl|wget|export|docker|uv|conda|tensorboard) [\w\"'./-]|import \w|from [\w.]+ import )"
)
_CONTAINER = re.compile(r"( *)(===[+!]?|!!!|\?\?\?\+?) ")
_GIVEN = re.compile(r"<!-- (given: \[.*\]) -->")
_EXIT = re.compile(r"<!-- exit: (\d+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: What is done with it.
        line: Of its first line of content, counted from 1.
        text: Its content.
        title: Its title; the name of the file that is written.
        status: Exit status that is expected of commands.
    """

    kind: Kind
    line: int
    text: str
    title: str = ""
    status: int = 0


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        path: Its file.
        given: What its reader has before the first line.
        blocks: All fenced blocks, in order.
        faults: What breaks the convention, as "line: what".
    """

    path: Path
    given: tuple[str, ...]
    blocks: tuple[Block, ...]
    faults: tuple[str, ...]

    @property
    def not_run(self) -> tuple[Block, ...]:
        """Blocks that say in their title that they are not run."""
        return tuple(block for block in self.blocks if block.title.endswith(NOT_RUN))

    @property
    def runs(self) -> bool:
        """Whether anything of the page is run."""
        return any(block.kind in ("bash", "python") for block in self.blocks)


def read_page(path: Path) -> Page:
    """Read a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    meta = _front_matter(lines)
    given = meta.get("given") or []
    faults = [] if isinstance(given, list) else [f"1: `given` must be a list, found {given!r}"]
    blocks = []
    for line, words, text, before in _fences(_without_containers(lines)):
        try:
            blocks.append(_block(line, words, text, before))
        except ValueError as fault:
            faults.append(f"{line - 1}: {fault}")
    faults += _code_without_fences(_without_containers(lines))
    return Page(path, tuple(map(str, given)), tuple(blocks), tuple(faults))


def _front_matter(lines: list[str]) -> dict[str, Any]:
    """Take the front matter out of the lines, which stay as many."""
    comment = _GIVEN.fullmatch(lines[0]) if lines else None
    if comment:
        return dict(yaml.safe_load(comment[1]))
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1)
    meta = yaml.safe_load("\n".join(lines[1:end])) or {}
    lines[: end + 1] = [""] * (end + 1)
    return dict(meta)


def _without_containers(lines: list[str]) -> list[str]:
    """Take what is inside tabs, admonitions and details out of them; the lines stay as many."""
    lines, number, fence = list(lines), 0, ""
    while number < len(lines):
        mark = re.match(r" *(```+|~~~+)", lines[number])
        if mark:
            fence = "" if fence else mark[1]
        match = None if fence else _CONTAINER.match(lines[number])
        if match:
            indent = len(match[1])
            lines[number] = ""
            for inner in range(number + 1, len(lines)):
                text = lines[inner]
                if text.strip() and not text.startswith(" " * (indent + 4)):
                    break
                lines[inner] = text[:indent] + text[indent + 4 :]
        number += 1
    return lines


def _fences(lines: list[str]) -> list[tuple[int, str, str, str]]:
    """Line, what stands after the backticks, content, and the last line before, of each fence."""
    found = []
    for token in MarkdownIt("commonmark").parse("\n".join(lines) + "\n"):
        if token.type == "fence" and token.map:
            start = token.map[0]
            before = next((line for line in reversed(lines[:start]) if line.strip()), "")
            found.append((start + 2, token.info.strip(), token.content, before.strip()))
    return found


def _code_without_fences(lines: list[str]) -> list[str]:
    """Four spaces without a fence, that hold a command."""
    return [
        f"{token.map[0] + 1}: a command that is only indented: give it a fence with a language"
        for token in MarkdownIt("commonmark").parse("\n".join(lines) + "\n")
        if token.type == "code_block" and token.map
        and any(_COMMAND.match(line.strip()) for line in token.content.splitlines())
    ]  # fmt: skip


def _block(line: int, words: str, text: str, before: str) -> Block:
    braces = re.match(r"\{\s*\.([\w+-]+)", words)
    language = braces[1] if braces else re.split(r"[\s{]", words)[0]
    title_match = re.search(r"""title=(["'])(.*?)\1""", words)
    title = title_match[2] if title_match else ""
    status = _EXIT.fullmatch(before)
    first = next((one for one in text.splitlines() if one.strip()), "").strip()
    if language in OTHER_NAMES:
        raise ValueError(f"```{language} is not run: call it ```{OTHER_NAMES[language]}")
    if not language:
        raise ValueError("a block without a language: ```text is shown, ```bash is run")
    if status and language != "bash":
        raise ValueError("an exit status stands before a block that is not ```bash")
    if language != "text" and re.fullmatch(r"[\w-][\w./-]*\.\w+", title):
        return Block("file", line, text, title)
    if language in ("bash", "python"):
        if re.match(r"\$ |>>> ", first):
            raise ValueError("a prompt in a block that is run")
        kind: Kind = "bash" if language == "bash" else "python"
        return Block(kind, line, text, title, int(status[1]) if status else 0)
    if language == "text" and _COMMAND.match(first) and not title.endswith(NOT_RUN):
        raise ValueError(f'a command as text: run it, or let its title end in "{NOT_RUN}"')
    return Block("shown", line, text, title)


def spans_of(path: Path) -> list[tuple[int, str]]:
    """Line and text of every code span inside a sentence, a list or a table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    _front_matter(lines)
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(_without_containers(lines)))
    return [
        (token.map[0] + 1, child.content)
        for token in tokens
        if token.type == "inline" and token.map
        for child in token.children or ()
        if child.type == "code_inline"
    ]
