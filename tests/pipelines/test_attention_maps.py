"""Attention maps equal the formula layer by layer, for every kind of prompt, and recording changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.conditioning import Prompt, SDXLConditioner, TextConditioner
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention import Attention, TransformerBlock
from daguerre.pipelines import Request, generate, stream
from daguerre.pipelines.attention_maps import WordMap, attention_sheet, overlay, record_attention


def maps(model: LatentDiffusion, prompt: str | Sequence[str], **more) -> list[list[WordMap]]:
    request = Request(**{"prompt": prompt, "steps": 3, **more})
    with record_attention(model) as record:
        generate(model, request)
    return [record.words(i) for i in range(len(request.items))]


def heatmaps(words: Sequence[WordMap]) -> Tensor:
    return torch.stack([word.heatmap for word in words])


def cross_attention_layers(unet: UNet) -> list[Attention]:
    return [block.attn2 for block in unet.modules() if isinstance(block, TransformerBlock)]


def test_a_map_is_the_mean_over_heads_layers_and_steps(tiny_model: LatentDiffusion):
    """Recomputed from the outputs of every layer's two projections, one layer and one step at a time."""
    asked, kept, queries = "a green circle on a white background", [], {}

    def keep(attention: Attention):
        def hook(_to_k, inputs, k):
            q, k = (
                y[:1].unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (queries[attention], k)
            )  # the prompt's half of the batch
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1).mean(1)[0].T  # (tokens, H·W)
            side = round(weights.shape[1] ** 0.5)
            kept.append(F.interpolate(weights.reshape(1, -1, side, side), size=(8, 8), mode="bicubic")[0])

        attention.to_q.register_forward_hook(lambda _to_q, _inputs, q: queries.update({attention: q}))
        return attention.to_k.register_forward_hook(hook)

    hooks = [keep(attention) for attention in cross_attention_layers(tiny_model.unet)]
    try:
        found = maps(tiny_model, asked)[0]
    finally:
        for attention, hook in zip(cross_attention_layers(tiny_model.unet), hooks, strict=True):
            hook.remove()
            attention.to_q._forward_hooks.clear()
    assert len(kept) == 3 * len(hooks) > 3
    mean = torch.stack(kept).mean(0)  # (tokens, 8, 8)
    (line,) = Prompt.parse(asked).at(0, 3)
    assert isinstance(tiny_model.conditioner, TextConditioner)
    words = tiny_model.conditioner.words(line)
    assert [word.text for word in found] == [word.text for word in words] == asked.split()
    for word, place in zip(found, words, strict=True):
        torch.testing.assert_close(word.heatmap, mean[list(place.positions)].sum(0), rtol=1e-4, atol=1e-6)


def test_recording_changes_neither_images_nor_model(tiny_model: LatentDiffusion):
    request = Request(prompt="a red apple", steps=3, sampler="euler_a")
    with record_attention(tiny_model) as record:
        seen = generate(tiny_model, request)
    assert record.words()
    before = len(record.words())
    unseen = generate(tiny_model, request)
    assert np.array_equal(np.asarray(seen[0].image), np.asarray(unseen[0].image))
    assert len(record.words()) == before
    with pytest.raises(ZeroDivisionError), record_attention(tiny_model):
        raise ZeroDivisionError
    assert not [attention for attention in cross_attention_layers(tiny_model.unet) if "attend" in vars(attention)]
    assert not {"encode", "sized"} & set(vars(tiny_model.conditioner))
    assert not [module for module in tiny_model.unet.modules() if module._forward_pre_hooks]


def test_maps_of_an_image_in_a_batch_equal_those_of_the_image_alone(tiny_model: LatentDiffusion):
    prompts = "a red apple", "two cats to the left of a pizza"
    together = maps(tiny_model, prompts, num_images=2, seed=4, negative_prompt="a blue apple")
    for i, (prompt, seed) in enumerate([(prompt, seed) for prompt in prompts for seed in (4, 5)]):
        alone = maps(tiny_model, prompt, seed=seed, negative_prompt="a blue apple")[0]
        assert [word.text for word in together[i]] == prompt.split()
        torch.testing.assert_close(heatmaps(together[i]), heatmaps(alone), rtol=1e-4, atol=1e-6)


def test_every_part_of_a_prompt_has_maps_with_and_without_guidance(tiny_model: LatentDiffusion):
    assert [word.text for word in maps(tiny_model, "a red apple", guidance_scale=1.0)[0]] == ["a", "red", "apple"]
    parts = maps(tiny_model, "a red apple AND a blue apple :0.5")[0]
    assert [word.text for word in parts] == ["a", "red", "apple", "blue"]
    # Weighted words keep their places; escapes and weights are no words; commas have no map. (The mean of random states is about 0, and
    # is not to be restored.)
    base = tiny_model.conditioner
    assert isinstance(base, TextConditioner)
    model = replace(tiny_model, conditioner=TextConditioner(base.tokenizer, base.encoder, emphasis="keep"))
    assert [word.text for word in maps(model, r"a (red:1.4), [blue] \(apple\)")[0]] == ["a", "red", "blue", "apple"]


def test_a_word_is_averaged_over_the_steps_whose_prompt_has_it(tiny_model: LatentDiffusion):
    switched = {word.text: word.heatmap for word in maps(tiny_model, "a [red:blue:1] apple", sampler="euler")[0]}
    assert list(switched) == ["a", "red", "apple", "blue"]
    first = {word.text: word.heatmap for word in maps_of_first_step(tiny_model, "a red apple")}
    torch.testing.assert_close(switched["red"], first["red"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(switched["apple"], first["apple"], rtol=1e-3)


def maps_of_first_step(model: LatentDiffusion, prompt: str) -> list[WordMap]:
    with record_attention(model) as record:
        next(stream(model, prompt=prompt, steps=3, sampler="euler"))
        return record.words()


def test_a_long_prompt_has_maps_for_all_its_words(tiny_model: LatentDiffusion):
    prompt = " ".join(["a green circle on a white background"] * 4)  # 28 words in windows of 14
    found = maps(tiny_model, prompt)[0]
    assert len(found) == 28
    assert [word.text for word in found] == prompt.split()
    assert all(word.heatmap.max() > 0 for word in found)


def test_tokens_of_one_word_make_one_map(tiny_model: LatentDiffusion):
    found = maps(tiny_model, "xylophone apple")[0]
    assert [word.text for word in found] == ["xylophone", "apple"]


def test_maps_of_several_resolutions_and_image_sizes(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = replace(model, unet=UNet(replace(model.unet.config, depth=(1, 2), cross_only_levels=(0,))).eval())
    found = maps(model, "a red apple", width=48, height=24)[0]
    assert found[0].heatmap.shape == (6, 12)
    assert min(word.heatmap.min() for word in found) >= 0
    assert heatmaps(found).sum(0).max() < 1  # begin, end and padding have the rest


def test_sdxl_has_maps(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    base = model.conditioner
    assert isinstance(base, TextConditioner)
    tower = CLIPTextConfig(len(base.tokenizer), length=16, width=32, layers=2, heads=2, mlp_width=64, projection=24, eos=base.tokenizer.eos)
    conditioner = SDXLConditioner([base, TextConditioner(base.tokenizer, CLIPText(tower), layer=-2, norm=False)])
    unet = UNet(replace(model.unet.config, context_width=64, vector_width=24 + 6 * 256)).eval()
    model = replace(model, conditioner=conditioner.eval(), unet=unet)
    assert [word.text for word in maps(model, "a red apple")[0]] == ["a", "red", "apple"]


def test_an_empty_prompt_has_no_maps_and_a_model_without_prompts_is_refused(tiny_model: LatentDiffusion):
    assert maps(tiny_model, "") == [[]]
    deaf = replace(tiny_model, conditioner=lambda prompts: None, name="deaf")
    with pytest.raises(DaguerreError, match="deaf takes no prompt"), record_attention(deaf):
        pass


def test_an_overlay_is_brightest_where_attention_is_highest():
    word = WordMap("apple", torch.zeros(8, 8).index_put((torch.tensor(2), torch.tensor(5)), torch.tensor(0.3)))
    assert word.contrast.max() == 1
    picture = Image.new("RGB", (64, 48), "gray")
    lit = np.asarray(overlay(picture, word)).astype(int).sum(2)
    assert lit.shape == (48, 64)
    row, column = np.unravel_index(lit.argmax(), lit.shape)
    assert (row // 6, column // 8) == (2, 5)
    even = WordMap("a", torch.full((8, 8), 0.1))  # nowhere more than elsewhere
    assert np.asarray(overlay(picture, even)).std(axis=(0, 1)).max() == 0
    page = attention_sheet(picture, "a red apple", [word, even])
    assert page.width > 2 * 192
