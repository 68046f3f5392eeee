"""Text conditions against diffusers, and weights, chunks and layers against their definitions."""

import diffusers
import pytest
import torch
import transformers

from daguerre.conditioning.clip import SizeConditioning, TextConditioner
from daguerre.conditioning.prompt import Prompt
from daguerre.conditioning.sdxl import SDXLConditioner
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPText, CLIPTextConfig

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def pair(tokenizer: Tokenizer, folder, *, seed: int, projection: int | None = None, activation="quick_gelu", width: int = 32):
    """A tiny text encoder of transformers and ours with the same weights, and transformers' tokenizer from our files."""
    torch.manual_seed(seed)
    reference = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.max_length,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        hidden_act=activation,
        projection_dim=projection or 512,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    theirs = kind(reference).eval().requires_grad_(False)
    config = CLIPTextConfig(len(tokenizer), tokenizer.max_length, width, 3, 2, 48, activation, projection, eos=tokenizer.eos)
    ours = CLIPText(config).requires_grad_(False)
    # In memory, transformers' encoder without projection lacks the level `text_model`, which published files have.
    (ours if projection else ours.text_model).load_state_dict(theirs.state_dict(), strict=True)
    tokenizer.save(folder)
    return theirs, transformers.CLIPTokenizer.from_pretrained(folder), ours


def stable_diffusion(encoder, tokenizer) -> diffusers.StableDiffusionPipeline:
    # diffusers' clip skip needs the level that this version of transformers lacks in memory.
    object.__setattr__(encoder, "text_model", encoder)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(None, encoder, tokenizer, None, scheduler, None, None, requires_safety_checker=False)


def chunks(conditioner: TextConditioner, prompt: str) -> list[tuple[int, ...]]:
    (line,) = Prompt.parse(prompt).at(0, 1)
    return [chunk.ids for chunk in conditioner.chunks([line])[0]]


@pytest.mark.parametrize(("layer", "skip"), [(-1, None), (-2, 1), (-3, 2)])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_stable_diffusion_conditions_equal_diffusers(layer, skip, pad, small, tmp_path):
    """SD 1 at its last layer, SD 2 (padding id 0) at the penultimate, and other clip skips, all with the final norm."""
    tokenizer = Tokenizer(small.vocab, small.merges, max_length=32, pad=pad)
    theirs, their_tokenizer, ours = pair(tokenizer, tmp_path, seed=1, activation="gelu" if pad == "!" else "quick_gelu")
    pipeline = stable_diffusion(theirs, their_tokenizer)
    prompts = ["a photo of a red apple, 4k", "", "naïve café"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False, clip_skip=skip)
    got = TextConditioner(tokenizer, ours, layer=layer)(prompts)
    torch.testing.assert_close(got.context, expected, **CLOSE)
    assert got.vector is None


def test_sdxl_conditions_equal_diffusers(small, tmp_path):
    big = Tokenizer(small.vocab, small.merges, max_length=32, pad="!")
    parts = [pair(small, tmp_path / "one", seed=1), pair(big, tmp_path / "two", seed=2, projection=40, activation="gelu", width=48)]
    (one, token_one, our_one), (two, token_two, our_two) = parts
    pipeline = diffusers.StableDiffusionXLPipeline(None, one, two, token_one, token_two, None, diffusers.EulerDiscreteScheduler())
    prompts = ["a photo of a red apple", "blue"]
    context, nothing, pooled, no_pooled = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=True)
    towers = [TextConditioner(small, our_one, layer=-2, norm=False), TextConditioner(big, our_two, layer=-2, norm=False)]
    conditioner = SDXLConditioner(towers)
    got = conditioner(prompts)
    torch.testing.assert_close(got.context, context, **CLOSE)
    torch.testing.assert_close(got.vector[:, :40], pooled, **CLOSE)
    empty = conditioner.encode([((),), ((),)], [True, False])
    torch.testing.assert_close(empty.context[:1], nothing[:1])
    torch.testing.assert_close(empty.vector[:1, :40], no_pooled[:1])
    assert empty.context[1].abs().max() > 0.1, "only an empty negative prompt is zeroed"
    kept = SDXLConditioner(towers, zero_empty=False).encode([((),)], [True])
    torch.testing.assert_close(kept.context, empty.context[1:], **CLOSE)


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_reads_transformers_hidden_states(skip, small, tmp_path):
    """Clip skip n is the n-th hidden state from the end: with the final norm for SD 1 and SD 2, without it for SDXL."""
    theirs, _, ours = pair(small, tmp_path, seed=3, projection=40)
    prompts = ["a photo of a red apple"]
    states = theirs(small(prompts), output_hidden_states=True)
    hidden = states.hidden_states[-skip]
    sd1 = TextConditioner(small, ours)
    assert sd1.clip_skip == 1
    torch.testing.assert_close(sd1.with_clip_skip(skip)(prompts).context, theirs.text_model.final_layer_norm(hidden), **CLOSE)
    sdxl = SDXLConditioner([TextConditioner(small, ours, layer=-2, norm=False)]).with_size(64, 96)
    got = sdxl.with_clip_skip(skip)
    assert got.size == sdxl.size
    torch.testing.assert_close(got(prompts).context, hidden, **CLOSE)
    torch.testing.assert_close(got(prompts).vector[:, :40], states.text_embeds, **CLOSE)


def test_clip_skip_counts_layers_that_the_loader_cut_off(small, tower):
    """The tower of Stable Diffusion 2 is stored without the last layer of the published one, so its last layer is clip skip 2."""
    sd2 = TextConditioner(small, tower, cut_layers=1)
    assert sd2.clip_skip == 2
    assert sd2.with_clip_skip(3).layer == -2
    assert sd2.with_clip_skip(3).with_clip_skip(2).layer == -1


@pytest.mark.parametrize(("cut", "skip"), [(0, 0), (0, 4), (1, 1), (1, 5)])
def test_a_clip_skip_out_of_range_is_refused(cut, skip, small, tower):
    with pytest.raises(DaguerreError, match=f"clip_skip = {skip} is out of range; this text encoder allows {1 + cut} to {3 + cut}"):
        TextConditioner(small, tower, cut_layers=cut).with_clip_skip(skip)


@pytest.mark.parametrize("uses_aesthetic_score", [False, True])
def test_sdxl_size_conditioning_equals_diffusers(uses_aesthetic_score, small, tower):
    """The vector equals the input of the added-condition embedding of diffusers' UNet, for the base model and the refiner."""
    count = 5 if uses_aesthetic_score else 6
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        cross_attention_dim=32, attention_head_dim=8, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=24 + count * 256,
    )  # fmt: skip
    inputs_of_embedding = []
    unet.add_embedding.register_forward_pre_hook(lambda _, inputs: inputs_of_embedding.append(inputs[0]))
    size = SizeConditioning((512, 768), (1024, 640), (3, 17), aesthetic_score=6.0, negative_aesthetic_score=2.5)
    conditioner = SDXLConditioner(
        [TextConditioner(small, tower, layer=-2, norm=False)], uses_aesthetic_score=uses_aesthetic_score
    ).with_size(1024, 640, size)
    got = conditioner.encode([((),), ((),)], [False, True])
    time_ids = [512, 768, 3, 17, 6.0], [512, 768, 3, 17, 2.5]
    time_ids = time_ids if uses_aesthetic_score else ([512, 768, 3, 17, 1024, 640],) * 2
    added = {"text_embeds": got.vector[:, :24], "time_ids": torch.tensor(time_ids, dtype=torch.float32)}
    unet(torch.zeros(2, 4, 8, 8), 0, torch.zeros(2, 3, 32), added_cond_kwargs=added)
    torch.testing.assert_close(got.vector, inputs_of_embedding[0], rtol=1e-5, atol=1e-5)


def test_with_size_shares_the_encoders_and_defaults_to_the_image_size(small, tower):
    conditioner = SDXLConditioner([TextConditioner(small, tower)])
    sized = conditioner.with_size(64, 96)
    assert sized.size == SizeConditioning((64, 96), (64, 96))
    assert all(one is other for one, other in zip(sized.parameters(), conditioner.parameters(), strict=True))
    text = TextConditioner(small, tower)
    assert text.with_size(64, 96) is text


def test_weights_multiply_states_and_restore_the_mean(small, tower):
    original, kept = TextConditioner(small, tower), TextConditioner(small, tower, emphasis="keep")
    weights = torch.ones(32)
    weights[2:4] = 1.5  # begin, "a", then "red apple"
    plain = original(["a red apple"]).context
    # The pieces are tokenized separately, which changes nothing for whole words.
    torch.testing.assert_close(kept(["a (red apple:1.5)"]).context, plain * weights[:, None])
    restored = original(["a (red apple:1.5)"]).context
    torch.testing.assert_close(restored, plain * weights[:, None] * plain.mean() / (plain * weights[:, None]).mean(), rtol=1e-4, atol=1e-5)
    assert restored.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)


def test_a_weighted_prompt_does_not_depend_on_its_batch(small, tower):
    conditioner = TextConditioner(small, tower)
    alone = conditioner(["a (red:1.4) apple"]).context
    torch.testing.assert_close(conditioner(["[blue] pizza", "a (red:1.4) apple"]).context[1:], alone, **CLOSE)


def test_long_prompts_are_encoded_in_chunks(small, tower):
    conditioner = TextConditioner(small, tower)
    long = " ".join(["red apple"] * 25)  # 50 tokens: chunks of 30 and 20
    context = conditioner([long, "blue"]).context
    assert context.shape == (2, 64, 32)
    parts = conditioner([" ".join(["red apple"] * 15), " ".join(["red apple"] * 10)]).context
    torch.testing.assert_close(context[0], parts.flatten(0, 1), **CLOSE)
    torch.testing.assert_close(context[1], torch.cat([*conditioner(["blue", ""]).context]), **CLOSE)


def test_the_pooled_text_is_that_of_the_first_chunk(small, tower):
    conditioner = SDXLConditioner([TextConditioner(small, tower, layer=-2, norm=False)])
    got = conditioner(["red BREAK blue BREAK pizza", "white"]).vector[:, :24]
    torch.testing.assert_close(got, tower(small(["red", "white"])).projected, **CLOSE)


def test_break_starts_a_chunk_and_commas_keep_phrases_together(small, tower):
    conditioner = TextConditioner(small, tower)
    assert chunks(conditioner, "red BREAK blue") == [*chunks(conditioner, "red"), *chunks(conditioner, "blue")]
    assert chunks(conditioner, "BREAK red") == [*chunks(conditioner, ""), *chunks(conditioner, "red")]
    assert chunks(conditioner, "red BREAK") == chunks(conditioner, "red")
    near = chunks(conditioner, "red " * 10 + ", " + "blue " * 20)  # a comma with 19 tokens after it in a chunk of 30
    assert near == [*chunks(conditioner, "red " * 10 + ","), *chunks(conditioner, "blue " * 20)]
    far = chunks(conditioner, "red " * 9 + ", " + "blue " * 21)  # one with 20
    assert far == [*chunks(conditioner, "red " * 9 + ", " + "blue " * 20), *chunks(conditioner, "blue")]
    assert chunks(conditioner, "red " * 30) == [(small.bos, *small.encode("red") * 30, small.eos)]


def test_added_words_are_not_split_over_chunks(small):
    tokenizer = small.with_words({"<cat>": 4})
    encoder = CLIPText(CLIPTextConfig(len(tokenizer), 32, 32, 1, 2, 48, eos=tokenizer.eos))
    conditioner = TextConditioner(tokenizer, encoder)
    first, second = chunks(conditioner, "red " * 28 + "<cat> blue")
    assert first == tuple(tokenizer.with_special_tokens(small.encode("red " * 28)))
    assert second == tuple(tokenizer.with_special_tokens([*tokenizer.encode("<cat>"), *small.encode("blue")]))


def test_captions_are_literal_text(small, tower):
    conditioner = TextConditioner(small, tower)
    got = conditioner.encode_captions(["a (red:1.3) apple AND [x|y]", "red " * 50]).context
    assert got.shape == (2, 32, 32)
    expected = tower(small(["a (red:1.3) apple AND [x|y]", "red " * 30])).last
    torch.testing.assert_close(got, expected, **CLOSE)
    with pytest.raises(DaguerreError, match="2 parts joined by AND"):
        conditioner(["a AND b"])


def test_one_text_is_one_prompt_and_not_a_list_of_letters(small, tower):
    conditioner = TextConditioner(small, tower)
    assert torch.equal(small("a cat"), small(["a cat"]))
    torch.testing.assert_close(conditioner("a cat").context, conditioner(["a cat"]).context, rtol=0, atol=0)
    torch.testing.assert_close(conditioner.encode_captions("a cat").context, conditioner(["a cat"]).context, **CLOSE)


def test_a_prompt_is_evaluated_at_its_step(small, tower):
    conditioner = TextConditioner(small, tower)
    got = [conditioner(["a [red:blue:.5] apple"], step=step, steps=4).context for step in range(4)]
    red, blue = conditioner(["a red apple"]).context, conditioner(["a blue apple"]).context
    for context, expected in zip(got, [red, red, blue, blue], strict=True):
        torch.testing.assert_close(context, expected, **CLOSE)


def test_words_and_their_positions(small, tower):
    conditioner = TextConditioner(small.with_words({"<cat>": 2}), CLIPText(CLIPTextConfig(len(small) + 2, 32, 32, 1, 2, 48, eos=small.eos)))
    (line,) = Prompt.parse("a (red:1.3) zebra BREAK <cat>, blue").at(0, 1)
    words = conditioner.words(line)
    assert [word.text for word in words] == ["a", "red", "zebra", "<cat>", ",", "blue"]
    zebra = len(small.encode("zebra"))
    assert zebra > 1
    assert [word.positions for word in words[:3]] == [(1,), (2,), tuple(range(3, 3 + zebra))]
    assert [word.positions for word in words[3:]] == [(33, 34), (35,), (36,)]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"layer": -5}, "layer is -5"), ({"layer": 4}, "layer is 4"), ({"emphasis": "loud"}, "restore_mean")],
)
def test_invalid_options_are_refused(options, words, small, tower):
    with pytest.raises(DaguerreError, match=words):
        TextConditioner(small, tower, **options)


def test_mismatched_tokenizer_and_encoder_are_refused(small, tower, clip):
    with pytest.raises(DaguerreError, match="does not match the text encoder"):
        TextConditioner(clip, tower)
    with pytest.raises(DaguerreError, match="projection"):
        SDXLConditioner([TextConditioner(small, CLIPText(CLIPTextConfig(len(small), 32, 32, 1, 2, 48, eos=small.eos)))])
