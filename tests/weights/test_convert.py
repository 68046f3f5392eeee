"""From one form to another and back: every tensor keeps its bytes, every model what it predicts, and the reference opens the result."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from daguerre.conditioning import train_tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.weights import load_first_stage, load_vae
from daguerre.weights.convert import EXTRA_TENSORS, convert
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import detect
from daguerre.weights.original.load import load_single_file
from daguerre.weights.tensors.reader import CONFIGS, open_tensors
from tests.weights import checkpoints

# family -> its single file, what it is told, and how many tensors a folder has no place for
FAMILIES = {
    "sd1": (checkpoints.sd1, {}, 0),
    "sd2": (checkpoints.sd2, {"prediction": "v"}, 12 + 1),
    "sdxl": (checkpoints.sdxl, {}, 0),
    "refiner": (checkpoints.refiner, {}, 0),
}


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the ignored names."""
    ignored = split_components(tensors).ignored
    return {name: tensor for name, tensor in tensors.items() if name not in ignored}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_comes_back_from_a_folder_byte_for_byte(tmp_path, name):
    make, told, unread = FAMILIES[name]
    tensors = make()
    single = checkpoints.write(tmp_path / "model.safetensors", tensors)
    folder = convert(single, tmp_path / "folder", **told)
    assert (folder / EXTRA_TENSORS).is_file() == bool(unread)
    if unread:
        assert len(load_file(folder / EXTRA_TENSORS)) == unread
    back = convert(folder, tmp_path / "back.safetensors")
    checkpoints.assert_file_equals(back, weights(tensors))
    again = convert(back, tmp_path / "again")
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path
    predictions = {detect(open_tensors(path)).prediction for path in (folder, back, again)}
    assert predictions == {told.get("prediction", "epsilon")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_new_precision_is_the_rounded_one_and_marks_keep_theirs(tmp_path, dtype):
    tensors = checkpoints.sd1() | {"betas": torch.linspace(0.0001, 0.02, 7, dtype=torch.float64).long()}
    single = checkpoints.write(tmp_path / "model.safetensors", tensors)
    half = load_file(convert(single, tmp_path / "half.safetensors", dtype=dtype))
    assert half.keys() == tensors.keys()
    assert all(torch.equal(half[name], tensor.to(dtype) if tensor.is_floating_point() else tensor) for name, tensor in tensors.items())
    folder = convert(single, tmp_path / "folder", dtype=dtype)
    assert {tensor.dtype for tensor in open_tensors(folder).shapes.values()} == {dtype}


def test_out_of_pickle_with_all_it_said(tmp_path):
    tensors = checkpoints.sd2()
    torch.save({"state_dict": tensors, "global_step": 875000}, tmp_path / "base.ckpt")
    path = convert(tmp_path / "base.ckpt", tmp_path / "base.safetensors")
    checkpoints.assert_file_equals(path, tensors)
    about = detect(open_tensors(path))
    assert (about.prediction, about.file.metadata["global_step"]) == ("epsilon", "875000")


def test_the_average_is_kept_dropped_or_used(tmp_path):
    tensors = checkpoints.sd1()
    both = checkpoints.with_ema(tensors)
    path = checkpoints.write(tmp_path / "both.safetensors", both)
    checkpoints.assert_file_equals(convert(path, tmp_path / "kept.safetensors"), both)
    checkpoints.assert_file_equals(convert(path, tmp_path / "dropped.safetensors", ema=False), tensors)
    average = {name: tensor + 1 if name.startswith("model.") else tensor for name, tensor in tensors.items()}
    checkpoints.assert_file_equals(convert(path, tmp_path / "used.safetensors", ema=True), average)
    used = load_single_file(convert(path, tmp_path / "folder", ema=True))
    assert torch.equal(used.unet.conv_in.weight, tensors["model.diffusion_model.input_blocks.0.0.weight"] + 1)
    only = {name: tensor for name, tensor in both.items() if not name.startswith("model.diffusion_model.")}
    with pytest.raises(DaguerreError, match="has only EMA weights"):
        convert(checkpoints.write(tmp_path / "only.safetensors", only), tmp_path / "x.safetensors", ema=False)


def test_a_told_prediction_is_written_down(tmp_path):
    single = checkpoints.write(tmp_path / "model.safetensors", checkpoints.sd2())
    told = convert(single, tmp_path / "told.safetensors", prediction="v")
    assert load_single_file(told).prediction == "v"
    with pytest.raises(DaguerreError, match="give prediction="):
        convert(single, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("single", [checkpoints.sd1, checkpoints.sdxl])
def test_prediction_markers_come_back_from_a_folder(tmp_path, single):
    tensors = weights(single()) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    folder = convert(checkpoints.write(tmp_path / "model.safetensors", tensors), tmp_path / "folder")
    back = convert(folder, tmp_path / "back.safetensors")
    checkpoints.assert_file_equals(back, tensors)
    detected = detect(open_tensors(back))
    assert (detected.prediction, detected.schedule.zero_terminal_snr) == ("v", True)


def test_a_given_prediction_replaces_that_of_the_source(tmp_path):
    single = checkpoints.write(tmp_path / "model.safetensors", checkpoints.sdxl())
    epsilon = convert(single, tmp_path / "epsilon")
    results = [convert(epsilon, tmp_path / name, prediction="v") for name in ("v", "v.safetensors")]
    results += [convert(results[1], tmp_path / "again.safetensors"), convert(single, tmp_path / "marked.safetensors", prediction="v")]
    results.append(convert(results[1], tmp_path / "folder"))
    assert [detect(open_tensors(path)).prediction for path in results] == ["v"] * len(results)
    assert all("v_pred" in open_tensors(path).shapes for path in results if path.suffix)
    back = convert(results[1], tmp_path / "back.safetensors", prediction="epsilon")
    assert detect(open_tensors(back)).prediction == "epsilon"
    assert "v_pred" not in open_tensors(back).shapes


def test_a_tokenizer_comes_back_from_a_file(tmp_path):
    single = checkpoints.write(tmp_path / "model.safetensors", checkpoints.sd1())
    folder = convert(single, tmp_path / "folder")
    assert "tokenizer" not in json.loads(open_tensors(convert(folder, tmp_path / "clip.safetensors")).metadata[CONFIGS])
    tokenizer = train_tokenizer(["a red kite", "a red boat"] * 3, 540, 77).with_words({"<cat>": 2})
    tokenizer.save(folder / "tokenizer")
    file = convert(folder, tmp_path / "own.safetensors")
    assert load_single_file(file).conditioner.tokenizer.encode("a red <cat>") == tokenizer.encode("a red <cat>")
    again = convert(file, tmp_path / "again")
    for path in (folder / "tokenizer").iterdir():
        assert path.read_bytes() == (again / "tokenizer" / path.name).read_bytes(), path
    assert open_tensors(convert(again, tmp_path / "again.safetensors")).metadata == open_tensors(file).metadata


def test_a_file_without_its_tokenizer_is_refused(tmp_path):
    small = checkpoints.clip(checkpoints.replace(checkpoints.CLIP, vocab_size=540))
    tensors = {name: tensor for name, tensor in checkpoints.sd1().items() if not name.startswith("cond_stage")} | small
    with pytest.raises(DaguerreError, match="540 tokens and stores no tokenizer"):
        load_single_file(checkpoints.write(tmp_path / "model.safetensors", tensors))


@pytest.mark.parametrize("target", ["clean", "clean.safetensors"])
def test_unknown_tensors_are_left_out_on_request(tmp_path, target):
    tensors = checkpoints.sd1()
    unknown = {name: torch.ones(1) for name in ("lora_te_x.alpha", "model.diffusion_model.extra.weight", "first_stage_model.decoder.more")}
    single = checkpoints.write(tmp_path / "left over.safetensors", tensors | unknown)
    with pytest.raises(DaguerreError, match=r"3 unmatched .*`daguerre convert '.*left over\.safetensors' NEW\.safetensors --drop-unknown`"):
        load_single_file(single)
    clean = convert(single, tmp_path / target, drop_unknown=True)
    load_single_file(clean)
    checkpoints.assert_file_equals(clean if clean.is_file() else convert(clean, tmp_path / "back.safetensors"), tensors)


def test_an_autoencoder_alone_becomes_its_part_and_comes_back(tmp_path):
    tensors = checkpoints.autoencoder(prefix="")
    folder = convert(checkpoints.write(tmp_path / "vae.safetensors", tensors), tmp_path / "vae")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    checkpoints.assert_file_equals(convert(folder, tmp_path / "back.safetensors"), tensors)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    reference = diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.inference_mode():
        theirs = reference.encode(x).latent_dist.mean
    with torch.inference_mode():
        torch.testing.assert_close(load_vae(folder).posterior(x).mean, theirs, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_not_converted_and_nothing_is_left(tmp_path):
    tensors = checkpoints.sd1()
    del tensors["first_stage_model.quant_conv.bias"]
    with pytest.raises(DaguerreError, match=r"1 missing \(vae/quant_conv\.bias\)"):
        convert(checkpoints.write(tmp_path / "x.safetensors", tensors), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_nothing_but_a_saved_model_is_written_over(tmp_path):
    single = checkpoints.write(tmp_path / "x.safetensors", checkpoints.sd1())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(DaguerreError, match="holds no saved model"):
        convert(single, tmp_path / "photos")
    folder = convert(single, tmp_path / "model")
    convert(single, folder)
    with pytest.raises(DaguerreError, match="both source and target"):
        convert(folder, folder)


def test_a_quantised_first_stage_alone_becomes_a_folder_and_comes_back(tmp_path):
    tensors = checkpoints.vq_model(prefix="")
    folder = convert(checkpoints.write(tmp_path / "vq.safetensors", tensors), tmp_path / "vq")
    checkpoints.assert_file_equals(convert(folder, tmp_path / "back.safetensors"), tensors)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    reference = diffusers.VQModel.from_pretrained(folder)
    with torch.inference_mode():
        torch.testing.assert_close(load_first_stage(folder)(x).x, reference(x).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ldm-class", "churches", "discriminator"])
def test_what_the_field_has_no_folder_for_is_said(tmp_path, kind):
    tensors = checkpoints.vq_model()
    if kind == "ldm-class":
        unet = checkpoints.replace(checkpoints.UNET, in_channels=3, out_channels=3, heads=(1, 1))
        tensors |= checkpoints.unet(unet) | {"cond_stage_model.embedding.weight": torch.randn(11, 64)}
    elif kind == "churches":
        unet = checkpoints.replace(checkpoints.UNET, context_width=None, scale_shift=True, resample="resblock")
        tensors = checkpoints.unet(unet) | checkpoints.autoencoder() | {"scale_factor": torch.tensor(0.2237)}
    else:
        tensors |= checkpoints.condition(PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=2)), "loss.discriminator.")
    single = checkpoints.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(DaguerreError, match=r"folder layout.*; write it as one file: give a name that ends in \.safetensors"):
        convert(single, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    checkpoints.assert_file_equals(convert(single, tmp_path / "one.safetensors"), tensors)


# The reference: what it saved, and what it opens.

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_opens_our_folder_and_computes_the_same(tmp_path, name):
    make, told, _ = FAMILIES[name]
    folder = convert(checkpoints.write(tmp_path / "model.safetensors", make()), tmp_path / "folder", **told)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[name]
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    ours = load_single_file(folder)
    assert type(theirs).__name__ == PIPELINES[name]
    assert theirs.scheduler.config.prediction_type == {"epsilon": "epsilon", "v": "v_prediction"}[ours.prediction]
    with torch.inference_mode():
        cond = ours.conditioner(["a red apple"])
        encoded = theirs.encode_prompt("a red apple", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        torch.testing.assert_close(cond.context, encoded[0], atol=1e-5, rtol=1e-5)
        x, t = torch.randn(1, 4, 8, 8), torch.tensor([300.0])
        added = {}
        if cond.vector is not None:
            pooled = encoded[2]
            torch.testing.assert_close(cond.vector[:, : pooled.shape[1]], pooled, atol=1e-5, rtol=1e-5)
            numbers = [1024, 1024, 0, 0, 6.0] if name == "refiner" else [1024, 1024, 0, 0, 1024, 1024]
            added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor([numbers], dtype=torch.float32)}}
        expected = theirs.unet(x, t, encoder_hidden_states=encoded[0], **added).sample
        torch.testing.assert_close(ours.unet(x, t, cond), expected, atol=1e-5, rtol=1e-5)
        z = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(
            ours.autoencoder.decode(z), theirs.vae.decode(z / theirs.vae.config.scaling_factor).sample, atol=1e-5, rtol=1e-5
        )


TASKS = {
    "StableDiffusionInpaintPipeline": (checkpoints.sd1, checkpoints.replace(checkpoints.SD1, in_channels=9)),
    "StableDiffusionInstructPix2PixPipeline": (checkpoints.sd1, checkpoints.replace(checkpoints.SD1, in_channels=8)),
    "StableDiffusionDepth2ImgPipeline": (checkpoints.sd2, checkpoints.replace(checkpoints.SD2, in_channels=5)),
    "StableDiffusionUpscalePipeline": (checkpoints.sd2, checkpoints.replace(checkpoints.SD2, in_channels=7, classes=1000, heads=(8, 8))),
    "StableDiffusionXLInpaintPipeline": (checkpoints.sdxl, checkpoints.replace(checkpoints.SDXL, in_channels=9)),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_reference_opens_each_task_by_the_unets_input(tmp_path, name):
    make, config = TASKS[name]
    folder = convert(checkpoints.write(tmp_path / "model.safetensors", make(config)), tmp_path / "folder")
    # Where a file brings no estimator of depth, the reference has to be told that there is none.
    without = {"depth_estimator": None, "feature_extractor": None} if "Depth" in name else {}
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, **without)
    assert type(theirs).__name__ == name
    ours = load_single_file(folder)
    assert ours.unet.config == config
    cond = ours.conditioner(["a red apple"])
    x, t, label = torch.randn(1, config.in_channels, 8, 8), torch.tensor([300.0]), torch.tensor([20])
    added = {}
    if cond.vector is not None:
        added = {"added_cond_kwargs": {"text_embeds": cond.vector[:, :64], "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}}
    with torch.inference_mode():
        expected = theirs.unet(x, t, cond.context, class_labels=label if config.classes else None, **added).sample
        found = ours.unet(x, t, checkpoints.replace(cond, label=label))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_the_reference_saved_comes_back_from_a_single_file_byte_for_byte(tmp_path):
    folder = convert(checkpoints.write(tmp_path / "model.safetensors", checkpoints.sdxl()), tmp_path / "ours")
    diffusers.DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "theirs", max_shard_size="8MB")
    assert list((tmp_path / "theirs").rglob("*.index.json")), "the sample must be sharded"
    single = convert(tmp_path / "theirs", tmp_path / "single.safetensors")
    back = convert(single, tmp_path / "back")
    before, after = open_tensors(tmp_path / "theirs").read(), open_tensors(back).read()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        configs = [json.loads(next((path / part).glob("*config.json")).read_text()) for path in (tmp_path / "theirs", back)]
        assert configs[0] == configs[1]
