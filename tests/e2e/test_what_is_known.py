"""What is known of a model reaches every command, and what is not known no command claims."""

import json

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from hub_server import HubServer
from huggingface_hub import ModelCard
from images import photo
from PIL import Image
from publishing import Workspace
from servers import FileServer

import bitzoo
from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.zoo.model_folder import write_model_folder

pytestmark = pytest.mark.slow


IN_21K, IN_1K = "BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012"
NAMES = ("robin", "wren", "kite")
OWN = Preprocessing(64, 80, "bicubic", False, "its owner")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a photograph, a Hub, and a mirror that serves a small `BiT-M-R50x1`."""
    folder = tmp_path_factory.mktemp("workspace")
    photo(3, width=150, height=130).save(folder / "photo.png")
    path = write_npz(folder / "x.npz", make_checkpoint(num_classes=21_843))
    served = {f"{IN_21K}.npz": path.read_bytes()}
    path.unlink()
    with (
        HubServer() as hub,
        FileServer(served) as mirror,
        Workspace(folder, hub, BITZOO_MIRROR=mirror.url) as place,
    ):
        yield place


def scores(workspace, model, *options, top=3):
    """Class name -> score, best first, as `bitzoo predict` prints them."""
    words = ["predict", model, "photo.png", "--top", top, "--format", "json", *options]
    (found,) = json.loads(workspace.run(*words).out)
    return {guess["label"]: guess["score"] for guess in found["predictions"]}


def small_network(workspace):
    path = write_npz(workspace.folder / "small.npz", make_checkpoint(num_classes=len(NAMES)))
    return bitzoo.create_model(path, pretrained=True)


def card(workspace, repo):
    return ModelCard(workspace.hub.repos[repo].files()["README.md"].decode())


def config(workspace, repo):
    return json.loads(workspace.hub.repos[repo].files()["config.json"])


def put_on_hub(workspace, repo, folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    workspace.hub.add_repo(repo, files)


@pytest.fixture(scope="module")
def theirs(workspace):
    folder = workspace.folder / "theirs"
    network = small_network(workspace)
    write_model_folder(
        workspace.folder / "own",
        network,
        ModelInfo(
            network.architecture.name, len(NAMES), own_names=NAMES, activation="sigmoid",
            preprocessing=OWN,
        ),
    )  # fmt: skip
    workspace.run("convert", "--src", "own", "--to", "transformers", "--dst", folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["bitzoo"]
    (folder / "config.json").write_text(json.dumps(settings))
    from transformers import BitForImageClassification

    model = BitForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)  # without the metadata that bitzoo writes
    return folder


@pytest.fixture(scope="module")
def expected(workspace, theirs):
    """The oracle: transformers' model on what transformers' processor makes of the image."""
    from transformers import AutoImageProcessor, BitForImageClassification

    model = BitForImageClassification.from_pretrained(theirs).eval()
    processor = AutoImageProcessor.from_pretrained(theirs, use_fast=False)
    with Image.open(workspace.folder / "photo.png") as picture, torch.no_grad():
        pixels = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        assert pixels.shape[-2:] == (64, 64)
        found = torch.sigmoid(model(pixels).logits[0]).tolist()
    return {model.config.id2label[i]: score for i, score in enumerate(found)}


@pytest.fixture(scope="module")
def named(workspace):
    return write_npz(workspace.folder / f"{IN_1K}.npz", make_checkpoint(num_classes=1000))


@pytest.fixture(scope="module")
def run_folder(workspace):
    from bitzoo.runs.report.html import RunRecord, write_card

    network = small_network(workspace)
    known = ModelInfo(
        network.architecture.name, len(NAMES), base=Identity(IN_21K, "google", "the test"),
        own_names=NAMES, activation="softmax", preprocessing=OWN,
    )  # fmt: skip
    folder = workspace.folder / "run"
    write_model_folder(folder, network, known)
    record = RunRecord(
        title="birds", model=IN_21K, architecture=known.architecture, image_size=64,
        classes=list(NAMES), dataset="birds", data=[("train images", "12")],
        recipe=[("rule", "paper")], base=IN_21K, info=known, history=[], evaluation=None,
    )  # fmt: skip
    write_card(folder / "README.md", record)
    return folder


def test_a_published_21k_model_scores_by_its_sigmoid(workspace):
    """Its classes are not exclusive: the softmax of the same logits is another answer."""
    workspace.run("publish", IN_21K, "--repo", "lab/in21k", "--yes")
    assert config(workspace, "lab/in21k")["bitzoo"]["model_info"]["activation"] == "sigmoid"
    by_name = scores(workspace, IN_21K)
    published = scores(workspace, "hub:lab/in21k")
    assert published == by_name
    softmax = scores(workspace, "hub:lab/in21k", "--activation", "softmax")
    assert list(softmax) == list(published)
    workspace.run("convert", "--src", IN_21K, "--dst", "in21k.safetensors")
    network = bitzoo.create_model(workspace.folder / "in21k.safetensors", pretrained=True)
    image = bitzoo.create_transform(network)(workspace.folder / "photo.png")
    with torch.no_grad():
        logits = network(image[None])[0].double().numpy()
    expected = np.sort(1 / (1 + np.exp(-logits)))[::-1][:3]
    np.testing.assert_allclose(list(published.values()), expected, rtol=0, atol=2e-6)
    assert sum(softmax.values()) < 0.9 < sum(published.values())


class TestAFolderOfTransformers:
    """As transformers writes it: names, activation and processor stand in its own keys."""

    @pytest.mark.parametrize("form", ["folder", "hub", "converted"])
    def test_every_way_in_respects_them(self, workspace, theirs, expected, form):
        source = theirs
        if form == "hub":
            put_on_hub(workspace, "others/theirs", theirs)
            source = "hub:others/theirs"
        elif form == "converted":
            workspace.run("convert", "--src", theirs, "--dst", "c.safetensors")
            source = "c.safetensors"
        found = scores(workspace, source)
        assert found.keys() == set(NAMES)
        for name, score in expected.items():  # 0.005: a resize rounds to 1/255 in transformers
            assert found[name] == pytest.approx(score, abs=0.005)

    def test_so_does_an_export(self, workspace, theirs):
        import onnx

        put_on_hub(workspace, "others/theirs", theirs)
        workspace.run(
            "export", "hub:others/theirs", "--to", "onnx", "--out", "theirs.onnx", "--force"
        )
        model = onnx.load(workspace.folder / "theirs.onnx")
        stated = {item.key: item.value for item in model.metadata_props}
        info = ModelInfo.from_dict(json.loads(stated["model_info"]))
        assert info.own_names == NAMES
        assert info.activation == "sigmoid"
        assert (info.preprocessing.crop, info.preprocessing.resize) == (64, 80)


class TestARandomNetworkNamedLikeARelease:
    """1,000 classes and R50x1, as `BiT-M-R50x1-ILSVRC2012` has: its name alone proves nothing."""

    def test_it_is_published_without_googles_score_and_licence(self, workspace, named):
        done = workspace.run("publish", named, "--repo", "lab/named", "--yes")
        assert f"{IN_1K}, by its file name only" in done.out
        data = card(workspace, "lab/named").data
        assert (data.eval_results, data.license) == (None, None)
        text = str(card(workspace, "lab/named"))
        assert "80.386" not in text
        assert "LICENSE" not in workspace.hub.repos["lab/named"].files()

    def test_who_publishes_it_may_vouch_and_the_card_says_so(self, workspace, named):
        workspace.run("publish", named, "--repo", "lab/vouched", "--yes", "--vouch")
        made = card(workspace, "lab/vouched")
        assert 80.386 in [result.metric_value for result in made.data.eval_results]
        assert made.data.license == "apache-2.0"
        assert "vouched for by its publisher" in str(made)
        # a claim in a file, for who reads it next
        known = json.loads(workspace.run("info", "hub:lab/vouched", "--json").out)["info"]
        assert known["identity"]["basis"] == "stated"

    def test_what_has_no_name_cannot_be_vouched_for(self, workspace):
        write_npz(workspace.folder / "nameless.npz", make_checkpoint(num_classes=1000))
        words = ["publish", "nameless.npz", "--repo", "lab/x", "--vouch", "--dry-run"]
        refused = workspace.run(*words, code=2)
        assert "--vouch" in refused.err
        assert "name" in refused.err


class TestTheLicenceOfARun:
    def test_nobody_stated_one(self, workspace, run_folder):
        planned = workspace.run(
            "publish", run_folder, "--repo", "lab/run", "--dry-run", "--folder", "planned"
        )
        assert "not stated; state it with --license" in planned.out
        workspace.run("publish", run_folder, "--repo", "lab/run", "--yes")
        assert card(workspace, "lab/run").data.license is None
        assert "license" not in config(workspace, "lab/run").get("pretrained_cfg", {})
        assert "LICENSE" not in workspace.hub.repos["lab/run"].files()

    def test_its_owner_states_one(self, workspace, run_folder):
        done = workspace.run(
            "publish", run_folder, "--repo", "lab/run-mit", "--yes", "--license", "mit"
        )
        assert "mit" in done.out
        assert card(workspace, "lab/run-mit").data.license == "mit"
        known = json.loads(workspace.run("info", "hub:lab/run-mit", "--json").out)["info"]
        assert known["license"] == "mit"

    def test_whose_text_bitzoo_has_comes_with_it(self, workspace, run_folder):
        words = ["--yes", "--license", "Apache-2.0"]
        workspace.run("publish", run_folder, "--repo", "lab/run-apache", *words)
        files = workspace.hub.repos["lab/run-apache"].files()
        assert b"Apache License" in files["LICENSE"]
        assert "the text is in `LICENSE`" in files["README.md"].decode()

    def test_timm_is_named_only_for_what_timm_loads(self, workspace, run_folder):
        """R(1,1,1,1)x0.5 is no architecture of timm's."""
        workspace.run("publish", run_folder, "--repo", "lab/library", "--yes")
        assert card(workspace, "lab/library").data.library_name == "bitzoo"


def test_a_made_file_is_the_same_whichever_command_made_it(workspace):
    """Names, activation and preprocessing of one model, converted and exported both ways."""
    network = small_network(workspace)
    known = ModelInfo(
        network.architecture.name, len(NAMES), own_names=NAMES, activation="sigmoid",
        preprocessing=OWN, license="mit", sources={"license": "its owner"},
    )  # fmt: skip
    folder = workspace.folder / "same"
    write_model_folder(folder, network, known)
    for to, ending in {"transformers": "-hf", "timm": "-timm", "h5": ".h5"}.items():
        workspace.run("convert", "--src", folder, "--to", to, "--dst", f"command{ending}")
        bitzoo.convert(folder, workspace.folder / f"python{ending}", to=to)
        command, python = (
            bitzoo.info(workspace.folder / f"{maker}{ending}") for maker in ("command", "python")
        )
        assert command == python
        assert (command.own_names, command.activation) == (NAMES, "sigmoid")
        assert (command.preprocessing, command.license) == (OWN, "mit")
    workspace.run("export", folder, "--to", "torch-export", "--out", "command.pt2")
    bitzoo.export(folder, to="torch-export", out=workspace.folder / "python.pt2")
    records = [
        json.loads((workspace.folder / f"{maker}.pt2.export.json").read_text())["model_info"]
        for maker in ("command", "python")
    ]
    assert records[0] == records[1]
    assert ModelInfo.from_dict(records[0]).own_names == NAMES
