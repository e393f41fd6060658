"""Tar archives under attack; the independent readers are `tarfile` and that of the file inside."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path, PurePosixPath

from attacks import npz_files, safetensors_files
from attacks.checkpoints_under_attack import PART, Base, CheckpointTarget
from attacks.judges import Arrays
from attacks.mutations import TEXTS, damage, odd_number
from safetensors.torch import save

NAME = "module.tar"


def make_bases(folder: Path) -> list[Base]:
    """An archive, and a compressed one, of a folder with a checkpoint, and of one alone."""
    npz = npz_files.make_bases(folder)[0].files["bit.npz"]
    weights = save(safetensors_files.timm_tensors(PART))
    config = b'{"architecture": "resnetv2_50x1_bit"}'
    contents = {
        "one file": {"bit.npz": npz},
        "below": {"a/b/model.safetensors": weights},
        "folder": {"./model.safetensors": weights, "./config.json": config},
    }
    bases = []
    for name, files in contents.items():
        data = _tar([(_info(at, content), content) for at, content in files.items()])
        hot = _headers(data)
        bases.append(Base(name, {NAME: data}, NAME, hot={NAME: hot}, make=files))
        packed = gzip.compress(data, 1, mtime=0)
        bases.append(
            Base(f"{name} packed", {NAME: packed}, NAME, hot={NAME: [(0, 20)]}, make=files)
        )
    return bases


def _info(name: str, content: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return out.getvalue()


def _headers(data: bytes) -> list[tuple[int, int]]:
    """Where the members' headers are; the content has none that look like one."""
    starts = range(0, len(data) - 511, 512)
    return [(start, start + 512) for start in starts if data[start + 257 : start + 262] == b"ustar"]


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Members that are no files, lead elsewhere, or have odd headers, under right checksums."""
    members = [(_info(name, content), content) for name, content in base.make.items()]
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    labels = []
    for _ in range(rng.choice((1, 1, 2))):
        labels.append(_change(members, rng))
    try:
        data = _tar(members, form)
    except (ValueError, tarfile.TarError, OverflowError, UnicodeError):
        members = [(_info(name, content), content) for name, content in base.make.items()]
        data, labels = _tar(members), [*labels, "(not writable)"]
    if rng.random() < 0.4:
        data = _changed_header(data, rng)
        labels.append("header")
    if base.name.endswith("packed"):
        data = gzip.compress(data, 1, mtime=0)
        if rng.random() < 0.2:
            data, what = damage(data, rng, [(0, 20), (len(data) - 8, len(data))])
            labels.append(what)
    return base.write(place, {NAME: data}), ", ".join(labels)


_TYPES = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE,
    b"Z",
    b"\0",
)
_NAMES = (
    "../outside",
    "/etc/outside",
    "a/../../b",
    "x" * 300,
    "y/" * 200 + "z",
    ".",
    "..",
    "a\\b",
    "C:\\x",
    "model.safetensors/",
    "bit.npz/x",
    "//x",
    "a\nb",
    "\x1b[31m",
    "\u202etxt",
    " ",
)


def _change(  # noqa: C901 - one case per kind of damage
    members: list[tuple[tarfile.TarInfo, bytes]], rng: random.Random
) -> str:
    kind = rng.choice(
        ("type", "name", "twice", "more", "pax", "size", "gone", "content", "order", "link")
    )
    at = rng.randrange(len(members))
    info, content = members[at]
    if kind == "type":
        info.type = rng.choice(_TYPES)
        info.linkname = rng.choice(("", "/etc/passwd", "../../x", info.name, "bit.npz"))
    elif kind == "name":
        info.name = rng.choice((*_NAMES, *TEXTS[:9]))
    elif kind == "twice":
        members.append((_info(info.name, content[::-1]), content[::-1]))
    elif kind == "more":
        for i in range(rng.choice((1, 3, 200))):
            name = rng.choice((f"extra{i}", f"d/{i}/x", info.name + f"/{i}"))
            members.insert(rng.randrange(len(members) + 1), (_info(name, b"x" * 9), b"x" * 9))
    elif kind == "pax":
        texts = ("9" * 400, "-1", "1e9", "x" * 3_000, "\0", "../x", "0", "99999999999999")
        keys = (
            "size",
            "path",
            "linkpath",
            "mtime",
            "GNU.sparse.map",
            "GNU.sparse.size",
            "uid",
            "GNU.sparse.major",
            "GNU.sparse.realsize",
            "hdrcharset",
            "comment",
        )
        info.pax_headers = {rng.choice(keys): rng.choice(texts) for _ in range(rng.choice((1, 2)))}
    elif kind == "gone":
        del members[at]
        members.append((_info("readme.txt", b"nothing"), b"nothing"))
    elif kind == "content":
        changed, _ = damage(content, rng)
        members[at] = (_info(info.name, changed), changed)
    elif kind == "order":
        rng.shuffle(members)
    elif kind == "link":
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, rng.choice(("/tmp", "..", info.name))
        members[at:at] = [(link, b""), (_info("link/" + info.name, content), content)]
    return kind


def _changed_header(data: bytes, rng: random.Random) -> bytes:
    """Change a header and make its checksum right again."""
    content, starts = bytearray(data), _headers(data) or [(0, 512)]
    start, _ = rng.choice(starts)
    changed, _ = damage(bytes(content[start : start + 512]), rng)
    head = bytearray(changed[:512].ljust(512, b"\0"))
    if rng.random() < 0.5:
        size = odd_number(rng, len(data)) % (1 << 33)
        head[124:136] = (
            b"%011o\0" % size if rng.random() < 0.7 else b"\x80" + size.to_bytes(11, "big")
        )
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % (sum(head) % (1 << 18))
    content[start : start + 512] = head
    return bytes(content)


def read_here(path: Path) -> Arrays:
    """The one checkpoint in the archive, as the readers of its own format see it."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                found[PurePosixPath(member.name)] = file.read()
    if len(found) > 1:  # beside other files, a checkpoint has a name of its own, and is on top
        found = {name: data for name, data in found.items() if name.name == "model.safetensors"}
        top = min((len(name.parts) for name in found), default=0)
        found = {name: data for name, data in found.items() if len(name.parts) == top}
    if len(found) != 1:
        raise ValueError(f"{len(found)} checkpoints")
    (content,) = found.values()
    inner = path.with_name("inner")
    inner.write_bytes(content)
    read = npz_files.read_here if content.startswith(b"PK") else safetensors_files.read_here
    return read(inner)


TAR = CheckpointTarget("tar", make_bases, structured, judge_here=read_here)
