"""`train textual-inversion`: only the new vectors train, the file gives the word that was trained, and a run resumes exactly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import daguerre
from daguerre.adapters import load_embedding, with_adapters
from daguerre.adapters.attach import TOKEN_EMBEDDING, text_encoders_of
from daguerre.adapters.embedding import save_embedding
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import LoopConfig
from daguerre.training.objectives.adapters.textual_inversion import WordVectors, filled, first_vectors
from daguerre.training.options.adapters.textual_inversion import TextualInversionRecipe
from daguerre.training.recipes.adapters.textual_inversion import run
from daguerre.weights.hashing import network_hash
from tests.families.conftest import peer
from tests.training.recipes.test_lora import folder, inputs_of, saved

__all__ = ["folder", "peer", "saved"]
LOOP = LoopConfig(
    max_train_steps=4, batch_size=2, learning_rate=1e-2, lr_warmup_steps=1, weight_decay=0, ema_decay=0, sample_every=0, checkpoint_every=2
)
CAPTIONS = ("a photo of a mycat", "mycat on a red apple")


def word_vectors(model: LatentDiffusion, count: int = 3, initial: str | None = None) -> WordVectors:
    torch.manual_seed(3)
    return WordVectors(model, first_vectors(model, "mycat", count, initial))


@torch.no_grad()
def prediction(model: LatentDiffusion, captions: tuple[str, ...] = CAPTIONS) -> Tensor:
    return model.unet(*inputs_of(model), model.conditioner.encode_captions(captions))  # pyright: ignore


def test_the_file_gives_what_was_trained(make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path):
    model = make_tiny_model()
    before = [network_hash(network) for network in (model.unet, text_encoders_of(model)["te1"])]
    network = word_vectors(model)
    network.vectors["32"].data += 0.3
    with network.attached(), torch.no_grad():
        trained = network(*inputs_of(model), CAPTIONS)
    embedding = load_embedding(save_embedding(network.value, tmp_path / "mycat.safetensors"))
    assert (embedding.word, embedding.count) == ("mycat", 3)
    assert torch.equal(prediction(with_adapters(model, [embedding])), trained)
    assert not torch.equal(prediction(network.model), trained)  # outside of the block the word has its first vectors
    assert [network_hash(network) for network in (model.unet, text_encoders_of(model)["te1"])] == before


def test_the_gradient_is_that_of_the_rows_of_the_token_embedding(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = word_vectors(model, count=2)
    with network.attached():
        network(*inputs_of(model), CAPTIONS).square().mean().backward()
    encoder, conditioner = text_encoders_of(network.model)["te1"], network.model.conditioner
    table = encoder.get_submodule(TOKEN_EMBEDDING).weight.detach().clone().requires_grad_()  # pyright: ignore
    ids = conditioner.tokenizer(CAPTIONS)  # pyright: ignore
    hidden = torch.func.functional_call(encoder, {f"{TOKEN_EMBEDDING}.weight": table}, (ids,)).hidden[-1]
    context = replace(conditioner.encode_captions(CAPTIONS), context=encoder.text_model.final_layer_norm(hidden))  # pyright: ignore
    network.model.unet(*inputs_of(model), context).square().mean().backward()
    assert table.grad is not None
    truth, ours = table.grad[-2:], network.vectors["32"].grad
    assert ours is not None
    assert torch.allclose(ours, truth, rtol=0, atol=1e-5 * truth.abs().max().item())
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == ["vectors.32"]


def test_the_word_starts_as_the_initial_word(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = word_vectors(model, 1, "apple")
    assert torch.equal(prediction(network.model, ("a mycat", "a red mycat")), prediction(model, ("a apple", "a red apple")))
    with pytest.raises(DaguerreError, match="'red apple' has 2 tokens in this model, and --num-vectors is 1"):
        first_vectors(model, "mycat", 1, "red apple")
    twice = first_vectors(model, "mycat", 4, "red apple").vectors[32]
    assert torch.equal(twice[:2], twice[2:])


def test_an_interrupted_run_resumes_exactly(saved: str, folder: Path, tmp_path: Path):
    def trained(out: str, steps: int) -> Path:
        templates, loop = tmp_path / "templates.txt", replace(LOOP, max_train_steps=steps, lr_decay=0)
        templates.write_text("a [name], [filewords]\n\na photo of a {}\n")
        return run(TextualInversionRecipe(folder, "mycat", tmp_path / out, saved, num_vectors=2, templates=templates, loop=loop))

    whole, _ = trained("whole", 4), trained("parts", 2)
    half, parts = load_file(tmp_path / "parts" / "mycat.safetensors"), trained("parts", 4)
    assert torch.equal(load_file(whole)["mycat"], load_file(parts)["mycat"])
    assert not torch.equal(half["mycat"], load_file(parts)["mycat"])
    model = daguerre.load(saved)
    assert isinstance(model, LatentDiffusion)
    with_adapters(model, [load_embedding(parts)])
    with pytest.raises(DaguerreError, match=r"belongs to a run with recipe\.num_vectors 2, not 1"):
        run(TextualInversionRecipe(folder, "mycat", tmp_path / "parts", saved, templates=tmp_path / "templates.txt", loop=LOOP))


def test_diffusers_reads_the_file(peer, tmp_path: Path):
    pipe, _, model = peer("sd1")
    network = WordVectors(model, first_vectors(model, "mycat", 2, None))
    known = len(pipe.tokenizer)
    pipe.load_textual_inversion(str(save_embedding(network.value, tmp_path / "mycat.safetensors")))
    try:
        (vectors,) = network.value.vectors.values()
        assert pipe.tokenizer.convert_tokens_to_ids(["mycat", "mycat_1"]) == [known, known + 1]
        assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[known : known + 2], vectors)
    finally:
        pipe.unload_textual_inversion()


def test_sdxl_gives_a_pair(peer, tmp_path: Path):
    _, _, model = peer("sdxl")
    network = WordVectors(model, first_vectors(model, "<cat>", 2, None))
    with network.attached():
        network(torch.randn(1, 4, 4, 4), torch.tensor([500]), ["a <cat>"]).square().mean().backward()
    assert all(vectors.grad is not None and vectors.grad.abs().max() > 0 for vectors in network.vectors.values())
    file = save_embedding(network.value, tmp_path / "cat.safetensors")
    assert {name: len(tensor) for name, tensor in load_file(file).items()} == {"clip_l": 2, "clip_g": 2}
    found = load_embedding(file, word="<cat>").vectors
    assert all(torch.equal(found[width], vectors) for width, vectors in network.value.vectors.items())


def test_templates():
    assert filled("a photo of a {}, [filewords]", "mycat", "red") == "a photo of a mycat, red"
    assert filled("a photo of a {}, [filewords]", "mycat", "") == "a photo of a mycat"


def test_wrong_options_are_refused(saved: str, folder: Path, tmp_path: Path):
    for word in ("two words", "", "a:b", "(cat)"):
        with pytest.raises(DaguerreError, match="it must be one word"):
            TextualInversionRecipe(folder, word)
    with pytest.raises(DaguerreError, match="num_vectors is 0"):
        TextualInversionRecipe(folder, "mycat", num_vectors=0)
    (tmp_path / "t.txt").write_text("a photo\n")
    with pytest.raises(DaguerreError, match="has a line without the word: 'a photo'"):
        run(TextualInversionRecipe(folder, "mycat", tmp_path / "x", saved, templates=tmp_path / "t.txt", loop=LOOP))
    with pytest.raises(DaguerreError, match="tiny knows the word 'apple' already"):
        run(TextualInversionRecipe(folder, "apple", tmp_path / "y", saved, loop=LOOP))
