"""The catalogue against the facts, written a second time: names, addresses, heads, scores."""

import json
import pickle
import re
import subprocess
import sys
from itertools import product

import pytest

from bitzoo.catalogue.registry import find_spec, get_spec, list_models
from bitzoo.errors import UnknownModelError, WeightsUnavailableError

BASE = "https://storage.googleapis.com/bit_models/"
ARCHS = ["R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"]
FIVE = [arch for arch in ARCHS if arch != "R152x2"]
TASK_CLASSES = {  # google-research/task_adaptation and the tensorflow_datasets builders it uses
    "caltech101": 102,
    "cifar100": 100,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "patch_camelyon": 2,
    "sun397": 397,
    "svhn": 10,
    "resisc45": 45,
    "eurosat": 10,
    "diabetic_retinopathy": 5,
    "clevr-count": 8,
    "clevr-distance": 6,
    "dmlab": 6,
    "dsprites-orientation": 16,
    "dsprites-xpos": 16,
    "smallnorb-azimuth": 18,
    "smallnorb-elevation": 9,
    "kitti-distance": 4,
}
TEACHER_CLASSES = {"flowers": 102, "pet": 37, "food": 101, "sun": 397}


def expected_npz() -> dict[str, tuple[str, int]]:
    """Name -> (path of the npz below the bucket, classes)."""
    files = {f"BiT-S-{a}": (f"BiT-S-{a}.npz", 1000) for a in ARCHS}
    files |= {f"BiT-M-{a}": (f"BiT-M-{a}.npz", 21843) for a in ARCHS}
    files |= {f"BiT-M-{a}-ILSVRC2012": (f"BiT-M-{a}-ILSVRC2012.npz", 1000) for a in ARCHS}
    files |= {f"BiT-R50x1_{s}": (f"distill/R50x1_{s}.npz", 1000) for s in (224, 160)}
    files |= {f"BiT-R152x2_T_{s}": (f"distill/R152x2_T_{s}.npz", 1000) for s in (224, 384)}
    for task, classes in TEACHER_CLASSES.items():
        files[f"BiT-R152x2_T_{task}128"] = (f"distill/R152x2_T_{task}128.npz", classes)
    for arch, run, (task, classes) in product(FIVE, (0, 1, 2), TASK_CLASSES.items()):
        name = f"BiT-M-{arch}-run{run}-{task}"
        files[name] = (f"vtab/{name}.npz", classes)
    return files


def test_every_released_checkpoint_has_its_name_address_and_head():
    expected = expected_npz()
    assert len(expected) == 311
    found = {name: get_spec(name) for name in list_models(released=True)}
    assert {name: (spec.files["npz"], spec.num_classes) for name, spec in found.items()} == expected
    assert {spec.url() for spec in found.values()} == {BASE + path for path, _ in expected.values()}


def test_h5_and_tfhub_exist_where_the_readme_says():
    specs = [get_spec(name) for name in list_models()]
    h5 = {spec.url("h5") for spec in specs if "h5" in spec.files}
    assert h5 == {f"{BASE}BiT-{size}-{arch}.h5" for size, arch in product("SM", FIVE)}
    tfhub = {spec.url("tfhub") for spec in specs if "tfhub" in spec.files}
    assert tfhub == {
        f"{BASE}vtab/BiT-M-{arch}-run{run}-{task}.tfhub/"
        for arch, run, task in product(FIVE, range(3), TASK_CLASSES)
    }
    assert {kind for spec in specs for kind in spec.files} == {"npz", "h5", "tfhub"}


def test_bit_l_is_an_architecture_without_weights():
    assert list_models(released=False) == [f"BiT-L-{arch}" for arch in ARCHS]
    spec = get_spec("BiT-L-R152x4")
    assert (spec.num_classes, spec.files, spec.dataset) == (18291, {}, "jft-300m")
    with pytest.raises(WeightsUnavailableError, match=r"never released weights.*your own"):
        spec.url()


def test_a_format_that_was_not_released_is_named():
    with pytest.raises(WeightsUnavailableError, match=r"not released as 'h5', only as npz, tfhub"):
        get_spec("BiT-M-R50x1-run0-dtd").url("h5")


def test_the_catalogue_order_is_stable_and_groups_families():
    names = list_models()
    assert len(names) == 317
    assert names[:7] == [f"BiT-S-{arch}" for arch in ARCHS] + ["BiT-M-R50x1"]
    families = [get_spec(name).family for name in names]
    assert list(dict.fromkeys(families)) == [
        *["BiT-S", "BiT-M", "BiT-M-ILSVRC2012", "BiT-distilled", "BiT-teacher"],
        *["BiT-teacher-128", "BiT-M-VTAB", "BiT-L"],
    ]
    assert families == sorted(families, key=list(dict.fromkeys(families)).index)


@pytest.mark.parametrize(
    ("arch", "in1k", "in21k", "jft"),
    [  # counted in TensorFlow and PyTorch with the original code
        ("R50x1", 25_549_352, 68_256_659, 60_978_611),
        ("R50x3", 217_319_080, 345_399_315, 323_572_275),
        ("R101x1", 44_541_480, 87_248_787, 79_970_739),
        ("R101x3", 387_934_888, 516_015_123, 494_188_083),
        ("R152x2", 236_335_208, 321_728_979, 307_176_435),
        ("R152x4", 936_533_224, 1_107_299_923, 1_078_198_387),
    ],
)
def test_parameter_counts(arch: str, in1k: int, in21k: int, jft: int):
    counts = {size: get_spec(f"BiT-{size}-{arch}").num_params for size in "SML"}
    assert counts == {"S": in1k, "M": in21k, "L": jft}
    assert get_spec(f"BiT-M-{arch}-ILSVRC2012").num_params == in1k


def test_the_architecture_is_the_one_in_the_name():
    for name in list_models():
        spec = get_spec(name)
        assert spec.arch_name == re.search(r"R\d+x\d", name).group()
        assert spec.architecture.name == spec.arch_name


def test_only_the_imagenet_21k_head_is_a_sigmoid():
    sigmoid = [name for name in list_models() if get_spec(name).activation == "sigmoid"]
    assert sigmoid == [f"BiT-M-{arch}" for arch in ARCHS]


def test_label_sets_follow_the_head_and_their_absence_has_a_reason():
    for spec in map(get_spec, list_models()):
        by_classes = {1000: "imagenet1k", 21843: "imagenet21k_goog"}
        assert spec.label_set == by_classes.get(spec.num_classes)
        assert bool(spec.label_note) == (spec.label_set is None)
    assert "dtd" in get_spec("BiT-M-R50x1-run0-dtd").label_note


@pytest.mark.parametrize(
    ("name", "dataset", "task"),
    [
        ("BiT-S-R50x3", "ilsvrc-2012", "ilsvrc-2012"),
        ("BiT-M-R50x3", "imagenet-21k", "imagenet-21k"),
        ("BiT-M-R152x4-ILSVRC2012", "imagenet-21k", "ilsvrc-2012"),
        ("BiT-M-R101x1-run2-clevr-count", "imagenet-21k", "vtab/clevr-count"),
        ("BiT-R50x1_160", "ilsvrc-2012", "ilsvrc-2012"),
        ("BiT-R152x2_T_384", "imagenet-21k", "ilsvrc-2012"),
        ("BiT-R152x2_T_pet128", "imagenet-21k", "oxford_iiit_pet"),
    ],
)
def test_dataset_and_task(name: str, dataset: str, task: str):
    assert (get_spec(name).dataset, get_spec(name).task) == (dataset, task)


@pytest.mark.parametrize(
    ("name", "crop", "resize", "interpolation", "square"),
    [
        ("BiT-S-R50x1", 224, 256, "bilinear", False),
        ("BiT-R50x1_160", 160, 182, "bicubic", False),
        ("BiT-R152x2_T_food128", 128, 160, "bicubic", False),
        ("BiT-M-R50x1-run0-svhn", 128, 128, "bilinear", True),
        ("BiT-M-R152x4-run0-eurosat", 128, 128, "bilinear", True),
        ("BiT-M-R50x1-run0-smallnorb-azimuth", 384, 384, "bilinear", True),
        ("BiT-M-R152x4-run1-sun397", 480, 480, "bilinear", True),
    ],
)
def test_preprocessing(name: str, crop: int, resize: int, interpolation: str, square: bool):
    spec = get_spec(name)
    rule = spec.preprocessing
    assert (rule.crop, rule.resize) == (crop, resize)
    assert (rule.interpolation, rule.square) == (interpolation, square)
    assert spec.resolution == crop


def test_small_images_are_exactly_those_below_96_px():
    small = {get_spec(n).task for n in list_models("*-run*") if get_spec(n).resolution == 128}
    names = ("cifar100", "svhn", "eurosat", "dsprites-orientation", "dsprites-xpos")
    assert small == {f"vtab/{name}" for name in names}


def test_timm_agrees_on_what_it_also_has():
    """Classes, sizes and interpolation of timm's own configurations, under timm's own names."""
    import timm
    from timm.data import ImageNetInfo

    names = timm.list_pretrained("resnetv2_*_bit.goog_*")
    assert len(names) == 15
    for name in names:
        spec, config = get_spec(name), timm.get_pretrained_cfg(name)
        rule = spec.preprocessing
        size = config.input_size[-1]
        assert (spec.num_classes, rule.crop) == (config.num_classes, size), name
        assert rule.resize == int(size / config.crop_pct), name
        assert (rule.interpolation, rule.square) == (config.interpolation, False), name
        assert spec.arch_name == "R" + name.removeprefix("resnetv2_").split("_")[0]
        assert spec.license == config.license
    for label_set in ("imagenet1k", "imagenet21k_goog"):
        spec = next(s for s in map(get_spec, names) if s.label_set == label_set)
        assert ImageNetInfo(label_set).num_classes() == spec.num_classes


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("BiT-M-R50x1", "BiT-M-R50x1"),
        ("bit_m_r50x1", "BiT-M-R50x1"),
        ("BITMR50X1", "BiT-M-R50x1"),
        ("bit-m-r152x4-ilsvrc2012", "BiT-M-R152x4-ILSVRC2012"),
        ("BiT-M-R50x1-imagenet2012", "BiT-M-R50x1-ILSVRC2012"),
        ("bit_m_r101x3_run2_dsprites_xpos", "BiT-M-R101x3-run2-dsprites-xpos"),
        ("R50x1_224", "BiT-R50x1_224"),
        ("r50x1-160", "BiT-R50x1_160"),
        ("R152x2_T_384", "BiT-R152x2_T_384"),
        ("R152x2_T_sun128", "BiT-R152x2_T_sun128"),
        ("FunMatch-224px-i1k82.8", "BiT-R50x1_224"),
        ("FunMatch-160px-i1k80.5", "BiT-R50x1_160"),
        ("resnetv2_50x1_bit.goog_distilled_in1k", "BiT-R50x1_224"),
        ("resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k", "BiT-R152x2_T_224"),
        ("resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384", "BiT-R152x2_T_384"),
        ("resnetv2_101x3_bit.goog_in21k", "BiT-M-R101x3"),
        ("resnetv2_101x3_bit.goog_in21k_ft_in1k", "BiT-M-R101x3-ILSVRC2012"),
        ("resnetv2_50x1_bitm", "BiT-M-R50x1-ILSVRC2012"),
        ("resnetv2_50x1_bitm_in21k", "BiT-M-R50x1"),
    ],
)
def test_lookup_by_name_and_alias(query: str, name: str):
    assert get_spec(query).name == name
    assert find_spec(query) is get_spec(query)


def test_no_two_names_collide():
    owner: dict[str, str] = {}
    for spec in map(get_spec, list_models()):
        for name in (spec.name, *spec.aliases):
            key = name.lower().replace("-", "").replace("_", "")
            assert owner.setdefault(key, spec.name) == spec.name, name
            assert get_spec(name) is spec
        assert len({*spec.aliases, spec.name}) == len(spec.aliases) + 1


@pytest.mark.parametrize(
    ("query", "nearest"),
    [
        ("BiT-M-R50x2", "BiT-M-R50x3, BiT-M-R50x1"),
        ("BiT-M-R50x1.npz", "BiT-M-R50x1, "),
        ("BiT-M-R50x1-run3-dtd", "BiT-M-R50x1-run"),
        ("resnetv2_50x1_bit.goog_in22k", "BiT-M-R50x1"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(query: str, nearest: str):
    assert find_spec(query) is None
    message = rf"^'{re.escape(query)}' is not a name .* Nearest names: {re.escape(nearest)}"
    with pytest.raises(UnknownModelError, match=message) as caught:
        get_spec(query)
    assert "`bitzoo list`" in str(caught.value)


def test_a_name_like_no_other():
    with pytest.raises(UnknownModelError, match=r"Nearest names: none is similar\. `bitzoo list`"):
        get_spec("~~~")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("BiT-M-R??x1", ["BiT-M-R50x1"]),
        ("bit_m_r*x1", ["BiT-M-R50x1", "BiT-M-R101x1"]),
        ("*R152x2_t_[fp]*", [f"BiT-R152x2_T_{task}128" for task in ("flowers", "pet", "food")]),
        ("bit-m-r50x1-run[0-1]-DTD", ["BiT-M-R50x1-run0-dtd", "BiT-M-R50x1-run1-dtd"]),
        ("BiT-[!M-Z]-R50*", ["BiT-L-R50x1", "BiT-L-R50x3"]),
        ("run0_dtd", [f"BiT-M-{arch}-run0-dtd" for arch in ARCHS if arch != "R152x2"]),
        ("152x2-t-224", ["BiT-R152x2_T_224"]),
        ("[R]50x1", []),
        ("R99", []),
    ],
)
def test_listing_by_wildcard(pattern: str, names: list[str]):
    assert list_models(pattern) == names


def test_listing_by_family_and_release():
    assert len(list_models("BiT-M-*", released=True)) == 6 + 6 + 285
    assert len(list_models("BiT-M-*-run*")) == 285
    assert list_models("BiT-M-*", released=False) == []
    assert list_models("*", released=None) == list_models()


def scores(name: str) -> set[tuple[str, str, float, int | None]]:
    metrics = get_spec(name).metrics
    return {(m.name, m.dataset, m.value, m.resolution) for m in metrics}


def test_scores_stand_at_the_checkpoints_they_belong_to():
    in1k = "ILSVRC-2012"

    def on_in1k(name: str) -> set[tuple[str, float, int | None]]:
        return {
            (kind, value, size) for kind, dataset, value, size in scores(name) if dataset == in1k
        }

    assert on_in1k("BiT-M-R152x4-ILSVRC2012") == {("top-1", 84.936, 480), ("top-5", 97.456, 480)}
    assert scores("BiT-R50x1_160") == {("top-1", in1k, 80.5, 160), ("top-1", in1k, 80.49, 160)}
    assert on_in1k("BiT-R152x2_T_384") == {
        ("top-1", 84.3, 384),
        ("top-1", 83.7, 384),
        ("top-1", 83.858, 384),
        ("top-5", 97.13, 384),
    }
    assert scores("BiT-R152x2_T_pet128") == {("top-1", "Oxford-IIIT Pets", 91.03, 128)}
    assert ("mean top-1", "VTAB-1k", 66.87, None) in scores("BiT-S-R152x4")
    assert ("top-1", "CIFAR-100", 92.17, None) in scores("BiT-M-R152x4")
    assert ("mean top-1", "VTAB-1k", 73.51, None) in scores("BiT-M-R152x4")
    assert ("top-5", in1k, 98.46, None) in scores("BiT-L-R152x4")
    assert len(get_spec("BiT-M-R101x3").metrics) == 3 * (3 + 3) + 2 + 1
    assert get_spec("BiT-S-R50x1").metrics == ()
    one_shot = next(m for m in get_spec("BiT-M-R50x1").metrics if m.value == 57.9)
    assert one_shot.dataset == "CIFAR-10"
    assert one_shot.note.startswith("fine-tuned from this checkpoint on 1 example per class")
    with_scores = {name for name in list_models() if get_spec(name).metrics}
    assert with_scores == {
        *["BiT-S-R152x4", "BiT-M-R152x4", "BiT-L-R152x4"],
        *["BiT-M-R50x1", "BiT-M-R101x3", "BiT-M-R152x2"],
        *[f"BiT-M-{arch}-ILSVRC2012" for arch in ARCHS],
        *["BiT-R50x1_224", "BiT-R50x1_160", "BiT-R152x2_T_224", "BiT-R152x2_T_384"],
        *[f"BiT-R152x2_T_{task}128" for task in ("flowers", "pet", "food", "sun")],
    }


def test_every_fact_has_a_source():
    for spec in map(get_spec, list_models()):
        assert spec.sources
        assert all(source.startswith("https://") for source in spec.sources)
        assert spec.preprocessing.source
        for metric in spec.metrics:
            assert metric.source.startswith("https://")
            assert metric.note
            assert 0 < metric.value < 100


def test_what_nobody_checked_says_so():
    flagged = {name: " ".join(get_spec(name).unverified) for name in list_models()}
    assert "may not exist" in flagged["BiT-S-R152x2"]
    assert "width-1 root (big_transfer#47)" in flagged["BiT-S-R50x3"]
    assert "width-4 root (big_transfer#47)" in flagged["BiT-S-R101x1"]
    for name, text in flagged.items():
        task_head = "-run" in name or name.endswith("128")
        assert ("number of classes is the task's" in text) == task_head
        assert ("preprocessing" in text) == (
            "-run" in name or name.startswith(("BiT-S", "BiT-L")) or name == "BiT-R50x1_160"
        )
        assert ("Softmax is assumed" in text) == name.startswith("BiT-L")
    assert flagged["BiT-M-R50x1"] == flagged["BiT-M-R50x1-ILSVRC2012"] == ""


def test_every_entry_is_json():
    for name in list_models():
        record = get_spec(name).to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
    record = get_spec("BiT-M-R101x1").to_dict()
    assert record["urls"] == {
        "npz": BASE + "BiT-M-R101x1.npz",
        "h5": BASE + "BiT-M-R101x1.h5",
    }
    assert record["architecture"] == {"depths": [3, 4, 23, 3], "width": 1, "num_features": 2048}
    assert (record["num_params"], record["resolution"]) == (87_248_787, 224)
    assert record["preprocessing"]["interpolation"] == "bilinear"
    assert record["license"] == "apache-2.0"
    assert get_spec("BiT-S-R152x2").to_dict()["unverified"][-1].startswith("The file may not exist")


def test_entries_are_values():
    spec = get_spec("BiT-R50x1_224")
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert {spec, copy, get_spec("BiT-R50x1_160")} == {spec, get_spec("BiT-R50x1_160")}


def test_importing_the_catalogue_is_cheap():
    """Neither torch nor numpy is loaded, and nothing is expanded before it is asked for."""
    code = (
        "import sys, bitzoo.catalogue.registry as r\n"
        "assert r._catalogue.cache_info().currsize == 0\n"
        "print(len(r.list_models()), r.get_spec('bit_l_r50x1').name)\n"
        "heavy = ('torch', 'numpy', 'timm', 'tensorflow', 'h5py')\n"
        "print(sorted(set(heavy) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "317 BiT-L-R50x1\n[]\n"


def test_a_mistyped_path_is_known_as_one(tmp_path, monkeypatch):
    """What has no ending and no slash could be a name or a file of this folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="there is no such file or folder here") as error:
        get_spec("phtos")
    assert "Nearest files" not in str(error.value)
    for name in ("photos", "notes", "small.npz"):
        (tmp_path / name).mkdir()
    for typed, meant in (("phtos", "photos"), ("small.npzz", "small.npz")):
        says = f"folder here. Nearest names: none is similar. Nearest files: '{meant}'."
        with pytest.raises(UnknownModelError, match=re.escape(says)):
            get_spec(typed)
    with pytest.raises(UnknownModelError, match=r"checkpoints\. Nearest names") as error:
        get_spec("notes")
    assert "no such file" not in str(error.value)
