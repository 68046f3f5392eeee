"""Few-step files are recognised by name, header and shapes, with the settings of their papers and model cards."""

from pathlib import Path

import pytest
import torch

from daguerre.adapters.presets import STEP_PRESETS, choose_preset, find_preset, presets_of_file
from daguerre.diffusion import SAMPLERS, SPACINGS, Schedule, ScheduleConfig, get_sigmas
from daguerre.errors import DaguerreError
from daguerre.pipelines import Request
from daguerre.weights.tensors.safetensors import save_safetensors


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", ["lcm"]),
        ("LCM_LoRA_Weights_SD15.safetensors", ["lcm"]),
        ("SimianLuo/LCM_Dreamshaper_v7", ["lcm"]),
        ("TCD-SDXL-LoRA/pytorch_lora_weights.safetensors", ["tcd"]),
        ("Hyper-SD15-1step-lora.safetensors", ["hyper-1"]),
        ("Hyper-SD15-8steps-lora.safetensors", ["hyper-8"]),
        ("Hyper-SD15-8steps-CFG-lora.safetensors", ["hyper-8-cfg"]),
        ("Hyper-SDXL-12steps-CFG-lora.safetensors", ["hyper-12-cfg"]),
        ("sdxl_lightning_4step_lora.safetensors", ["lightning-4"]),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_8step.safetensors", ["lightning-8"]),
        ("juggernautXL_v9Lightning.safetensors", ["lightning-2", "lightning-4", "lightning-8"]),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", ["dmd2"]),
        ("lightning_strike.safetensors", []),
        ("hyperrealism.safetensors", []),
        ("lcmsart.safetensors", []),
        ("emoji", []),
    ],
)
def test_names(path: str, names: list[str]):
    assert [preset.name for preset in presets_of_file(Path(path))] == names


def lora(layers: list[str], rank: int, alpha: float, kernel: int = 3) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA in kohya's naming, with one convolution."""
    tensors = {}
    for number, layer in enumerate(layers):
        shape = (rank, 4, kernel, kernel) if number == 0 else (rank, 4)
        tensors |= {f"{layer}.lora_down.weight": torch.zeros(shape), f"{layer}.alpha": torch.tensor(alpha)}
        tensors[f"{layer}.lora_up.weight"] = torch.zeros(4, rank, *([1, 1] if number == 0 else []))
    return tensors


def test_header_and_shapes(tmp_path: Path):
    unet = ["lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_1_attentions_0_proj_in"]
    save_safetensors(renamed := tmp_path / "a.safetensors", lora(unet, 4, 4.0), {"ss_output_name": "Hyper-SDXL-4steps-lora"})
    assert [preset.name for preset in presets_of_file(renamed)] == ["hyper-4"]
    save_safetensors(alike := tmp_path / "b.safetensors", lora(unet, 64, 8.0))
    assert [preset.name for preset in presets_of_file(alike)] == ["lightning-2", "lightning-4", "lightning-8"]
    save_safetensors(plain := tmp_path / "c.safetensors", lora(unet, 64, 64.0))
    save_safetensors(text := tmp_path / "d.safetensors", lora([*unet, "lora_te1_text_model_encoder_layers_0_mlp_fc1"], 64, 8.0))
    assert presets_of_file(plain) == presets_of_file(text) == []


def test_an_ambiguous_choice_is_refused():
    assert choose_preset([Path("emoji"), Path("ink.safetensors")], "") is None
    assert choose_preset([Path("a.ckpt"), Path("lcm-lora.safetensors")], "") == (STEP_PRESETS["lcm"], Path("lcm-lora.safetensors"))
    with pytest.raises(DaguerreError, match="may be for lightning-2, lightning-4, lightning-8; choose one"):
        choose_preset([Path("dreamXL_lightning.safetensors")], "choose one")
    with pytest.raises(DaguerreError, match="may be for lcm, dmd2"):
        choose_preset([Path("lcm-lora.safetensors"), Path("dmd2.safetensors")], "choose one")
    with pytest.raises(DaguerreError, match="Did you mean 'dmd2'"):
        find_preset("dmd")


def test_the_settings_exist_and_visit_the_steps_of_the_distillation():
    schedule = Schedule(ScheduleConfig())
    for preset in STEP_PRESETS.values():
        assert preset.sampler in SAMPLERS
        assert preset.spacing in SPACINGS
        assert Request(**preset.fields).steps == preset.steps
        assert preset.guidance_problem(preset.guidance_scale) is None
    wanted = {"dmd2": [999, 749, 499, 249], "lightning-4": [999, 749, 499, 249], "hyper-2": [999, 499], "lcm": [999, 759, 499, 259]}
    for name, steps in wanted.items():
        sigmas = get_sigmas(schedule, STEP_PRESETS[name].steps, STEP_PRESETS[name].spacing)
        assert schedule.sigma_to_t(sigmas[:-1]).round().tolist() == steps


def test_guidance_beyond_what_the_file_supports_is_named():
    problem = "Files of the preset lightning-4 need 1, without guidance, and it is 7.5"
    assert STEP_PRESETS["lightning-4"].guidance_problem(7.5) == problem
    assert "a guidance scale up to 8" in str(STEP_PRESETS["hyper-8-cfg"].guidance_problem(9))
    assert STEP_PRESETS["hyper-8-cfg"].guidance_problem(6) is STEP_PRESETS["lcm"].guidance_problem(None) is None


def test_what_is_given_wins_over_a_preset_and_a_sampler_comes_with_its_spacing():
    preset = STEP_PRESETS["lightning-4"]
    assert preset.fields_without(["steps"]) == {"sampler": "euler", "spacing": "trailing", "guidance_scale": 1.0}
    assert preset.fields_without(["sampler", "guidance_scale"]) == {"steps": 4}
