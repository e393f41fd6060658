"""The catalogue page has every name, figure and source of the registry, and says them rightly."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import docs_catalogue
import pytest
import yaml

from bitzoo import get_spec, list_claims, list_models

ROOT = Path(__file__).parents[2]


class Tables(HTMLParser):
    """The rows of all tables: (text, addresses, sorted by) of each cell."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.cell = SimpleNamespace(text="", links=[], value=given.get("data-value"))
            self.tables[-1][-1].append(self.cell)
        elif tag == "a":
            self.cell.links.append(given["href"])

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.text += data.replace("\u00a0", " ")

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.cell = None


@pytest.fixture(scope="module")
def page():
    markdown = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    built = SimpleNamespace(file=SimpleNamespace(src_uri="catalogue.md"))
    return docs_catalogue.on_page_markdown(markdown, page=built, config=None, files=None)


@pytest.fixture(scope="module")
def tables(page):
    return Tables(page).tables


def columns(table, *titles):
    heads = [cell.text for cell in table[0]]
    places = [heads.index(title) for title in titles]
    return [[row[place] for place in places] for row in table[1:]]


def test_mkdocs_runs_the_hook():
    class Loader(yaml.SafeLoader):
        """Takes MkDocs' own tags as they stand."""

    Loader.add_multi_constructor("!", lambda loader, tag, node: None)
    Loader.add_multi_constructor("tag:", lambda loader, tag, node: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert "tools/docs_catalogue.py" in config["hooks"]
    assert {"Catalogue": "catalogue.md"} in config["nav"]
    other = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    mark = "<!-- catalogue: models -->"
    assert docs_catalogue.on_page_markdown(mark, page=other) == mark


def test_every_name_stands_once(tables):
    models, vtab, _ = tables
    names = [row[0].text for table in (models, vtab) for row in table[1:]]
    assert len(names) == 317
    assert sorted(names) == sorted(list_models())


def test_sizes_classes_and_files_are_the_registrys(tables):
    models, vtab, _ = tables
    asked = ("Model", "Classes", "Parameters", "Size", "Image", "Files")
    for cells in columns(models, *asked) + columns(vtab, *asked):
        name, classes, params, size, image, files = cells
        spec = get_spec(name.text)
        assert classes.text == f"{spec.num_classes:,}"
        assert int(params.value) == spec.num_params
        assert params.text == f"{spec.num_params / 1e6:,.1f} M"
        number, unit = size.text.split()
        assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(
            4 * spec.num_params, rel=0.006
        )
        assert image.text == f"{spec.resolution} px"
        assert files.text == (", ".join(spec.files) or "never released")
        assert files.links == [spec.url(kind) for kind in spec.files if kind != "tfhub"]


def test_known_values(tables):
    found = {row[0].text: [cell.text for cell in row] for row in tables[0][1:]}
    assert found["BiT-M-R50x1"] == [
        *("BiT-M-R50x1", "ImageNet-21k", "ImageNet-21k, sigmoid", "21,843", "68.3 M", "273 MB"),
        *("224 px", "", "", "26 figures", "npz, h5"),
    ]
    own = found["BiT-M-R152x4-ILSVRC2012"]
    assert own[:8] == [
        *("BiT-M-R152x4-ILSVRC2012", "ImageNet-21k", "ILSVRC-2012, softmax", "1,000", "936.5 M"),
        *("3.75 GB", "480 px", "84.9 %"),
    ]
    assert found["BiT-L-R50x1"][-1] == "never released"


def test_every_figure_stands_with_its_source_and_command(tables):
    claims = list_claims()
    assert len(tables[2]) - 1 == len(claims) == 245
    for claim, row in zip(claims, tables[2][1:], strict=True):
        model, data, figure, how, source, again = row
        assert model.text == claim.model
        assert data.text == f"{claim.dataset}, {claim.metric}"
        assert (figure.text, float(figure.value)) == (claim.published, claim.value)
        assert claim.note in how.text
        assert all(remark in how.text for remark in claim.remarks)
        assert source.links == re.findall(r"https://\S+", claim.source)
        assert len(source.text) < 60
        assert again.text == (claim.command or claim.reason)


def test_links_lead_to_the_figures_of_a_model(page, tables):
    named = [name for name in list_models() if list_claims(name)]
    links = [row[9].links[0] for row in tables[0][1:] if row[9].links]
    assert [f"#figures-{name.lower().replace('_', '-')}" for name in named] == links
    for link, name in zip(links, named, strict=True):
        assert page.count(f'id="{link[1:]}" data-model="{name}"') == 1


def test_plots_show_the_classifiers(page):
    size, speed = re.findall(r"<svg .*?</svg>", page)
    names = [
        spec.name for spec in map(get_spec, list_models()) if docs_catalogue.own_accuracy(spec)
    ]
    assert len(names) == 10
    for plot in (size, speed):
        said = [unescape(title) for title in re.findall(r"<title>(.*?)</title>", plot)]
        assert sorted(title.split(" at ")[0] for title in said) == sorted(names)
    assert "BiT-M-R50x1-ILSVRC2012 at 448 px: 80.39 %, 25.5 million parameters" in size


def test_speeds_are_those_of_the_benchmark():
    seconds = docs_catalogue.measured_seconds()
    text = docs_catalogue.RESULTS.read_text(encoding="utf-8")
    for (arch, side), value in seconds.items():
        assert re.search(rf"^\| {arch}, {side} px +\| +{value:g} ", text, re.MULTILINE)
    assert seconds["R50x1", 160] < seconds["R50x1", 224] < seconds["R50x1", 448]
    assert seconds["R50x1", 448] < seconds["R101x1", 448] < seconds["R152x4", 480]
