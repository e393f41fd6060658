"""docs/reference/training-options.md has every option of finetune once, with its default."""

import inspect
import re
from pathlib import Path

import bitzoo
from bitzoo.cli.finetune import finetune

PAGE = Path(__file__).parents[2] / "docs/reference/training-options.md"
GIVEN = {"model", "model_argument", "data", "out"}
NOT_ON_THE_COMMAND_LINE = {"keep_checkpoints", "progress", "callbacks"}
NOT_IN_PYTHON = {"yes", "json", "debug"}
NAMES_OF = {"--random": "pretrained", "--no-flip": "flip"}


def listed():
    """The names in the first column of the tables of all options -> the second."""
    part = PAGE.read_text().split("## All options")[1].split("\n## ")[0]
    found = {}
    for first, second in re.findall(r"^\| (`.+?) \| (.+?) \|", part, re.M):
        names = [re.sub(r"=.*", "", name) for name in re.findall(r"`(.+?)`", first)]
        for name in dict.fromkeys(NAMES_OF.get(n, n.lstrip("-").replace("-", "_")) for n in names):
            assert name not in found, f"{name} is listed twice"
            found[name] = second
    return found


def test_every_option_is_there_once():
    python = set(inspect.signature(bitzoo.finetune).parameters) - GIVEN
    command = {parameter.name for parameter in finetune.params} - GIVEN
    assert command - NOT_IN_PYTHON == python - NOT_ON_THE_COMMAND_LINE
    assert set(listed()) == python | NOT_IN_PYTHON


def test_defaults_are_those_of_the_function():
    parameters, compared = inspect.signature(bitzoo.finetune).parameters, 0
    for name, said in listed().items():
        default = parameters[name].default if name in parameters else False
        plain = said.strip("`")
        if default is False:
            assert said == "off", name
        elif isinstance(default, str):
            assert plain == default, name
        elif name != "pretrained" and default is not None:
            assert float(plain) == default, name
        else:
            continue
        compared += 1
    assert compared > 15


def test_what_is_said_of_the_rest_is_the_rule():
    found = listed()
    rule = bitzoo.hyperrule(3000, (480, 640))
    assert float(found["batch_size"]) == rule.batch_size
    assert float(found["lr"]) == rule.schedule.base_lr
