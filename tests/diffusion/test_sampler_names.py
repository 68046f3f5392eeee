"""Names of samplers and spacings in the spellings of other programs; errors suggest the nearest name."""

import pytest

from daguerre.diffusion import SAMPLERS, SPACINGS, parse_sampler_name, parse_spacing_name, read_scheduler, sampler_table
from daguerre.diffusion.sampler_names import normalize_name
from daguerre.errors import DaguerreError

NAMES = {
    "Euler a": ("euler_a", None),
    "Euler": ("euler", None),
    "k_euler_a": ("euler_a", None),
    "k_euler": ("euler", None),
    "DPM++ 2M Karras": ("dpmpp_2m", "karras"),
    "DPM++ 2M": ("dpmpp_2m", None),
    "k_dpmpp_2m_ka": ("dpmpp_2m", "karras"),
    "dpmpp_2m_karras": ("dpmpp_2m", "karras"),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras"),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "exponential"),
    "DPM++ 2M SDE Heun Karras": ("dpmpp_2m_sde_heun", "karras"),
    "DPM++ 2S a Karras": ("dpmpp_2s_a", "karras"),
    "k_dpmpp_2s_a_ka": ("dpmpp_2s_a", "karras"),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", None),
    "k_dpmpp_3m_sde_exp": ("dpmpp_3m_sde", "exponential"),
    "DPM2 a Karras": ("dpm2_a", "karras"),
    "k_dpm_2_a": ("dpm2_a", None),
    "dpm_2_ancestral": ("dpm2_a", None),
    "LMS Karras": ("lms", "karras"),
    "Heun": ("heun", None),
    "PLMS": ("plms", "leading"),
    "PNDM": ("plms", "leading"),
    "DDIM": ("euler", "leading"),
    "UniPC": ("unipc", None),
    "uni_pc_bh2": ("unipc", None),
    "LCM": ("lcm", "lcm"),
    "DPM-Solver++(2M)": ("dpmpp_2m", None),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", None),
    "dpmpp_3m_sde_gpu_karras": ("dpmpp_3m_sde", "karras"),
    "dpmpp_3m_sde_sgm_uniform": ("dpmpp_3m_sde", "sgm_uniform"),
    "Euler beta": ("euler", "beta"),
    "DPM++ 2M AYS": ("dpmpp_2m", "align_your_steps"),
    "euler normal": ("euler", "linspace"),
    "ddpm": ("ddpm", None),
    "deis": ("deis", None),
    "ipndm": ("ipndm", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_programs(name: str):
    choice = parse_sampler_name(name)
    assert (choice.sampler.name, choice.spacing) == NAMES[name]


def test_every_own_name_is_its_sampler_or_spacing():
    for name in SAMPLERS:
        assert parse_sampler_name(name).sampler is SAMPLERS[name]
    for name in SPACINGS:
        assert parse_spacing_name(name) == name


def test_no_name_is_ambiguous():
    """Every normalized name belongs to one sampler only."""
    owners: dict[str, set[str]] = {}
    for sampler in SAMPLERS.values():
        for name in (sampler.name, *sampler.aliases):
            owners.setdefault(normalize_name(name), set()).add(sampler.name)
    assert not {name: both for name, both in owners.items() if len(both) > 1}
    assert not set(owners) & {normalize_name(spacing) for spacing in SPACINGS} - {"lcm"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpmpp_2mm", "Did you mean 'dpmpp_2m'"),
        ("Euler b", "Did you mean 'Euler a'"),
        ("eulre", "Did you mean 'euler'"),
        ("Huen", "Did you mean 'heun'"),
        ("ulysses", "use one of euler, euler_a, ddpm"),
    ],
)
def test_unknown_samplers(name: str, message: str):
    with pytest.raises(DaguerreError, match=message):
        parse_sampler_name(name)


def test_unknown_spacings():
    with pytest.raises(DaguerreError, match="Did you mean 'karras'"):
        parse_spacing_name("karas")


def test_the_table_of_samplers():
    head, *rows = sampler_table()
    assert len(rows) == len(SAMPLERS)
    assert all(len(row) == len(head) for row in rows)
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["heun"] == ("2", "2", "no", "1", "Heun")
    assert by_name["euler_a"][2] == "yes"


class TestSchedulerConfigurations:
    """Settings that the numbers of `test_diffusers.py` do not cover."""

    def test_stable_diffusion_1(self):
        config = {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "clip_sample": False,
        }
        found = read_scheduler("PNDMScheduler", config)
        assert found.sampler.name == "plms"
        assert (found.spacing, found.spacing_options["steps_offset"], found.spacing_options["final"]) == ("leading", 1, "sigma_min")
        assert found.clip is None

    def test_dpm_plus_plus_2m_karras(self):
        found = read_scheduler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
        assert (found.sampler.name, found.spacing, found.rounding) == ("dpmpp_2m", "karras", "nearest")

    def test_pixel_models_clip_or_threshold(self):
        assert read_scheduler("DDPMScheduler", {}).clip == 1
        assert read_scheduler("DDPMScheduler", {"thresholding": True, "sample_max_value": 1.5}).threshold == (0.995, 1.5)

    @pytest.mark.parametrize(
        ("name", "config", "message"),
        [
            ("DPMSolverMultistepSchedler", {}, "Did you mean 'DPMSolverMultistepScheduler'"),
            ("FlowMatchEulerDiscreteScheduler", {}, "is not supported; use one of DDIM"),
            ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type = 'dpmsolver' is not supported"),
            ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order = 4 is not supported; use one of 1, 2, 3"),
            ("DDPMScheduler", {"variance_type": "learned"}, "variance_type = 'learned'"),
            ("EulerDiscreteScheduler", {"timestep_spacing": "trailling"}, "timestep_spacing = 'trailling'"),
        ],
    )
    def test_unsupported_configurations_are_refused(self, name: str, config: dict, message: str):
        with pytest.raises(DaguerreError, match=message):
            read_scheduler(name, config)
