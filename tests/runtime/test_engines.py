"""Engines: the answers of the default one within rounding, with every input of a UNet; the cache of compiled graphs; what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daguerre.adapters.attach import with_adapters
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import Engine, LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.nn.circular import circular_padding
from daguerre.pipelines import generate
from daguerre.runtime import engines, openvino_graphs
from daguerre.runtime.engines import Compile, OpenVINO, Torch, engine_by_name
from daguerre.runtime.offload import SequentialOffload
from tests.adapters.files import lora_of
from tests.tolerance import NETWORK_TERMS, assert_rounded

SD1 = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 0), heads=(2, 2), context_width=12, norm_groups=4)
PIXELS = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(16, 32),
    blocks=1,
    depth=(0, 1),
    heads=(1, 1),
    context_width=None,
    norm_groups=4,
    resample="resblock",
)
EVERYTHING = replace(SD1, in_channels=7, cross_only_levels=(0,), classes=10, vector_width=20, linear_projection=True)
FAMILIES = {
    "everything": EVERYTHING,
    **{
        name: pytest.param(config, marks=pytest.mark.long)  # four seconds each
        for name, config in (
            ("sd1", SD1),
            ("sdxl", replace(SD1, linear_projection=True, depth=(0, 2), mid_depth=2, vector_width=20)),
            ("upscaler", replace(SD1, in_channels=7, cross_only_levels=(0,), classes=10, linear_projection=True)),
            ("pixels", PIXELS),
        )
    },
}
CPU = torch.device("cpu")
RESIDUALS = [torch.ones(2, width, side, side) for width, side in ((16, 8), (16, 8), (16, 4), (32, 4), (32, 4))]
FEATURES = [torch.ones(1, 16, 8, 8), torch.ones(1, 32, 4, 4)]


def unet_of(config: UNetConfig) -> UNet:
    """A random UNet; new ones return zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(config).eval().requires_grad_(False)
        for weight in unet.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
    return unet


def inputs_of(config: UNetConfig, batch: int = 2, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    noise = lambda *shape: torch.randn(batch, *shape, generator=generator)  # noqa: E731
    channels = config.out_channels
    cond = Conditioning(
        context=noise(5, config.context_width) if config.context_width else None,
        vector=noise(config.vector_width) if config.vector_width else None,
        concat=noise(config.in_channels - channels, side, side) if config.in_channels > channels else None,
        label=torch.arange(batch) if config.classes else None,
    )
    return noise(channels, side, side), torch.linspace(3.5, 500, batch), cond


@pytest.fixture
def engine(tmp_path: Path) -> OpenVINO:
    return OpenVINO(tmp_path / "graphs")


@torch.no_grad()
def answers(engine: Engine, unet: UNet, *inputs: Any, **more: Any) -> torch.Tensor:
    return engine.prepare(unet)(*inputs, **more)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_openvino_equals_the_default_engine(engine: OpenVINO, config: UNetConfig):
    """With residuals of a ControlNet and features of a T2I-Adapter; the second answer comes from the graph on the disk."""
    unet, inputs = unet_of(config), inputs_of(config)
    more = {"control": RESIDUALS, "features": FEATURES if config.depth[0] else [torch.ones(1, 16, 4, 4), *FEATURES[1:]]}
    for each in (engine, OpenVINO(engine.cache)):
        assert_rounded(answers(each, unet, *inputs, **more), answers(Torch(), unet, *inputs, **more), NETWORK_TERMS)


@pytest.mark.long
@torch.no_grad()
def test_every_shape_and_input_has_its_own_graph(engine: OpenVINO):
    """With and without adapters, and with shared first layers: none reuses a wrong graph."""
    unet, (x, t, cond) = unet_of(SD1), inputs_of(SD1)
    calls = [
        ((x, t, cond), {"control": RESIDUALS, "features": FEATURES}),
        ((x[:1].repeat(2, 1, 1, 1), t[:1].repeat(2), replace(cond, num_conditions=2)), {}),
    ]
    network, default = engine.prepare(unet), Torch().prepare(unet)
    for inputs, more in (*calls, *calls):
        assert_rounded(network(*inputs, **more), default(*inputs, **more), NETWORK_TERMS)
    assert len(list((engine.cache or Path()).iterdir())) == 2


@pytest.mark.long
@torch.no_grad()
def test_bfloat16_is_as_near_as_rounding_allows(engine: OpenVINO):
    unet, (x, t, cond) = unet_of(SD1), inputs_of(SD1)
    truth = answers(Torch(), unet, x, t, cond)
    y = answers(engine, unet.bfloat16(), x.bfloat16(), t, cond.to(dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert_rounded(y.float(), truth, NETWORK_TERMS, dtype=torch.bfloat16)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the conversion by a stand-in, and notes each; a graph adds up the inputs and the first weight."""
    made: list[str] = []

    class Stored:
        def __init__(self, bias: float) -> None:
            self.bias = bias

        def export_model(self) -> Any:
            from io import BytesIO

            return BytesIO(f"{self.bias}".encode())

    class FakeCore:
        def get_property(self, _device: str, name: str) -> str:
            return name

        def import_model(self, blob: bytes, _device: str, _settings: object) -> Stored:
            return Stored(float(blob))

    class Package:
        __version__ = "1"
        Core = FakeCore

    def compile_graph(unet: UNet, _signature: object, _tensors: object) -> Stored:
        made.append("graph")
        return Stored(float(unet.conv_in.weight.sum()))

    monkeypatch.setattr(openvino_graphs, "_openvino", lambda: Package)
    monkeypatch.setattr(engines, "compile_graph", compile_graph)
    monkeypatch.setattr(engines, "runner", lambda stored: lambda tensors: tensors[0] + stored.bias)
    return made


def test_graphs_are_read_from_the_disk_and_damaged_ones_replaced(engine: OpenVINO, compiled: list[str], caplog: pytest.LogCaptureFixture):
    unet, inputs = unet_of(SD1), inputs_of(SD1)
    first = answers(engine, unet, *inputs)
    assert "OpenVINO compiled the UNet for 2×4×8×8 in float32 in" in caplog.text
    caplog.clear()
    assert torch.equal(answers(OpenVINO(engine.cache), unet, *inputs), first)
    assert (len(compiled), caplog.text) == (1, "")
    (folder,) = (engine.cache or Path()).iterdir()
    good = (folder / "graph.blob").read_bytes()
    for damaged, file in ((good[:-1] + b"x", "graph.blob"), (b"", "graph.blob"), (b"{}", "graph.json"), (b"\xff", "graph.json")):
        (folder / file).write_bytes(damaged)
        caplog.clear()
        assert torch.equal(answers(OpenVINO(engine.cache), unet, *inputs), first)
        assert "is damaged or of another version" in caplog.messages[0]
        assert (len(caplog.messages), (folder / "graph.blob").read_bytes()) == (2, good)
    assert len(compiled) == 5


def test_changed_weights_have_another_graph(engine: OpenVINO, compiled: list[str]):
    unet, inputs = unet_of(SD1), inputs_of(SD1)
    before = answers(engine, unet, *inputs)
    unet.conv_in.weight += 1
    assert not torch.equal(answers(engine, unet, *inputs), before)
    assert torch.equal(answers(engine, unet, *inputs), answers(OpenVINO(engine.cache), unet, *inputs))
    assert len(compiled) == 2


def test_the_graphs_on_the_disk_have_a_limit(engine: OpenVINO, compiled: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino_graphs, "MAX_CACHE_BYTES", 1)
    unet = unet_of(SD1)
    for side in (8, 16):
        answers(engine, unet, *inputs_of(SD1, side=side))
    assert len(list((engine.cache or Path()).iterdir())) == 1


def test_without_a_folder_to_write_it_still_computes(tmp_path: Path, compiled: list[str], caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    y = answers(OpenVINO(tmp_path / "file"), unet_of(SD1), *inputs_of(SD1))
    assert y.shape == (2, 4, 8, 8)
    assert "it is not kept for the next time" in caplog.text


def test_a_graph_that_does_not_convert_is_left_to_the_default_engine(
    engine: OpenVINO, compiled: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fails(*_: object) -> None:
        raise RuntimeError("no rule for aten::abacus\nand much more")

    monkeypatch.setattr(engines, "compile_graph", fails)
    unet, inputs = unet_of(SD1), inputs_of(SD1)
    network = engine.prepare(unet)
    with torch.no_grad():
        assert torch.equal(network(*inputs), answers(Torch(), unet, *inputs))
        network(*inputs)
    assert caplog.messages == ["OpenVINO cannot convert this UNet (no rule for aten::abacus); the default engine computes it."]


@pytest.mark.parametrize("make", [lambda cache: OpenVINO(cache), lambda _: Compile("eager")])
def test_changed_layers_are_left_to_the_default_engine(make: Callable[[Path], Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    unet, inputs, seen = unet_of(SD1), inputs_of(SD1), []
    plain = answers(Torch(), unet, *inputs)
    with capture_cross_attention(unet, lambda *_: seen.append(1)):
        assert torch.equal(answers(make(tmp_path), unet, *inputs), plain)
    assert seen
    tiling = circular_padding(unet, "both")
    assert torch.equal(answers(make(tmp_path), tiling, *inputs), answers(Torch(), tiling, *inputs))
    reasons = [message.partition("because ")[2] for message in caplog.messages]
    assert reasons == [f"{reason}; the default engine does." for reason in ("the attention is recorded", "the images tile seamlessly")]


def test_what_openvino_cannot_do_is_left_to_the_default_engine(engine: OpenVINO, caplog: pytest.LogCaptureFixture):
    engine.prepare(unet_of(SD1).half())
    engine.prepare(unet_of(replace(PIXELS, scale_shift=True)))
    assert "because it does not compute in float16" in caplog.messages[0]
    assert "because OpenVINO crashes" in caplog.messages[1]


def test_an_offloaded_network_is_loaded_for_its_graph_and_unloaded_after(engine: OpenVINO, compiled: list[str]):
    unet, inputs = unet_of(replace(SD1, channels=(64, 128))), inputs_of(SD1)
    with torch.device("meta"):
        empty = UNet(unet.config).eval()
    SequentialOffload().add(empty, unet.state_dict(), lambda tensor: tensor.clone(), lambda _: None, "here")
    assert any(weight.is_meta for weight in empty.parameters())
    assert torch.equal(answers(engine, empty, *inputs), answers(engine, unet, *inputs))
    assert any(weight.is_meta for weight in empty.parameters())
    assert len(compiled) == 1  # the same weights


def test_a_run_with_an_adapter_and_an_engine(tiny_model: LatentDiffusion, engine: OpenVINO, compiled: list[str]):
    rank_1 = {"lora_up": torch.ones(32, 1), "lora_down": torch.ones(1, 6, 3, 3)}
    lora = lora_of({f"lora_unet_conv_in.{name}.weight": tensor for name, tensor in rank_1.items()})
    runs = [with_adapters(engine(tiny_model), [lora]), engine(with_adapters(tiny_model, [lora])), engine(tiny_model)]
    first, second, plain = (generate(model, "a red apple", steps=2)[0] for model in runs)
    assert first.provenance.engine == "openvino"
    assert first.image.tobytes() == second.image.tobytes() != plain.image.tobytes()
    assert len(compiled) == 2  # the two with the adapter share one


@pytest.mark.long
@torch.no_grad()
def test_compile_runs_blocks_of_equal_shapes_as_one(caplog: pytest.LogCaptureFixture):
    unet, inputs = unet_of(SD1), inputs_of(SD1)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network = Compile(backend).prepare(unet)
    assert_rounded(network(*inputs), unet(*inputs), NETWORK_TERMS)
    count = len(graphs)
    assert 0 < count < sum(isinstance(module, engines.ResBlock | engines.TransformerBlock) for module in unet.modules())
    unet.conv_in.weight += 1
    assert_rounded(Compile(backend).prepare(unet)(*inputs), unet(*inputs), NETWORK_TERMS)
    assert len(graphs) == count  # neither other weights nor another run compile again
    assert "the first call of the UNet for 2×4×8×8 in float32 took" in caplog.text


@pytest.mark.long
@torch.no_grad()
def test_compile_with_its_own_backend():
    unet, inputs = unet_of(SD1), inputs_of(SD1)
    assert_rounded(answers(Compile(), unet, *inputs), unet(*inputs), NETWORK_TERMS)


@pytest.mark.parametrize(
    ("name", "device", "missing", "message"),
    [
        ("openvno", "cpu", "", "Did you mean 'openvino'"),
        ("openvino", "cpu", "openvino", r"pip install 'daguerre\[openvino\]'"),
        ("openvino", "cuda", "", "computes on the CPU"),
        ("compile", "cpu", "g++", "needs a C\\+\\+ compiler"),
        ("compile", "cuda", "triton", "pip install triton"),
    ],
)
def test_what_is_missing_is_said(name: str, device: str, missing: str, message: str, monkeypatch: pytest.MonkeyPatch):
    if missing == "g++":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif missing:
        monkeypatch.setattr(engines, "find_spec", lambda _: None)
    with pytest.raises(DaguerreError, match=message):
        engine_by_name(name, torch.device(device))


def test_engines_are_found_by_name():
    assert engine_by_name("torch", CPU) == Torch()
    assert engine_by_name("openvino", CPU) == OpenVINO()
