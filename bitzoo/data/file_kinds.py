"""What a file in a folder of images is: by its suffix, else by its first bytes."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

IMAGE = "images"
UNKNOWN = "files that are not images"

_KINDS = {
    "raw camera files": (
        ".3fr .ari .arw .bay .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef "
        ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
    ),
    "videos": (
        ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv .insv .lrv"
    ),
    "PDF and other documents": ".ai .doc .docx .eps .odt .pdf .ppt .pptx .ps .rtf .xls .xlsx",
    "drawings and layered images": ".cdr .kra .psb .psd .svg .svgz .xcf",
    "arrays and scientific images": (
        ".czi .dcm .exr .fits .h5 .hdf5 .hdr .lif .mat .mha .mhd .nd2 .nii .npy .npz .nrrd "
        ".parquet .pkl .pt .tfrecord"
    ),
    "archives": ".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst",
    UNKNOWN: (
        ".aae .cfg .css .csv .db .doctree .html .htm .ini .ipynb .js .json .jsonl .lnk .log .m .md "
        ".pts .py .pyc .rst .tsv .txt .url .xml .xmp .yaml .yml"
    ),
}
"""Kind of file that is left out -> its suffixes. Raw camera files must be known by their suffix:
most are TIFF files whose first image is a thumbnail."""
_KIND_OF = {suffix: kind for kind, listed in _KINDS.items() for suffix in listed.split()}

_SIGNATURES: tuple[tuple[str, str], ...] = (
    (IMAGE, r"\xff\xd8\xff"),  # JPEG
    (IMAGE, r"\x89PNG\r\n\x1a\n"),
    (IMAGE, r"GIF8[79]a"),
    (IMAGE, r"RIFF....WEBP"),
    (IMAGE, r"II\*\0|MM\0\*|II\+\0|MM\0\+"),  # TIFF and BigTIFF
    (IMAGE, r"BM.{12}(?:\x0c|\x28|\x34|\x38|\x40|\x6c|\x7c)\0\0\0"),  # BMP, by its header's size
    (IMAGE, r"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),  # JPEG 2000
    (IMAGE, r"qoif"),
    (IMAGE, r"P[1-6][ \t\r\n]+(?:#|\d)"),  # PPM and its kin
    (IMAGE, r"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1|avi[fs])"),  # HEIF and AVIF
    ("raw camera files", r"....ftypcrx "),
    ("videos", r"....ftyp|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]"),
    ("PDF and other documents", r"%PDF|%!PS"),
    ("drawings and layered images", r"8BPS|<svg"),
    ("archives", r"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"),
)
"""Kind -> first bytes; of several that match, the first."""
_FIRST = [(kind, re.compile(pattern.encode("latin-1"), re.DOTALL)) for kind, pattern in _SIGNATURES]
_LENGTH = 32


def kind_by_name(name: str, of_images: frozenset[str]) -> str | None:
    """Return the kind of a file by its suffix, in any case; None if the suffix says nothing.

    Args:
        name: The file's name.
        of_images: The suffixes of images, as `bitzoo.models.image_files.suffixes` returns them.
    """
    suffix = os.path.splitext(name)[1].lower()
    return IMAGE if suffix in of_images else _KIND_OF.get(suffix)


def kind_by_content(file: Path) -> str:
    """Return the kind of a file by its first bytes; `UNKNOWN` if they say nothing.

    Only regular files are opened: a pipe would wait for its writer.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return "pipes, devices and sockets"
        with file.open("rb", buffering=0) as opened:
            start = opened.read(_LENGTH)
    except FileNotFoundError:
        return "links to nothing"
    except OSError:
        return "files without a known ending that cannot be opened"
    return next((kind for kind, pattern in _FIRST if pattern.match(start)), UNKNOWN)
