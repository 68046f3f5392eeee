"""`daguerre sample` and `txt2img` on a prior: files, labelled sheets, the same picture again, and errors in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from daguerre.cli.main import main
from daguerre.conditioning.prior_prefix import ClassPrefix, EmptyPrefix, LayoutPrefix, MapPrefix
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.weights import load, save
from daguerre.weights.hashing import identity

SHAPE = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}


def folder(path: Path, kind: str) -> str:
    torch.manual_seed(0)
    first_stage = VQModel(VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=4, channels=(4, 8, 8), **SHAPE)).eval()
    prefixes = {
        "none": EmptyPrefix(),
        "class": ClassPrefix(("cat", "dog")),
        "map": MapPrefix(first_stage, "edges"),
        "boxes": LayoutPrefix(9, 8),
    }
    prefix = prefixes[kind]
    prior = TransformerPrior(TransformerPriorConfig(8, prefix.tokens, 32, (4, 4), width=8, layers=1, heads=2)).eval()
    return str(save(LatentPrior(prior, first_stage, prefix, kind, 16), path / kind))


def test_pictures_of_a_class_and_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = folder(tmp_path, "class")
    out = tmp_path / "dogs.png"
    assert main(["sample", model, "--class", "dog", "--count", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("dogs-1.png", "dogs-2.png", "dogs.png")]
    assert Image.open(out).width > 2 * 16
    assert main(["txt2img", "dog", "--model", model, "--seed", "1", "--out", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "dogs-2.png").tobytes()
    assert main(["reproduce", str(tmp_path / "one.png"), "--model", model]) == 0


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "I;16"])
def test_a_map_and_a_completed_picture_stand_on_the_sheet_and_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str):
    given = tmp_path / "given.png"
    Image.linear_gradient("L").resize((16, 16)).convert(mode).save(given)
    assert main(["sample", folder(tmp_path, "map"), "--map", str(given), "--out", str(tmp_path / "m.png")]) == 0
    assert main(["sample", folder(tmp_path, "none"), "--complete", str(given), "--keep", "0.25", "--out", str(tmp_path / "c.png")]) == 0
    for name in ("m", "c"):
        assert Image.open(tmp_path / f"{name}.png").size == (16, 16)
        assert Image.open(tmp_path / f"{name}-grid.png").width > 2 * 16
        capsys.readouterr()
        assert main(["reproduce", str(tmp_path / f"{name}.png")]) == 0
        assert capsys.readouterr().out == "identical\n"
    both = tmp_path / "both.png"
    assert main(["sample", str(tmp_path / "map"), "--map", str(given), "--complete", str(given), "--out", str(both)]) == 0
    assert Image.open(both.with_stem("both-grid")).width > 3 * 16
    capsys.readouterr()
    assert main(["reproduce", str(both)]) == 0
    assert capsys.readouterr().out == "identical\n"
    given.unlink()
    assert main(["reproduce", str(both), "--input", str(tmp_path / "c.png")]) == 1
    assert main(["reproduce", str(tmp_path / "c.png")]) == 1
    assert "name its file with --input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("class", ["--class", "dgo"], "Did you mean 'dog'"),
        ("class", ["--class", "dog", "--prompt", "a dog"], "give one of them"),
        ("map", [], "give one with --map"),
        ("map", ["--map", "none.png"], "none.png does not exist"),
        ("none", ["--size", "18"], "18 is not a multiple of 4"),
        ("none", ["--size", "x"], "neither one side"),
        ("none", ["--top-p", "2"], "top_p is 2"),
        ("none", ["--out", "picture.txt"], "does not end in a format"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, options: list[str], message: str):
    assert main(["sample", folder(tmp_path, kind), *options]) == 1
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        ["--negative", "cats"],
        ["--sampler", "ddim"],
        ["--guidance", "7"],
        ["--steps", "50"],
        ["--spacing", "karras"],
        ["--variation", "3:0.2"],
        ["--seamless", "both"],
    ],
)
def test_what_only_diffusion_heeds_is_not_taken_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]):
    model, out = folder(tmp_path, "class"), tmp_path / "dog.png"
    assert main(["txt2img", "dog", "--model", model, "--out", str(out), *option]) == 1
    assert f"has no {option[0][2:]}; leave that out" in capsys.readouterr().err
    assert not out.exists()


def test_boxes_are_told_by_layout_and_by_a_prompt(tmp_path: Path):
    model, (one, two) = folder(tmp_path, "boxes"), (tmp_path / "one.png", tmp_path / "two.png")
    assert main(["layout", "3 0 0 0.5 1", "1 0.5 0 1 1", "--model", model, "--out", str(one)]) == 0
    assert main(["sample", model, "--prompt", "3 0 0 0.5 1; 1 0.5 0 1 1", "--out", str(two)]) == 0
    assert Image.open(one).tobytes() == Image.open(two).tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16")])
def test_the_networks_compute_in_what_is_asked(tmp_path: Path, name: str, dtype: str):
    out = tmp_path / "cat.png"
    assert main(["sample", folder(tmp_path, "class"), "--class", "cat", "--dtype", name, "--out", str(out)]) == 0
    assert read_provenance(out)[1].dtype == dtype


def test_a_diffusion_model_is_named_as_one(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "emoji"]) == 1
    assert "diffusion model" in capsys.readouterr().err


def test_no_such_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_inspect_tells_every_network_of_a_prior_s_folder_and_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = Path(folder(tmp_path, "map"))
    assert main(["inspect", str(model), "--json", "--hash"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["task"], told["identity"]) == ("latent-prior", "conditioned on map", identity(load(model)))
    assert {name: part["network"] for name, part in told["parts"].items()} == {
        "vqvae": "VQModel",
        "prior": "TransformerPrior",
        "map_vqvae": "VQModel",
    }
    assert told["missing_keys"] == told["unmatched_keys"] == told["wrong_shapes"] == []
    weights = model / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    lost, wide = sorted(tensors)[:2]
    tensors[wide] = torch.zeros(3, 3, 3)
    tensors["sundry"] = tensors.pop(lost)
    save_file(tensors, weights)
    assert main(["inspect", str(model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [told[key] for key in ("missing_keys", "unmatched_keys", "wrong_shapes")] == [
        [f"prior/{lost}"],
        ["prior/sundry"],
        [f"prior/{wide}"],
    ]
