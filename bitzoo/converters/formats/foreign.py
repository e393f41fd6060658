"""Files that people mistake for a checkpoint: how to know them, what they are, what to do next."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

_FETCH = "Check the path, or fetch the file again."
_EXPORTED = "It is made from a checkpoint and not a way back: give the checkpoint itself."
_UNPACK = "Unpack it, and give what is in it."
_JAX = "Restore it with JAX, and save its arrays with numpy.savez under big_vision's names."

_FILES: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a pointer of Git LFS: the file itself was never downloaded",
        "Run `git lfs pull` in the repository, or download the file from its page.",
    ),
    (rb"\x93NUMPY", "a single NumPy array (.npy)", "Give the .npz or other file of all weights."),
    (rb"\x08[\x03-\x20][\x12\x1a:]", "an ONNX model", _EXPORTED),
    (rb".{4}TFL3", "a TensorFlow Lite model", _EXPORTED),
    (
        rb"\x08\x01\x12",
        "the graph of a SavedModel without its variables",
        "Give the folder with saved_model.pb and variables/.",
    ),
    (
        rb"\n.{1,3}\n.{1,2}[\w/.-]+\x12.(?:Placeholder|Const|VarHandleOp|NoOp)",
        "a frozen graph of TensorFlow (.pb), whose weights are constants without BiT's names",
        "Give the SavedModel, the .npz or the .h5 that it was made from.",
    ),
    (rb"(?s)\s*<\?xml.{0,200}<net\s", "an OpenVINO model", _EXPORTED),
    (rb"\s*<", "a web page or XML text: the download failed", _FETCH),
    (
        rb"[\x81-\x8f\xde\xdf].{0,4}[\xa1-\xbf\xd9]",
        "MessagePack data, as Flax writes (.msgpack)",
        _JAX,
    ),
    (rb"model_checkpoint_path:", "TensorFlow's list of checkpoints", "Give the folder it is in."),
    (rb"GGUF", "a GGUF file of a language model", _FETCH),
    (rb"MATLAB 5\.0 MAT-file", "a MATLAB file", "Save its arrays with numpy.savez."),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|BM.{4}\0\0\0\0", "a picture", _FETCH),
    (rb"%PDF", "a PDF document", _FETCH),
    (rb"BZh\d|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", _UNPACK),
    (rb"\{", "JSON text", "Give the file with the weights that it describes, or their folder."),
    (rb"(?s)\(dp|\(lp|c\w+\n|ccollections\n", "an old pickle as text", "Save it with torch.save."),
    (rb"\0{512}", "zeros: a download that was interrupted", _FETCH),
)
"""Beginning of a file, as a regular expression -> what it is, what to do; the first one counts.

From the formats' own descriptions: onnx.proto (ir_version, then text), the TensorFlow Lite schema
(file_identifier), saved_model.proto and graph.proto, MessagePack's specification, RFC 1952."""

_MEMBERS: tuple[tuple[str, str, str], ...] = (
    (
        r"model\.weights\.h5",
        "a model of Keras 3 (.keras)",
        "Load it with Keras, and save a TensorFlow checkpoint, or with tf_keras an .h5 of weights.",
    ),
    (
        r"(.*/)?(data\.pkl|constants\.pkl|code/.*)",
        "an archive of PyTorch in which the pickle is not the first member",
        "Save the state dict again with torch.save; `unzip` and `zip` change the archive's order.",
    ),
    (
        r"(.*/)?(saved_model\.pb|variables\.index)",
        "a zip archive of a SavedModel",
        "Unpack it, and give the folder.",
    ),
    (r"(.*/)?(Metadata|featureDescriptions)\.json", "a zip archive of Core ML", _EXPORTED),
    (
        r".*\.(safetensors|bin|pth|pt|h5|npz|index|ckpt)",
        "a zip archive of checkpoint files",
        "Unpack it, and give the file or folder in it.",
    ),
)
"""Name of any member of a zip archive -> what the archive is, what to do."""

_FOLDERS: tuple[tuple[str, str, str], ...] = (
    ("manifest.ocdbt", "a checkpoint of Orbax (JAX)", _JAX),
    ("_CHECKPOINT_METADATA", "a checkpoint of Orbax (JAX)", _JAX),
    ("_METADATA", "a checkpoint of Orbax (JAX)", _JAX),
    (
        ".metadata",
        "a distributed checkpoint of torch (DCP)",
        "Join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
    ),
    ("flax_model.msgpack", "a folder with Flax weights only", _JAX),
    ("tf_model.h5", "a folder with weights of transformers' TensorFlow classes only", _FETCH),
    (
        "saved_model.pb",
        "a SavedModel without its variables",
        "Copy the folder variables/ there, too.",
    ),
    (
        "config.json",
        "a folder that describes a model, without its weights",
        "Download model.safetensors into it.",
    ),
    (".git", "a repository", "Give the file in it that has the weights."),
)
"""Name of a file in a folder -> what the folder is, what to do."""


def name_file(head: bytes) -> tuple[str, str]:
    """Return what a file is by its first bytes, and what to do next."""
    if not head:
        return "an empty file", _FETCH
    for start, what, advice in _FILES:
        if re.match(start, head):
            return what, advice
    return _name_text(head) or ("an unknown format", _FETCH)


def name_members(names: list[str]) -> tuple[str, str]:
    """Return what a zip archive is by its members' names, and what to do next."""
    for pattern, what, advice in _MEMBERS:
        if any(re.fullmatch(pattern, name) for name in names):
            return what, advice
    return "a zip file, but not an .npz checkpoint", _FETCH


def name_folder(folder: Path) -> tuple[str, str] | None:
    """Return what a folder without a checkpoint is by its files and what to do; None if unknown."""
    for name, what, advice in _FOLDERS:
        if (folder / name).exists():
            return what, advice
    return None


def _name_text(head: bytes) -> tuple[str, str] | None:
    """Return that a file is text, with its beginning; None if it is not."""
    try:  # the last character may be cut
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    lines = [line.strip() for line in text.split("\n")]
    if not lines[0] or not all(line.replace("\t", " ").isprintable() for line in lines):
        return None
    return f"text that begins with {lines[0][:60]!r}", _FETCH
