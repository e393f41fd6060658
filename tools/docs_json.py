"""A hook of MkDocs: docs/reference/json.yml into its page, and as JSON Schemas beside it.

The page has the lines `<!-- documents -->`, `<!-- words -->` and `<!-- types -->`. Keys are lists,
which read well on a phone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from json_schemas import WORDS, keys_of, names_in, schema, source

PAGE = "reference/json.md"
FOLDER = "reference/schemas"
"""Where the schemas are in the site: NAME.json."""
_LEADS = {
    "": "An object with these keys",
    "list of ": "A list of objects with these keys",
    "map of ": "An object whose values are objects with these keys",
}
"""How a section says what a document is, by what comes before the type's name."""


def on_page_markdown(markdown: str, page: Any, **_: object) -> str | None:
    """Fill in what the file says; called by MkDocs for each page."""
    if page.file.src_uri != PAGE:
        return None
    for name, lines in (("documents", documents()), ("words", words()), ("types", types())):
        mark = f"<!-- {name} -->"
        if mark not in markdown:
            raise ValueError(f"{PAGE} has no line {mark}")
        markdown = markdown.replace(mark, "\n".join(lines))
    return markdown


def on_files(files: Any, *, config: Any, **_: object) -> None:
    """Add the schemas to the site's files, so that links to them are checked; called by MkDocs."""
    from mkdocs.structure.files import File  # only the docs extra has it

    for name in source()["documents"]:
        text = json.dumps(schema(name), indent=2) + "\n"
        files.append(File.generated(config, f"{FOLDER}/{name}.json", content=text))


def words() -> Iterator[str]:
    """Yield the words for types."""
    yield "| type | is |"
    yield "|---|---|"
    for word, (_, meaning) in WORDS.items():
        yield f"| *{word}* | {meaning} |"


def documents() -> Iterator[str]:
    """Yield a section for each document."""
    shown: set[str] = set()
    for name, entry in source()["documents"].items():
        yield f"\n## {entry['title']}\n"
        yield "\n".join(f"- {_code(place)}" for place in entry["from"]) + "\n"
        if "about" in entry:
            yield entry["about"].replace("->", "→") + "\n"
        (kind,) = names_in(entry["is"])
        file = f"[JSON Schema](schemas/{name}.json){{ download }}"
        if kind in shown:
            yield f"It is {_linked(entry['is'])} ({file}).\n"
        else:
            shown.add(kind)
            of = _LEADS[entry["is"].removesuffix(kind)]
            yield f"{of} ({file}):\n{{: #type-{kind.lower()} }}\n"
            yield from _keys(kind)


def types() -> Iterator[str]:
    """Yield a section for each type that is only a part of documents."""
    whole = {kind for entry in source()["documents"].values() for kind in names_in(entry["is"])}
    for name in source()["types"]:
        if name not in whole:
            yield f"\n### {name} {{ #type-{name.lower()} }}\n"
            yield from _keys(name)


def _keys(name: str) -> Iterator[str]:
    entry = source()["types"][name]
    if "about" in entry:
        yield entry["about"] + "\n"
    if "like" in entry:
        yield f"All keys of {_linked(entry['like'])}, and:\n"
    own = {key.removesuffix("?") for key in entry["keys"]}
    for key, (kind, meaning, optional) in keys_of(name).items():
        if key in own:
            may = ", may be missing" if optional else ""
            yield f"- `{key}` ({_linked(kind)}{may})" + (f": {meaning}" if meaning else "").replace(
                "->", "→"
            )
    yield ""


def _linked(kind: str) -> str:
    """Return a type in Markdown: words in italics, types as links, constants as code."""

    def shown(part: re.Match[str]) -> str:
        text = part[0]
        if text.startswith('"'):
            return f"`{text}`"
        if text[0].isupper():
            return f"[{text}](#type-{text.lower()})"
        return f"*{text}*" if text in WORDS else text

    return re.sub(r'"[^"]*"|\w+', shown, kind)


def _code(place: str) -> str:
    return place if "`" in place else f"`{place}`"
