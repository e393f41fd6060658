"""In front of a command's path this hides TensorFlow from it."""

import sys

sys.modules["tensorflow"] = None
