"""Tar shards list and read what the same images as files do; what is wrong with them is said."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitzoo.data import tar_shards
from bitzoo.data.dataset import list_splits, read_dataset
from bitzoo.data.decode_workers import Decoder
from bitzoo.data.image_check import check_image
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.problems import DatasetError, Reason
from bitzoo.data.readers import read_listing
from bitzoo.data.source_names import parse
from bitzoo.data.tar_records import read_shard
from bitzoo.data.tar_shards import find_shards
from bitzoo.data.validation import inspect

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BITZOO_CACHE", str(cache))
    return cache


def encoded(random, suffix):
    shape = (*random.integers(8, 40, 2), 3)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(file, suffix)
    return file.getvalue()


def samples(count=30, seed=0):
    """Key -> (suffix, bytes of the image, class)."""
    random = np.random.default_rng(seed)
    return {
        f"{number:06}": (suffix, encoded(random, suffix), f"{number % 3}")
        for number in range(count)
        for suffix in [("jpeg", "png", "webp")[number % 4 % 3]]
    }


def members(found):
    for key, (suffix, content, label) in found.items():
        yield f"{key}.{suffix}", content
        yield f"{key}.cls", f"{label}\n".encode()


def write(path, listed, form=tarfile.PAX_FORMAT, change=lambda info: info):
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in listed:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(change(info), io.BytesIO(content))
    return path


def opened():
    return os.listdir("/proc/self/fd")


def infos(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


def write_folder(root, found):
    for key, (suffix, content, label) in found.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{key}.{suffix}").write_bytes(content)
    return root


def by_key(images):
    """Key without folders and suffix -> class name, SHA-256 and pixels."""
    decoder = Decoder(16, 1, use_processes=False)
    return {
        example.key.rpartition("/")[2].partition(".")[0]: (
            images.classes[example.label],
            check_image(example).sha256,
            decoder.decode(example).tobytes(),
        )
        for example in images.train.examples
    }


def problems(source):
    return [(p.reason, p.subject, p.detail) for p in list_splits(source).problems]


class TestEqualToAFolder:
    @pytest.mark.parametrize("form", FORMATS)
    def test_tarfile(self, tmp_path, form):
        found = samples()
        long = {
            ("deep/" * 30 if k % 5 == 0 else "") + key: v
            for k, (key, v) in enumerate(found.items())
        }
        write(tmp_path / "a.tar", members(long), FORMATS[form])
        folder = read_dataset(write_folder(tmp_path / "folder", found))
        shards = read_dataset(f"tar:{tmp_path}/a.tar")
        assert shards.classes == folder.classes == ("0", "1", "2")
        assert not shards.problems
        assert len(shards.train) == 30
        assert by_key(shards) == by_key(folder)

    @pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
    @pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
    def test_the_systems_tar(self, tmp_path, form):
        found, files = samples(), tmp_path / "files"
        (files / "sub").mkdir(parents=True)
        for number, (name, content) in enumerate(members(found)):
            (files / ("sub" if number // 2 % 2 else ".") / name).write_bytes(content)
        call = ["tar", f"--format={form}", "-cf", str(tmp_path / "a.tar"), "-C", str(files), "."]
        if subprocess.run(call, check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("this tar does not write the format")
        folder = read_dataset(write_folder(tmp_path / "folder", found))
        assert by_key(read_dataset(f"tar:{tmp_path}/a.tar")) == by_key(folder)

    def test_the_order_is_that_of_the_shards(self, tmp_path):
        parts = [samples(7, seed) for seed in range(3)]
        for number, part in enumerate(parts):
            write(tmp_path / f"s-{number}.tar", members(part))
        images = read_dataset(f"tar:{tmp_path}/s-{{2..0}}.tar")
        keys = [f"s-{number}.tar/{key}" for number in (2, 1, 0) for key in parts[number]]
        assert [e.key for e in images.train.examples] == keys
        assert [images.train.examples[k].key for k in (-1, 13, 7)] == [keys[-1], keys[13], keys[7]]
        stored = [e.stored() for e in images.train.examples]
        assert stored == [part[1] for number in (2, 1, 0) for part in parts[number].values()]

    def test_another_process_reads_an_example(self, tmp_path):
        write(tmp_path / "a.tar", members(samples(4)))
        example = read_dataset(f"tar:{tmp_path}/a.tar").train.examples[2]
        (tmp_path / "example").write_bytes(pickle.dumps(example))
        code = (
            "import pickle, sys; e = pickle.load(open(sys.argv[1], 'rb')); "
            "print(e.stored().hex(), e.load().size)"
        )
        call = [sys.executable, "-c", code, str(tmp_path / "example")]
        printed = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        assert printed.split()[0] == samples(4)["000002"][1].hex() == example.stored().hex()

    def test_many_more_shards_than_files_that_may_be_open(self, tmp_path):
        for number in range(150):
            write(tmp_path / f"{number:03}.tar", members({"a": ("png", b"%d" % number, "x")}))
        examples = read_dataset(f"tar:{tmp_path}").train.examples
        for number in (0, 149, 70, 0):
            assert examples[number].stored() == b"%d" % number
        for number, example in enumerate(examples):
            assert example.stored() == b"%d" % number
        if os.path.isdir("/proc/self/fd"):
            assert sum(".tar" in os.path.realpath(f"/proc/self/fd/{n}") for n in opened()) <= 128


class TestLabels:
    def listed(self, tmp_path, *labels):
        image = encoded(np.random.default_rng(0), "png")
        found = []
        for number, label in enumerate(labels):
            found.append((f"{number}.png", image))
            found += [(f"{number}.{suffix}", content) for suffix, content in label.items()]
        return f"tar:{write(tmp_path / 'a.tar', found)}"

    def test_each_kind_of_label(self, tmp_path):
        source = self.listed(
            tmp_path,
            {"cls": b"cat\n"},
            {"txt": "\u00e9l\u00e9phant, gris; vieux".encode()},
            {"json": b'{"label": "dog", "width": 3}'},
            {"json": b'{"label": 17}'},
            {"txt": b"a caption", "json": b'{"caption": "-"}', "cls": b"dog"},
            {"txt": b"cat", "json": b'{"label": "dog"}'},
            {"txt": b"cat", "json": b'{"caption": "-"}'},
        )
        rows = list_splits(source).rows
        expected = ["cat", "\u00e9l\u00e9phant, gris; vieux", "dog", "17", "dog", "dog", "cat"]
        assert [row.label for row in rows] == expected

    def test_several_labels(self, tmp_path):
        source = self.listed(
            tmp_path, {"cls": b"3; 10;3"}, {"json": b'{"labels": [10, "2"]}'}, {"cls": b"2"}
        )
        images = read_dataset(source)
        assert images.classes == ("2", "3", "10")
        sets = label_sets_of(images.train)
        assert [sets[k] for k in range(3)] == [(1, 2), (2, 0), (0,)]
        assert [e.labels for e in images.train.examples] == [(1, 2), (2, 0), (0,)]

    @pytest.mark.parametrize(
        ("label", "said"),
        [
            ({}, "it has no label: no .cls or .txt, and no .json with one"),
            (
                {"json": b'{"caption": 1}'},
                "it has no label: no .cls or .txt, and no .json with one",
            ),
            ({"cls": b" \n"}, "its .cls has an empty label"),
            ({"cls": b"\xff\xfe"}, "its .cls is not UTF-8 text"),
            ({"cls": b"x" * (1 << 20) + b"y"}, "its .cls has 1,048,577 bytes, expected a label"),
            ({"json": b"{"}, "its .json is not valid JSON"),
            ({"json": b"[1]"}, "its .json is not a JSON object"),
            ({"json": b'{"label": 1.5}'}, "its .json has a label that is neither a name nor"),
            ({"json": b'{"labels": []}'}, "its .json has an empty label"),
        ],
    )
    def test_a_label_that_cannot_be_used(self, tmp_path, label, said):
        source = self.listed(tmp_path, {"cls": b"a"}, label, {"cls": b"b"})
        ((reason, subject, detail),) = problems(source)
        assert (reason, subject) == (Reason.RECORD, "a.tar/1")
        assert detail.startswith(said)
        images = read_dataset(source)
        assert [e.key for e in images.train.examples] == ["a.tar/0", "a.tar/2"]
        with pytest.raises(DatasetError, match=r"Records without one image and a label \(1\)"):
            inspect(images, lazily=True)


class TestHostile:
    def test_truncated(self, tmp_path):
        path = write(tmp_path / "a.tar", members(samples(6)))
        whole = path.read_bytes()
        ends = [m.offset_data + m.size for m in infos(path)]
        for cut, count in ((ends[2] + 600, 1), (ends[6] - 1, 3), (ends[-1] + 10, 6)):
            path.write_bytes(whole[:cut])
            found = list_splits(f"tar:{path}")
            shard = [p for p in found.problems if p.reason is Reason.SHARD]
            assert len(shard) == 1
            assert shard[0].subject == "a.tar"
            assert "ends" in shard[0].detail or "end mark" in shard[0].detail
            assert len(found.rows) == count
        path.write_bytes(whole[: ends[6] - 1])
        assert "is truncated: the member b'000003" in problems(f"tar:{path}")[0][2]

    def test_a_shard_that_is_cut_after_it_was_indexed(self, tmp_path):
        path = write(tmp_path / "a.tar", members(samples(6)))
        example = read_dataset(f"tar:{path}").train.examples[5]
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DatasetError, match="has changed since it was indexed"):
            example.stored()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"no tar at all" * 1000, "it is no tar"),
            (gzip.compress(np.random.default_rng(0).bytes(5000)), "it is compressed (gzip)"),
            (b"short", "it ends within the header at byte 0"),
            (b"", "it ends within the header at byte 0"),
        ],
        ids=["text", "gzip", "short", "empty"],
    )
    def test_no_tar(self, tmp_path, content, said):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DatasetError, match="Nothing in the data set") as caught:
            read_dataset(f"tar:{tmp_path}/a.tar")
        assert said in str(caught.value)

    def test_damage_in_the_middle(self, tmp_path):
        path = write(tmp_path / "a.tar", members(samples(6)))
        whole = bytearray(path.read_bytes())
        (third,) = [
            m.offset for m in infos(path) if m.name.startswith("000003.") and m.name[-1] != "s"
        ]
        whole[third + 3] ^= 1
        path.write_bytes(whole)
        ((reason, _, detail),) = problems(f"tar:{path}")
        assert reason is Reason.SHARD
        assert (
            detail
            == f"there is no header at byte {third:,}, where one must be: the file is damaged"
        )
        assert len(list_splits(f"tar:{path}").rows) == 3

    @pytest.mark.parametrize("size", [8 << 30, 1 << 62, (1 << 88) - 1])
    def test_a_size_beyond_the_file(self, tmp_path, size):
        listed = [*members(samples(2))]
        path = write(tmp_path / "a.tar", listed)
        info = tarfile.TarInfo("huge.png")
        info.size = size
        with open(path, "r+b") as file:
            file.seek(sum(512 + -(-len(content) // 512) * 512 for _, content in listed))
            file.write(info.tobuf(tarfile.GNU_FORMAT))
        ((reason, _, detail),) = problems(f"tar:{path}")
        assert reason is Reason.SHARD
        assert "b'huge.png' at byte" in detail
        assert f"has {size:,} bytes, and the file ends" in detail

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S"])
    def test_links_and_other_kinds(self, tmp_path, kind):
        def link(info):
            if info.name.startswith("000001.") and info.name[-1] != "s":
                info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            return info

        source = f"tar:{write(tmp_path / 'a.tar', members(samples(3)), change=link)}"
        ((reason, subject, detail),) = problems(source)
        assert (reason, subject) == (Reason.RECORD, "a.tar/000001")
        assert "is a" in detail
        assert [row.key for row in list_splits(source).rows] == ["a.tar/000000", "a.tar/000002"]

    def test_keys_that_occur_twice(self, tmp_path):
        listed = [*members(samples(3)), *members({"000001": ("jpeg", b"other", "9")})]
        source = f"tar:{write(tmp_path / 'a.tar', listed)}"
        found = problems(source)
        assert [(r, s) for r, s, _ in found] == [(Reason.RECORD, "a.tar/000001")]
        assert "several" in found[0][2]
        assert len(list_splits(source).rows) == 2

    def test_a_name_that_is_not_text(self, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(
            path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for name, content in members(samples(3)):
                info = tarfile.TarInfo(name.replace("000001", "a\udcff"))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        ((reason, subject, detail),) = problems(f"tar:{path}")
        assert (reason, subject, detail) == (
            Reason.RECORD,
            "a.tar/a\\udcff",
            "its name is not UTF-8",
        )

    def test_no_bytes_no_image_and_what_is_of_no_record(self, tmp_path):
        listed = [
            *members(samples(2)),
            ("e.png", b""),
            ("e.cls", b"1"),
            ("f.cls", b"1"),
            ("README.md", b"about"),
            (".hidden", b""),
            ("meta.json", b'{"name": "set"}'),
            ("folder/", b""),
        ]
        source = f"tar:{write(tmp_path / 'a.tar', listed)}"
        assert problems(source) == [
            (Reason.NO_BYTES, "a.tar/e", ""),
            (Reason.RECORD, "a.tar/f", "it has no image"),
        ]
        assert list_splits(source).notes == (
            "Ignored: members of the shards that are neither images nor labels (3).",
        )

    def test_several_images_in_a_record(self, tmp_path):
        listed = [*members(samples(3)), ("000002.png", b"more")]
        if samples(3)["000002"][0] == "png":
            listed[-1] = ("000002.jpg", b"more")
        ((_, subject, detail),) = problems(f"tar:{write(tmp_path / 'a.tar', listed)}")
        assert subject == "a.tar/000002"
        assert detail.startswith("it has several images")

    @pytest.mark.parametrize(
        ("kind", "content", "said"),
        [
            (b"g", b"14 path=x.png\n", "gives all members one name or size"),
            (b"g", b"10 size=3\n", "gives all members one name or size"),
            (b"g", b"99 comment=x\n", "the pax header at byte 512 is damaged"),
            (b"x", b"26 GNU.sparse.map=0,1,2,3\n", "is a sparse file: make the tar without -S"),
            (b"S", b"", "is a sparse file: make the tar without -S"),
            (b"L", b"1.png\0", "is a second name of one member"),
        ],
    )
    def test_headers_that_programs_read_differently_end_a_shard(
        self, tmp_path, kind, content, said
    ):
        extra = tarfile.TarInfo("pax")
        extra.type, extra.size = kind, len(content)
        body = content.ljust(-(-len(content) // 512) * 512, b"\0")
        path = write(tmp_path / "a.tar", members(samples(3)))
        header = bytearray(extra.tobuf(tarfile.GNU_FORMAT))
        if kind == b"S":
            header[482] = 1
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
        before = (bytes(header) + body) * (2 if kind == b"L" else 1)
        path.write_bytes(before + path.read_bytes())
        with pytest.raises(DatasetError, match=f"a.tar: .*{said}"):
            read_listing(f"tar:{path}")

    def test_a_header_for_all_members_that_says_nothing_of_them_is_read(self, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", pax_headers={"comment": "of git archive"}) as archive:
            for name, content in members(samples(3)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        assert len(read_listing(f"tar:{path}").rows) == 3

    @pytest.mark.parametrize("seed", range(3))
    def test_flipped_bytes_never_raise_anything_else(self, tmp_path, seed):
        random = np.random.default_rng(seed)
        path = write(tmp_path / "a.tar", members(samples(12)), FORMATS[[*FORMATS][seed % 3]])
        whole = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 8):
                damaged[place - place % 512 + int(random.integers(0, 512))] = random.integers(256)
            path.write_bytes(damaged)
            try:
                rows = list_splits(f"tar:{path}").rows
            except DatasetError:
                continue
            for row in rows:
                load: Any = row.load
                assert load.place.offset + load.place.size <= len(damaged)


class TestNames:
    def test_patterns(self, tmp_path):
        for name in ("a-08", "a-09", "a-10", "b-1", "odd{1"):
            write(tmp_path / f"{name}.tar", members(samples(2)))
        at = f"{tmp_path}/"

        def names(pattern):
            return [os.path.basename(path)[:-4] for path in find_shards(at + pattern)]

        assert names("a-{08..10}.tar") == ["a-08", "a-09", "a-10"]
        assert names("{b-1,a-09}.tar") == ["b-1", "a-09"]
        assert names("a-*.tar") == names("a-[01]?.tar") == ["a-08", "a-09", "a-10"]
        assert names("{a-0,b-}*.tar") == ["a-08", "a-09", "b-1"]
        assert names("odd{1.tar") == ["odd{1"]
        assert names("") == ["a-08", "a-09", "a-10", "b-1", "odd{1"]
        with pytest.raises(DatasetError, match=r"found no .*a-11\.tar\. Check the pattern"):
            names("a-{08..11}.tar")
        with pytest.raises(DatasetError, match=r"found no .*c\*\.tar"):
            names("c*.tar")

    def test_what_stands_after_at(self, tmp_path):
        found = parse("tar:a@b/x?.tar@val")
        assert (found.name, found.split) == ("a@b/x?.tar", "val")
        assert parse("tar:a@b/x.tar").split is None
        with pytest.raises(DatasetError, match="tar:SHARDS"):
            parse("tar:")

    def test_splits_by_the_names_of_shards(self, tmp_path):
        for number in range(2):
            write(tmp_path / f"set-train-{number}.tar", members(samples(6, number)))
        write(tmp_path / "set-val-0.tar", members(samples(3, 9)))
        images = read_dataset(f"tar:{tmp_path}")
        assert (len(images.train), len(images.val)) == (12, 3)
        assert (
            images.notes[0]
            == "Splits by the shards' names: train from 2 of them, val from 1 of them."
        )
        assert next(e.key for e in images.val.examples) == "set-val-0.tar/000000"
        alone = read_dataset(f"tar:{tmp_path}@val", classes=("0", "1", "2"))
        assert [e.key for e in alone.train.examples] == [e.key for e in images.val.examples]
        with pytest.raises(DatasetError, match="found train, val"):
            read_dataset(f"tar:{tmp_path}@test")

    def test_splits_named_apart(self, tmp_path):
        write(tmp_path / "a.tar", members(samples(6)))
        write(tmp_path / "b.tar", members({"x": ("png", b"1", "2"), "y": ("png", b"2", "extra")}))
        images = read_dataset(f"train=tar:{tmp_path}/a.tar,val=tar:{tmp_path}/b.tar")
        assert images.classes == ("0", "1", "2", "extra")
        assert [(e.key, e.label) for e in images.val.examples] == [("b.tar/x", 2), ("b.tar/y", 3)]
        assert [p.reason for p in images.problems] == [Reason.ONLY_IN_TRAIN] * 2 + [
            Reason.ONLY_IN_VAL
        ]

    def test_beside_a_folder(self, tmp_path):
        write(tmp_path / "a.tar", members(samples(6)))
        folder = write_folder(tmp_path / "val", samples(3, 5))
        images = read_dataset({"train": f"tar:{tmp_path}/a.tar", "val": str(folder)})
        assert (len(images.train), len(images.val)) == (6, 3)
        assert images.train.examples[0].key == "a.tar/000000"

    def test_equal_names_in_several_folders(self, tmp_path):
        for part in "xy":
            (tmp_path / part).mkdir()
            write(tmp_path / part / "0.tar", members(samples(2)))
        keys = [row.key for row in list_splits(f"tar:{tmp_path}/{{x,y}}/0.tar").rows]
        assert keys == [f"{p}/0.tar/00000{k}" for p in "xy" for k in range(2)]


class TestIndex:
    def index(self, cache):
        (file,) = (cache / "shards").glob("*.index")
        return file

    def test_is_read_once(self, tmp_path, own_cache, monkeypatch):
        for number in range(3):
            write(tmp_path / f"{number}.tar", members(samples(5, number)))
        seen = []

        def counted(descriptor, name):
            seen.append(name)
            return read_shard(descriptor, name)

        monkeypatch.setattr(tar_shards, "read_shard", counted)

        def keys():
            seen.clear()
            images = read_dataset(f"tar:{tmp_path}")
            return [(e.key, e.label, e.stored()) for e in images.train.examples], images.fingerprint

        first = keys()
        assert seen == ["0.tar", "1.tar", "2.tar"]
        assert keys() == first
        assert seen == []
        write(tmp_path / "1.tar", members(samples(7, 8)))
        second = keys()
        assert seen == ["1.tar"]
        assert second[1] != first[1]
        self.index(own_cache).unlink()
        assert keys() == second
        assert seen == ["0.tar", "1.tar", "2.tar"]

    @pytest.mark.parametrize("place", [0.02, 0.5, 0.95, 0.999])
    def test_a_damaged_index_is_made_again(self, tmp_path, own_cache, place):
        write(tmp_path / "a.tar", members(samples(20)))
        before = [(e.key, e.label) for e in read_dataset(f"tar:{tmp_path}").train.examples]
        file = self.index(own_cache)
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 0x55
        file.write_bytes(content)
        assert [(e.key, e.label) for e in read_dataset(f"tar:{tmp_path}").train.examples] == before

    def test_an_interrupted_indexing_goes_on(self, tmp_path, monkeypatch):
        for number in range(3):
            write(tmp_path / f"{number}.tar", members(samples(5, number)))
        seen = []

        def stopped(descriptor, name):
            seen.append(name)
            if name == "2.tar" and len(seen) == 3:
                raise KeyboardInterrupt
            return read_shard(descriptor, name)

        monkeypatch.setattr(tar_shards, "read_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            read_dataset(f"tar:{tmp_path}")
        assert len(read_dataset(f"tar:{tmp_path}").train) == 15
        assert seen == ["0.tar", "1.tar", "2.tar", "2.tar"]

    def test_several_labels_survive_a_change_of_another_shard(self, tmp_path):
        image = encoded(np.random.default_rng(0), "png")
        for number in range(3):
            cells = [*[b"a;b", b"b", b"c;a;d"][number:], b"e"]
            listed = [
                pair
                for k, cell in enumerate(cells)
                for pair in ((f"{k}.png", image), (f"{k}.cls", cell))
            ]
            write(tmp_path / f"{number}.tar", listed)

        def labels():
            images = read_dataset(f"tar:{tmp_path}")
            sets = label_sets_of(images.train)
            return ["".join(images.classes[k] for k in sets[row]) for row in range(len(sets))]

        assert labels() == ["ab", "b", "cad", "e", "b", "cad", "e", "cad", "e"]
        write(tmp_path / "0.tar", [("z.png", image), ("z.cls", b"f;a")])
        assert labels() == ["fa", "b", "cad", "e", "cad", "e"]

    def test_without_a_place_to_keep_it(self, tmp_path, own_cache, monkeypatch, caplog):
        write(tmp_path / "a.tar", members(samples(5)))
        (own_cache / "shards").write_text("a file")
        images = read_dataset(f"tar:{tmp_path}")
        assert [e.stored() for e in images.train.examples] == [v[1] for v in samples(5).values()]
        assert "The shards are indexed again the next time" in caplog.text


def test_a_listing_is_the_same_as_rows(tmp_path):
    found = samples(9)
    write(tmp_path / "a.tar", members(found))
    listing = read_listing(f"tar:{tmp_path}/a.tar")
    assert [row.label for row in listing.rows] == [label for *_, label in found.values()]
    assert listing.rows[3] == listing.rows[-6]
    assert [row.key for row in listing.rows[2:4]] == ["a.tar/000002", "a.tar/000003"]


def test_a_held_out_part_is_that_of_the_same_list_of_files(tmp_path):
    found = samples(30)
    write(tmp_path / "a.tar", members(found))
    lines = [f"{key}.png,{label}" for key, (_, _, label) in found.items()]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    shards = read_dataset(f"tar:{tmp_path}/a.tar", val_fraction=0.3, seed=5)
    listed = read_dataset(tmp_path / "list.csv", val_fraction=0.3, seed=5)
    for ours, theirs in zip(shards.splits, listed.splits, strict=True):
        keys = [e.key.rpartition("/")[2] for e in ours.examples]
        assert keys == [e.key.partition(".")[0] for e in theirs.examples]
    assert len(shards.val) == 9
    few = read_dataset(f"tar:{tmp_path}/a.tar", examples_per_class=2)
    assert [e.label for e in few.train.examples].count(1) == 2


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    write(tmp_path / "a.tar", members(samples(3)))
    first = read_dataset(f"tar:{tmp_path}/a.tar").fingerprint
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "a.tar", tmp_path / "moved" / "a.tar")
    assert read_dataset(f"tar:{tmp_path}/moved/a.tar").fingerprint == first


def test_a_data_set_is_sent_to_other_processes_by_its_place(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.tar", members(samples(400, number)))
    images = read_dataset(f"tar:{tmp_path}", val_fraction=0.1)
    sent = pickle.dumps(images)
    assert len(sent) < 20_000 < 800 * 28  # numbers and labels, not what the index says of each
    received = pickle.loads(sent)
    assert received.train.examples == images.train.examples
    assert received.val.examples[3].stored() == images.val.examples[3].stored()
    write(tmp_path / "1.tar", members(samples(5, 7)))
    with pytest.raises(DatasetError, match="have changed since they were listed"):
        pickle.loads(sent)
