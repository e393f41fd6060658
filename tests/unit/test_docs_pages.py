"""What is run of a page, what is written, what is shown; nothing escapes by its form."""

from textwrap import dedent

import pytest
from docs_world.given import MAKERS
from docs_world.groups import all_pages
from docs_world.pages import read_page
from docs_world.peer_repos import PEERS


def page_of(folder, text):
    path = folder / "page.md"
    path.write_text(dedent(text), encoding="utf-8")
    return read_page(path)


def kinds(page):
    return [(block.kind, block.line, block.text) for block in page.blocks]


def test_a_page_with_everything(tmp_path):
    page = page_of(
        tmp_path,
        """\
        ---
        given: [photos/, new.jpg]
        title: A page
        ---
        # A page

        ```bash
        bitzoo list
        bitzoo info x
        ```

        - In a list:

            ```python title="first"
            import bitzoo
            ```

        === "Python"

            !!! note "Inside"

                ```python
                if True:
                    x = 1
                ```

            ???+ tip

                ```text
                shown
                ```

        === "Command line"

            <!-- exit: 2 -->
            ```bash
            bitzoo nonsense
            ```

        ```toml title="study/own.toml"
        title = "x"
        ```

        ```python title="train.py"
        print()
        ```

        ```text title="needs a GPU; not run here"
        bitzoo finetune
        ```
        """,
    )
    assert page.faults == ()
    assert page.given == ("photos/", "new.jpg")
    assert kinds(page) == [
        ("bash", 8, "bitzoo list\nbitzoo info x\n"),
        ("python", 15, "import bitzoo\n"),
        ("python", 23, "if True:\n    x = 1\n"),
        ("shown", 30, "shown\n"),
        ("bash", 37, "bitzoo nonsense\n"),
        ("file", 41, 'title = "x"\n'),
        ("file", 45, "print()\n"),
        ("shown", 49, "bitzoo finetune\n"),
    ]
    assert [block.status for block in page.blocks] == [0, 0, 0, 0, 2, 0, 0, 0]
    assert [block.title for block in page.blocks[5:7]] == ["study/own.toml", "train.py"]
    assert page.not_run == (page.blocks[7],)
    assert page.runs


def test_what_is_given_in_a_comment(tmp_path):
    page = page_of(tmp_path, "<!-- given: [photos/, new.jpg] -->\n\n```bash\nls\n```\n")
    assert page.given == ("photos/", "new.jpg")
    assert kinds(page) == [("bash", 4, "ls\n")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```console\n$ ls\n```", "1: ```console is not run: call it ```bash"),
        ("```sh\nls\n```", "1: ```sh is not run: call it ```bash"),
        ("```py\nx\n```", "1: ```py is not run: call it ```python"),
        ("\n```\nbitzoo list\n```", "2: a block without a language: ```text is shown"),
        ("```bash\n$ bitzoo list\n```", "1: a prompt in a block that is run"),
        ("```python\n>>> x\n```", "1: a prompt in a block that is run"),
        ("```text\nbitzoo list\n```", "1: a command as text: run it, or"),
        ("```text\nimport bitzoo\n```", "1: a command as text: run it, or"),
        ("Write\n\n    bitzoo list\n", "3: a command that is only indented"),
        ('=== "A"\n\n    Write\n\n        pip install x\n', "5: a command that is only indented"),
        ('=== "A"\n\n    ```sh\n    ls\n    ```\n', "3: ```sh is not run"),
        ("<!-- exit: 1 -->\n```python\nx\n```", "2: an exit status stands before a block that"),
        ("---\ngiven: photos/\n---\n", "1: `given` must be a list, found 'photos/'"),
    ],
)
def test_what_would_escape_is_a_fault(tmp_path, text, fault):
    page = page_of(tmp_path, text)
    assert len(page.faults) == 1
    assert page.faults[0].startswith(fault)


def test_what_is_shown_need_not_say_so(tmp_path):
    page = page_of(tmp_path, "```text\n3 classes\nbitzoo resume x\n```\n\n    a note\n")
    assert page.faults == ()
    assert page.not_run == ()
    assert not page.runs


@pytest.mark.parametrize("name", all_pages())
def test_every_page_keeps_to_it(name):
    page = read_page(all_pages()[name])
    assert page.faults == ()
    unknown = {key.rstrip("/") for key in page.given} - set(MAKERS)
    assert {key for key in unknown if key.removeprefix("hub:") not in PEERS} == set()


def test_what_is_not_run():
    """As few as possible, and each says why."""
    found = [
        f"{name}: {block.title}"
        for name, path in all_pages().items()
        for block in read_page(path).not_run
    ]
    theirs = "coming-from/{}.md: needs {}; not run here"
    assert found == [
        theirs.format("big-transfer", "google-research/big_transfer"),
        theirs.format("big-transfer", "google-research/big_transfer"),
        theirs.format("keras-hub", "keras_hub"),
        theirs.format("tf-hub", "tensorflow_hub"),
        theirs.format("tf-hub", "a module from TF-Hub"),
        theirs.format("ultralytics", "ultralytics"),
        theirs.format("ultralytics", "ultralytics"),
        "how-to/finetune.md: needs wandb and an account; not run here",
        "how-to/library-data-sets.md: needs the network; not run here",
        "how-to/library-data-sets.md: needs the network; not run here",
        "how-to/several-processes.md: needs GPUs; not run here",
        "how-to/several-processes.md: needs two machines; not run here",
    ]
