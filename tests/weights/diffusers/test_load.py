"""A saved model loads bit for bit, and errors list everything that is wrong with a folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import daguerre
from daguerre import atomic_io
from daguerre.conditioning import TextConditioner
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights.catalog import embedded, find
from daguerre.weights.convert import convert
from daguerre.weights.diffusers.index import stored_guidance
from daguerre.weights.diffusers.unet_config import unet_config, unet_json
from daguerre.weights.diffusers.vae_config import autoencoder_config, autoencoder_json
from daguerre.weights.original.detect import detect
from daguerre.weights.original.load import load_single_file
from daguerre.weights.tensors.reader import open_tensors
from tests.tolerance import NETWORK_TERMS, assert_rounded

PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def saved(tiny_model: LatentDiffusion, tmp_path: Path) -> Path:
    return daguerre.save(tiny_model, tmp_path / "tiny")


def parts(model: LatentDiffusion) -> dict[str, torch.nn.Module]:
    return {"unet": model.unet, "vae": model.autoencoder, "text_encoder": model.conditioner.encoder}


def test_a_saved_model_loads_identically(tiny_model: LatentDiffusion, saved: Path):
    loaded = daguerre.load(saved, device="cpu")
    for name, part in parts(tiny_model).items():
        state, other = part.state_dict(), parts(loaded)[name].state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in state.items())
        assert part.config == parts(loaded)[name].config
    assert loaded.conditioner.tokenizer.vocab == tiny_model.conditioner.tokenizer.vocab
    assert loaded.conditioner.tokenizer.max_length == tiny_model.conditioner.tokenizer.max_length
    assert loaded.schedule.config == tiny_model.schedule.config
    assert (loaded.prediction, loaded.name, loaded.sample_size) == ("v", "tiny", 32)
    assert not any(module.training for part in loaded.modules for module in part.modules())


def test_the_default_guidance_is_saved_and_used_by_requests_without_one(tiny_model: LatentDiffusion, tmp_path: Path):
    model = daguerre.load(daguerre.save(replace(tiny_model, default_guidance=2.5), tmp_path / "own"))
    assert model.default_guidance == 2.5
    assert daguerre.load(daguerre.save(tiny_model, tmp_path / "usual")).default_guidance == LatentDiffusion.default_guidance
    assert load_single_file(tmp_path / "own", offload=True).default_guidance == 2.5
    single = detect(open_tensors(convert(tmp_path / "own", tmp_path / "own.safetensors")))
    # A single file cannot store the small vocabulary, so the whole model is not opened.
    assert stored_guidance(single.stored_configs["model_index"]) == 2.5
    (default,) = daguerre.generate(model, prompt="a red apple", steps=2)
    (explicit,) = daguerre.generate(model, prompt="a red apple", steps=2, guidance_scale=2.5)
    (other,) = daguerre.generate(model, prompt="a red apple", steps=2, guidance_scale=5)
    assert default.provenance.request.guidance_scale == 2.5
    assert default.image.tobytes() == explicit.image.tobytes()
    assert default.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("guidance", ["much", None, True, float("inf")])
def test_a_guidance_that_is_not_a_number_is_rejected(saved: Path, guidance: object):
    index = saved / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_guidance_scale": guidance}))
    for load in (daguerre.load, load_single_file):
        with pytest.raises(DaguerreError, match="_guidance_scale"):
            load(saved)


def test_half_precision_only_rounds_the_weights(tiny_model: LatentDiffusion, tmp_path: Path):
    folder = daguerre.save(tiny_model, tmp_path / "half", dtype=torch.float16)
    wanted = {name: tensor.half() for name, tensor in tiny_model.unet.state_dict().items()}
    stored = load_file(folder / "unet" / PARTS["unet"])
    assert all(torch.equal(stored[name], tensor) for name, tensor in wanted.items())
    loaded = daguerre.load(folder, device="cpu")
    assert loaded.dtype == torch.float32
    assert all(torch.equal(tensor, wanted[name].float()) for name, tensor in loaded.unet.state_dict().items())
    assert daguerre.load(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_shards_variants_old_names_and_bare_text_names_load(tiny_model: LatentDiffusion, saved: Path):
    unet = load_file(saved / "unet" / PARTS["unet"])
    (saved / "unet" / PARTS["unet"]).unlink()
    shards = {"a.safetensors": sorted(unet)[::2], "b.safetensors": sorted(unet)[1::2]}
    for shard, names in shards.items():
        save_file({name: unet[name] for name in names}, saved / "unet" / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (saved / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(saved / "vae" / PARTS["vae"])
    for new, name in old.items():
        vae = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): tensor for key, tensor in vae.items()}
    assert any("proj_attn" in name for name in vae)
    save_file(vae, saved / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    (saved / "vae" / PARTS["vae"]).unlink()

    text = {name.removeprefix("text_model."): tensor for name, tensor in load_file(saved / "text_encoder" / PARTS["text_encoder"]).items()}
    text["embeddings.position_ids"] = torch.arange(16)[None]
    save_file(text, saved / "text_encoder" / PARTS["text_encoder"])

    loaded = daguerre.load(saved, device="cpu")
    for name, part in parts(tiny_model).items():
        assert all(torch.equal(tensor, parts(loaded)[name].state_dict()[key]) for key, tensor in part.state_dict().items())


def test_a_skipped_last_layer_is_saved_as_a_shorter_text_encoder(tiny_model: LatentDiffusion, tmp_path: Path):
    conditioner = TextConditioner(tiny_model.conditioner.tokenizer, tiny_model.conditioner.encoder, layer=-2)
    folder = daguerre.save(replace(tiny_model, conditioner=conditioner), tmp_path / "skip")
    loaded = daguerre.load(folder, device="cpu").conditioner
    assert loaded.encoder.config.layers == 1
    assert torch.equal(loaded(["a red apple"]).context, conditioner(["a red apple"]).context)


@pytest.mark.parametrize("quant_convs", [True, False])
def test_a_latent_shift_is_folded_into_the_biases_without_changing_results(tiny_model: LatentDiffusion, tmp_path: Path, quant_convs: bool):
    """The pipelines of diffusers for this layout ignore the shift."""
    torch.manual_seed(0)
    config = replace(tiny_model.autoencoder.config, shift_factor=0.4, quant_conv=quant_convs, post_quant_conv=quant_convs)
    autoencoder = AutoencoderKL(config).eval()
    loaded = daguerre.load(daguerre.save(replace(tiny_model, autoencoder=autoencoder), tmp_path / "x"), device="cpu").autoencoder
    assert loaded.config == replace(config, shift_factor=0.0, post_quant_conv=True)
    x, z = torch.randn(2, 3, 32, 32), torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        assert_rounded(loaded.encode(x), autoencoder.encode(x), NETWORK_TERMS)
        assert_rounded(loaded.decode(z), autoencoder.decode(z), NETWORK_TERMS)
        assert_rounded(loaded.posterior(x).logvar, autoencoder.posterior(x).logvar, NETWORK_TERMS)
    assert autoencoder.config.shift_factor == 0.4


def test_a_full_disk_leaves_the_old_model_unchanged(
    make_tiny_model: Callable[..., LatentDiffusion], saved: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}

    def no_space(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_io.os, "fsync", no_space)
    with pytest.raises(DaguerreError, match="tiny': No space left on device"):
        daguerre.save(make_tiny_model(seed=1), saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]


def test_a_folder_that_is_not_a_model_is_not_overwritten(tiny_model: LatentDiffusion, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(DaguerreError, match="holds no saved model, so it is not overwritten"):
        daguerre.save(tiny_model, tmp_path / "photos")


@pytest.mark.parametrize("part", PARTS)
def test_an_error_names_a_missing_or_truncated_part(saved: Path, part: str):
    file = saved / part / PARTS[part]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DaguerreError, match=f"{PARTS[part]}' is cut short"):
        daguerre.load(saved, device="cpu")
    file.unlink()
    with pytest.raises(DaguerreError, match=f"{part}' has no weights that can be read"):
        daguerre.load(saved, device="cpu")


@pytest.mark.parametrize("part", PARTS)
def test_a_pickled_part_loads_without_running_code(tiny_model: LatentDiffusion, saved: Path, part: str):
    file = saved / part / PARTS[part]
    pickled = file.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save(load_file(file), pickled)
    file.unlink()
    loaded = parts(daguerre.load(saved, device="cpu"))[part].state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in parts(tiny_model)[part].state_dict().items())
    torch.save({"conv_out.bias": Path(saved)}, pickled)  # unpickling a path would run code
    with pytest.raises(DaguerreError, match="is refused as a pickled checkpoint"):
        daguerre.load(saved, device="cpu")


@pytest.mark.parametrize("part", PARTS)
def test_an_error_names_a_part_with_nan_or_infinity(saved: Path, part: str):
    file = saved / part / PARTS[part]
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].flatten()[-1] = float("inf")
    save_file(tensors, file)
    with pytest.raises(DaguerreError, match=f"NaN or infinity in 1 tensors .*{name}"):
        daguerre.load(saved, device="cpu")


def test_one_error_lists_missing_unknown_and_misshapen_tensors(saved: Path):
    file = saved / "unet" / PARTS["unet"]
    tensors = load_file(file)
    del tensors["conv_out.bias"]
    tensors["conv_in.weight"] = torch.zeros(1, 2)
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(DaguerreError) as caught:
        daguerre.load(saved, device="cpu")
    assert all(word in str(caught.value) for word in ("1 missing (conv_out.bias)", "1 unknown (stray)", "conv_in.weight is [1, 2]"))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "holds a FluxPipeline"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type to 'fourier'"),
        ("unet/config.json", {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "down block 'KDownBlock2D'"),
        ("vae/config.json", {"act_fn": "mish"}, "act_fn to 'mish'"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "holds a T5EncoderModel"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type 'flow'"),
        ("unet/config.json", {"block_out_channels": 3}, "No network can be built"),
        ("unet/config.json", {"norm_num_groups": 7}, "No network can be built"),
        ("text_encoder/config.json", {"architectures": 3}, "No network can be built"),
        ("vae/config.json", {"block_out_channels": [None]}, "No network can be built"),
    ],
)
def test_unsupported_options_are_rejected(saved: Path, file: str, change: dict[str, object], message: str):
    path = saved / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DaguerreError, match=message):
        daguerre.load(saved, device="cpu")


def test_the_error_for_a_path_without_a_model_explains_what_a_model_is(tmp_path: Path):
    with pytest.raises(DaguerreError, match=r"or a folder with a model_index\.json"):
        daguerre.load(tmp_path)
    with pytest.raises(DaguerreError, match="There is no model 'no-such'"):
        daguerre.load("no-such")
    with pytest.raises(DaguerreError, match="device 'abacus'"):
        daguerre.load(tmp_path, device="abacus") if (tmp_path / "model_index.json").write_text("{}") else None


def test_the_catalogue_finds_models_by_name_and_suggests_similar_names(saved: Path, monkeypatch: pytest.MonkeyPatch):
    assets = saved.parent
    (entry,) = embedded(assets)
    assert (entry.name, entry.folder) == ("tiny", saved)
    assert entry.size == sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    assert find("tiny", assets) == saved
    assert find(saved, assets) == saved
    with pytest.raises(DaguerreError, match="Did you mean 'tiny'"):
        find("tinny", assets)
    with pytest.raises(DaguerreError, match="'emoji' is missing from this installation"):
        find(None, assets)


def test_attention_head_dim_is_read_as_the_number_of_heads():
    """SD 1 has one number, SD 2 one per level; SDXL also has depths per level."""
    assert unet_config({"attention_head_dim": 8, "cross_attention_dim": 768}, "x").heads == (8, 8, 8, 8)
    sdxl = {
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": 2816,
    }
    from daguerre.models import unet

    assert unet_config(sdxl, "x") == unet.SDXL


def presets() -> list[object]:
    from daguerre.models import autoencoder_kl, unet

    return [
        *(getattr(unet, name) for name in ("SD1", "SD1_INPAINTING", "SD2", "SD2_DEPTH", "SD2_UPSCALER", "SDXL", "SDXL_REFINER")),
        *(getattr(autoencoder_kl, name) for name in ("VAE_SD", "VAE_SDXL", "VAE_UPSCALER", "KL_F16")),
    ]


@pytest.mark.parametrize("config", presets(), ids=str)
def test_configs_survive_a_round_trip_through_json(config: object):
    from daguerre.models.unet import UNetConfig

    if isinstance(config, UNetConfig):
        assert unet_config(json.loads(json.dumps(unet_json(config, 64))), "x") == config
    else:
        assert autoencoder_config(json.loads(json.dumps(autoencoder_json(config, 512))), "x") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_width": None}, "heads of different widths"),
        ({"resample": "resblock"}, "resample"),
        ({"mid_depth": 0}, "no attention in the middle"),
    ],
)
def test_a_network_that_the_layout_cannot_express_is_not_saved(change: dict[str, object], message: str):
    from daguerre.models.unet import SD1

    with pytest.raises(DaguerreError, match=message):
        unet_json(replace(SD1, **change), 64)
