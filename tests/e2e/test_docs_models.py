"""Every command and snippet of the documentation runs: all pages but those about training."""

import pytest
from docs_world.groups import QUICK, TRAINING, all_pages
from docs_world.pages import read_page
from docs_world.running import PAGE_SECONDS, run_for_test
from docs_world.world import World

PAGES = {name: path for name, path in all_pages().items() if name not in TRAINING}
pytestmark = pytest.mark.timeout(PAGE_SECONDS + 120)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PAGES],
)
def test_page(name, world, tmp_path):
    run_for_test(world, read_page(PAGES[name]), tmp_path)
