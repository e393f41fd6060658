"""Reports and cards of 6, 60 and 1,000 classes: contrast, structure, size and numbers.

Without a browser; `make pages` opens the same pages in one.
"""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from markdown_it import MarkdownIt
from report_pages import (
    LONG_NAMES,
    SIZES,
    evaluation_of,
    fewshot_result,
    probe_result,
    record_of,
    study_result,
    vtab_result,
)
from sklearn.metrics import confusion_matrix, f1_score

from bitzoo.inference.metrics import Confusion, Evaluation
from bitzoo.runs.report import html
from bitzoo.runs.report.captions import first_batch_note, loss_caption
from bitzoo.runs.report.fewshot_page import write_fewshot_report
from bitzoo.runs.report.html import write_card, write_report
from bitzoo.runs.report.probe_page import write_probe_report
from bitzoo.runs.report.run_summary import Gallery, Tile
from bitzoo.runs.report.study_page import write_study_report
from bitzoo.runs.report.svg import LEAST_OPACITY, matrix_overview
from bitzoo.runs.report.vtab_report import write_vtab_report
from bitzoo.training.hyperrule import hyperrule

TEMPLATE = Path(html.__file__).with_name("templates") / "page_style.css.j2"
STYLE = TEMPLATE.read_text(encoding="utf-8")
PALETTES = dict(
    zip(
        ("light", "dark", "print"),
        (
            dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
            for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
        ),
        strict=True,
    )
)


def luminance(colour):
    """Relative luminance of linear sRGB (WCAG 2.2, "relative luminance")."""
    shares = np.asarray(colour) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """WCAG 2.2, "contrast ratio"."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour):
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])


def test_contrast_of_known_pairs():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", PALETTES)
class TestContrast:
    @pytest.mark.parametrize("text", ["text", "dim"])
    @pytest.mark.parametrize("ground", ["page", "card"])
    def test_text(self, scheme, text, ground):
        palette = PALETTES[scheme]
        assert contrast(rgb(palette[text]), rgb(palette[ground])) >= 4.5

    @pytest.mark.parametrize("cell", ["right-cell", "wrong-cell"])
    def test_counts_in_cells_of_every_strength(self, scheme, cell):
        palette = PALETTES[scheme]
        for share in np.linspace(0, 1, 21):
            ground = share * rgb(palette[cell]) + (1 - share) * rgb(palette["card"])
            assert contrast(rgb(palette["text"]), ground) >= 4.5, share

    @pytest.mark.parametrize("line", ["a", "b", "faint", "right", "wrong"])
    def test_lines_and_bars(self, scheme, line):
        palette = PALETTES[scheme]
        assert contrast(rgb(palette[line]), rgb(palette["card"])) >= 3

    @pytest.mark.parametrize("cell", ["right", "wrong"])
    def test_the_weakest_cell_of_an_overview(self, scheme, cell):
        palette = PALETTES[scheme]
        card = rgb(palette["card"])
        assert contrast(LEAST_OPACITY * (rgb(palette[cell]) - card) + card, card) >= 3

    def test_no_colour_is_left_out(self, scheme):
        tested = {"text", "dim", "page", "card", "a", "b", "faint", "right", "wrong"}
        assert set(PALETTES[scheme]) == tested | {"right-cell", "wrong-cell", "line"}  # ornament


def test_all_colours_of_the_page_are_of_its_palettes():
    rules = re.sub(r":root \{.*?\}", "", STYLE, flags=re.S)
    assert re.findall(r"#[0-9a-f]{3,8}\b|rgba?\(|hsla?\(", rules) == []
    text = set(re.findall(r"(?<![\w-])(?:color|fill): ([^;]+);", rules))
    fills = {f"var(--{name})" for name in ("a", "b", "faint", "right", "wrong")}
    cells = {"var(--right-cell)", "var(--wrong-cell)"}
    assert text == {"var(--text)", "var(--dim)", "none", "transparent"} | fills | cells


class Outline(HTMLParser):
    """The elements of a page, in order, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.faults = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "input", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def of(self, *tags):
        return [(tag, attributes) for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module", params=SIZES)
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return request.param, write_report(folder / "report.html", record_of(request.param))


class TestStructure:
    def test_is_well_formed_and_says_its_language(self, page):
        outline = Outline(page[1].read_text(encoding="utf-8"))
        assert (outline.open, outline.faults) == ([], [])
        assert outline.elements[0] == ("html", {"lang": "en"})
        assert len(outline.of("title")) >= 1

    def test_headings_go_down_by_one(self, page):
        outline = Outline(page[1].read_text(encoding="utf-8"))
        levels = [int(tag[1]) for tag, _ in outline.of("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_images_have_a_text_and_tables_have_heads(self, page):
        outline = Outline(page[1].read_text(encoding="utf-8"))
        images = outline.of("img")
        assert len(images) == (24 if page[0] > 6 else len(record_of(6).mistakes)) + 16
        assert all(attributes["alt"] for _, attributes in images)
        assert all(a["role"] == "img" and a["aria-label"] for _, a in outline.of("svg"))
        heads = outline.of("th")
        assert heads
        assert {attributes.get("scope") for _, attributes in heads} == {"row", "col"}

    def test_what_scrolls_can_be_reached_and_is_named(self, page):
        outline = Outline(page[1].read_text(encoding="utf-8"))
        found = [a for _, a in outline.of("div") if a.get("class") == "scroll"]
        assert len(found) == (1 if page[0] <= 30 else 7)
        assert all(a["tabindex"] == "0" and a["role"] == "region" for a in found)
        assert len({a["aria-label"] for a in found}) == len(found)

    def test_identifiers_are_unique_and_labels_have_their_field(self, page):
        outline = Outline(page[1].read_text(encoding="utf-8"))
        names = [a["id"] for _, a in outline.elements if "id" in a]
        assert len(names) == len(set(names)) == (0 if page[0] <= 30 else 5)
        assert [a["for"] for _, a in outline.of("label")] == names

    def test_is_small_and_the_same_every_time(self, page, tmp_path):
        again = write_report(tmp_path / "again.html", record_of(page[0]))
        assert again.read_bytes() == page[1].read_bytes()
        assert page[1].stat().st_size < {6: 300_000, 60: 450_000, 1000: 1_000_000}[page[0]]


def test_the_worst_case_of_a_thousand_classes_stays_below_3_mb(tmp_path):
    """A network that guesses, 50,000 held-out images: nearly as many different mistakes."""
    random = np.random.default_rng(0)
    labels, guesses = random.integers(0, 1000, (2, 50_000))
    logits = np.zeros((50_000, 1000), np.float32)
    logits[np.arange(50_000), guesses] = 1
    found = Evaluation.of_logits(record_of(1000).classes, labels, logits)
    path = write_report(tmp_path / "report.html", record_of(1000, evaluation=found))
    assert path.stat().st_size < 3_000_000


def test_numbers_of_sixty_classes(tmp_path):
    found = evaluation_of(60)
    text = write_report(tmp_path / "report.html", record_of(60)).read_text(encoding="utf-8")
    counts = confusion_matrix(found.labels, found.predicted, labels=np.arange(60))
    wrong = int(counts.sum() - np.trace(counts))
    score = f1_score(found.labels, found.predicted, average="macro", zero_division=0)
    assert f"<b>{score:.2%}".replace("%", " %</b>macro F1") in text
    groups = re.findall(r"<h3>Group (\d): (\d+) of the (\d+) mistakes</h3>", text)
    assert [(int(n), int(total)) for n, _, total in groups] == [(n, wrong) for n in range(1, 7)]
    drawings = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]
    matrices = [svg for svg in drawings if svg.get("class") == "matrix"]
    names = {name: number for number, name in enumerate(found.classes)}
    for (_, mistakes, _), svg in zip(groups, matrices, strict=True):
        inside = 0
        for title in (group.find("title").text for group in svg.iter("g")):
            count, total, true, predicted = re.fullmatch(
                r"(\d+) of (\d+) images of (.*) classified as (.*)", title
            ).groups()
            assert int(total) == counts[names[true]].sum()
            if predicted != "other classes":
                assert int(count) == counts[names[true], names[predicted]]
                inside += int(count) * (true != predicted)
        assert inside == int(mistakes)


def test_an_overview_has_a_square_for_every_pair_that_occurs():
    mistakes = [Confusion(0, 2, 3), Confusion(1, 0, 1)]
    svg = ET.fromstring(matrix_overview("abc", (2, 0, 1), (4, 1, 5), (1, 0, 5), mistakes, [(2, 0)]))
    squares = {
        (kind.get("class"), int(y), int(x))
        for kind in svg.iter("path")
        for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", kind.get("d"))
    }
    # rows and columns in the order c, a, b
    assert squares == {("right", 0, 0), ("right", 1, 1), ("wrong", 1, 0), ("wrong", 2, 1)}
    told = [rect.find("title").text for rect in svg.iter("rect") if rect.get("class") == "told"]
    assert told == [
        "3 of 4 images of a classified as c",
        "1 of 1 images of b classified as a",
    ]
    (frame,) = [rect for rect in svg.iter("rect") if rect.get("class") == "frame"]
    assert [frame.get(key) for key in ("x", "y", "width", "height")] == ["0", "0", "2", "2"]


def test_names_break_at_spaces_and_long_ones_anywhere():
    assert "table-layout: fixed" in STYLE
    assert "overflow-wrap: anywhere" not in re.search(r"\nth, td \{.*?\}", STYLE)[0]
    assert "overflow-wrap: break-word" in re.search(r"\nth, td \{.*?\}", STYLE)[0]
    assert " " not in LONG_NAMES[0]


class TestCaptions:
    RULE = hyperrule(100, (480, 640)).override(batch_size=32)
    PLAIN = RULE.override(resize=384, flip=False)

    @pytest.mark.parametrize(
        ("recipe", "options", "expected"),
        [
            (RULE, {}, "Training images are cropped at random and mirrored at random."),
            (
                RULE.override(mixup=0.1),
                {},
                "Training images are cropped at random, mirrored at random and mixed in pairs "
                "(MixUp).",
            ),
            (RULE.override(flip=False), {}, "Training images are cropped at random."),
            (PLAIN, {}, "Training images are resized, and nothing else."),
            (
                RULE,
                {"freeze": True},
                "Training images are neither cropped nor mirrored: only the head is trained.",
            ),
        ],
    )
    def test_what_is_done_to_images(self, recipe, options, expected):
        run = record_of(6, plan=recipe, options=options)
        assert loss_caption(run) == expected + " Held-out images are only resized."
        assert loss_caption(record_of(6, plan=recipe, options=options, evaluation=None)) == expected

    def test_the_first_batch(self):
        assert first_batch_note(self.RULE, 16, freeze=False) == (
            "The first 16 of the 32 images of the first step, as the network saw them: cropped at "
            "random and mirrored at random."
        )
        assert first_batch_note(self.PLAIN.override(batch_size=1), 1, freeze=False) == (
            "The one image of the first step, as the network saw them: resized, and nothing else."
        )

    @pytest.mark.parametrize(
        ("options", "model", "expected"),
        [
            ({}, "BiT-M-R50x1", "R50x1, fine-tuned from BiT-M-R50x1 on photos"),
            (
                {"pretrained": False},
                "random weights",
                "R50x1, trained from random weights on photos",
            ),
            (
                {"freeze": True},
                "BiT-M-R50x1",
                "R50x1, its head trained on the features of BiT-M-R50x1, which stayed as they "
                "were, on photos",
            ),
        ],
    )
    def test_how_the_network_came_about(self, options, model, expected, tmp_path):
        run = record_of(6, options=options, model=model, base=None)
        page = write_report(tmp_path / "report.html", run).read_text(encoding="utf-8")
        assert f'<p class="dim">{expected}</p>' in page
        card = write_card(tmp_path / "README.md", run).read_text(encoding="utf-8")
        assert expected + "." in " ".join(card.split())


def test_a_section_of_images_is_shown(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    gallery = Gallery("Near-duplicates", "Pairs.", [Tile(pixels, ("a.png", "b.png"), "a and b")])
    path = write_report(tmp_path / "report.html", record_of(6, galleries=[gallery]))
    text = path.read_text(encoding="utf-8")
    assert re.search(r'<h2>Near-duplicates</h2>\n<p class="dim">Pairs.</p>', text)
    assert re.search(r'alt="a and b"><figcaption><strong>a.png</strong>\s*<br>b.png', text)


@pytest.mark.parametrize("count", SIZES)
def test_a_card_is_rendered_with_named_columns(count, tmp_path):
    text = write_card(tmp_path / "README.md", record_of(count)).read_text(encoding="utf-8")
    body = MarkdownIt("gfm-like", {"linkify": False}).render(text.partition("\n---\n")[2])
    outline = Outline(body)
    levels = [int(tag[1]) for tag, _ in outline.of("h1", "h2", "h3")]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert len(outline.of("table")) == 4
    assert "<th></th>" not in body
    assert ("top-5 accuracy" in text) is (count >= 10)
    assert len(text) < 12_000


REPORTS = {
    "fewshot": lambda folder: write_fewshot_report(fewshot_result(folder)),
    "probe": lambda folder: write_probe_report(probe_result(folder)),
    "study": lambda folder: write_study_report(study_result(folder)),
    "vtab": lambda folder: write_vtab_report(folder / "report.html", vtab_result(folder)),
}
MANY_COLUMNS = 5


@pytest.mark.parametrize("name", REPORTS)
def test_tables_of_many_columns_are_scrolled_and_not_broken_within_words(name, tmp_path):
    """On a small screen, columns of one width would be narrower than a word or a number."""
    page = REPORTS[name](tmp_path).read_text(encoding="utf-8")
    regions = re.findall(
        r'role="region" aria-label="([^"]*), can be scrolled">\n<table class="fig', page
    )
    assert len(regions) == len(set(regions)) == page.count('<table class="figures">') > 0
    for table in re.findall(r"<table.*?</table>", page, re.S):
        head = table.partition("</thead>")[0] if "<thead>" in table else ""
        titles = re.findall(r"<th( [^>]*|)>(.*?)</th>", head)
        assert all('scope="col"' in attributes and text for attributes, text in titles)
        if len(titles) >= MANY_COLUMNS:
            assert table.startswith('<table class="figures">')
