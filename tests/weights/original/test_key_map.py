"""Every tensor of a published file maps to one parameter, and back."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceAutoencoder
from diffusers import UNet2DConditionModel as ReferenceUNet
from diffusers.loaders import single_file_utils as reference
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig as ReferenceTextConfig
from transformers import CLIPTextModelWithProjection as ReferenceText

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models import unet as unets
from daguerre.models.autoencoder_kl import VAE_SD, VAE_SDXL, AutoencoderKL
from daguerre.models.clip import CLIP_L, OPENCLIP_BIGG, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQ_F4, VQGAN_F16_1024, VQModel
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.original.components import COMPONENT_KINDS, IGNORED, Component, restore_dots, split_components
from daguerre.weights.original.detect import detect
from daguerre.weights.original.families import FAMILIES
from daguerre.weights.original.infer_config import (
    autoencoder_from_shapes,
    ldm_text_from_shapes,
    prior_from_shapes,
    unet_from_shapes,
    vq_from_shapes,
)
from daguerre.weights.original.key_map import KeyTable, Rule, UNetLayout, rule, unet_rules
from daguerre.weights.tensors.reader import TensorFile
from tests.tolerance import NETWORK_TERMS, assert_rounded
from tests.weights import checkpoints

FIXTURES = Path(__file__).parents[2] / "fixtures"
MANIFESTS = {path.stem: json.loads(path.read_text()) for path in sorted((FIXTURES / "manifests").glob("*.json"))}


def manifest(name: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in MANIFESTS[name].items()}


EXPECTED = {
    "cin256": ("ldm-class", {"unet", "vae"}, 0),
    "ffhq256": ("ldm-unconditional", {"unet", "vae"}, 0),
    "inpainting_big": ("ldm-inpainting", {"unet", "vae"}, 0),
    "sd1": ("sd1", {"unet", "vae", "text_encoder"}, 0),
    "sd2": ("sd2", {"unet", "vae", "text_encoder"}, 1),
    "sdxl_base": ("sdxl", {"unet", "vae", "text_encoder", "text_encoder_2"}, 1),
    "taming_faceshq_transformer": (None, {"transformer"}, 24),
    "taming_faceshq_vqgan": (None, {"vae", "discriminator"}, 0),
    "text2img256": ("ldm-text2img", {"unet", "vae"}, 0),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_tensor_of_a_published_file_maps_to_one_parameter(name):
    family, parts, ignored = EXPECTED[name]
    tensors = manifest(name)
    detected = detect(TensorFile(Path(name), "safetensors", tensors, {}, tensors.__getitem__))
    assert (detected.family.name if detected.family else None) == family
    assert detected.contents.parts.keys() == parts
    assert detected.key_errors() == {"missing": [], "unmatched": [], "of another shape": []}
    assert len(detected.contents.ignored) == ignored
    assert sum(len(part.original) for part in detected.contents.parts.values()) + ignored == len(tensors)


OPENCLIP_H = CLIPTextConfig(width=1024, layers=24, heads=16, mlp_width=4096, activation="gelu", projection=1024)
PUBLISHED_CONFIGS = {
    "cin256": {"vae": VQ_F4},
    "ffhq256": {"vae": VQ_F4},
    "inpainting_big": {"vae": replace(VQ_F4, mid_attention=False)},
    "sd1": {"vae": VAE_SD, "text_encoder": CLIP_L},
    "sd2": {"vae": VAE_SD, "text_encoder": OPENCLIP_H},
    "sdxl_base": {"vae": VAE_SDXL, "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_BIGG},
    "taming_faceshq_transformer": {"transformer": TransformerPriorConfig()},
    "taming_faceshq_vqgan": {"vae": VQGAN_F16_1024},
    "text2img256": {"vae": VAE_SD},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_configs_of_published_files_are_inferred(name):
    tensors = manifest(name)
    detected = detect(TensorFile(Path(name), "safetensors", tensors, {}, tensors.__getitem__))
    configs = dict(detected.text_encoders)
    if detected.autoencoder is not None:
        configs["vae"] = detected.autoencoder
    if "transformer" in detected.contents.parts:
        configs["transformer"] = prior_from_shapes(detected.canonical(detected.contents.parts["transformer"]))
    assert configs == PUBLISHED_CONFIGS[name]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_round_trip_gives_the_same_names_and_shapes(name):
    tensors = manifest(name)
    contents = split_components(tensors)
    back: dict[str, Tensor] = {}
    for part in contents.parts.values():
        original, unmatched = part.table().to_original(part.canonical())
        assert not unmatched
        back |= {part.prefix + key: tensor for key, tensor in original.items()}
    expected = {key: tensor.shape for key, tensor in tensors.items() if key not in contents.ignored}
    assert {key: tensor.shape for key, tensor in back.items()} == expected


def test_at_most_five_patterns_are_ignored_and_no_weight_matches_them():
    assert len(IGNORED) <= 5
    ignored = {re.sub(r"\d+", "N", key) for name in MANIFESTS for key in split_components(manifest(name)).ignored}
    assert ignored == {
        "cond_stage_model.model.logit_scale",
        "conditioner.embedders.N.model.logit_scale",
        "transformer.blocks.N.attn.mask",
    }


def test_unknown_tensors_are_reported():
    tensors = {**manifest("sd1"), "model.diffusion_model.input_blocks.1.9.weight": torch.empty(1), "unknown": torch.empty(1)}
    assert split_components(tensors).unmatched == ["model.diffusion_model.input_blocks.1.9.weight", "unknown"]


@pytest.mark.parametrize("name", ["sd1", "sdxl_base", "ffhq256", "inpainting_big"])
def test_the_dots_of_ema_names_are_restored(name):
    names = [key.removeprefix("model.") for key in manifest(name) if key.startswith("model.diffusion_model.")]
    assert [restore_dots(whole.replace(".", "")) for whole in names] == names


PRESETS = [name for name, value in vars(unets).items() if isinstance(value, UNetConfig) and not name.startswith("DDPM")]


@pytest.mark.parametrize("name", PRESETS)
def test_the_config_of_a_unet_is_inferred_after_a_round_trip_of_names(name):
    config = getattr(unets, name)
    with shapes_only():
        canonical = UNet(config).state_dict()
    original, unmatched = KeyTable(unet_rules(UNetLayout.of(config))).to_original(canonical)
    assert not unmatched
    part = split_components({f"model.diffusion_model.{key}": tensor for key, tensor in original.items()}).parts["unet"]
    back = part.canonical()
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in canonical.items()}
    # A level without attention has no cross-attention, either.
    inferable = [level for level in config.cross_only_levels if config.depth[level]]
    assert unet_from_shapes(back) == replace(config, heads=(1,) * len(config.heads), cross_only_levels=tuple(inferable))


def test_a_fused_tensor_splits_by_head_and_joins_to_the_same_bytes():
    fused = torch.arange(24.0).reshape(24, 1, 1)
    one = Rule("qkv.", ("to_q.", "to_k.", "to_v."), ones=1, heads=2)
    q, k, v = one.split(fused)
    assert q.flatten().tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert k.flatten().tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert v.flatten().tolist() == [8, 9, 10, 11, 20, 21, 22, 23]
    assert torch.equal(one.join([q, k, v]), fused)


def test_an_incomplete_fused_tensor_is_reported():
    table = KeyTable([Rule("in_proj_", ("q_proj.", "k_proj.", "v_proj."))])
    assert table.to_original({"q_proj.weight": torch.ones(2, 2)}) == ({}, ["q_proj.weight"])


def test_the_longest_prefix_that_ends_at_a_boundary_is_used():
    table = KeyTable([rule("a.", "x."), rule("a.b.", "y."), rule("a.bc", "z"), rule("q_", "r_")])
    names = {"a.b.c": "y.c", "a.d": "x.d", "a.bc": "z", "a.bcd": "x.bcd", "q_k": "r_k", "a": None, "qu": None, "": None}
    canonical, unmatched = table.to_canonical({name: torch.tensor(i) for i, name in enumerate(names)})
    assert unmatched == [name for name, new in names.items() if new is None]
    assert {name: canonical[new].item() for name, new in names.items() if new is not None} == {
        name: i for i, name in enumerate(names) if names[name]
    }
    assert KeyTable([rule("", ""), rule("a.", "x.")]).to_canonical({"b.c": torch.ones(1)})[0].keys() == {"b.c"}


def test_a_table_with_two_rules_for_one_name_is_rejected():
    with pytest.raises(ValueError, match="invertible"):
        KeyTable([rule("a.", "x."), rule("b.", "x.")])


# The converters of diffusers turn the single-file names into the same canonical names and values.


def test_the_unet_converter_of_diffusers_gives_the_same_tensors():
    for config, json_of in (
        (checkpoints.SD1, {"attention_head_dim": 8}),
        (
            checkpoints.SDXL,
            {
                "attention_head_dim": (1, 2),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": checkpoints.SDXL.vector_width,
                "transformer_layers_per_block": (1, 2),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            },
        ),
    ):
        options = {
            "block_out_channels": config.channels,
            "layers_per_block": config.blocks,
            "cross_attention_dim": config.context_width,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            **json_of,
        }
        network = ReferenceUNet(**options)
        part = Component("unet", COMPONENT_KINDS[0], "", checkpoints.unet(config, prefix=""))
        found = reference.convert_ldm_unet_checkpoint(checkpoints.unet(config), dict(network.config))
        assert_same(found, part.canonical())
        network.load_state_dict(found)


def test_the_autoencoder_converter_of_diffusers_gives_the_same_tensors():
    config = checkpoints.AUTOENCODER
    network = ReferenceAutoencoder(
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    original = checkpoints.autoencoder()
    found = reference.convert_ldm_vae_checkpoint(original, dict(network.config))
    assert_same(found, split_components(original).parts["vae"].canonical())
    network.load_state_dict(found)


def test_the_text_converters_of_diffusers_give_the_same_tensors():
    original = checkpoints.open_clip()
    config = ReferenceTextConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=1, intermediate_size=128, projection_dim=64)
    found = reference.convert_open_clip_checkpoint(ReferenceText(config), original, prefix="cond_stage_model.model.")
    canonical = split_components(original).parts["text_encoder"].canonical()
    # It omits the last of 24 layers, which Stable Diffusion 2 does not use and which this encoder does not have.
    assert found.keys() <= canonical.keys()
    assert_same(found, {name: canonical[name] for name in found})
    assert {name for name in canonical if name not in found} <= {"text_projection.weight"}

    original = checkpoints.clip()
    assert_same(reference.convert_ldm_clip_checkpoint(original), split_components(original).parts["text_encoder"].canonical())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# Names in standalone files and in unusual files.


def test_a_standalone_autoencoder_is_found_under_old_and_new_names():
    canonical = split_components(checkpoints.autoencoder()).parts["vae"].canonical()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in canonical.items():
        for new_name, old_name in names.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        old[name] = tensor
    assert old.keys() != canonical.keys()
    for tensors in (checkpoints.autoencoder(prefix=""), checkpoints.autoencoder(prefix="vae."), canonical, old):
        contents = split_components(tensors)
        assert not contents.unmatched
        assert_same(contents.parts["vae"].canonical(), canonical)


def test_a_text_encoder_without_its_outer_module_is_found():
    original = {name.replace("text_model.", ""): tensor for name, tensor in checkpoints.clip().items()}
    assert_same(
        split_components(original).parts["text_encoder"].canonical(), split_components(checkpoints.clip()).parts["text_encoder"].canonical()
    )


def test_attention_saved_as_linear_layers_is_found():
    original = checkpoints.autoencoder()
    linear = {name: tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor for name, tensor in original.items()}
    assert_same(split_components(linear).parts["vae"].canonical(), split_components(original).parts["vae"].canonical())


def test_position_ids_are_ignored_even_as_floats():
    name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    contents = split_components({**checkpoints.clip(), name: torch.arange(77.0)[None]})
    assert contents.ignored == [name]
    assert not contents.unmatched


# Outputs of the original implementations, from tiny weights under the published names.


def golden(name: str) -> tuple[dict[str, Component], dict[str, Tensor]]:
    tensors = load_file(FIXTURES / "golden" / f"{name}.safetensors")
    io = {key.removeprefix("io."): tensor for key, tensor in tensors.items() if key.startswith("io.")}
    contents = split_components({key: tensor for key, tensor in tensors.items() if not key.startswith("io.")})
    assert not contents.unmatched
    return contents.parts, io


def built(network_of, config, tensors: dict[str, Tensor]):
    with shapes_only():
        network = network_of(config)
    fill(network, tensors, "golden")
    return network.eval()


@pytest.mark.parametrize(("name", "heads"), [("sd1_unet_tiny", (4, 4)), ("ldm_unconditional_unet_tiny", (2, 4))])
def test_the_unet_matches_the_original_implementation(name, heads):
    parts, io = golden(name)
    tensors = parts["unet"].canonical(heads)
    network = built(UNet, replace(unet_from_shapes(tensors), heads=heads), tensors)
    with torch.inference_mode():
        out = network(io["x"], io["t"], Conditioning(context=io.get("context")))
    assert_rounded(out, io["out"], NETWORK_TERMS)


def test_the_kl_autoencoder_matches_the_original_implementation():
    parts, io = golden("ldm_kl_autoencoder_tiny")
    tensors = parts["vae"].canonical()
    network = built(AutoencoderKL, autoencoder_from_shapes(tensors, 1.0), tensors)
    with torch.inference_mode():
        posterior, decoded = network.posterior(io["x"]), network.decode(io["z"])
    assert_rounded(torch.cat([posterior.mean, posterior.logvar], dim=1), io["moments"], NETWORK_TERMS)
    assert_rounded(decoded, io["decoded"], NETWORK_TERMS)


def test_the_vqgan_matches_the_original_implementation():
    parts, io = golden("taming_vqgan_tiny")
    tensors = parts["vae"].canonical()
    network = built(VQModel, vq_from_shapes(tensors), tensors)
    with torch.inference_mode():
        h, codes = network.encode(io["x"]), network.encode_codes(io["x"])
        decoded = network.decode_codes(codes)
    assert_rounded(h, io["h"], NETWORK_TERMS)
    assert torch.equal(codes, io["indices"].long())
    assert_rounded(decoded, io["decoded"], NETWORK_TERMS)


def test_the_transformer_over_codes_matches_the_original_implementation():
    parts, io = golden("taming_gpt_tiny")
    tensors = parts["transformer"].canonical()
    network = built(TransformerPrior, replace(prior_from_shapes(tensors), heads=2), tensors)
    with torch.inference_mode():
        assert_rounded(network.read(io["ids"].long()), io["logits"], NETWORK_TERMS)


def test_the_text_transformer_matches_the_original_implementation():
    parts, io = golden("ldm_bert_text_tiny")
    tensors = parts["text_encoder"].canonical()
    network = built(LDMBert, ldm_text_from_shapes(tensors), tensors)
    with torch.inference_mode():
        assert_rounded(network(io["ids"].long()), io["out"], NETWORK_TERMS)


def test_the_discriminator_matches_the_original_implementation():
    parts, io = golden("taming_patchgan_tiny")
    with safe_open(FIXTURES / "golden" / "taming_patchgan_tiny.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["config"])["n_layers"]
    network = built(PatchDiscriminator, PatchDiscriminatorConfig(3, 16, layers), parts["discriminator"].canonical())
    with torch.inference_mode():
        assert_rounded(network(io["x"]), io["logits"], NETWORK_TERMS)


def test_every_family_has_a_rule_for_heads():
    assert all(family.heads or family.head_width for family in FAMILIES.values())
