"""Every command and snippet of the documentation's pages about training runs."""

import pytest
from docs_world.groups import TRAINING, all_pages
from docs_world.pages import read_page
from docs_world.running import PAGE_SECONDS, run_for_test
from docs_world.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PAGE_SECONDS + 120)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.mark.parametrize("name", TRAINING)
def test_page(name, world, tmp_path):
    run_for_test(world, read_page(all_pages()[name]), tmp_path)
