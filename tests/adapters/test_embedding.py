"""Textual inversion: every form of file, words in prompts and negative prompts, and the text encoder of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import daguerre
from daguerre.adapters import load_embedding, with_adapters
from daguerre.adapters.embedding import embedding_of, read_embedding_image
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from tests.adapters.files import FIXTURES

VECTORS = torch.arange(1.0, 33).repeat(3, 1) / 50 + torch.arange(3.0)[:, None]


def written(path: Path, form: str) -> Path:
    """An embedding of three vectors in one of the forms that programs write."""
    web_ui = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "x", "step": 9, "sd_checkpoint": "74"}
    original = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})}
    if form in ("web UI", "original", "diffusers bin"):
        content = {"web UI": web_ui, "original": original, "diffusers bin": {"<cat-toy>": VECTORS}}[form]
        torch.save(content, path := path / "mycat.pt")
    else:
        name = {"kohya": "emb_params", "diffusers": "<cat-toy>"}[form]
        save_file({name: VECTORS}, path := path / "mycat.safetensors")
    return path


@pytest.mark.parametrize(
    ("form", "word"),
    [("web UI", "mycat"), ("original", "mycat"), ("kohya", "mycat"), ("diffusers", "<cat-toy>"), ("diffusers bin", "<cat-toy>")],
)
def test_every_form_is_read(tmp_path: Path, form: str, word: str):
    embedding = load_embedding(written(tmp_path, form))
    assert (embedding.word, embedding.count) == (word, 3)
    assert torch.equal(embedding.vectors[32], VECTORS)
    assert embedding.record.sha256
    assert load_embedding(written(tmp_path, form), word="kitty").word == "kitty"


def test_the_older_container_of_torch(tmp_path: Path):
    content = {"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_embedding(tmp_path / "old.pt").vectors[32], VECTORS)


def test_one_vector_may_have_one_dimension(tmp_path: Path):
    save_file({"<x>": VECTORS[0]}, tmp_path / "x.safetensors")
    assert load_embedding(tmp_path / "x.safetensors").vectors[32].shape == (1, 32)


def test_pairs_and_folders_of_sdxl(tmp_path: Path):
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, tmp_path / "style.safetensors")
    embedding = load_embedding(tmp_path / "style.safetensors")
    assert (embedding.word, {width: len(rows) for width, rows in embedding.vectors.items()}) == ("style", {768: 2, 1280: 2})
    folder = tmp_path / "ti"
    folder.mkdir()
    save_file({"<x>": torch.ones(2, 768)}, folder / "learned_embeds.safetensors")
    save_file({"<x>": torch.ones(2, 1280)}, folder / "learned_embeds_2.safetensors")
    embedding = load_embedding(folder)
    assert (embedding.word, sorted(embedding.vectors)) == ("<x>", [768, 1280])


@pytest.mark.parametrize("name", ["ti_pixels.png", "ti_text_chunk.png"])
def test_embeddings_in_images(name: str):
    stored = json.loads((FIXTURES / "ti_pngs.json").read_text())[name]
    embedding = load_embedding(FIXTURES / name)
    assert embedding.word == stored["name"]
    assert torch.allclose(embedding.vectors[8], torch.tensor(stored["vectors"]), rtol=0, atol=1e-7)


def test_images_without_an_embedding_are_refused(tmp_path: Path):
    for number, image in enumerate([Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), "white"), Image.radial_gradient("L")]):
        image.save(path := tmp_path / f"{number}.png")
        with pytest.raises(DaguerreError, match="an image without an embedding"):
            read_embedding_image(path)


def test_wrong_files_are_refused(tmp_path: Path):
    save_file({"a": torch.ones(2, 8), "b": torch.ones(2, 8)}, tmp_path / "two.safetensors")
    save_file({"emb_params": torch.full((1, 8), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({"emb_params": torch.ones(1, 2, 8)}, tmp_path / "shape.safetensors")
    for name, message in (("two", "2 tensors"), ("nan", "NaN"), ("shape", r"the shape \[1, 2, 8\]")):
        with pytest.raises(DaguerreError, match=message):
            load_embedding(tmp_path / f"{name}.safetensors")


def test_a_word_takes_its_vectors_positions_and_weight(tiny_model: LatentDiffusion):
    changed = with_adapters(tiny_model, [embedding_of("my-cat", {"x": VECTORS}, "test")])
    base, own = tiny_model.conditioner, changed.conditioner
    ids = own.tokenizer.encode("a my-cat apple")
    assert len(ids) == 5
    assert torch.equal(own.encoder.text_model.embeddings.token_embedding.weight[ids[1:4]], VECTORS)
    assert torch.equal(own(["a red apple"]).context, base(["a red apple"]).context)
    assert not torch.equal(own(["a my-cat apple"]).context, base(["a my-cat apple"]).context)
    assert not torch.equal(own(["a (my-cat:1.4) apple"]).context, own(["a my-cat apple"]).context)
    assert own.tokenizer.encode("a my-cats apple") == base.tokenizer.encode("a my-cats apple")  # only whole words
    words = own.words(((daguerre.conditioning.prompt.WeightedText("a my-cat apple", 1.0),),))
    assert [len(word.positions) for word in words if word.text == "my-cat"] == [3]


def test_prompts_and_negative_prompts_use_the_word(tiny_model: LatentDiffusion):
    changed = with_adapters(tiny_model, [embedding_of("bad-hands", {"x": VECTORS}, "test")])
    request = {"prompt": "a red apple", "steps": 2}
    plain = daguerre.generate(tiny_model, **request)[0].image.tobytes()
    assert daguerre.generate(changed, **request)[0].image.tobytes() == plain
    assert daguerre.generate(changed, **request, negative_prompt="bad-hands")[0].image.tobytes() != plain
    assert daguerre.generate(tiny_model, **request)[0].image.tobytes() == plain


def test_the_text_states_equal_those_of_transformers(peer: Any):
    pipeline, _, model = peer("sd1")
    torch.manual_seed(0)
    vectors = torch.randn(2, 64)
    changed = with_adapters(model, [embedding_of("<cat-toy>", {"x": vectors}, "test")])
    pipeline.load_textual_inversion({"<cat-toy>": vectors}, token="<cat-toy>")
    try:
        theirs, _ = pipeline.encode_prompt("a <cat-toy> apple", "cpu", 1, False)
    finally:
        pipeline.unload_textual_inversion()
    assert torch.allclose(changed.conditioner(["a <cat-toy> apple"]).context, theirs, atol=1e-5)


def test_both_text_encoders_of_sdxl_and_the_refiner_know_the_word(peer: Any):
    _, _, model = peer("sdxl")
    changed = with_adapters(model, [embedding_of("stylized", {"clip_l": torch.ones(2, 64), "clip_g": torch.ones(2, 128)}, "test")])
    assert [len(tower.tokenizer) for tower in changed.conditioner.towers] == [49410, 49410]
    with pytest.raises(DaguerreError, match="needs 128"):
        with_adapters(model, [embedding_of("stylized", {"clip_l": torch.ones(2, 64)}, "test")])


def test_a_word_that_does_not_fit_is_refused(tiny_model: LatentDiffusion):
    with pytest.raises(DaguerreError, match=r"vectors of width 768 .Stable Diffusion 1., and this model's text encoder needs 32"):
        with_adapters(tiny_model, [embedding_of("cat", {"x": torch.ones(1, 768)}, "test")])
    with pytest.raises(DaguerreError, match="has the word 'apple' already"):
        with_adapters(tiny_model, [embedding_of("apple", {"x": torch.ones(1, 32)}, "test")] * 2)
    with pytest.raises(DaguerreError, match="20 vectors"):
        with_adapters(tiny_model, [embedding_of("long", {"x": torch.ones(20, 32)}, "test")])
