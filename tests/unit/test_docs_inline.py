"""Commands and options that the pages name inside a sentence, or show without running, exist."""

import re
import shlex

import pytest
from docs_world.groups import all_pages
from docs_world.pages import read_page, spans_of

from bitzoo.cli.main import app

GLOBAL = {"--help", "--version", "--debug"}
OPTIONS = {
    name: {opt for option in command.params for opt in (*option.opts, *option.secondary_opts)}
    | GLOBAL
    for name, command in app.commands.items()
}
OF_OTHERS = {
    *("--index-url", "--no-index", "--find-links"),  # pip
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"),  # torchrun
    "--shutdown-timeout",  # torchrun
    "--some-option",  # of any command
}


def wrong_words(text):
    """What in a text that may hold commands is no command or option of bitzoo."""
    for part in re.split(r"\s(?:\||&&|;)\s|\n", text.replace("\\\n", " ")):
        words = shlex.split(part, comments=True)
        if "bitzoo-convert" in words[:1]:
            words = ["bitzoo", "convert", *words[1:]]
        if words[:1] == ["bitzoo"] and len(words) > 1:
            yield from _wrong_in_command(words[1], words[2:])
        elif words and words[0].startswith("--"):
            option = words[0].split("=")[0]
            if option not in OF_OTHERS and not any(option in known for known in OPTIONS.values()):
                yield option


def _wrong_in_command(name, words):
    if name.startswith("-"):
        if name not in GLOBAL:
            yield name
    elif name in OPTIONS:
        for word in words:
            if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in OPTIONS[name]:
                yield f"{name} {word}"
    elif not name.isupper() and "|" not in name:
        yield name


@pytest.mark.parametrize("name", all_pages())
def test_what_a_page_names_exists(name):
    path = all_pages()[name]
    ours: tuple[str, ...] = ("bitzoo ", "bitzoo-convert ")
    if not name.startswith("coming-from/"):  # which name the options of other libraries
        ours = (*ours, "--")
    wrong = [
        f"{line}: {found}"
        for line, text in spans_of(path)
        if text.startswith(ours)
        for found in wrong_words(text)
    ]
    for block in read_page(path).not_run:
        wrong += [f"{block.line}: {found}" for found in wrong_words(block.text)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("bitzoo list | wc -l", []),
        ("bitzoo finetune X --data 'a b' --steps=3", []),
        ("bitzoo finetune --stepz 3", ["finetune --stepz"]),
        ("bitzoo fintune", ["fintune"]),
        ("bitzoo COMMAND --help", []),
        ("bitzoo-convert --src x --dtst y", ["convert --dtst"]),
        ("--seed 3", []),
        ("--sead", ["--sead"]),
    ],
)
def test_what_does_not_exist_is_found(text, wrong):
    assert list(wrong_words(text)) == wrong
