"""Cards: metadata that huggingface_hub accepts, numbers that are the catalogue's, honest words."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import get_spec, list_models
from bitzoo.errors import UsageError
from bitzoo.model_cards.facts import TRAINING_SETS, license_text
from bitzoo.model_cards.render import CardSubject, render_card
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import escape, snippets, spark, validate_card
from bitzoo.models.architecture import ARCHITECTURES, Architecture

TINY = Architecture((1, 1, 1, 1), 0.5)
SOURCE = {"name": "x.npz", "bytes": 1234567, "sha256": "ab" * 32, "url": "https://host/x.npz"}
PROOF = {
    "output": {"sha256": "cd" * 32},
    "weights": {"tensors": 45, "params": 2055503, "differing": []},
    "logits": [
        {
            "oracle": "an oracle", "images": 2, "size": 97, "dtype": "float64",
            "relative_l2": 1.23e-15, "tolerance": 1e-11,
        }
    ],
}  # fmt: skip


def card_of(name, basis="google", **changes):
    info = ModelInfo.of_release(get_spec(name), Identity(name, basis, "the test"))
    known: dict[str, Any] = {"repo": f"lab/{name}", "info": info, "source": SOURCE, "proof": PROOF}
    return render_card(CardSubject(**known | changes))


def unknown_card(**changes):
    return card_of("BiT-M-R50x1", info=ModelInfo(TINY.name, 7), **changes)


ONE_OF_EACH_FAMILY = list({get_spec(n).family: n for n in list_models(released=True)}.values())


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_metadata_is_what_the_hub_expects(name):
    text = card_of(name)
    validate_card(text)
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    assert {"bitzoo", "timm", "transformers"} <= set(data["tags"])
    assert "base_model" not in data  # a format conversion is none of the Hub's relations
    known = [TRAINING_SETS[key].hub_id for key in ("ilsvrc-2012", "imagenet-21k")]
    assert set(data["datasets"]) <= set(known)


@pytest.mark.parametrize("name", list_models(released=True))
def test_every_released_card_has_its_numbers_and_no_others(name):
    spec, text = get_spec(name), card_of(name)
    shown = re.findall(r"^\| (top-\d|mean top-1) \| (\S+).* \| (\S+) % \| (.*) \|$", text, re.M)
    assert [(kind, float(value)) for kind, _, value, _ in shown] == [
        (metric.name, metric.value) for metric in spec.metrics
    ]
    for metric, (*_, how) in zip(spec.metrics, shown, strict=True):
        assert metric.source in how
        again = f"`bitzoo reproduce {name} --claim {metric.claim}"
        assert (f"| {again}" in how) == (not metric.reason)
        assert escape(metric.reason) in how
    assert ("None of these scores was measured again" in text) == bool(spec.metrics)
    assert ("No published score of this checkpoint" in text) == (not spec.metrics)
    for sentence in spec.unverified:
        assert escape(sentence) in text


def test_results_in_the_metadata_are_of_these_weights_only():
    results = ModelCard(card_of("BiT-M-R50x1-ILSVRC2012")).data["eval_results"]
    assert [(r.metric_type, r.metric_value) for r in results] == [
        ("accuracy", 80.386),
        ("top_5_accuracy", 95.694),
    ]
    assert {r.source_url for r in results} == {
        "https://github.com/huggingface/pytorch-image-models"
    }
    assert all("not measured again" in r.metric_name for r in results)
    # published for fine-tuned copies of it, so they are no results of this file
    assert ModelCard(card_of("BiT-M-R50x1")).data["eval_results"] is None


def test_a_21k_head_wants_a_sigmoid():
    text = card_of("BiT-M-R50x1")
    assert "**sigmoid, not softmax**" in text
    assert text.count(".sigmoid()") == 3
    assert ".softmax(" not in text
    text = card_of("BiT-S-R50x1")
    assert text.count(".softmax(-1)") == 3
    assert "sigmoid" not in text


@pytest.mark.parametrize("basis", ["file name", "stated", "mirror", "unknown"])
def test_a_name_alone_brings_no_published_number(basis):
    """A random R50x1 called like a release was published with Google's 80.386 once."""
    text = card_of("BiT-M-R50x1-ILSVRC2012", basis)
    data = ModelCard(text).data
    assert "eval_results" not in data.to_dict()
    assert "license" not in data.to_dict()
    assert "80.386" not in text
    assert "**not established**" in text
    assert "Google released the weights" not in text
    assert "datasets" not in data.to_dict()
    assert "central 448 x 448 px" in text  # how to prepare images is said, and on what ground


def test_a_publisher_may_vouch_and_the_card_says_so():
    text = card_of("BiT-M-R50x1-ILSVRC2012", "vouched")
    assert ModelCard(text).data["eval_results"][0].metric_value == 80.386
    assert "The publisher vouches that these are Google's numbers" in text
    assert "These are the numbers that Google released" not in text


def test_data_and_its_faults_are_cited():
    text = card_of("BiT-M-R50x1-ILSVRC2012")
    for data in TRAINING_SETS.values():
        for fact in data.facts:
            assert f"- {fact.text} ([source]({fact.source}))" in text
    assert "Fine-tuned on ILSVRC-2012 with BiT-HyperRule" in text
    assert "The shorter edge resized to 448 px (bilinear), central 448 x 448 px, RGB" in text
    text = card_of("BiT-M-R50x1-run0-dtd")
    assert (
        "- Both edges resized to 384 px regardless of the aspect ratio (bilinear), RGB, scaled"
        in text
    )
    assert "The task, vtab/dtd, has its own data" in text
    assert "beyer2022knowledge" in card_of("BiT-R50x1_224")


def test_source_and_proof_are_shown():
    text = card_of("BiT-M-R50x1")
    assert "| source | `x.npz`, 1,234,567 bytes |" in text
    assert f"| SHA-256 of the source | `{SOURCE['sha256']}` |" in text
    assert "| fetched from | https://host/x.npz |" in text
    assert "| weights | 45 tensors, 2,055,503 numbers, of the source | every bit equal |" in text
    assert "| 1.2e-15 relative L2 | 1e-11 |" in text
    assert f"`model.safetensors`, SHA-256 `{'cd' * 32}`" in text
    assert "| fetched from | a file on the publisher's disk |" in card_of(
        "BiT-M-R50x1", source=SOURCE | {"url": None}
    )
    assert "These are the numbers that Google released" in text
    assert "| identity | BiT-M-R50x1, fetched from Google, checksum verified (the test) |" in text
    assert "Nothing is proven yet" in card_of("BiT-M-R50x1", proof=None)


def test_of_an_unknown_file_nothing_is_claimed():
    text = unknown_card()
    validate_card(text)
    data = ModelCard(text).data.to_dict()
    assert "license" not in data
    assert "datasets" not in data
    assert data["library_name"] == "bitzoo"
    assert "What is not stated below is not known" in text
    assert "timm and transformers have no name for this architecture" in text
    assert "It is not known whether its outputs need a sigmoid or a softmax." in text
    assert "Ask whoever published this before you use it." in text
    assert "Google released the weights" not in text


def test_hostile_names_stay_text():
    hostile = "x|<script>`[a](javascript:1)\x1b[31m\n# fake.npz"
    text = unknown_card(source=SOURCE | {"name": hostile, "url": None, "note": hostile})
    validate_card(text)
    assert "\x1b" not in text
    assert "\n# fake" not in text
    assert "| note | x\\|\\<script\\>\\`\\[a\\](javascript:1)" in text


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_snippets_compile_and_name_the_repository(name):
    info = ModelInfo(name, 3, own_names=("a", "b", "c"), activation="softmax")
    found = snippets("lab/x", info)
    assert found.keys() == {"bitzoo", "timm", "transformers"}
    for text in found.values():
        compile(text, "card", "exec")
        assert '"lab/x"' in text or ':lab/x"' in text
    assert snippets("lab/x", replace(info, in_chans=4)).keys() == {"bitzoo"}  # timm builds 3
    assert snippets("lab/x", ModelInfo(TINY.name, 3)).keys() == {"bitzoo"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# no metadata", "The card has no metadata"),
        ("---\nlicense: [\n---\n", "metadata cannot be used"),
        ("---\n- a\n---\n", "metadata cannot be used"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - task: {}\n---\n", "cannot be used"),
    ],
)
def test_bad_metadata_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        validate_card(text)


def test_the_licence_is_the_projects_own_text():
    assert license_text("apache-2.0").splitlines()[0].strip() == "Apache License"
    assert license_text("mit") is None
    assert license_text(None) is None


def test_spark():
    assert spark([1, 2, 8]) == "▁▂█"
    assert spark([3, 3]) == "▁▁"


DRAFT = """---
license: apache-2.0
base_model: timm/resnetv2_50x1_bit.goog_in21k
base_model_relation: finetune
tags:
- bitzoo
---

<!--
A draft, written by bitzoo from what the run recorded. Add what only you know.
-->

# photos

## What it is

A classifier of my photos.

## Data

Taken by me in 2026.

```
## not a heading
```

## How to load it

`FOLDER` is where the files are.

## Limits

- Mine.

Written by bitzoo 0.0.1.
"""
HISTORY = [
    *(
        {"event": "train", "step": step, "loss": 2 / step, "lr": 0.003}
        for step in range(1, 101)
    ),
    {"event": "eval", "step": 50, "loss": 0.5, "top1": 0.75},
    {"event": "eval", "step": 100, "loss": float("nan"), "top1": 0.875},
    {"event": "start"},
]  # fmt: skip


def complete(draft=DRAFT, **changes):
    facts: dict[str, Any] = {
        "repo": "me/photos", "history": HISTORY, "proof": PROOF,
        "info": ModelInfo("R50x1", 2, own_names=("a", "b"), activation="softmax", license="mit"),
    }  # fmt: skip
    return complete_draft(draft, **facts | changes)


class TestARun:
    def test_the_draft_keeps_what_its_author_wrote(self):
        text = complete()
        validate_card(text)
        given = yaml.safe_load(DRAFT.split("---")[1])
        assert yaml.safe_load(text.split("---")[1]) == given | {"license": "mit"}
        headings = re.findall(r"^## (.*)$", text, re.M)
        assert headings == [
            "What it is", "Data", "not a heading", "Limits", "Curves", "Equal to the source",
            "How to use it", "Licence", "Citation",
        ]  # fmt: skip
        assert "Taken by me in 2026." in text
        assert "A draft" not in text
        assert "FOLDER" not in text
        assert text.count("Written by bitzoo") == 1
        assert '"hf-hub:me/photos"' in text

    def test_completing_twice_changes_nothing(self):
        once = complete()
        assert complete(once) == once

    def test_curves_are_the_recorded_numbers(self):
        text = complete()
        rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.M)
        steps = [int(step) for step, _ in rows]
        assert (steps[0], steps[-1], len(steps)) == (1, 100, 13)
        assert dict(rows)["50"] == "0.0400 | 3.00e-03 | 0.5000 | 75.00 %"
        assert dict(rows)["100"] == "0.0200 | 3.00e-03 |  | 87.50 %"
        line = re.search(r"over the steps: `(.*)`", text)[1]
        assert (len(line), line[0], line[-1]) == (40, "█", "▁")
        assert "## Curves" not in complete(history=[])

    def test_a_draft_without_metadata_is_refused(self):
        with pytest.raises(UsageError, match=r"README\.md has no metadata"):
            complete("# photos\n")


def test_facts_are_json_free_of_html():
    for data in TRAINING_SETS.values():
        for fact in data.facts:
            assert fact.source.startswith("https://")
            assert "<" not in json.dumps(fact.text)
