"""Pages that are wrong are found to be: each kind of error, on a small page."""

from textwrap import dedent
from typing import Any

import pytest
from docs_world import running
from docs_world.pages import read_page
from docs_world.running import PageError, run_page
from docs_world.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world"), forks=False) as made:
        yield made


def run(world, folder, text):
    path = folder / "page.md"
    path.write_text(dedent(text), encoding="utf-8")
    found: list[Any] = []
    run_page(world, read_page(path), folder / "page" / "work", found.append)
    return [ran.output for ran in found]


def refused(world, folder, text):
    with pytest.raises(PageError) as caught:
        run(world, folder, text)
    return str(caught.value)


def test_a_page_is_one_shell_and_one_interpreter(world, tmp_path):
    outputs = run(
        world,
        tmp_path,
        """\
        ---
        given: [photos/, new.jpg]
        ---
        ```toml title="sub/own.toml"
        x = 7
        ```

        ```bash
        ls photos new.jpg
        export WORD='two words'
        cd sub
        ```

        ```python
        from pathlib import Path
        seven = Path("sub/own.toml").read_text()
        ```

        ```bash
        echo "$WORD"; cat own.toml
        ```

        ```python
        print(seven.strip())
        ```

        <!-- exit: 3 -->
        ```bash
        exit 3
        ```
        """,
    )
    assert outputs[0].split() == ["new.jpg", "photos:", "birds", "cats", "dogs"]
    assert outputs[1:] == ["", "two words\nx = 7\n", "x = 7\n", ""]


def test_a_command_that_fails(world, tmp_path):
    said = refused(world, tmp_path, "# A\n\n```bash\necho fine\nls nowhere\necho late\n```\n")
    assert said.startswith(f"{tmp_path}/page.md:4: exit status 2, expected 0\nfine\n")
    assert f"{tmp_path}/page.md:5: ls nowhere\n" in said
    assert "late" not in said


def test_a_command_that_fails_in_a_pipe(world, tmp_path):
    assert "exit status 1" in refused(world, tmp_path, "```bash\nfalse | cat\n```\n")


def test_a_variable_that_nobody_has_set(world, tmp_path):
    assert "NOBODY: unbound variable" in refused(world, tmp_path, "```bash\necho $NOBODY\n```\n")


def test_a_command_that_should_fail(world, tmp_path):
    said = refused(world, tmp_path, "<!-- exit: 2 -->\n```bash\ntrue\n```\n")
    assert "page.md:3: exit status 0, expected 2" in said


def test_a_snippet_that_fails(world, tmp_path):
    said = refused(
        world,
        tmp_path,
        "```python\nx = 1\n```\n\n- a\n\n    ```python\n    x\n    1 / 0\n    ```\n",
    )
    assert "page.md:8: the snippet failed\n" in said
    assert f'File "{tmp_path}/page.md", line 9, in <module>' in said
    assert said.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("way", ["raise SystemExit(0)", "import os; os._exit(0)", "x ="])
def test_a_snippet_that_ends_otherwise(world, tmp_path, way):
    assert ":2: the snippet failed" in refused(world, tmp_path, f"```python\n{way}\n```\n")


def test_a_file_that_was_not_given(world, tmp_path):
    said = refused(world, tmp_path, "---\ngiven: [new.jpg]\n---\n```bash\ncat photo.jpg\n```\n")
    assert "photo.jpg: No such file or directory" in said


def test_a_file_that_nobody_can_make(world, tmp_path):
    said = refused(world, tmp_path, "---\ngiven: [moon.jpg]\n---\n```bash\ntrue\n```\n")
    assert "page.md:1: `given` has 'moon.jpg'; known are" in said


def test_a_block_that_would_not_be_run(world, tmp_path):
    said = refused(world, tmp_path, "```bash\ntrue\n```\n\n```console\n$ false\n```\n")
    assert said == f"{tmp_path}/page.md:5: ```console is not run: call it ```bash"


@pytest.mark.parametrize(
    "block", ["```bash\nsleep 60\n```", "```python\nimport time; time.sleep(60)\n```"]
)
def test_a_page_that_does_not_end(world, tmp_path, monkeypatch, block):
    monkeypatch.setattr(running, "PAGE_SECONDS", 1)
    said = refused(world, tmp_path, f"{block}\n")
    assert "not done when the page's 1 s were over" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pip install 'bitzoo[onxx]'", "there is no extra onxx"),
        ("pip install no-such-library", "not installed where the pages are tested"),
        ("make quickstrat", "No rule to make target 'quickstrat'"),
    ],
)
def test_stand_ins_refuse_what_does_not_exist(world, tmp_path, command, said):
    assert said in refused(world, tmp_path, f"```bash\n{command}\n```\n")


def test_stand_ins_accept_what_exists(world, tmp_path):
    command = (
        "pip install torch --index-url https://index.example/cpu\n"
        "pip install -U 'bitzoo[onnx,tf]' scipy\nmake quickstart"
    )
    (output,) = run(world, tmp_path, f"```bash\n{command}\n```\n")
    assert "Requirement already satisfied: bitzoo[onnx,tf]\n" in output
    assert ".venv/bin/bitzoo quickstart\n" in output
