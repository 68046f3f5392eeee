"""`inspect --tokens` and `--blocks`: the numbers are those of the conditioner and of the networks."""

import json

import pytest
import torch
from torch import nn

from daguerre.conditioning.token_states import encode_tokens
from daguerre.models.autoencoder_kl import VAE_SD, AutoencoderKL
from daguerre.models.clip import CLIP_L, CLIPText
from daguerre.models.unet import SD1, UNet
from daguerre.nn.meta import shapes_only
from daguerre.weights.blocks import Block, block_tree


def find(block: Block, path: str) -> Block:
    for name in path.split("/"):
        block = next(child for child in block.blocks if child.name == name)
    return block


def all_blocks(block: Block) -> list[Block]:
    return [block, *(each for child in block.blocks for each in all_blocks(child))]


# Parameters as published for Stable Diffusion 1.5; shapes follow from a latent of 64×64.
@pytest.mark.parametrize(
    ("build", "side", "parameters", "part", "shapes"),
    [
        (lambda: UNet(SD1), 64, 859_520_964, "mid_block/attentions.0", ((1280, 8, 8), (1280, 8, 8))),
        (lambda: AutoencoderKL(VAE_SD), 512, 83_653_863, "decoder/up_blocks.0", ((512, 64, 64), (512, 128, 128))),
        (lambda: CLIPText(CLIP_L), 0, 123_060_480, "text_model/encoder/layers.11", ((77, 768), (77, 768))),
    ],
)
def test_the_tree_of_a_published_network(build, side, parameters, part, shapes):
    with shapes_only():
        network: nn.Module = build()
    tree = block_tree("network", network, side)
    assert tree.parameters == parameters
    found = find(tree, part)
    assert (found.input, found.output) == shapes
    for block in all_blocks(tree):
        assert sum(child.parameters for child in block.blocks) in (0, block.parameters)
    assert f"{parameters:,}" in tree.lines()[0]


def test_blocks_of_a_model(run):
    code, out, _ = run("inspect", "tiny", "--blocks")
    assert code == 0
    lines = {line.split("  ")[0].strip("├└─│ "): line for line in out.splitlines()}
    assert {"unet", "vae", "text_encoder", "down_blocks.0", "conv_in"} <= lines.keys()
    assert "6×8×8 → 6×8×8" in lines["unet"]
    trees = json.loads(run("inspect", "--blocks", "--json")[1])
    assert [tree["kind"] for tree in trees] == ["UNet", "AutoencoderKL", "CLIPText"]
    assert trees[0]["output"] == [6, 8, 8]


def test_tokens_have_the_hidden_states_of_the_conditioner(tiny_model):
    conditioner = tiny_model.conditioner
    (found,) = encode_tokens(conditioner, "a (red:1.5) apple")
    ids = conditioner.tokenizer(["a red apple"])[0].tolist()
    assert [token.id for token in found.tokens] == ids
    words = [(token.text, token.weight) for token in found.tokens[1:4]]
    assert words == [("a", 1.0), ("red", 1.5), ("apple", 1.0)]
    assert [token.text for token in found.tokens if token.text in ("begin", "end")] == ["begin", "end"]
    with torch.no_grad():
        context = conditioner(["a (red:1.5) apple"]).context[0]
        pooled = conditioner.encoder(torch.tensor([ids])).pooled[0]
    assert torch.equal(torch.tensor([token.state for token in found.tokens]), context)
    assert torch.equal(torch.tensor(found.pooled), pooled)
    assert found.tokens[2].norm == pytest.approx(context[2].norm().item(), rel=1e-6)


def test_tokens_are_printed(run):
    code, out, _ = run("inspect", "tiny", "--tokens", "a red apple AND " + "two cats " * 10)
    assert code == 0
    assert "part 1, CLIPText: 16 tokens in 1 chunk, hidden states 16×32" in out
    assert "part 2, CLIPText: 32 tokens in 2 chunks, hidden states 32×32" in out
    assert "pooled: 32 values, norm" in out
    report = json.loads(run("inspect", "--tokens", "a red apple", "--json")[1])
    assert len(report[0]["tokens"]) == 16
    assert len(report[0]["tokens"][0]["state"]) == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "a", "--prompt", "b"], "exclude each other"),
        (["--tokens", "a", "--blocks"], "exclude each other"),
        (["tiny", "--tokens", "a", "--model", "tiny"], "both name a model"),
        (["--tokens", "a (red:1.2.3)"], "red:1.2.3"),
        (["tinny", "--blocks"], "Did you mean 'tiny'"),
    ],
)
def test_wrong_options_are_refused(run, arguments, message):
    code, out, err = run("inspect", *arguments)
    assert (code, out) == (2, "")
    assert message in err
