"""Complete models load from single files, and errors ask for what a file does not determine."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daguerre.conditioning import SDXLConditioner, TextConditioner
from daguerre.diffusion.schedule import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models import unet as unets
from daguerre.models.unet import UNetConfig
from daguerre.weights import load_diffusion, load_vae
from daguerre.weights.convert import convert
from daguerre.weights.inspect import inspect
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import detect, with_file_schedule
from daguerre.weights.original.families import FAMILIES, family_of, heads_of, prediction_of, task_of
from daguerre.weights.original.load import load_first_stage_file, load_single_file
from daguerre.weights.tensors.reader import TensorFile, open_tensors
from tests.weights import checkpoints


def test_sd1_opens_with_its_conventions(tmp_path):
    model = load_single_file(checkpoints.write(tmp_path / "mine.safetensors", checkpoints.sd1()))
    assert (model.name, model.sample_size, model.prediction) == ("mine", 512, "epsilon")
    assert model.schedule.config == ScheduleConfig("scaled_linear", 0.00085, 0.012)
    assert model.unet.config == checkpoints.SD1
    assert isinstance(model.conditioner, TextConditioner)
    assert (model.conditioner.layer, model.conditioner.norm, model.conditioner.tokenizer.pad) == (-1, True, 49407)
    assert not any(module.training for module in (model.unet, model.autoencoder, model.conditioner))


def test_sd2_uses_the_penultimate_layer_with_the_final_norm(tmp_path):
    tensors = checkpoints.sd2()
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors), prediction="v")
    assert (model.prediction, model.sample_size) == ("v", 768)
    assert model.conditioner.tokenizer.pad == 0
    # The reference: all three layers, the penultimate hidden state, then the norm.
    complete = checkpoints.CLIPText(checkpoints.OPEN_CLIP)
    complete.load_state_dict(split_components(tensors).parts["text_encoder"].canonical())
    ids = model.conditioner.tokenizer(["a red apple"])
    expected = complete.text_model.final_layer_norm(complete(ids).hidden[-2])
    torch.testing.assert_close(model.conditioner(["a red apple"]).context, expected)


def test_sdxl_and_its_refiner_open_with_their_text_encoders(tmp_path):
    model = load_single_file(checkpoints.write(tmp_path / "base.safetensors", checkpoints.sdxl()))
    assert isinstance(model.conditioner, SDXLConditioner)
    assert [tower.tokenizer.pad for tower in model.conditioner.towers] == [49407, 0]
    assert [(tower.layer, tower.norm) for tower in model.conditioner.towers] == [(-2, False)] * 2
    assert (model.conditioner.uses_aesthetic_score, model.conditioner.zero_empty, model.sample_size) == (False, True, 1024)
    assert model.autoencoder.config.scaling_factor == 0.13025
    refiner = load_single_file(checkpoints.write(tmp_path / "refiner.safetensors", checkpoints.refiner()))
    assert (len(refiner.conditioner.towers), refiner.conditioner.uses_aesthetic_score, refiner.conditioner.zero_empty) == (1, True, False)
    for each in (model, refiner):
        cond = each.conditioner(["a red apple"])
        with torch.inference_mode():
            assert each.unet(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), cond).isfinite().all()


def test_a_pickled_file_gives_the_same_model(tmp_path):
    tensors = checkpoints.sd1()
    torch.save({"state_dict": tensors, "global_step": 470000}, tmp_path / "x.ckpt")
    from_pickle = load_single_file(tmp_path / "x.ckpt")
    from_safetensors = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    for one, other in zip(from_pickle.modules, from_safetensors.modules, strict=True):
        checkpoint = other.state_dict()
        assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in one.state_dict().items())


def test_half_precision_files_open_in_the_requested_dtype(tmp_path):
    half = {name: tensor.half() for name, tensor in checkpoints.sd1().items()}
    path = checkpoints.write(tmp_path / "x.safetensors", half)
    assert {tensor.dtype for module in load_single_file(path).modules for tensor in module.parameters()} == {torch.float32}
    assert {tensor.dtype for module in load_single_file(path, dtype=torch.bfloat16).modules for tensor in module.parameters()} == {
        torch.bfloat16
    }


def first(model) -> Tensor:
    return model.unet.conv_in.weight


def test_the_ema_is_used_on_request_or_without_other_weights(tmp_path):
    tensors = checkpoints.sd1()
    weight = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    both = checkpoints.write(tmp_path / "both.safetensors", checkpoints.with_ema(tensors))
    assert torch.equal(first(load_single_file(both)), weight)
    assert torch.equal(first(load_single_file(both, ema=True)), weight + 1)
    only = {name: tensor for name, tensor in checkpoints.with_ema(tensors).items() if not name.startswith("model.diffusion_model.")}
    assert torch.equal(first(load_single_file(checkpoints.write(tmp_path / "only.safetensors", only))), weight + 1)


def test_load_first_stage_file_reads_any_file_with_an_autoencoder(tmp_path):
    alone = checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix=""))
    complete = checkpoints.write(tmp_path / "complete.safetensors", checkpoints.sd1())
    one, other = load_first_stage_file(alone, scaling_factor=0.13025), load_first_stage_file(complete)
    assert (one.config.scaling_factor, other.config.scaling_factor) == (0.13025, 0.18215)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    with pytest.raises(DaguerreError, match="holds no autoencoder"):
        load_first_stage_file(checkpoints.write(tmp_path / "text.safetensors", checkpoints.clip()))


# Latent diffusion before Stable Diffusion.


def test_an_unconditional_model_with_a_codebook_runs(tmp_path):
    config = replace(unets.LDM_FACES, channels=(32, 64), depth=(0, 1), heads=(1, 2), blocks=1)
    tensors = checkpoints.unet(config) | checkpoints.vq_model()
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    assert model.unet.config == config
    assert (model.autoencoder.config.quantizer.codes, model.autoencoder.config.scaling_factor) == (16, 1.0)
    assert model.schedule.config == ScheduleConfig("scaled_linear", 0.0015, 0.0195)
    with torch.inference_mode():
        z = model.unet(torch.randn(1, 3, 8, 8), torch.tensor([3.0]), model.conditioner([""]))
        assert model.autoencoder.decode(z).shape == (1, 3, 16, 16)


def test_a_class_conditional_model_takes_numbers_as_prompts(tmp_path):
    config = replace(unets.LDM_IMAGENET, channels=(32, 64), depth=(0, 1), heads=(1, 1), blocks=1, context_width=24)
    classes = torch.randn(11, 24)
    tensors = checkpoints.unet(config) | checkpoints.vq_model() | {"cond_stage_model.embedding.weight": classes}
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    assert model.unet.config == config
    assert torch.equal(model.conditioner(["3", ""]).context, classes[[3, 10], None])
    for prompt in ("10", "-1", "a cat"):
        with pytest.raises(DaguerreError, match="from 0 to 9"):
            model.conditioner([prompt])


# Errors list everything that is wrong, before anything is loaded.


def test_one_error_lists_missing_unknown_and_misshapen_tensors_of_all_parts(tmp_path):
    tensors = checkpoints.sd1()
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["model.diffusion_model.middle_block.0.out_layers.0.extra"] = torch.ones(1)
    tensors["first_stage_model.quant_conv.bias"] = torch.ones(9)
    tensors["nobody.knows"] = torch.ones(1)
    with pytest.raises(DaguerreError) as caught:
        load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    for message in (
        "1 missing (unet/conv_out.bias)",
        "2 unmatched (nobody.knows, unet/mid_block.resnets.0.norm2.extra)",
        "1 of another shape (vae/quant_conv.bias is [9], expected [8])",
        "x.safetensors",
    ):
        assert message in str(caught.value)


def test_the_error_for_an_incomplete_file_lists_what_it_holds(tmp_path):
    for tensors, message in (
        (checkpoints.autoencoder(), r"holds vae \(autoencoder\)"),
        (checkpoints.unet(checkpoints.SD1), r"a complete sd1 model also has vae, text_encoder"),
        ({"a": torch.ones(1)}, "no known network"),
    ):
        with pytest.raises(DaguerreError, match=message):
            load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))


def test_an_error_names_a_tensor_with_nan(tmp_path):
    tensors = checkpoints.sd1()
    tensors["first_stage_model.decoder.conv_in.weight"][:] = float("nan")
    with pytest.raises(DaguerreError, match=r"NaN or infinity in 1 tensors \(first_stage_model\.decoder\.conv_in\.weight\)"):
        load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize("make", [checkpoints.sd2, checkpoints.sdxl, checkpoints.vq_model])
def test_forged_names_and_shapes_never_crash_detection(make):
    rng = random.Random(0)
    complete = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in make().items()}
    complete |= {"input_blocks.0.0.weight": ((3, 4), torch.float32), "zero_convs.0.0.weight": ((1,), torch.float32)}
    rejected = 0
    for _ in range(25):
        entries = dict(complete)
        for name in rng.sample(sorted(entries), rng.choice([1, 3, 30, len(entries) // 2])):
            shape, dtype = entries.pop(name)
            match rng.randrange(4):
                case 0:
                    entries[name] = (tuple(rng.choice([0, 1, 7, 32, 4096]) for _ in range(rng.randrange(5))), dtype)
                case 1:
                    entries[re.sub(r"\d+", lambda _: rng.choice(["0", "7", "999999999999"]), name)] = (shape, dtype)
                case 2:
                    entries[name.replace(".weight", "").replace("0", "x")] = (shape, dtype)
        shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in entries.items()}
        try:
            detect(TensorFile(Path("x"), "safetensors", shapes, {}, shapes.__getitem__)).key_errors()
        except DaguerreError:
            rejected += 1
    assert rejected > 2


# What shapes do not determine.


def test_sd2_requires_a_prediction_type(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.sd2())
    with pytest.raises(DaguerreError, match=r"give prediction='v' .* 768 pixels, or prediction='epsilon'"):
        load_single_file(path)
    assert load_single_file(path, prediction="epsilon").sample_size == 512


@pytest.mark.parametrize(
    ("family", "config", "metadata", "names", "expected"),
    [
        ("sd1", unets.SD1, {}, (), "epsilon"),
        ("sd1", unets.SD1, {"modelspec.prediction_type": "v"}, (), "v"),
        ("sd2", unets.SD2, {}, (), None),
        ("sd2", unets.SD2, {"global_step": "875000"}, (), "epsilon"),
        ("sd2", unets.SD2, {"global_step": "140000"}, (), "v"),
        ("sd2", unets.SD2, {"global_step": "140000", "modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ("sd2", unets.SD2_INPAINTING, {}, (), "epsilon"),
        ("sd2", unets.SD2_DEPTH, {}, (), "epsilon"),
        ("sd2-upscaler", unets.SD2_UPSCALER, {}, (), "v"),
        ("sdxl", unets.SDXL, {}, (), "epsilon"),
        ("sdxl", unets.SDXL, {}, ("v_pred", "ztsnr"), "v"),
    ],
)
def test_the_prediction_comes_from_metadata_then_markers_then_rules(family, config, metadata, names, expected):
    assert prediction_of(FAMILIES[family], config, metadata, names)[0] == expected


KINDS = {
    "LDM_TEXT2IMG": {"text_encoder": "ldm_text"},
    "LDM_IMAGENET": {"condition": "class_embedder"},
    "SDXL_REFINER": {"text_encoder_2": "open_clip_text"},
}


@pytest.mark.parametrize(
    "name", [name for name, value in vars(unets).items() if isinstance(value, UNetConfig) and not name.startswith("DDPM")]
)
def test_the_rule_of_each_family_gives_the_published_heads(name):
    config = getattr(unets, name)
    for kinds in ({}, KINDS.get(name, {})):  # without and with its other networks
        family = family_of(replace(config, heads=(1,) * len(config.heads)), kinds)
        heads = heads_of(family, config)
        attended = [level for level, depth in enumerate(config.depth) if depth] + [len(config.depth) - 1]
        assert [heads[level] for level in attended] == [config.heads[level] for level in attended]


def test_input_channels_determine_the_task():
    tasks = {
        "SD1": "text-to-image",
        "SD1_INPAINTING": "inpainting",
        "PIX2PIX": "instruct-pix2pix",
        "SD2_DEPTH": "depth",
        "SD2_UPSCALER": "upscaling",
    }
    for name, task in tasks.items():
        config = getattr(unets, name)
        assert task_of(family_of(config, {}), config) == task
    # Three more channels are those of an upscaler even if the latents have three, as in instruct-pix2pix.
    for extra, kinds, task in ((0, {}, "text-to-image"), (3, {}, "upscaling"), (4, {}, "inpainting"), (5, {}, None),
                               (3, {"condition": "spatial_rescaler"}, "semantic")):  # fmt: skip
        config = replace(unets.LDM_FACES, in_channels=3 + extra)
        assert task_of(family_of(config, kinds), config) == task


def test_heads_that_do_not_divide_the_channels_must_be_given():
    config = replace(unets.SD2, channels=(96, 192), depth=(1, 1), heads=(1, 1))
    with pytest.raises(DaguerreError, match=r"usual heads of sd2 do not divide the channels \(96, 192\).*give heads="):
        heads_of(FAMILIES["sd2"], config)
    assert heads_of(FAMILIES["sd2"], config, 3) == (3, 3)
    assert heads_of(FAMILIES["sd2"], config, (3, 6)) == (3, 6)
    for wrong in (5, (3,), (3, 0)):
        with pytest.raises(DaguerreError, match="give heads="):
            heads_of(FAMILIES["sd2"], config, wrong)


def test_the_tables_of_a_file_give_the_schedule_and_the_scale():
    T = 1000
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, T, dtype=torch.float64) ** 2
    tensors = checkpoints.sd1() | {"betas": betas.float(), "scale_factor": torch.tensor(0.2237)}
    detected = detect(TensorFile(Path("x"), "safetensors", tensors, {}, tensors.__getitem__))
    assert detected.autoencoder.scaling_factor == 0.18215
    updated = with_file_schedule(detected)
    assert updated.autoencoder.scaling_factor == pytest.approx(0.2237, rel=1e-6)
    assert (updated.schedule.kind, updated.schedule.timesteps) == ("scaled_linear", T)
    assert (updated.schedule.beta_start, updated.schedule.beta_end) == (0.0015, 0.0155)
    tensors["betas"] = torch.linspace(0.0001, 0.02, T)
    assert with_file_schedule(detected).schedule.kind == "linear"
    tensors["betas"] = torch.linspace(0.0001, 0.02, T) ** 3
    with pytest.raises(DaguerreError, match=r"table of β .* neither linear"):
        with_file_schedule(detected)


@pytest.mark.parametrize("stored_as", [torch.float64, torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_rounded_tables_give_the_numbers_of_the_family(dtype, model, stored_as):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scale = {"sd1": 0.18215, "sdxl": 0.13025}[model]
    tables = {"betas": betas, "scale_factor": torch.tensor(scale, dtype=torch.float64)}
    tables = {name: table.to(dtype).to(stored_as or dtype) for name, table in tables.items()}
    tensors = getattr(checkpoints, model)() | tables
    updated = with_file_schedule(detect(TensorFile(Path("x"), "safetensors", tensors, {}, tensors.__getitem__)))
    assert updated.autoencoder.scaling_factor == scale
    assert updated.schedule == ScheduleConfig("scaled_linear", 0.00085, 0.012, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounded_tables_of_other_schedules_keep_their_kind(dtype):
    tensors = checkpoints.sd1() | {"betas": torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64).to(dtype)}
    detected = detect(TensorFile(Path("x"), "safetensors", tensors, {}, tensors.__getitem__))
    schedule = with_file_schedule(detected).schedule
    assert schedule.kind == "linear"
    assert (schedule.beta_start, schedule.beta_end) == pytest.approx((0.0001, 0.02), rel=torch.finfo(dtype).eps)
    alphas_cumprod = Schedule(replace(detected.schedule, zero_terminal_snr=True)).alphas_cumprod
    tensors["betas"] = torch.cat([1 - alphas_cumprod[:1], 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]]).to(dtype)
    assert with_file_schedule(detected).schedule == replace(detected.schedule, zero_terminal_snr=True)


def test_markers_select_v_prediction_and_zero_terminal_snr(tmp_path):
    marked = checkpoints.sdxl() | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    detected = detect(open_tensors(checkpoints.write(tmp_path / "x.safetensors", marked)))
    assert (detected.prediction, detected.schedule.zero_terminal_snr) == ("v", True)
    assert detected.key_errors() == {"missing": [], "unmatched": [], "of another shape": []}


def test_load_diffusion_and_load_vae_pass_on_their_options(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.with_ema(checkpoints.sd2()))
    model = load_diffusion(path, device="cpu", prediction="v", heads=(1, 2), ema=True)
    assert (model.prediction, model.unet.config.heads) == ("v", (1, 2))
    assert torch.equal(first(model), checkpoints.sd2()["model.diffusion_model.input_blocks.0.0.weight"] + 1)
    vae = load_vae(
        checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix="")), device="cpu", scaling_factor=0.13025
    )
    assert vae.config.scaling_factor == 0.13025


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedder.model.visual.proj", "unCLIP, which is not supported"),
        ("cond_stage_model.model.visual.proj", "open as a folder"),
        ("edm_vpred.sigma_max", "CosXL, which has a noise schedule of EDM"),
        ("edm_mean", "Playground 2.5, which has a noise schedule of EDM"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("transformer/single_transformer_blocks.0.proj_out.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "Stable Diffusion 3"),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight", "video model"),
        ("unet/time_embedding.cond_proj.weight", "latent consistency model"),
        ("model.diffusion_model.out.2.scale_weight", "scaled float8 weights"),
        ("scaled_fp8", "scaled float8 weights"),
        ("model.diffusion_model.out.2.weight.absmax", "quantized weights"),
    ],
)
def test_unsupported_models_are_named(tmp_path, name, message):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.sd2() | {name: torch.zeros(2, 2)})
    for opened in (load_single_file, lambda path: convert(path, tmp_path / "folder")):
        with pytest.raises(DaguerreError, match=message):
            opened(path)
    assert message in str(inspect(path).unsupported)


@pytest.mark.parametrize("single", [checkpoints.sd1, checkpoints.sdxl])
def test_another_autoencoder_completes_a_file_without_one(tmp_path, single):
    whole = checkpoints.write(tmp_path / "whole.safetensors", single())
    rest = {name: tensor for name, tensor in single().items() if not name.startswith("first_stage_model.")}
    path = checkpoints.write(tmp_path / "rest.safetensors", rest)
    vae = checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix=""))
    with pytest.raises(DaguerreError, match=r"has no autoencoder .*--vae"):
        load_diffusion(path, device="cpu")
    expected, model = load_diffusion(whole, device="cpu"), load_diffusion(path, device="cpu", vae=vae)
    assert model.autoencoder.config == expected.autoencoder.config
    assert model.sample_size == expected.sample_size
    assert (model.name, model.files) == ("rest + vae", (path, vae))
    for name, tensor in expected.autoencoder.state_dict().items():
        assert torch.equal(model.autoencoder.state_dict()[name], tensor)


@pytest.mark.parametrize(("name", "kind"), [("lora_unet_a.lora_down.weight", "lora"), ("control_model.x.weight", "controlnet")])
def test_a_file_that_modifies_a_model_is_named(tmp_path, name, kind):
    path = checkpoints.write(tmp_path / "x.safetensors", {name: torch.ones(2, 2)})
    with pytest.raises(DaguerreError, match=f"not a model but a file of the kind {kind}"):
        load_single_file(path)
