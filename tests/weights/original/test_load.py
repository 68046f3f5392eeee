"""Whole models out of single files: the reference reads the same, and what cannot be known is asked."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daguerre.conditioning import SDXLConditioner, TextConditioner
from daguerre.diffusion.schedule import ScheduleConfig
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


def test_sd2_reads_the_penultimate_layer_through_the_final_norm(tmp_path):
    tensors = checkpoints.sd2()
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors), prediction="v")
    assert (model.prediction, model.sample_size) == ("v", 768)
    assert model.conditioner.tokenizer.pad == 0
    # The reference: all three blocks, the last but one state, then the norm.
    whole = checkpoints.CLIPText(checkpoints.OPEN_CLIP)
    whole.load_state_dict(split_components(tensors).parts["text_encoder"].canonical())
    ids = model.conditioner.tokenizer(["a red apple"])
    expected = whole.text_model.final_layer_norm(whole(ids).hidden[-2])
    torch.testing.assert_close(model.conditioner(["a red apple"]).context, expected)


def test_sdxl_and_its_refiner_open_with_their_towers(tmp_path):
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


def test_the_wanted_dtype_is_given_and_whole_files_of_half_precision_open(tmp_path):
    half = {name: tensor.half() for name, tensor in checkpoints.sd1().items()}
    path = checkpoints.write(tmp_path / "x.safetensors", half)
    assert {tensor.dtype for module in load_single_file(path).modules for tensor in module.parameters()} == {torch.float32}
    assert {tensor.dtype for module in load_single_file(path, dtype=torch.bfloat16).modules for tensor in module.parameters()} == {
        torch.bfloat16
    }


def first(model) -> Tensor:
    return model.unet.conv_in.weight


def test_the_average_is_read_where_it_is_asked_for_or_alone(tmp_path):
    tensors = checkpoints.sd1()
    weight = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    both = checkpoints.write(tmp_path / "both.safetensors", checkpoints.with_average(tensors))
    assert torch.equal(first(load_single_file(both)), weight)
    assert torch.equal(first(load_single_file(both, ema=True)), weight + 1)
    only = {name: tensor for name, tensor in checkpoints.with_average(tensors).items() if not name.startswith("model.diffusion_model.")}
    assert torch.equal(first(load_single_file(checkpoints.write(tmp_path / "only.safetensors", only))), weight + 1)


def test_an_autoencoder_alone_is_read_from_any_file_that_has_one(tmp_path):
    alone = checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix=""))
    whole = checkpoints.write(tmp_path / "whole.safetensors", checkpoints.sd1())
    one, other = load_first_stage_file(alone, scaling_factor=0.13025), load_first_stage_file(whole)
    assert (one.config.scaling_factor, other.config.scaling_factor) == (0.13025, 0.18215)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    with pytest.raises(DaguerreError, match="holds no autoencoder"):
        load_first_stage_file(checkpoints.write(tmp_path / "text.safetensors", checkpoints.clip()))


# Latent diffusion before Stable Diffusion: unconditional, by class, with either kind of autoencoder.


def test_an_unconditional_model_with_a_codebook_draws(tmp_path):
    config = replace(unets.LDM_FACES, channels=(32, 64), depth=(0, 1), heads=(1, 2), blocks=1)
    tensors = checkpoints.unet(config) | checkpoints.quantized()
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    assert model.unet.config == config
    assert (model.autoencoder.config.quantizer.codes, model.autoencoder.config.scaling_factor) == (16, 1.0)
    assert model.schedule.config == ScheduleConfig("scaled_linear", 0.0015, 0.0195)
    with torch.inference_mode():
        z = model.unet(torch.randn(1, 3, 8, 8), torch.tensor([3.0]), model.conditioner([""]))
        assert model.autoencoder.decode(z).shape == (1, 3, 16, 16)


def test_a_model_by_class_takes_numbers_for_prompts(tmp_path):
    config = replace(unets.LDM_IMAGENET, channels=(32, 64), depth=(0, 1), heads=(1, 1), blocks=1, context_width=24)
    classes = torch.randn(11, 24)
    tensors = checkpoints.unet(config) | checkpoints.quantized() | {"cond_stage_model.embedding.weight": classes}
    model = load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    assert model.unet.config == config
    assert torch.equal(model.conditioner(["3", ""]).context, classes[[3, 10], None])
    for prompt in ("10", "-1", "a cat"):
        with pytest.raises(DaguerreError, match="from 0 to 9"):
            model.conditioner([prompt])


# Faults: everything that is wrong in one error, and nothing half loaded.


def test_missing_unknown_and_misshapen_tensors_of_all_parts_are_listed_at_once(tmp_path):
    tensors = checkpoints.sd1()
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["model.diffusion_model.middle_block.0.out_layers.0.extra"] = torch.ones(1)
    tensors["first_stage_model.quant_conv.bias"] = torch.ones(9)
    tensors["nobody.knows"] = torch.ones(1)
    with pytest.raises(DaguerreError) as caught:
        load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))
    for words in (
        "1 missing (unet/conv_out.bias)",
        "2 unmatched (nobody.knows, unet/mid_block.resnets.0.norm2.extra)",
        "1 of another shape (vae/quant_conv.bias is [9], expected [8])",
        "x.safetensors",
    ):
        assert words in str(caught.value)


def test_a_file_that_is_no_whole_model_says_what_it_holds(tmp_path):
    for tensors, words in (
        (checkpoints.autoencoder(), r"holds vae \(autoencoder\)"),
        (checkpoints.unet(checkpoints.SD1), r"a whole sd1 model also has vae, text_encoder"),
        ({"a": torch.ones(1)}, "no network that is known here"),
    ):
        with pytest.raises(DaguerreError, match=words):
            load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))


def test_a_tensor_of_nan_stops_everything_and_is_named(tmp_path):
    tensors = checkpoints.sd1()
    tensors["first_stage_model.decoder.conv_in.weight"][:] = float("nan")
    with pytest.raises(DaguerreError, match=r"NaN or infinity in 1 tensors \(first_stage_model\.decoder\.conv_in\.weight\)"):
        load_single_file(checkpoints.write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize("make", [checkpoints.sd2, checkpoints.sdxl, checkpoints.quantized])
def test_whatever_names_and_shapes_a_file_claims_it_is_told_or_refused(make):
    rng = random.Random(0)
    whole = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in make().items()}
    whole |= {"input_blocks.0.0.weight": ((3, 4), torch.float32), "zero_convs.0.0.weight": ((1,), torch.float32)}
    refused = 0
    for _ in range(60):
        claims = dict(whole)
        for name in rng.sample(sorted(claims), rng.choice([1, 3, 30, len(claims) // 2])):
            shape, dtype = claims.pop(name)
            match rng.randrange(4):
                case 0:
                    claims[name] = (tuple(rng.choice([0, 1, 7, 32, 4096]) for _ in range(rng.randrange(5))), dtype)
                case 1:
                    claims[re.sub(r"\d+", lambda _: rng.choice(["0", "7", "999999999999"]), name)] = (shape, dtype)
                case 2:
                    claims[name.replace(".weight", "").replace("0", "x")] = (shape, dtype)
        shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in claims.items()}
        try:
            detect(TensorFile(Path("x"), "safetensors", shapes, {}, shapes.__getitem__)).key_errors()
        except DaguerreError:
            refused += 1
    assert refused > 5


# What shapes cannot tell.


def test_sd2_asks_what_it_predicts_unless_it_is_told(tmp_path):
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
def test_the_prediction_is_told_by_metadata_then_marks_then_rules(family, config, metadata, names, expected):
    assert prediction_of(FAMILIES[family], config, metadata, names)[0] == expected


KINDS = {
    "LDM_TEXT2IMG": {"text_encoder": "ldm_text"},
    "LDM_IMAGENET": {"condition": "class_embedder"},
    "SDXL_REFINER": {"text_encoder_2": "open_clip_text"},
}


@pytest.mark.parametrize(
    "name", [name for name, value in vars(unets).items() if isinstance(value, UNetConfig) and not name.startswith("DDPM")]
)
def test_the_rule_of_each_published_family_gives_its_heads(name):
    config = getattr(unets, name)
    for kinds in ({}, KINDS.get(name, {})):  # beside its other networks, and alone
        family = family_of(replace(config, heads=(1,) * len(config.heads)), kinds)
        heads = heads_of(family, config)
        attended = [level for level, depth in enumerate(config.depth) if depth] + [len(config.depth) - 1]
        assert [heads[level] for level in attended] == [config.heads[level] for level in attended]


def test_the_tasks_of_the_input_channels():
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


def test_heads_that_do_not_fit_are_asked_for_and_can_be_told():
    config = replace(unets.SD2, channels=(96, 192), depth=(1, 1), heads=(1, 1))
    with pytest.raises(DaguerreError, match=r"usual heads of sd2 do not fit the channels \(96, 192\).*give heads="):
        heads_of(FAMILIES["sd2"], config)
    assert heads_of(FAMILIES["sd2"], config, 3) == (3, 3)
    assert heads_of(FAMILIES["sd2"], config, (3, 6)) == (3, 6)
    for wrong in (5, (3,), (3, 0)):
        with pytest.raises(DaguerreError, match="give heads="):
            heads_of(FAMILIES["sd2"], config, wrong)


def test_the_files_own_tables_give_schedule_and_scale():
    T = 1000
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, T, dtype=torch.float64) ** 2
    tensors = checkpoints.sd1() | {"betas": betas.float(), "scale_factor": torch.tensor(0.2237)}
    about = detect(TensorFile(Path("x"), "safetensors", tensors, {}, tensors.__getitem__))
    assert about.autoencoder.scaling_factor == 0.18215
    told = with_file_schedule(about)
    assert told.autoencoder.scaling_factor == pytest.approx(0.2237, rel=1e-6)
    assert (told.schedule.kind, told.schedule.timesteps) == ("scaled_linear", T)
    assert (told.schedule.beta_start, told.schedule.beta_end) == pytest.approx((0.0015, 0.0155), rel=1e-5)
    tensors["betas"] = torch.linspace(0.0001, 0.02, T)
    assert with_file_schedule(about).schedule.kind == "linear"


def test_a_mark_of_zero_terminal_snr_is_heard(tmp_path):
    marked = checkpoints.sdxl() | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    about = detect(open_tensors(checkpoints.write(tmp_path / "x.safetensors", marked)))
    assert (about.prediction, about.schedule.zero_terminal_snr) == ("v", True)
    assert about.key_errors() == {"missing": [], "unmatched": [], "of another shape": []}


def test_what_the_file_does_not_say_is_passed_through_the_one_door(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.with_average(checkpoints.sd2()))
    model = load_diffusion(path, device="cpu", prediction="v", heads=(1, 2), ema=True)
    assert (model.prediction, model.unet.config.heads) == ("v", (1, 2))
    assert torch.equal(first(model), checkpoints.sd2()["model.diffusion_model.input_blocks.0.0.weight"] + 1)
    vae = load_vae(
        checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix="")), device="cpu", scaling_factor=0.13025
    )
    assert vae.config.scaling_factor == 0.13025


@pytest.mark.parametrize(
    ("name", "words"),
    [("embedder.model.visual.proj", "unCLIP, which is not supported"), ("cond_stage_model.model.visual.proj", "open as a folder")],
)
def test_kinds_that_are_told_by_pictures_are_named(tmp_path, name, words):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.sd2() | {name: torch.zeros(2, 2)})
    for opened in (load_single_file, lambda path: convert(path, tmp_path / "folder")):
        with pytest.raises(DaguerreError, match=words):
            opened(path)
    assert words in str(inspect(path).question)
