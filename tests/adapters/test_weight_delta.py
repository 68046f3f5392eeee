"""Every arithmetic of LoRA equals the goldens, and LyCORIS or PEFT at tiny size where the goldens have no case."""

import pytest
import torch
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import IA3Config, LoHaConfig, LoKrConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from daguerre.adapters.lora.lora import LoraLayer
from daguerre.adapters.lora.peft_config import PeftConfig
from daguerre.adapters.lora.weight_delta import DoRA, LowRank, tucker
from tests.adapters.files import golden, lora_of

CASES = golden()
PEFT = {
    "dora_peft_linear": PeftConfig(alpha=6, rank=3),
    "lora_peft_rslora_linear": PeftConfig(alpha=6, rank=4, rslora=True),
}


def only_layer(tensors: dict[str, Tensor], **configs: PeftConfig) -> LoraLayer:
    (layer,) = lora_of(tensors, **configs).layers.values()
    return layer


def close(x: Tensor, truth: Tensor) -> bool:
    return torch.allclose(x, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_goldens(name: str):
    case = CASES[name]
    configs = {"folder": PEFT[name]} if name in PEFT else {}
    layer = only_layer({key.removeprefix("file/"): tensor for key, tensor in case.items() if key.startswith("file/")}, **configs)
    weight = case["base.weight"]
    assert layer.weight is not None
    assert not close(weight, case["w"])
    assert close(layer.weight.apply(weight, 1), case["w"])
    assert torch.equal(layer.weight.apply(weight, 0), weight)
    if (key := "w@0.7.webui") in case:
        assert close(layer.weight.apply(weight, 0.7), case[key])
    if "b" in case:
        bias = case["base.bias"]
        assert close(bias if layer.bias is None else layer.bias.apply(bias, 1), case["b"])


def effective(module: nn.Module, base: nn.Module) -> Tensor:
    """The weight with which an adapted layer computes, read from its outputs on unit inputs."""
    weight = base.weight
    if weight.ndim == 2:
        return (module(torch.eye(weight.shape[1])) - module(torch.zeros(1, weight.shape[1]))).T
    _, inputs, height, width = weight.shape
    units = torch.zeros(inputs * height * width, inputs, height, width)
    units.flatten(1).fill_diagonal_(1)
    zero = module(torch.zeros(1, inputs, height, width))
    return (module(units) - zero)[:, :, 0, 0].T.reshape(weight.shape)


def lycoris_cases() -> dict[str, tuple[type, nn.Module, dict]]:
    linear, conv = lambda: nn.Linear(6, 8), lambda: nn.Conv2d(4, 8, 3)
    return {
        "glora linear": (GLoRAModule, linear(), {}),
        "glora conv": (GLoRAModule, conv(), {}),
        "oft": (DiagOFTModule, linear(), {}),
        "oft constrained": (DiagOFTModule, linear(), {"constraint": 0.05}),
        "oft rescaled conv": (DiagOFTModule, conv(), {"rescaled": True}),
        "loha conv": (LohaModule, conv(), {}),
        "loha tucker": (LohaModule, conv(), {"use_tucker": True}),
        "lokr conv": (LokrModule, conv(), {"factor": 2}),
        "lokr tucker": (LokrModule, nn.Conv2d(16, 32, 3), {"use_tucker": True, "factor": 2}),
        "lokr both low": (LokrModule, nn.Linear(36, 36), {"decompose_both": True, "factor": 6, "lora_dim": 1}),
        "lokr both whole": (LokrModule, linear(), {"full_matrix": True, "factor": 2}),
        "loha dora": (LohaModule, linear(), {"weight_decompose": True}),
        "lokr dora conv": (LokrModule, conv(), {"weight_decompose": True, "factor": 2, "wd_on_out": False}),
    }


@pytest.mark.parametrize("name", lycoris_cases())
@torch.no_grad()
def test_lycoris(name: str):
    torch.manual_seed(5)
    kind, base, options = lycoris_cases()[name]
    if "constraint" not in options:
        options = {"alpha": 1.5, **options}
    module = kind("lora_unet_x", base, 1.0, **{"lora_dim": 2, **options})
    for parameter in module.parameters():
        if not any(parameter is own for own in base.parameters()):
            parameter.copy_(parameter + 0.3 * torch.randn(parameter.shape))
    stored = module.state_dict() if kind is DiagOFTModule else module.custom_state_dict()
    stored = {f"lora_unet_x.{key}": tensor for key, tensor in stored.items() if "org_" not in key}
    if kind is DiagOFTModule:
        stored["lora_unet_x.alpha"] = torch.tensor(options.get("constraint", 0.0))
    layer = only_layer(stored)
    assert layer.weight is not None
    truth = effective(module, base)
    assert not close(truth, base.weight)
    assert close(layer.weight.apply(base.weight, 1), truth)


@torch.no_grad()
def test_lycoris_norms():
    torch.manual_seed(5)
    base = nn.LayerNorm(6)
    module = NormModule("lora_unet_x", base, 1.0)
    module.w_norm.normal_()
    module.b_norm.normal_()
    layer = only_layer({f"lora_unet_x.{key}": tensor for key, tensor in module.state_dict().items() if key in ("w_norm", "b_norm")})
    weight, bias = module.make_weight()
    assert layer.weight is not None
    assert layer.bias is not None
    assert close(layer.weight.apply(base.weight, 1), weight)
    assert close(layer.bias.apply(base.bias, 1), bias)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (LoHaConfig(r=2, alpha=3, target_modules=["x"], init_weights=False), PeftConfig(3, 2)),
        (LoKrConfig(r=2, alpha=3, target_modules=["x"], init_weights=False), PeftConfig(3, 2)),
        (LoKrConfig(r=50, alpha=3, target_modules=["x"], init_weights=False), PeftConfig(3, 50)),
        (IA3Config(target_modules=["x"], feedforward_modules=[], init_ia3_weights=False), PeftConfig()),
        (IA3Config(target_modules=["x"], feedforward_modules=["x"], init_ia3_weights=False), PeftConfig()),
    ],
    ids=["loha", "lokr", "lokr whole", "ia3", "ia3 feed-forward"],
)
@torch.no_grad()
def test_peft(config, read: PeftConfig):
    torch.manual_seed(6)
    base = nn.Sequential()
    base.x = nn.Linear(6, 6)
    weight, bias = base.x.weight.clone(), base.x.bias.clone()
    model = get_peft_model(base, config)
    layer = only_layer(get_peft_model_state_dict(model), folder=read)
    assert layer.weight is not None
    adapted = model.base_model.model.x
    truth = effective(adapted, nn.Linear(6, 6))
    assert not close(truth, weight)
    assert close(layer.weight.apply(weight, 1), truth)
    assert close(bias if layer.bias is None else layer.bias.apply(bias, 1), adapted(torch.zeros(1, 6))[0])


def test_old_glora_files_have_the_factors_in_the_other_order():
    torch.manual_seed(7)
    a1, a2, b1, b2 = torch.randn(6, 2), torch.randn(2, 6), torch.randn(8, 2), torch.randn(2, 6)
    named = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    new = only_layer({f"lora_unet_x.{key}.weight": tensor for key, tensor in named.items()})
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = only_layer({f"lora_unet_x.{other[key]}.weight": tensor for key, tensor in named.items()})
    weight = torch.randn(8, 6)
    assert new.weight is not None
    assert old.weight is not None
    truth = weight + weight @ a1 @ a2 + b1 @ b2
    assert torch.allclose(new.weight.apply(weight, 1), truth, atol=1e-4)
    assert torch.allclose(old.weight.apply(weight, 1), truth, atol=1e-4)


def test_an_infinite_alpha_of_a_whole_lokr_is_not_read():
    tensors = {
        "lora_unet_x.lokr_w1": torch.ones(2, 2),
        "lora_unet_x.lokr_w2": torch.ones(3, 3),
        "lora_unet_x.alpha": torch.tensor(torch.inf),
    }
    layer = only_layer(tensors)
    assert layer.weight is not None
    assert torch.equal(layer.weight(torch.zeros(6, 6)), torch.ones(6, 6))


def test_dora_of_a_square_layer_reads_the_axis_from_the_first_dimension():
    torch.manual_seed(8)
    weight, plain = torch.randn(4, 4), LowRank(torch.zeros(1, 4), torch.zeros(4, 1))
    rows = DoRA(plain, torch.full((4, 1), 2.0)).apply(weight, 1)
    columns = DoRA(plain, torch.full((1, 4), 2.0)).apply(weight, 1)
    assert torch.allclose(rows.norm(dim=1), torch.full((4,), 2.0))
    assert torch.allclose(columns.norm(dim=0), torch.full((4,), 2.0))


def test_the_first_ranks_keep_their_scale():
    torch.manual_seed(9)
    full = LowRank(torch.randn(4, 6), torch.randn(5, 4), alpha=2)
    first = LowRank(full.down[:1], full.up[:, :1], alpha=0.5)
    assert torch.allclose(full.with_rank(1).matrix(), first.matrix())
    assert full.with_rank(9) is full


def test_extra_input_channels_stay():
    torch.manual_seed(10)
    delta = LowRank(torch.randn(2, 4, 3, 3), torch.randn(5, 2, 1, 1))
    added = delta(torch.zeros(5, 9, 3, 3))
    assert torch.equal(added[:, :4], delta(torch.zeros(5, 4, 3, 3)))
    assert not added[:, 4:].any()


def test_gradients_reach_every_factor():
    torch.manual_seed(11)
    down, up, magnitude = (torch.randn(shape, requires_grad=True) for shape in ((2, 6), (5, 2), (5, 1)))
    DoRA(LowRank(down, up, alpha=1), magnitude).apply(torch.randn(5, 6), 0.7).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (down, up, magnitude))


def test_the_core_of_a_tucker_form():
    torch.manual_seed(12)
    core, a, b = torch.randn(2, 3, 3, 3), torch.randn(2, 5), torch.randn(3, 4)
    assert torch.allclose(tucker(core, a, b), torch.einsum("pqhw,po,qi->oihw", core, a, b))
