"""In front of a command's path this hides TensorFlow from it, as if it were not installed.

`sys.modules["tensorflow"] = None` would not do: libraries that look there to see whether somebody
has imported it, as TensorFlow Datasets does, would take it for imported.
"""

import sys
from importlib.machinery import PathFinder


class _WithoutTensorFlow(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "tensorflow" else super().find_spec(fullname, path, target)


sys.meta_path = [_WithoutTensorFlow if one is PathFinder else one for one in sys.meta_path]
