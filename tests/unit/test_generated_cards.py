"""`model_cards/` is what the catalogue says now."""

import re

import pytest
from huggingface_hub import ModelCard

from bitzoo import get_spec, list_models
from bitzoo.model_cards.text import validate_card
from model_cards import FOLDER, INDEX, render_all

WANTED = render_all()


@pytest.mark.parametrize("name", WANTED)
def test_a_card_is_up_to_date(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == WANTED[name], "run `make cards`"


def test_there_are_no_others():
    assert {path.name for path in FOLDER.iterdir()} == set(WANTED)


@pytest.mark.parametrize("name", [name for name in WANTED if name != INDEX])
def test_the_hub_takes_it(name):
    validate_card(WANTED[name])
    licensed = ModelCard(WANTED[name]).data["license"]
    assert licensed == (None if name.startswith("BiT-L") else "apache-2.0")


def test_the_index_has_every_model():
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\)(?: \((\d+) checkpoints\))? \|", WANTED[INDEX], re.M)
    assert [file for _, file, _ in rows] == [name for name in WANTED if name != INDEX]
    assert sum(int(count or 1) for *_, count in rows) == len(list_models())


def test_scores_of_the_index_are_the_catalogues():
    found = re.findall(r"^\| \[(\S+)\]\(.*\| ([\d.]+) % on [^|]+ \| [^|]* \|$", WANTED[INDEX], re.M)
    assert len(found) == 14
    for name, value in found:
        assert float(value) in [metric.value for metric in get_spec(name).metrics]


def test_a_vtab_card_has_its_57():
    text = WANTED["BiT-M-R50x1-VTAB.md"]
    assert "57 checkpoints of one network" in text
    assert len(re.findall(r"^\| [\w-]+ \| \d+ \| RGB", text, re.M)) == 19
