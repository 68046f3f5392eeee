"""LoRAs by every naming: found in a model, attached without touching it, refused with a clear error."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import daguerre
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.attach import adapted_networks, matched_layers
from daguerre.adapters.lora.lora import Lora
from daguerre.adapters.lora.module_names import LayerName, layer_table
from daguerre.adapters.lora.peft_config import PeftConfig, peft_configs
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP_L, OPENCLIP_BIGG, CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import SD1, SDXL, SDXL_REFINER, UNet
from daguerre.nn.meta import shapes_only
from daguerre.pipelines.planners.refiner import with_refiner
from daguerre.runtime import offload
from daguerre.runtime.offload import SequentialOffload
from daguerre.weights import load_diffusion, save
from tests.adapters.files import FIXTURES, in_memory, lora_of, manifest

MANIFESTS = sorted(
    path.name.removesuffix(".json.gz")
    for path in FIXTURES.glob("*.json.gz")
    if not any(kind in path.name for kind in ("control", "ip_adapter", "t2i_adapter"))
)
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def low_rank(network: nn.Module, path: str, rank: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) for a layer of a network."""
    generator, weight = torch.Generator().manual_seed(seed), network.get_submodule(path).weight
    return torch.randn(rank, weight.shape[1], generator=generator), torch.randn(len(weight), rank, generator=generator)


def kohya(model: LatentDiffusion, seed: int = 1) -> dict[str, torch.Tensor]:
    """A LoRA of two layers of the UNet and one of the text encoder, named as kohya does."""
    networks, tensors = adapted_networks(model), {}
    for role, prefix, path in (("unet", "lora_unet", QUERY), ("unet", "lora_unet", KEY), ("te1", "lora_te", TEXT)):
        down, up = low_rank(networks[role], path, seed=seed)
        name = f"{prefix}_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    return tensors


def difference(changed: LatentDiffusion, base: LatentDiffusion, role: str, path: str) -> torch.Tensor:
    weights = [adapted_networks(model)[role].get_submodule(path).weight for model in (changed, base)]
    return weights[0] - weights[1]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_layer_of_a_manifest_is_found_and_fits(name: str):
    unet, encoders = (SDXL, {"te1": CLIP_L, "te2": OPENCLIP_BIGG}) if "xl" in name else (SD1, {"te1": CLIP_L})
    with shapes_only():
        networks: Any = {"unet": UNet(unet), **{role: CLIPText(config) for role, config in encoders.items()}}
    stored = manifest(name)
    tensors = {key: torch.ones(()).expand(shape) for key, (_, shape) in stored["tensors"].items()}
    lora = lora_of(tensors, stored["__metadata__"])
    assert not lora.unknown
    matched = matched_layers(lora, networks)
    assert matched.keys() == lora.layers.keys()
    assert len({(role, *targets) for role, targets in matched.values()}) == len(lora.layers)
    assert lora.family == ("sdxl" if "xl" in name else "sd1")
    for layer, (role, (target,)) in matched.items():
        weight, delta = networks[role].get_submodule(target.path).weight, lora.layers[layer].weight
        assert delta is not None
        assert delta.in_features == weight[0].numel()


def test_the_paths_of_the_original_code_are_found():
    with shapes_only():
        base, refiner, bigg = UNet(SDXL), UNet(SDXL_REFINER), CLIPText(OPENCLIP_BIGG)
    table = layer_table(base)
    for original, path in (
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("label_emb_0_0", "add_embedding.linear_1"),
        ("input_blocks_0_0", "conv_in"),
        ("out_2", "conv_out"),
        ("out_0", "conv_norm_out"),
    ):
        assert [target.path for target in table[original]] == [path]
    assert layer_table(refiner)["output_blocks_2_1_conv"][0].path == "up_blocks.0.upsamplers.0.conv"  # a level without attention
    fused = layer_table(bigg)["transformer_resblocks_3_attn_in_proj"]
    assert [(target.path.rpartition(".")[2], target.part, target.parts) for target in fused] == [
        ("q_proj", 0, 3),
        ("k_proj", 1, 3),
        ("v_proj", 2, 3),
    ]


NAMINGS = {
    "kohya": (f"lora_unet_{QUERY.replace('.', '_')}.lora_{{}}.weight", "down", "up"),
    "simpletuner": (f"lycoris_{QUERY.replace('.', '_')}.lora_{{}}.weight", "down", "up"),
    "original": ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{}.weight", "down", "up"),
    "comfyui": ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_{}.weight", "A", "B"),
    "diffusers": (f"unet.{QUERY}.lora_{{}}.weight", "A", "B"),
    "diffusers with an adapter name": (f"unet.{QUERY}.lora_{{}}.default_0.weight", "A", "B"),
    "diffusers script": (f"unet.{QUERY}.lora.{{}}.weight", "down", "up"),
    "diffusers 2023": (f"unet.{QUERY.replace('to_q', 'processor.to_q_lora')}.{{}}.weight", "down", "up"),
    "bare": (f"{QUERY.replace('to_q', 'processor.to_q_lora')}.{{}}.weight", "down", "up"),
    "peft folder": (f"base_model.model.{QUERY}.lora_{{}}.weight", "A", "B"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_changes_the_same_layer(tiny_model: LatentDiffusion, naming: str):
    pattern, *sides = NAMINGS[naming]
    down, up = low_rank(tiny_model.unet, QUERY)
    lora = lora_of(dict(zip(map(pattern.format, sides), (down, up), strict=True)))
    changed = with_adapters(tiny_model, [lora])
    assert torch.allclose(difference(changed, tiny_model, "unet", QUERY), up @ down, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
    ],
)
def test_every_naming_of_a_text_encoder(tiny_model: LatentDiffusion, name: str):
    down, up = low_rank(adapted_networks(tiny_model)["te1"], TEXT)
    lora = lora_of({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}).scaled(0.0, 0.5)
    changed = with_adapters(tiny_model, [lora])
    assert torch.allclose(difference(changed, tiny_model, "te1", TEXT), 0.5 * up @ down, atol=1e-5)


def test_the_rows_of_a_fused_projection_go_to_three_layers(tiny_model: LatentDiffusion):
    torch.manual_seed(0)
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    name = "lora_te_transformer_resblocks_1_attn_in_proj"
    changed = with_adapters(tiny_model, [lora_of({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})])
    for part, letter in zip((up @ down).chunk(3), "qkv", strict=True):
        path = f"text_model.encoder.layers.1.self_attn.{letter}_proj"
        assert torch.allclose(difference(changed, tiny_model, "te1", path), part, atol=1e-5)


def test_the_base_stays_and_what_does_not_change_is_shared(tiny_model: LatentDiffusion):
    before = {name: weight.clone() for name, weight in tiny_model.unet.state_dict().items()}
    request = daguerre.Request("a red apple", steps=2, width=32, height=32)
    image = daguerre.generate(tiny_model, request)[0].image
    changed = with_adapters(tiny_model, [lora_of(kohya(tiny_model))])
    assert daguerre.generate(changed, request)[0].image.tobytes() != image.tobytes()
    assert daguerre.generate(tiny_model, request)[0].image.tobytes() == image.tobytes()
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.unet.state_dict().items())
    own, shared = dict(tiny_model.unet.named_parameters()), dict(changed.unet.named_parameters())
    different = {name for name in own if own[name].data_ptr() != shared[name].data_ptr()}
    assert different == {f"{QUERY}.weight", f"{KEY}.weight"}
    zero = with_adapters(tiny_model, [lora_of(kohya(tiny_model)).scaled(0)])
    assert all(own[name].data_ptr() == weight.data_ptr() for name, weight in zero.unet.named_parameters())


def test_several_loras_and_negative_scales_add_up(tiny_model: LatentDiffusion):
    first, second = lora_of(kohya(tiny_model, 1)), lora_of(kohya(tiny_model, 2))
    changed = with_adapters(tiny_model, [first.scaled(0.5, 2), second.scaled(-3), first])
    for role, path, strengths in (("unet", QUERY, (1.5, -3)), ("te1", TEXT, (3, -3))):
        parts = [low_rank(adapted_networks(tiny_model)[role], path, seed=seed) for seed in (1, 2)]
        expected = sum(strength * 0.5 * up @ down for strength, (down, up) in zip(strengths, parts, strict=True))
        assert torch.allclose(difference(changed, tiny_model, role, path), expected, atol=1e-4)


def test_a_half_precision_base_is_rounded_once(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model().to(dtype=torch.bfloat16)
    loras = [lora_of(kohya(model, seed)).scaled(2e-3) for seed in range(1, 9)]
    weight = model.unet.get_submodule(QUERY).weight
    expected = weight.float()
    for seed in range(1, 9):
        down, up = low_rank(model.unet, QUERY, seed=seed)
        expected = expected + 1e-3 * up @ down
    changed = with_adapters(model, loras).unet.get_submodule(QUERY).weight
    assert changed.dtype == torch.bfloat16
    assert torch.equal(changed, expected.bfloat16())


def test_a_float32_retry_of_the_copy_leaves_the_base_in_half_precision(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model().to(dtype=torch.float16)
    with_adapters(model, [lora_of(kohya(model))]).unet.float()
    assert all(weight.dtype == torch.float16 for weight in model.unet.parameters())


def test_offloaded_networks_are_changed_when_they_are_loaded(
    tmp_path: Path, make_tiny_model: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(offload, "MAX_RESIDENT_ELEMENTS", 1 << 9)
    model = make_tiny_model(prediction="epsilon", zero_terminal_snr=False)
    folder = save(model, tmp_path / "tiny")
    request = daguerre.Request("a red apple", steps=2, width=16, height=16)
    loras = [lora_of(kohya(model, 1)), lora_of(kohya(model, 2)).scaled(0.5)]
    truth = daguerre.generate(with_adapters(model, loras), request)[0].image
    offloaded = load_diffusion(folder, device="cpu", offload=SequentialOffload())
    plain = daguerre.generate(offloaded, request)[0].image
    changed = with_adapters(with_adapters(offloaded, loras[:1]), loras[1:])
    assert changed.unet.get_submodule(QUERY).weight.is_meta
    assert daguerre.generate(changed, request)[0].image.tobytes() == truth.tobytes()
    assert daguerre.generate(offloaded, request)[0].image.tobytes() == plain.tobytes() != truth.tobytes()


def test_images_equal_those_of_diffusers(tmp_path: Path, peer: Any):
    pipeline, _, model = peer("sd1")
    torch.manual_seed(4)
    tensors = {}
    for name, weight in pipeline.unet.named_parameters():
        if name.endswith(("to_q.weight", "to_v.weight", "ff.net.2.weight")):
            module = f"unet.{name.removesuffix('.weight')}"
            tensors |= {
                f"{module}.lora_A.weight": torch.randn(2, weight.shape[1]),
                f"{module}.lora_B.weight": 0.1 * torch.randn(len(weight), 2),
            }
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    request = {"prompt": "a red apple", "negative_prompt": "blue", "height": 16, "width": 16}
    changed = with_adapters(model, [load_lora(tmp_path / "pytorch_lora_weights.safetensors").scaled(0.7)])
    pipeline.load_lora_weights(tmp_path)
    pipeline.set_adapters(["default_0"], [0.7])
    try:
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
        )
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        theirs = pipeline(**request, num_inference_steps=4, guidance_scale=5.0, latents=noise, output_type="latent").images
    finally:
        pipeline.unload_lora_weights()
    ours = [
        step.x0
        for step in daguerre.stream(
            changed, daguerre.Request(**request, steps=4, guidance_scale=5.0, sampler="euler", seed=0, initial_noise="variance_preserving")
        )
    ][-1]
    assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())


def test_peft_settings_in_the_header_of_diffusers():
    stored = manifest("lora_diffusers_peft_xl_r8_alpha_in_metadata")
    configs = peft_configs(stored["__metadata__"])
    assert configs["unet"].alpha_of("x.to_q", 8) == 4
    tensors = {"unet.x.to_q.lora_A.weight": torch.ones(8, 3), "unet.x.to_q.lora_B.weight": torch.ones(5, 8)}
    (layer,) = lora_of(tensors, **configs).layers.values()
    assert layer.weight is not None
    assert torch.allclose(layer.weight(torch.zeros(5, 3)), torch.full((5, 3), 4.0))


def test_a_peft_folder_is_read_with_its_settings(tmp_path: Path):
    tensors = {f"base_model.model.{name}.lora_{side}.weight": torch.ones(4, 4) for name in ("a.to_q", "b.to_q") for side in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": true, "alpha_pattern": {"b.to_q": 2}}'
    (tmp_path / "adapter_config.json").write_text(config)
    lora = load_lora(tmp_path)
    scales = {name.path: layer.weight(torch.zeros(4, 4))[0, 0].item() / 4 for name, layer in lora.layers.items() if layer.weight}
    assert scales == {"a_to_q": 3.0, "b_to_q": 1.0}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOFT"}')
    with pytest.raises(DaguerreError, match="BOFT"):
        load_lora(tmp_path)


def test_patterns_match_whole_names():
    config = PeftConfig(alpha=8, alpha_pattern={"to_q": 2})
    assert [config.alpha_of(name, 4) for name in ("a.to_q", "to_q", "a.not_to_q", "to_q.a")] == [2, 2, 8, 8]


def test_a_missing_alpha_and_a_contradicting_one_are_noted(tiny_model: LatentDiffusion, caplog: pytest.LogCaptureFixture):
    tensors = kohya(tiny_model)
    del tensors[f"lora_unet_{QUERY.replace('.', '_')}.alpha"]
    with_adapters(tiny_model, [lora_of(tensors)])
    assert "1 of 3 layers have no alpha" in caplog.text
    whole = {"lora_unet_x.lokr_w1": torch.ones(2, 2), "lora_unet_x.lokr_w2": torch.ones(2, 2), "lora_unet_x.alpha": torch.tensor(1.0)}
    assert "alpha is not used" in lora_of(whole, {"ss_network_dim": "32"}).notes[0]
    assert not lora_of(kohya(tiny_model)).notes


def test_layers_that_the_model_lacks_are_noted(tiny_model: LatentDiffusion, caplog: pytest.LogCaptureFixture):
    tensors = kohya(tiny_model) | {
        "lora_unet_nothing.lora_down.weight": torch.ones(1, 2),
        "lora_unet_nothing.lora_up.weight": torch.ones(2, 1),
    }
    with_adapters(tiny_model, [lora_of({**tensors, "extra": torch.ones(1)})])
    assert "1 of 4 layers of the LoRA 'test' are not in this model (nothing)" in caplog.text
    assert "1 names in the LoRA 'test' are not read (extra)" in caplog.text


def wrong_files() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    one = torch.ones(2, 2)
    return {
        "foreign": ({"model.layers.0.weight": one}, "is no LoRA"),
        "position": ({"unet:0:up": one, "unet:0:down": one}, "cloneofsimo"),
        "boft": ({"lora_unet_x.oft_blocks": torch.ones(1, 2, 2, 2)}, "BOFT"),
        "oft_diag": ({"lora_unet_x.oft_diag": one}, "rare form"),
        "flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": one}, "Flux"),
        "half": ({"lora_unet_x.lora_up.weight": one}, "incomplete: the layer lora_unet_x has no down"),
        "half lokr": ({"lora_unet_x.lokr_w1": one}, "has no lokr_w2"),
        "nan": ({"lora_unet_x.lora_up.weight": one * torch.nan, "lora_unet_x.lora_down.weight": one}, "NaN or infinity"),
        "nan alpha": (
            {"lora_unet_x.lora_up.weight": one, "lora_unet_x.lora_down.weight": one, "lora_unet_x.alpha": torch.tensor(torch.nan)},
            "has the alpha nan",
        ),
    }


@pytest.mark.parametrize("name", wrong_files())
def test_wrong_files_are_refused(name: str):
    tensors, message = wrong_files()[name]
    with pytest.raises(DaguerreError, match=message):
        lora_of(tensors)


def test_damaged_files_and_pickles_with_code_are_refused(tmp_path: Path, tiny_model: LatentDiffusion):
    good = tmp_path / "good.safetensors"
    save_file(kohya(tiny_model), good)
    assert load_lora(good).record.name == "good"
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-40])
    with pytest.raises(DaguerreError, match="cut short"):
        load_lora(tmp_path / "cut.safetensors")

    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"lora_unet_x.lora_up.weight": Attack()}, tmp_path / "bad.pt", pickle_module=pickle)
    with pytest.raises(DaguerreError, match="refused"):
        load_lora(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DaguerreError, match="has no LoRA"):
        load_lora(tmp_path / "empty")


def test_a_lora_of_another_family_is_refused(tiny_model: LatentDiffusion):
    name = f"lora_unet_{KEY.replace('.', '_')}"
    xl = lora_of({f"{name}.lora_down.weight": torch.ones(1, 2048), f"{name}.lora_up.weight": torch.ones(32, 1)})
    with pytest.raises(
        DaguerreError, match=r"made for sdxl \(text width 2048\) and does not fit 'tiny', which is a model of text width 32"
    ):
        with_adapters(tiny_model, [xl])
    with pytest.raises(DaguerreError, match="none of its 1 layers is in this model"):
        with_adapters(
            tiny_model, [lora_of({"lora_unet_x.lora_down.weight": torch.ones(1, 2), "lora_unet_x.lora_up.weight": torch.ones(2, 1)})]
        )
    query = f"lora_unet_{QUERY.replace('.', '_')}"
    with pytest.raises(DaguerreError, match="do not give the shape"):
        with_adapters(tiny_model, [lora_of({f"{query}.lora_down.weight": torch.ones(1, 7), f"{query}.lora_up.weight": torch.ones(32, 1)})])
    with pytest.raises(DaguerreError, match="which this model does not have"):
        with_adapters(tiny_model, [lora_of({f"{query}.diff_b": torch.ones(32)})])


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1000.0])
def test_scales_out_of_range_are_refused(tiny_model: LatentDiffusion, scale: float):
    with pytest.raises(DaguerreError, match="between ±100"):
        lora_of(kohya(tiny_model)).scaled(scale)


def test_embeddings_in_a_lora_are_attached(tiny_model: LatentDiffusion):
    extra = {"bundle_emb.catword.string_to_param.*": torch.ones(2, 32), "bundle_emb.catword.clip_l_out": torch.ones(2, 32)}
    lora: Lora = lora_of(kohya(tiny_model) | extra)
    assert "output embeddings of catword are skipped" in lora.notes[0]
    changed = with_adapters(tiny_model, [lora])
    assert len(changed.conditioner.tokenizer) == len(tiny_model.conditioner.tokenizer) + 2


def test_layers_are_compared_by_network(tiny_model: LatentDiffusion):
    lora = lora_of(kohya(tiny_model))
    assert {name.role for name in lora.layers} == {"unet", "te1"}
    assert LayerName("te1", TEXT.replace(".", "_")) in lora.layers
    assert lora.ranks == [2]
    assert in_memory({}).shapes == {}
    assert replace(lora.record, scale=0.5) == lora.scaled(0.5).record


def test_a_lora_changes_the_base_of_a_refiner_alone_as_in_diffusers(peer: Any):
    (base, _, model), (refiner, _, second) = peer("sdxl"), peer("sdxl-refiner")
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = low_rank(model.unet, path, seed=1)
    name = f"lora_unet_{path.replace('.', '_')}"
    adapted = with_adapters(with_refiner(model, second), [lora_of({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})])
    assert adapted.refiner is second
    layer = base.unet.get_submodule(path)
    settings = {"prompt": "a fox", "negative_prompt": "rain", "num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent"}
    for pipeline in (base, refiner):
        kind = diffusers.EulerDiscreteScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    with torch.no_grad():
        layer.weight += up @ down
        try:
            source = torch.Generator().manual_seed(5)
            half = base(**settings, width=24, height=16, denoising_end=0.5, generator=source).images
        finally:
            layer.weight -= up @ down
    theirs = refiner(**settings, image=half, denoising_start=0.5, generator=torch.Generator().manual_seed(5)).images
    request = daguerre.Request(
        "a fox", "rain", 4, "euler", guidance_scale=4.0, seed=5, width=24, height=16, initial_noise="sigma_max", refiner_switch_at=0.5
    )
    ours, plain = ([*daguerre.stream(each, request)][-1].x for each in (adapted, with_refiner(model, second)))
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (ours - plain).abs().max() > 1e-2
