"""Commands here run as if TensorFlow were not installed, as for most users.

Importing it would add eight seconds to every proof of logits, of which there are dozens.
`tests/oracle/test_tensorflow.py` tests what it adds.
"""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def without_tensorflow():
    """Put `sitecustomize.py`, which hides it, on the path of the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        hide = str(Path(__file__).parent.parent / "without_tensorflow")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [hide, os.getenv("PYTHONPATH")])))
        yield
