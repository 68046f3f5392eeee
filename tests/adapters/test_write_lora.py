"""Writing, merging, extracting and resizing LoRAs: round trips give the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.attach import adapted_networks
from daguerre.adapters.lora.lora import Lora
from daguerre.adapters.lora.merge import extract_lora
from daguerre.adapters.lora.module_names import NetworkRole
from daguerre.adapters.lora.weight_delta import LowRank
from daguerre.adapters.lora.write import _layer_names, factorize, kohya_parts, resize_lora, save_lora
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP_L, OPENCLIP_BIGG, CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import SDXL, UNet
from daguerre.nn.meta import shapes_only
from daguerre.weights.loading import load_diffusion
from tests.adapters.files import golden, lora_of, manifest
from tests.adapters.test_lora import KEY, QUERY, TEXT, kohya
from tests.adapters.test_weight_delta import PEFT
from tests.weights import checkpoints

CASES = golden()


def weights_of(model: LatentDiffusion) -> dict[str, Tensor]:
    return {f"{role}.{name}": tensor for role, network in adapted_networks(model).items() for name, tensor in network.named_parameters()}


def same_weights(first: LatentDiffusion, second: LatentDiffusion, tolerance: float = 1e-5) -> bool:
    one, other = weights_of(first), weights_of(second)
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_comes_back_in_kohyas_naming(name: str):
    case = CASES[name]
    tensors = {key.removeprefix("file/"): tensor for key, tensor in case.items() if key.startswith("file/")}
    (layer,) = lora_of(tensors, **({"folder": PEFT[name]} if name in PEFT else {})).layers.values()
    (again,) = lora_of({f"lora_unet_x.{key}": tensor for key, tensor in kohya_parts(layer).items()}).layers.values()
    assert again.weight is not None
    assert torch.allclose(again.weight.apply(case["base.weight"], 1), case["w"], rtol=0, atol=1e-5)


def test_kohya_and_peft_names_give_the_same_weights(tiny_model: LatentDiffusion, tmp_path: Path):
    lora, networks = lora_of(kohya(tiny_model)), adapted_networks(tiny_model)
    truth = with_adapters(tiny_model, [lora])
    peft = save_lora(lora, tmp_path / "peft.safetensors", networks, naming="peft")
    assert sorted(load_file(peft)) == sorted(
        f"{network}.{path}.lora_{side}.weight"
        for network, path in (("unet", QUERY), ("unet", KEY), ("text_encoder", TEXT))
        for side in "AB"
    )
    back = save_lora(load_lora(peft), tmp_path / "kohya.safetensors", networks)
    assert sorted(load_file(back)) == sorted(kohya(tiny_model))
    for path in (peft, back):
        assert same_weights(with_adapters(tiny_model, [load_lora(path)]), truth)
    assert load_lora(back).metadata["ss_network_module"] == "networks.lora"


@pytest.mark.parametrize(
    ("naming", "name"), [("kohya", "lora_kohya_xl_linear_r8"), ("peft", "lora_diffusers_peft_xl_r8_alpha_in_metadata")]
)
def test_the_names_for_sdxl_are_those_of_the_programs(naming, name: str):
    with shapes_only():
        networks: dict[NetworkRole, nn.Module] = {"unet": UNet(SDXL), "te1": CLIPText(CLIP_L), "te2": CLIPText(OPENCLIP_BIGG)}
    stored = {key.partition(".lora_")[0] if naming == "peft" else key.partition(".")[0] for key in manifest(name)["tensors"]}
    ours = {layer for role, network in networks.items() for layer in _layer_names(role, network, networks, naming).values()}
    assert stored <= ours


def test_a_resized_lora_is_the_closest_of_its_rank():
    torch.manual_seed(0)
    matrix = torch.randn(12, 3) @ torch.randn(3, 9)
    assert torch.allclose(factorize(matrix, 3).matrix(), matrix, atol=1e-4)
    values = torch.linalg.svdvals(matrix)
    assert torch.isclose((factorize(matrix, 2).matrix() - matrix).norm(), values[2], rtol=1e-4)
    kernel = torch.randn(5, 2 * 9)
    assert factorize(kernel, 5, (3, 3)).down.shape == (5, 2, 3, 3)
    large = torch.randn(600, 4) @ torch.randn(4, 520)
    assert torch.allclose(factorize(large, 4).matrix(), large, atol=1e-2)


def test_any_additive_kind_becomes_a_lora():
    case = CASES["lokr_linear_w1_full_w2_low"]
    lora = lora_of({key.removeprefix("file/"): tensor for key, tensor in case.items() if key.startswith("file/")})
    (layer,) = resize_lora(lora, 10).layers.values()
    assert isinstance(layer.weight, LowRank)
    assert torch.allclose(layer.weight.apply(case["base.weight"], 1), case["w"], atol=1e-4)
    dora = CASES["dora_linear_output_axis"]
    with pytest.raises(DaguerreError, match="depends on the model's weight"):
        resize_lora(lora_of({key.removeprefix("file/"): tensor for key, tensor in dora.items() if key.startswith("file/")}), 2)


def checkpoint(path: Path) -> Path:
    return checkpoints.write(path, checkpoints.sd1())


def lora_for(model: LatentDiffusion) -> Lora:
    return lora_of(kohya(model))


def test_merged_and_extracted_loras_give_the_same_weights(tmp_path: Path, run_convert):
    base = checkpoint(tmp_path / "base.safetensors")
    model = load_diffusion(base)
    save_file({key: tensor * 0.2 for key, tensor in kohya(model).items()}, tmp_path / "ink.safetensors")
    lora = load_lora(tmp_path / "ink.safetensors")
    truth = with_adapters(model, [lora.scaled(0.5), lora])
    inks = [f"--lora={tmp_path / 'ink.safetensors'}{scale}" for scale in (":0.5", "")]
    run_convert(base, tmp_path / "merged.safetensors", *inks)
    merged = load_diffusion(tmp_path / "merged.safetensors")
    assert same_weights(merged, truth)
    assert not same_weights(merged, model)
    assert load_file(base).keys() == load_file(tmp_path / "merged.safetensors").keys()

    extracted, networks = extract_lora(tmp_path / "merged.safetensors", base, 2)
    assert {layer.path for layer in extracted.layers} == {path.replace(".", "_") for path in (QUERY, KEY, TEXT)}
    save_lora(extracted, tmp_path / "again.safetensors", networks)
    assert same_weights(with_adapters(model, [load_lora(tmp_path / "again.safetensors")]), merged, 1e-4)
    run_convert(
        tmp_path / "merged.safetensors", tmp_path / "cli.safetensors", f"--base={base}", "--rank=1", "--naming=peft", "--dtype=fp16"
    )
    assert {tuple(tensor.shape)[:1] for name, tensor in load_file(tmp_path / "cli.safetensors").items() if "lora_A" in name} == {(1,)}
    with pytest.raises(DaguerreError, match="the same weights"):
        extract_lora(base, base, 2)


@pytest.fixture
def run_convert(capsys: pytest.CaptureFixture[str]):
    from daguerre.cli.main import main

    def run(*arguments: object) -> None:
        assert main(["convert", *map(str, arguments)]) == 0, capsys.readouterr().err

    return run
