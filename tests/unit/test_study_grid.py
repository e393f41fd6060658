"""A study's file: the grid that it stands for, scales, and what is said of mistakes in it."""

import copy
import itertools
import re
from typing import Any

import pytest

from bitzoo.errors import BitzooError, UsageError
from bitzoo.runs.study import read_study
from bitzoo.runs.study_grid import Transfer, plan_study, shipped_studies
from bitzoo.runs.study_words import EXECUTION, KINDS, options_of_kind

SMALL: dict[str, Any] = {
    "title": "Small",
    "about": "Two\n  lines.",
    "grid": {
        "norm": ["batch", "group"],
        "weight_standardization": [False, True],
        "seeds": [3, 5],
    },
    "data": {"up": "photos", "down": "others"},
    "pretrain": {"arch": "R50x1", "data": "up", "steps": 7, "workers": 2, "resolution": [36, 32]},
    "transfer": [
        {"kind": "fewshot", "name": "few", "data": "down", "shots": [1, 5]},
        {"kind": "vtab"},
    ],
    "published": [
        {"where": {"norm": "batch"}, "metric": "upstream", "value": 75.6, "source": "Table 4"}
    ],
    "claim": [{"text": "Longer\nis better.", "source": "Figure 7"}],
    "scales": {"tiny": {"remarks": ["Not  the\npaper's."], "pretrain": {"steps": 2}}},
}


def changed(**changes):
    document = copy.deepcopy(SMALL)
    for path, value in changes.items():
        *tables, key = path.split("__")
        place = document
        for table in tables:
            place = place[table]
        place[key] = value
    return document


def refused(document, **options):
    with pytest.raises(UsageError) as caught:
        plan_study("s", document, **options)
    return str(caught.value)


def test_the_grid_is_every_combination_with_every_seed():
    plan = plan_study("s", SMALL)
    expected = [
        ({"norm": norm, "weight_standardization": ws}, seed, f"R50x1{bn}{no}")
        for (norm, bn), (ws, no), seed in itertools.product(
            [("batch", "-BN"), ("group", "")], [("no", "-noWS"), ("yes", "")], [3, 5]
        )
    ]
    assert [(dict(cell.values), cell.seed, cell.arch) for cell in plan.cells] == expected
    assert plan.axes == ("norm", "weight_standardization")
    first = plan.cells[0]
    assert first.name == "norm=batch,weight_standardization=no/seed-3"
    assert first.pretrain == {"data": "photos", "steps": 7, "workers": 2, "resolution": (36, 32)}
    assert first.transfers == (
        Transfer("few", "fewshot", {"data": "others", "shots": [1, 5]}),
        Transfer("vtab", "vtab", {}),
    )
    assert (plan.title, plan.about, plan.remarks) == ("Small", "Two lines.", ())
    assert plan.claims == ("Longer is better. (Figure 7)",)
    assert [(dict(p.where), p.value) for p in plan.published] == [({"norm": "batch"}, 75.6)]


def test_what_determines_a_result_is_in_its_plan_and_nothing_else():
    """The number of images at once changes what a batch norm computes, and nothing else."""
    document = changed(pretrain__micro_batch=8)
    batch, group = (plan_study("s", document).cells[i].plan() for i in (0, 4))
    assert group == {
        "arch": "R50x1-noWS",
        "seed": 3,
        "pretrain": {"data": "photos", "steps": 7, "resolution": [36, 32]},
        "transfers": {
            "few": {"kind": "fewshot", "data": "others", "shots": [1, 5]},
            "vtab": {"kind": "vtab"},
        },
    }
    assert batch["pretrain"] == {**group["pretrain"], "micro_batch": 8}


def test_a_number_of_seeds_counts_from_zero():
    plan = plan_study("s", changed(grid__seeds=3))
    assert [cell.seed for cell in plan.cells[:4]] == [0, 1, 2, 0]
    del (document := copy.deepcopy(SMALL))["grid"]["seeds"]
    assert {cell.seed for cell in plan_study("s", document).cells} == {0}


def test_an_axis_of_tables_sets_several_options():
    upstream = [
        {"name": "S", "data": "up", "recipe": "bit-s"},
        {"name": "M", "data": "down", "recipe": "bit-m", "steps": 9},
    ]
    grid = {"upstream": upstream, "weight_decay": [1e-4, 0.01]}
    plan = plan_study("s", changed(grid=grid, published=[]))
    found = [
        (c.values, c.pretrain["data"], c.pretrain["recipe"], c.pretrain["steps"],
         c.pretrain["weight_decay"])
        for c in plan.cells
    ]  # fmt: skip
    assert found == [
        ({"upstream": "S", "weight_decay": "0.0001"}, "photos", "bit-s", 7, 1e-4),
        ({"upstream": "S", "weight_decay": "0.01"}, "photos", "bit-s", 7, 0.01),
        ({"upstream": "M", "weight_decay": "0.0001"}, "others", "bit-m", 9, 1e-4),
        ({"upstream": "M", "weight_decay": "0.01"}, "others", "bit-m", 9, 0.01),
    ]


def test_excluded_cells_are_left_out():
    exclude = [{"norm": "batch", "weight_standardization": True}, {"norm": "group", "seed": 5}]
    plan = plan_study("s", changed(exclude=exclude))
    assert [cell.name for cell in plan.cells] == [
        "norm=batch,weight_standardization=no/seed-3",
        "norm=batch,weight_standardization=no/seed-5",
        "norm=group,weight_standardization=no/seed-3",
        "norm=group,weight_standardization=yes/seed-3",
    ]
    assert "tables that each match a cell in exclude, found {'norm': 'layer'}" in refused(
        changed(exclude=[{"norm": "layer"}])
    )
    assert "`exclude` leaves no cell" in refused(
        changed(exclude=[{"norm": "batch"}, {"norm": "group"}])
    )


def test_a_scale_merges_tables_and_replaces_lists():
    document = changed(scales__tiny__transfer=[], scales__tiny__grid={"norm": ["group"]})
    plan = plan_study("s", document, scale="tiny", data={"up": "mine"})
    assert plan.remarks == ("Not the paper's.",)
    assert {cell.arch for cell in plan.cells} == {"R50x1", "R50x1-noWS"}
    assert all(cell.transfers == () for cell in plan.cells)
    assert plan.cells[0].pretrain["steps"] == 2
    assert plan.cells[0].pretrain["data"] == "mine"
    assert plan.scale == "tiny"
    assert "found 'big'; it has tiny." in refused(SMALL, scale="big")


def test_data_that_nobody_can_name_are_asked_for():
    document = changed(data__down="")
    assert "Give yours with `data`, as down=SOURCE" in refused(document)
    plan = plan_study("s", document, data={"down": "there"})
    assert plan.cells[0].transfers[0].options["data"] == "there"
    assert "has no data called 'left'" in refused(SMALL, data={"left": "x"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"titel": "x"}, "'titel' is not known here. Did you mean title?"),
        ({"pretrain__step": 3}, "s: pretrain: 'step' is not known here. Did you mean steps"),
        ({"pretrain__seed": 3}, "'seed' is not known here"),
        ({"grid__wieght_decay": [1.0]}, "Did you mean weight_decay"),
        ({"grid__norm": "batch"}, "expected a list of values in grid.norm, found 'batch'"),
        ({"grid__norm": ["batch", "batch"]}, "expected every value once in grid.norm"),
        (
            {"grid__norm": ["layer"]},
            "s: pretrain: `norm` must be one of group, batch, found",
        ),
        ({"grid__seeds": [0, 0]}, "expected every seed once"),
        ({"grid__seeds": -1}, "a number of seeds, or a list of whole numbers in grid.seeds"),
        ({"grid__seeds": 2**40}, "a number of seeds, or a list of whole numbers in grid.seeds"),
        ({"grid__steps": [*range(1, 8_000)]}, "expected at most 10,000 cells in the grid, found "),
        ({"grid__seeds": [True]}, "a list of whole numbers in grid.seeds, found [True]"),
        ({"grid__x": [{"name": "a"}]}, "tables with a `name` and options in grid.x"),
        ({"pretrain__arch": "R7"}, "s: pretrain: 'R7' names no architecture"),
        ({"pretrain__arch": 50}, "the name of an architecture, as R50x1 in pretrain.arch"),
        ({"pretrain__data": 3}, "s: pretrain.data: expected a data set, found 3"),
        ({"transfer": [{"kind": "tune"}]}, "one of finetune, fewshot, vtab in transfer.kind"),
        ({"transfer": [{"kind": "vtab"}] * 2}, "a short name, each once in transfer.name"),
        ({"transfer": [{"kind": "vtab", "name": "../x"}]}, "a short name"),
        ({"transfer": [{"kind": "vtab", "shots": 1}]}, "s: transfer 'vtab': 'shots' is not known"),
        ({"transfer": {"kind": "vtab"}}, "a list of tables, [[transfer]] in transfer"),
        ({"published": [{"value": "much"}]}, "`metric`, `value` in percent, and `source`"),
        ({"claim": ["x"]}, "tables with `text` and `source` in claim"),
        ({"data": ["up"]}, "expected a table in data"),
    ],
    ids=str,
)
def test_mistakes_are_said_with_their_place(changes, said):
    with pytest.raises(BitzooError, match=re.escape(said)):
        plan_study("s", changed(**changes))


def test_two_cells_are_never_the_same_run():
    twins = [{"name": "a", "steps": 5}, {"name": "b", "steps": 5}]
    assert "the cells twin=a/seed-0 and twin=b/seed-0 would be the same run" in refused(
        changed(grid={"twin": twins}, published=[])
    )


def test_names_are_those_of_folders_everywhere():
    names = [{"name": "a/b:c", "steps": 5}, {"name": "a/b?c", "steps": 6}]
    cells = plan_study("s", changed(grid={"odd": names}, published=[])).cells
    groups = [cell.group for cell in cells]
    assert len(set(groups)) == 2
    assert all(re.fullmatch(r"odd=a_b_c-[0-9a-f]{8}", group) for group in groups)
    with pytest.raises(UsageError, match="has no cell 'odd'"):
        plan_study("s", SMALL).cell("odd")


def test_words_are_those_of_the_functions():
    """Options that say how a run computes are options of some function; none is misspelt."""
    known = frozenset.union(*map(options_of_kind, KINDS))
    assert known >= EXECUTION
    assert "seed" not in known


def test_a_file_that_is_no_study(tmp_path):
    place = tmp_path / "s.toml"
    place.write_text("grid = [")
    with pytest.raises(UsageError, match=r"s\.toml: expected TOML, found something else: "):
        read_study(place)
    place.write_text("[pretrain]\nsteps = 1979-05-27\n")
    with pytest.raises(UsageError, match=r"s\.toml: expected texts, .* found a date or a time\."):
        read_study(place)
    place.write_text(f"[pretrain]\nsteps = {'9' * 5000}\n")
    with pytest.raises(UsageError, match=r"s\.toml: expected TOML, .* \(4300\b"):
        read_study(place)
    place.write_text(f"{'x' * 5000} = 1\n")
    with pytest.raises(UsageError, match=r"^s: 'x{79} is not known here\.$"):
        read_study(place)
    with pytest.raises(UsageError, match="expected a TOML file, or one of the studies"):
        read_study("nowhere")


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_say_what_scaled_figures_are_not(name):
    missing = {"size-data": {"jft": "x", "i21k": "y"}, "schedule-decay": {"i21k": "y"}}
    document = read_study(name, data=missing.get(name))
    tiny = read_study(name, scale="tiny")
    assert document.title == tiny.title
    assert any("not the paper's" in remark for remark in tiny.remarks)
    assert all(cell.pretrain["data"].startswith("digits:") for cell in tiny.cells)
    groups = {cell.group for cell in tiny.cells}
    assert len(tiny.cells) >= 2 * len(groups)  # a spread needs seeds


def test_the_tables_of_the_paper_stand_beside():
    """Tables 4 and 5 of arXiv 1912.11370: BN, BN + WS, GN, GN + WS."""
    for scale in (None, "tiny"):
        plan = read_study("norm-ws", scale=scale)
        found = {
            (p.where["norm"], p.where["weight_standardization"], p.metric): p.value
            for p in plan.published
        }
        assert found == {
            ("batch", "no", "upstream"): 75.6,
            ("batch", "yes", "upstream"): 75.8,
            ("group", "no", "upstream"): 70.2,
            ("group", "yes", "upstream"): 76.0,
            ("batch", "no", "transfer"): 67.72,
            ("batch", "yes", "transfer"): 66.78,
            ("group", "no", "transfer"): 68.77,
            ("group", "yes", "transfer"): 70.39,
        }
