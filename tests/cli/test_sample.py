"""`daguerre sample` and `txt2img` with a prior over codes: output files, labelled grids, reproduce, and errors."""

import json
from collections.abc import Callable
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
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.recipes.ddpm import build_model
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


def test_images_of_a_class_and_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = folder(tmp_path, "class")
    out = tmp_path / "dogs.png"
    assert main(["sample", "--model", model, "--class", "dog", "--num-images", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("dogs-1.png", "dogs-2.png", "dogs.png")]
    assert Image.open(out).width > 2 * 16
    assert main(["txt2img", "dog", "--model", model, "--seed", "1", "--out", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "dogs-2.png").tobytes()
    assert main(["reproduce", str(tmp_path / "one.png"), "--model", model]) == 0


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "I;16"])
def test_maps_and_completions_are_on_the_grid_and_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str):
    given = tmp_path / "given.png"
    Image.linear_gradient("L").resize((16, 16)).convert(mode).save(given)
    assert main(["sample", "--model", folder(tmp_path, "map"), "--map", str(given), "--out", str(tmp_path / "m.png")]) == 0
    assert (
        main(["sample", "--model", folder(tmp_path, "none"), "--complete", str(given), "--keep", "0.25", "--out", str(tmp_path / "c.png")])
        == 0
    )
    for name in ("m", "c"):
        assert Image.open(tmp_path / f"{name}.png").size == (16, 16)
        assert Image.open(tmp_path / f"{name}-grid.png").width > 2 * 16
        capsys.readouterr()
        assert main(["reproduce", str(tmp_path / f"{name}.png")]) == 0
        assert capsys.readouterr().out == "identical\n"
    both = tmp_path / "both.png"
    assert main(["sample", "--model", str(tmp_path / "map"), "--map", str(given), "--complete", str(given), "--out", str(both)]) == 0
    assert Image.open(both.with_stem("both-grid")).width > 3 * 16
    capsys.readouterr()
    assert main(["reproduce", str(both)]) == 0
    assert capsys.readouterr().out == "identical\n"
    given.unlink()
    assert main(["reproduce", str(both), "--input", str(tmp_path / "c.png")]) == 2
    assert main(["reproduce", str(tmp_path / "c.png")]) == 2
    assert "give its file with --input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("class", ["--class", "dgo"], "Did you mean 'dog'"),
        ("class", ["--class", "dog", "--prompt", "a dog"], "give one of them"),
        ("map", [], "give one with --map"),
        ("map", ["--map", "none.png"], "none.png does not exist"),
        ("none", ["--size", "18"], "18 is not a multiple of 4"),
        ("none", ["--size", "x"], "it is one side"),
        ("none", ["--top-p", "2"], "top_p is 2"),
        ("none", ["--out", "picture.txt"], "picture.txt"),
    ],
)
def test_a_wrong_value_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, options: list[str], message: str):
    assert main(["sample", "--model", folder(tmp_path, kind), *options]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        ["--negative-prompt", "cats"],
        ["--sampler", "ddim"],
        ["--guidance-scale", "7"],
        ["--steps", "50"],
        ["--spacing", "karras"],
        ["--variation-seed", "3", "--variation-strength", "0.2"],
        ["--tiling", "both"],
        ["--animation-content", "both", "--animation", "never.webp"],
    ],
)
def test_a_prior_refuses_options_of_diffusion_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]):
    model, out = folder(tmp_path, "class"), tmp_path / "dog.png"
    assert main(["txt2img", "dog", "--model", model, "--out", str(out), *option]) == 2
    assert option[0][2:].split("-")[0] in capsys.readouterr().err
    assert not out.exists()


def test_layout_and_prompt_give_the_same_boxes(tmp_path: Path):
    model, (one, two) = folder(tmp_path, "boxes"), (tmp_path / "one.png", tmp_path / "two.png")
    assert main(["layout", "3 0 0 0.5 1", "1 0.5 0 1 1", "--model", model, "--out", str(one)]) == 0
    assert main(["sample", "--model", model, "--prompt", "3 0 0 0.5 1; 1 0.5 0 1 1", "--out", str(two)]) == 0
    assert Image.open(one).tobytes() == Image.open(two).tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16")])
def test_the_networks_compute_in_the_requested_dtype(tmp_path: Path, name: str, dtype: str):
    out = tmp_path / "cat.png"
    assert main(["sample", "--model", folder(tmp_path, "class"), "--class", "cat", "--dtype", name, "--out", str(out)]) == 0
    assert read_provenance(out)[1].dtype == dtype


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`ddpm("class")` is the folder of a tiny diffusion model of pixels with classes, `ddpm("none")` one without."""

    def made(condition: str) -> str:
        torch.manual_seed(0)
        recipe = DDPMRecipe("shapes", Path(condition), 8, shape=UNetShape((8, 8), 1, (), 8))
        model = build_model(recipe, ("cat", "red fox") if condition == "class" else None)
        return str(save(model, tmp_path_factory.mktemp("ddpm") / condition))

    return made


def test_a_diffusion_model_samples_classes_with_an_animation_and_reproduces(
    tmp_path: Path, ddpm: Callable[[str], str], capsys: pytest.CaptureFixture[str]
):
    out, animation = tmp_path / "fox.png", tmp_path / "fox.webp"
    options = [
        "--class",
        "red fox",
        "--sampler",
        "ddpm",
        "--steps",
        "3",
        "-n",
        "2",
        "-o",
        str(out),
        "--animation",
        str(animation),
        "--animation-content",
        "both",
    ]
    assert main(["sample", "--model", ddpm("class"), *options]) == 0
    paths = [tmp_path / name for name in ("fox-1.png", "fox-2.png", "fox.png", "fox.webp")]
    assert capsys.readouterr().out.split() == [*map(str, paths)]
    with Image.open(animation) as frames:
        assert (frames.n_frames, frames.width > 2 * 8) == (3, True)
    assert main(["reproduce", str(tmp_path / "fox-2.png")]) == 0
    assert capsys.readouterr().out == "identical\n"


def test_images_between_two_inverted_ones_reproduce(tmp_path: Path, ddpm: Callable[[str], str], capsys: pytest.CaptureFixture[str]):
    for name, colour in (("a", "teal"), ("b", "orange")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    model, out = ddpm("none"), tmp_path / "between.png"
    options = ["--invert", str(tmp_path / "a.png"), "--invert-to", str(tmp_path / "b.png"), "-n", "3", "--steps", "2", "--out", str(out)]
    assert main(["sample", "--model", model, *options]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"between{end}.png") for end in ("-1", "-2", "-3", "")]
    assert Image.open(out).height > 8
    assert read_provenance(tmp_path / "between-2.png")[1].request.task.to_json()["weight"] == 0.5
    assert main(["reproduce", str(tmp_path / "between-2.png")]) == 0
    assert capsys.readouterr().out == "identical\n"


@pytest.mark.parametrize(
    ("condition", "options", "message"),
    [
        ("class", ["--class", "red fix"], "Did you mean 'red fox'"),
        ("class", ["--class", "2"], "a number from 0 to 1"),
        ("none", ["--class", "cat"], "was trained without classes"),
        ("none", ["--top-k", "3"], "no effect on a diffusion model"),
        ("none", ["--invert-to", "a.png"], "give it with --invert"),
    ],
)
def test_a_diffusion_model_refuses_what_it_has_not(
    ddpm: Callable[[str], str], capsys: pytest.CaptureFixture[str], condition: str, options: list[str], message: str
):
    assert main(["sample", "--model", ddpm(condition), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "--model", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_inspect_lists_the_networks_of_a_prior_and_wrong_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = Path(folder(tmp_path, "map"))
    assert main(["inspect", str(model), "--json", "--hash"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["family"], report["task"], report["identity"]) == ("latent-prior", "conditioned on map", identity(load(model)))
    assert {name: part["network"] for name, part in report["parts"].items()} == {
        "vqvae": "VQModel",
        "prior": "TransformerPrior",
        "map_vqvae": "VQModel",
    }
    assert report["missing_keys"] == report["unmatched_keys"] == report["wrong_shapes"] == []
    weights = model / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    lost, wide = sorted(tensors)[:2]
    tensors[wide] = torch.zeros(3, 3, 3)
    tensors["sundry"] = tensors.pop(lost)
    save_file(tensors, weights)
    assert main(["inspect", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [report[key] for key in ("missing_keys", "unmatched_keys", "wrong_shapes")] == [
        [f"prior/{lost}"],
        ["prior/sundry"],
        [f"prior/{wide}"],
    ]
