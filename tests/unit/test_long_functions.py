"""One rule of progress for every public function that may take long."""

import contextlib
import inspect
import re
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz
from images import write_digits
from servers import FileServer

import bitzoo
from bitzoo import progress as shows

PAGE = Path(__file__).parents[2] / "docs/reference/terminal.md"
LONG = {
    name
    for name in bitzoo.__all__
    if inspect.isfunction(function := getattr(bitzoo, name))
    and "progress" in inspect.signature(function).parameters
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    write_npz(folder / "own.npz", make_checkpoint(num_classes=10))
    bitzoo.convert(folder / "own.npz", folder / "kept.safetensors", check="weights")
    write_digits(folder / "data", per_class=2, size=32)
    return folder


@pytest.fixture
def shown(monkeypatch):
    """The tasks that a live line showed, as on a terminal."""
    tasks = []

    class Line(shows.Live):
        is_redrawn = True

        def show(self, task, done, total, *, facts=()):
            tasks.append(task)

    @contextlib.contextmanager
    def live():
        yield Line()

    monkeypatch.setattr(shows, "live", live)
    monkeypatch.setattr(shows, "is_live", lambda: True)
    return tasks


CALLS = {
    "convert": lambda own, to, **how: bitzoo.convert(
        own, to / "a.safetensors", check="weights", force=True, **how
    ),
    "verify": lambda own, to, **how: bitzoo.verify(
        own, own.with_name("kept.safetensors"), check="weights", **how
    ),
    "evaluate": lambda own, to, **how: bitzoo.evaluate(
        own, own.parent / "data", labels="index", cache_gb=0, workers=1, **how
    ),
    "predict": lambda own, to, **how: bitzoo.predict(
        own, own.parent / "data/0", activation="softmax", **how
    ),
    "export": lambda own, to, **how: bitzoo.export(
        own, "torch-export", to / "a.pt2", force=True, **how
    ),
    "publish": lambda own, to, **how: bitzoo.publish(
        own,
        repo="me/own",
        dry_run=True,
        folder=to / str(len(list(to.iterdir()))),
        license="mit",
        **how,
    ),
    "fewshot": lambda own, to, **how: bitzoo.fewshot(
        own,
        own.parent / "data",
        to / str(len(list(to.iterdir()))),
        shots=[1],
        runs=2,
        method="ridge",
        workers=1,
        **how,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_line_is_shown_unless_it_is_unwanted(name, folder, shown, tmp_path):
    own, call, heard = folder / "own.npz", CALLS[name], []
    call(own, tmp_path)
    assert shown
    shown.clear()
    call(own, tmp_path, progress=False)
    assert shown == []
    call(own, tmp_path, progress=lambda task, done, total: heard.append(task))
    assert heard
    assert shown == []


@pytest.mark.parametrize("name", sorted(LONG))
def test_the_option_has_one_form(name):
    option = inspect.signature(getattr(bitzoo, name)).parameters["progress"]
    assert (option.annotation, option.default) == ("Progress | bool | None", None)


def test_the_page_names_them():
    sentence = re.search(r"The functions are (.*?)\.\n", PAGE.read_text("utf-8"), re.S)
    assert sentence
    assert set(re.findall(r"`(\w+)`", sentence[1])) == LONG


class TestDownloads:
    """What is fetched for a function is reported where that reports."""

    @pytest.fixture
    def url(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("bitzoo.fetch.http.BAR_BYTES", 1)
        with FileServer({"own.npz": (folder / "own.npz").read_bytes()}) as server:
            yield f"{server.url}own.npz"

    def test_none_is_a_live_line(self, url, shown):
        bitzoo.create_model(url)
        assert set(shown) == {"download: own.npz"}

    def test_false_is_none(self, url, shown, folder):
        bitzoo.evaluate(url, folder / "data", labels="index", cache_gb=0, workers=1, progress=False)
        assert shown == []

    def test_a_callback_hears_of_them(self, url, shown, folder):
        heard = []

        def hear(task, done, total):
            heard.append(task)

        bitzoo.predict(url, folder / "data/0", activation="softmax", progress=hear)
        assert shown == []
        assert heard[0] == "download: own.npz"
        assert heard[-1] == "predict"


def test_the_first_of_several_processes_shows_it(shown, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    with shows.shown(None) as progress:
        assert progress is None
    with shows.shown(True) as progress:
        assert progress is not None
    monkeypatch.setenv("RANK", "0")
    with shows.shown(None) as progress:
        assert progress is not None


class TestBarsOfTheClient:
    """huggingface_hub has bars of its own."""

    @pytest.fixture
    def are_on(self):
        from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]

        from bitzoo.fetch.hub_client import own_bars

        def ask(progress):
            assert not are_progress_bars_disabled()
            with shows.shown(progress), own_bars():
                found = not are_progress_bars_disabled()
            assert not are_progress_bars_disabled()
            return found

        return ask

    def test_they_are_where_the_line_is(self, are_on, shown):
        assert are_on(None)
        assert not are_on(False)
        assert not are_on(lambda *call: None)

    def test_none_in_a_pipe(self, are_on):
        assert not are_on(None)
        assert not are_on(True)

    def test_what_the_user_states_goes_first(self, are_on, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", False)
        assert are_on(False)
