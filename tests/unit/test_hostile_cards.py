"""Cards of what others wrote: whatever it is, it is shown as text, and the metadata stay valid.

Cards are parsed as the Hub does, with a YAML parser and a Markdown renderer.
"""

import html
import itertools
import json
import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.hub.publish import card
from bitzoo.model_cards.render import CardSubject, render_card
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import code, escape, validate_card
from bitzoo.models.architecture import Architecture

NAME = Architecture((1, 1, 1, 1), 0.5).name
BENIGN = "plain"
ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![](https://host/spy.png)",
    "<https://host/phish>",
    "`code` ``` ~~~",
    "```\n# Heading\n```",
    "\n\n# Heading\n\n",
    "a | b | c",
    "a\\",
    "\\`<b>",
    "---",
    "===",
    "- item",
    "1. item",
    "1)",
    "x\n---\nlicense: mit",
    "x\n---\n\n<script>alert(1)</script>",
    "'; license: mit",
    '"\nlicense: mit\n#',
    "!!python/object/apply:os.system ['true']",
    "&anchor *anchor",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;script&gt; &#x6A;",
    "[ref]: https://host\n[ref]",
    "$$x$$ ~~gone~~ **bold** _it_",
    "a\u202eb\u2066c\u2028d\u0085e\x00f",
    "<!-- -->",
    "yes",
    "null",
]
IDS = [json.dumps(text)[1:20] for text in ATTACKS]
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


def parsed(text):
    """A card's metadata, and the HTML of its body, rendered with raw HTML allowed."""
    validate_card(text)
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return yaml.safe_load(front), renderer.render(body)


def skeleton(rendered):
    """The tags of a page with their attributes, in order; what others wrote may not add one."""
    return re.findall(r"<[^>]*>", rendered)


def one_line(text):
    """What a card shows of it."""
    return re.sub("[\u202a-\u202e\u2066-\u2069\x00]", "\ufffd", " ".join(text.split()))


def info_with(text):
    said = Identity(text, "stated", f"file says {text}")
    return ModelInfo(
        NAME,
        10,
        identity=said,
        label_set=text,
        license=text,
        preprocessing=Preprocessing(224, 256, "bilinear", False, source=text),
        sources={"license": text, "activation": text},
        activation="softmax",
    )


def card_with(text):
    source = {"name": text, "bytes": 5, "sha256": text, "url": text, "note": text}
    proof = json.loads(json.dumps(PROOF))
    proof["output"]["sha256"] = proof["logits"][0]["oracle"] = proof["logits"][0]["dtype"] = text
    return render_card(CardSubject("lab/x", info_with(text), source, proof))


@pytest.mark.parametrize("text", ATTACKS, ids=IDS)
def test_a_card_of_a_file_that_states_it(text):
    metadata, rendered = parsed(card_with(text))
    expected, plain = parsed(card_with(BENIGN))
    assert metadata == expected | {"license": text}
    assert skeleton(rendered) == skeleton(plain)


@pytest.mark.parametrize("text", ATTACKS, ids=IDS)
def test_a_card_of_a_run_that_was_trained_from_it(text):
    def made(said):
        info = replace(info_with(said), base=Identity(said, "stated", said))
        draft = "---\nlibrary_name: bitzoo\n---\n\n# A\n\n## What it is\n\nx\n"
        history = [{"event": "train", "step": 1, "loss": 2.0, "lr": 0.1}]
        return complete_draft(draft, repo="lab/x", info=info, history=history, proof=PROOF)

    metadata, rendered = parsed(made(text))
    expected, plain = parsed(made(BENIGN))
    assert metadata == expected | {"license": text}
    assert skeleton(rendered) == skeleton(plain)


@pytest.mark.parametrize("text", [t for t in ATTACKS if "\x00" not in t and "/" not in t])
def test_a_card_of_a_folder_called_so(tmp_path, text):
    def made(name):
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "architecture": "mine", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 9, 9]},
        }  # fmt: skip
        config["bitzoo"] = {"model_info": info_with(name).to_dict()}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"")
        return parsed(card(folder))

    (metadata, rendered), (expected, plain) = made(text), made(BENIGN)
    assert metadata.keys() == expected.keys()
    assert skeleton(rendered) == skeleton(plain)
    shown = re.search(r"<h1>(.*?)</h1>", rendered, re.DOTALL)[1]
    assert html.unescape(shown) == one_line(text)


@pytest.mark.parametrize("text", ATTACKS, ids=IDS)
@pytest.mark.parametrize("place", ["{}", "| {} | x |", "a {} b", "- {}", "({})"])
def test_escaped_text_is_shown_unchanged(text, place):
    table = "| a | b |\n|---|---|\n" if place.startswith("|") else ""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    made = renderer.render(table + place.format(escape(text)) + "\n")
    plain = renderer.render(table + place.format(BENIGN) + "\n")
    assert html.unescape(made) == html.unescape(plain.replace(BENIGN, html.escape(one_line(text))))


@pytest.mark.parametrize("text", ATTACKS, ids=IDS)
def test_code_spans_end_where_they_should(text):
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    made = renderer.render(f"| a | b |\n|---|---|\n| {code(text)} | x |\n")
    assert skeleton(made) == skeleton(renderer.render("| a | b |\n|---|---|\n| `y` | x |\n"))


def test_pairs_of_attacks():
    """Two texts next to each other do not make together what each alone does not."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for one, other in itertools.product(ATTACKS, repeat=2):
        made = renderer.render(f"{escape(one)} {escape(other)}, {code(one)}{escape(other)}.\n")
        assert skeleton(made) == ["<p>", "<code>", "</code>", "</p>"], (one, other)
