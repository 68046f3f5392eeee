"""Both CLIP towers against transformers at tiny random init: names, numbers and gradients."""

from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP, CLIP_L, OPENCLIP_BIGG, CLIPConfig, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig

EOS = 98
TEXT = CLIPTextConfig(vocab_size=99, length=16, width=64, layers=3, heads=4, mlp_width=96, projection=24, eos=EOS)
VISION = CLIPVisionConfig(size=24, patch=8, width=48, layers=2, heads=3, mlp_width=80, projection=24)


def text_reference(config: CLIPTextConfig) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.length,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection or 512,
        layer_norm_eps=config.eps,
        bos_token_id=0,
        eos_token_id=config.eos,
    )


def vision_reference(config: CLIPVisionConfig) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        image_size=config.size,
        patch_size=config.patch,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection,
        layer_norm_eps=config.eps,
    )


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter off its start, so that no bias of zero or norm of one hides a missing term."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def saved(model: transformers.PreTrainedModel, folder) -> dict[str, torch.Tensor]:
    """The state as it lies on disk, under published names."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def captions(*, eos: int = EOS) -> torch.Tensor:
    """Four rows of twelve ids; the end token is at different positions and pads the rest, as CLIP-L does."""
    ids = torch.randint(0, eos - 1, (4, 12), generator=torch.Generator().manual_seed(2))
    for row, end in enumerate((3, 7, 11, 5)):
        ids[row, end:] = eos
    return ids


def assert_equal_gradients(ours: nn.Module, reference_model: nn.Module, state: dict[str, torch.Tensor], folder) -> None:
    """Gradients by published names: the reference writes them to disk instead of its weights, because its names in memory differ."""
    with torch.no_grad():
        for parameter in reference_model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    expected = saved(reference_model, folder)  # pyright: ignore[reportArgumentType]
    assert expected.keys() == state.keys()
    for name, parameter in ours.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower_equals_transformers(activation, tmp_path):
    config = replace(TEXT, activation=activation)
    reference_model = shaken(transformers.CLIPTextModelWithProjection(text_reference(config)))
    state = saved(reference_model, tmp_path)
    ours = CLIPText(config)
    ours.load_state_dict(state, strict=True)
    ids = captions()
    got, expected = ours(ids), reference_model(ids, output_hidden_states=True)
    for mine, other in zip(got.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.last, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.projected, expected.text_embeds, rtol=1e-5, atol=1e-5)
    weights = torch.randn(got.last.shape, generator=torch.Generator().manual_seed(3))
    ((got.last * weights).mean() + got.projected.square().mean()).backward()
    ((expected.last_hidden_state * weights).mean() + expected.text_embeds.square().mean()).backward()
    assert_equal_gradients(ours, reference_model, state, tmp_path)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_vision_tower_equals_transformers(activation, tmp_path):
    config = replace(VISION, activation=activation)
    reference_model = shaken(transformers.CLIPVisionModelWithProjection(vision_reference(config)))
    state = saved(reference_model, tmp_path)
    ours = CLIPVision(config)
    ours.load_state_dict(state, strict=True)
    x = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    got, expected = ours(x), reference_model(x, output_hidden_states=True)
    for mine, other in zip(got.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.projected, expected.image_embeds, rtol=1e-5, atol=1e-5)
    (got.hidden[-1].square().mean() + got.projected.square().mean()).backward()
    (expected.last_hidden_state.square().mean() + expected.image_embeds.square().mean()).backward()
    assert_equal_gradients(ours, reference_model, state, tmp_path)


def test_embeddings_and_logits_equal_transformers(tmp_path):
    reference = transformers.CLIPConfig(
        text_config=text_reference(TEXT).to_dict(), vision_config=vision_reference(VISION).to_dict(), projection_dim=24
    )
    reference_model = shaken(transformers.CLIPModel(reference))
    ours = CLIP(CLIPConfig(TEXT, VISION))
    ours.load_state_dict(saved(reference_model, tmp_path), strict=True)
    x = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    got, expected = ours(captions(), x), reference_model(input_ids=captions(), pixel_values=x)
    torch.testing.assert_close(got.text, expected.text_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.image, expected.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.logits, expected.logits_per_text, rtol=1e-5, atol=1e-5)
    tower = ours.text(captions())
    torch.testing.assert_close(torch.nn.functional.normalize(tower.projected, dim=-1), got.text)
    torch.testing.assert_close(torch.nn.functional.normalize(ours.vision(x).projected, dim=-1), got.image)


def test_towers_share_parameters_with_published_names():
    clip = CLIP(CLIPConfig(TEXT, VISION))
    whole = dict(clip.named_parameters())
    for tower in (clip.text, clip.vision):
        for name, parameter in tower.named_parameters():
            assert parameter is whole[name]
    assert {*dict(clip.text.named_parameters()), *dict(clip.vision.named_parameters()), "logit_scale"} == set(whole)


@pytest.mark.parametrize(("reference", "projection"), [(transformers.CLIPTextModel, None), (transformers.CLIPTextModelWithProjection, 24)])
def test_saved_weights_load_in_transformers(reference, projection, tmp_path):
    config = replace(TEXT, projection=projection)
    ours = shaken(CLIPText(config))
    text_reference(config).save_pretrained(tmp_path)
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference_model, report = reference.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(ours(captions()).last, reference_model(captions()).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_pooling_uses_the_first_end_token_with_zero_padding():
    """SD 2 and bigG pad with id 0; a published `eos_token_id` of 2 means the highest id, which is our `eos`."""
    reference = text_reference(TEXT)
    reference.eos_token_id = 2
    reference_model = shaken(transformers.CLIPTextModel(reference))
    ours = CLIPText(replace(TEXT, projection=None))
    ours.text_model.load_state_dict(reference_model.state_dict(), strict=True)
    ids = captions()
    ids = torch.where((ids == EOS).int().cumsum(1) > 1, 0, ids)
    torch.testing.assert_close(ours(ids).pooled, reference_model(ids).pooler_output, rtol=1e-5, atol=1e-5)


def test_presets_have_the_published_parameter_counts():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in CLIPText(config).parameters()) for config in (CLIP_L, OPENCLIP_BIGG)]
    assert sizes == [123_060_480, 694_659_840]


def test_text_tower_is_causal():
    text = shaken(CLIPText(TEXT))
    ids = captions()
    other = ids.clone()
    other[:, 8:] = 5
    torch.testing.assert_close(text(ids).last[:, :8], text(other).last[:, :8])


def test_initialisation_keeps_the_scale_of_the_residual_stream():
    """The residual stream neither vanishes nor explodes over 12 layers, and the logits start small."""
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig(replace(TEXT, layers=12), replace(VISION, layers=12)))
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    states = clip.vision(torch.randn(4, 3, 24, 24))
    assert 0.3 < (states.hidden[-1].std() / states.hidden[0].std()).item() < 3


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CLIPText(replace(TEXT, heads=5)), "multiple of the heads"),
        (lambda: CLIPText(replace(TEXT, activation="relu")), "quick_gelu"),
        (lambda: CLIP(CLIPConfig(TEXT, replace(VISION, projection=25))), "same width"),
        (lambda: CLIPText(TEXT)(torch.zeros(1, 17, dtype=torch.long)), "chunks"),
        (lambda: CLIPVision(VISION)(torch.zeros(1, 3, 16, 24)), "resize"),
    ],
)
def test_invalid_input_raises(build, words):
    with pytest.raises(DaguerreError, match=words):
        build()
