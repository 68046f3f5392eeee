"""Adapters on the command line: by file, by tag, by name in a folder; recorded in the image and attached again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.metadata.write import read_provenance
from tests.adapters.test_lora import kohya

FAST = ("--steps=2", "--size=32")


@pytest.fixture
def loras(tiny_model: LatentDiffusion, tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    (folder / "sub").mkdir(parents=True)
    save_file(kohya(tiny_model, 1), folder / "ink.safetensors", {"ss_output_name": "ink-v2"})
    save_file(kohya(tiny_model, 2), folder / "sub" / "fox.safetensors", {"ss_tag_frequency": '{"1_fox": {"fox": 5, "tail": 9}}'})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 32)}}, tmp_path / "mycat.pt")
    return folder


def records(path: str):
    return read_provenance(path)[1].request.adapters


def test_a_lora_by_file_tag_and_name_gives_the_same_image(run, loras):
    for name, prompt, options in (
        ("file", "a red apple", ["--lora=loras/ink.safetensors:0.5"]),
        ("tag", "a red apple <lora:ink:0.5>", ["--lora-dir=loras"]),
        ("name", "a red apple", ["--lora=ink:0.5", "--lora-dir=loras"]),
        ("trainer's name", "a red apple<lora:ink-v2:0.5>", ["--lora-dir=loras"]),
        ("plain", "a red apple", []),
    ):
        code, _, err = run("txt2img", prompt, *options, *FAST, f"--out={name}.png")
        assert (code, err) == (0, ""), name
    pixels = [read_provenance(f"{name}.png")[0].tobytes() for name in ("file", "tag", "name", "trainer's name", "plain")]
    assert len(set(pixels[:4])) == 1
    assert pixels[4] != pixels[0]
    (record,) = records("tag.png")
    assert (record.kind, record.name, record.path, record.scale) == ("lora", "ink", "loras/ink.safetensors", 0.5)
    assert len(record.sha256) == 64


def test_reproduce_attaches_the_adapters_again(run, loras):
    options = ["--lora=loras/ink.safetensors:0.2:0.9", "--lora=loras/sub/fox.safetensors:-0.3", "--embedding=mycat.pt"]
    assert run("txt2img", "a mycat apple", *options, *FAST, "--out=a.png")[0] == 0
    assert [(record.kind, record.name, record.text_scale, record.scale) for record in records("a.png")] == [
        ("lora", "ink", 0.2, 0.9),
        ("lora", "fox", None, -0.3),
        ("embedding", "mycat", None, 1.0),
    ]
    text = run("inspect", "a.png")[1].splitlines()
    assert text[1] == "a mycat apple <lora:ink:0.2:0.9> <lora:fox:-0.3>"
    assert 'Lora hashes: "ink: ' in text[2]
    code, out, err = run("reproduce", "a.png")
    assert (code, out) == (0, "identical\n"), err
    moved = Path("moved")
    moved.mkdir()
    for path in (*loras.rglob("*.safetensors"), Path("mycat.pt")):
        path.rename(moved / path.name)
    code, _, err = run("reproduce", "a.png")
    assert code == 1
    assert "does not exist any more; give the folder that has it with --adapters" in err
    assert run("reproduce", "a.png", "--adapters=moved")[1] == "identical\n"
    save_file({"lora_unet_x.diff": torch.ones(1)}, moved / "ink.safetensors")
    code, _, err = run("reproduce", "a.png", "--adapters=moved")
    assert code == 1
    assert "has changed since it was recorded" in err


def test_unknown_tags_and_names_give_a_note(run, loras):
    code, _, err = run("txt2img", "a cat <lora:inkk:1> <hypernet:x:1>", "--lora-dir=loras", *FAST, "--out=a.png")
    assert code == 0
    assert "the LoRA 'inkk' of the prompt is ignored; 'loras' has no such LoRA; did you mean 'ink'" in err
    assert "<hypernet:x:1> is ignored" in err
    assert not records("a.png")
    assert "with --lora-dir" in run("txt2img", "a cat <lora:ink>", *FAST, "--out=b.png")[2]
    err = run("txt2img", "a cat <lora:ink>", "a dog <lora:fox>", "--lora-dir=loras", *FAST, "--out=c.png")[2]
    assert "the tags of the first prompt count for all prompts" in err
    assert [record.name for record in records("c-1.png")] == ["ink"]


def test_the_same_lora_twice_adds_up(run, loras):
    code, _, err = run("txt2img", "a cat", "--lora=loras/ink.safetensors:0.4", "--lora=loras/ink.safetensors", *FAST, "--out=a.png")
    assert code == 0
    assert "is given 2 times; its strengths add up" in err


def test_wrong_options_are_refused(run, loras, tmp_path):
    (loras / "sub" / "ink.safetensors").write_bytes((loras / "ink.safetensors").read_bytes())
    for options, message in (
        (["--lora=ink", "--lora-dir=loras"], "'ink' is the name of 2 files"),
        (["--lora=loras/ink.safetensors:1000"], "The scale of 'ink' is 1000.0"),
        (["--lora=loras/ink.safetensors:nan"], "The scale of 'ink' is nan"),
        (["--lora=foxx", "--lora-dir=loras"], "did you mean 'fox'"),
        (["--embedding=none.pt"], "There is no embedding 'none.pt'"),
    ):
        code, out, err = run("txt2img", "a cat", *options, *FAST)
        assert (code, out) == (2, ""), options
        assert message in err
    code, _, err = run("txt2img", "a cat <lora:fox:much>", "--lora-dir=loras", *FAST)
    assert code == 2
    assert "write <lora:NAME:0.8>" in err
    Path("text.safetensors").write_text("no")
    code, _, err = run("txt2img", "a cat", "--lora=text.safetensors", *FAST)
    assert code == 2
    assert "cut short" in err
    assert not list(tmp_path.glob("*.png"))


def test_embeddings_of_a_folder_are_used_by_name(run, loras):
    assert run("txt2img", "a cat", "--negative-prompt=MyCat", "--embedding-dir=.", *FAST, "--out=a.png")[0] == 0
    assert [record.name for record in records("a.png")] == ["mycat"]
    assert run("txt2img", "a cat", "--embedding-dir=.", *FAST, "--out=b.png")[0] == 0
    assert not records("b.png")
    assert run("txt2img", "a kitty", "--embedding=mycat.pt:kitty", *FAST, "--out=c.png")[0] == 0
    assert [record.name for record in records("c.png")] == ["kitty"]


def test_other_commands_take_loras(run, loras):
    assert run("txt2img", "a cat", *FAST, "--out=base.png")[0] == 0
    assert run("img2img", "base.png", "a cat", "--lora=loras/ink.safetensors", "--steps=2", "--out=a.png")[0] == 0
    assert run("attention", "a cat", "--lora=loras/ink.safetensors", *FAST, "--out=b.png")[0] == 0
    assert [record.name for record in records("a.png")] == ["ink"]
    code, _, err = run("txt2img", "a cat", "--lora=loras/ink.safetensors", "--hires-scale=1.5", "--low-memory", *FAST, "--out=c.png")
    assert (code, err) == (0, "")


def test_inspect_describes_adapters(run, loras):
    code, out, _ = run("inspect", "loras/sub/fox.safetensors")
    assert code == 0
    assert "3 LoRA" in out
    assert "kohya names" in out
    assert "trigger words    tail, fox" in out
    assert "'mycat' (2 vectors)" in run("inspect", "mycat.pt")[1]
    assert '"ranks": [' in run("inspect", "loras/ink.safetensors", "--json")[1]


def test_preprocess_writes_a_map_and_keeps_the_image(run, tmp_path):
    assert run("txt2img", "a cat", *FAST, "--out=base.png")[0] == 0
    before = Path("base.png").read_bytes()
    assert run("preprocess", "canny", "base.png")[:2] == (0, "base-canny.png\n")
    assert run("preprocess", "canny", "base.png")[1] == "base-canny-2.png\n"
    code, _, err = run("preprocess", "canny", "base.png", "--out=base.png")
    assert code == 2
    assert "is the input image" in err
    assert Path("base.png").read_bytes() == before


def test_a_controlnet_is_recorded_and_attached_again(run, tiny_model, tmp_path):
    from daguerre.models.controlnet import ControlNetConfig, ControlNetModel

    torch.manual_seed(0)
    network = ControlNetModel(ControlNetConfig(replace(tiny_model.unet.config, in_channels=6), (4, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), "edges.safetensors")
    assert run("txt2img", "a cat", *FAST, "--out=base.png")[0] == 0
    assert run("preprocess", "blur", "base.png", "--out=map.png")[0] == 0
    options = ["--controlnet=edges.safetensors:0.5:0-0.5", "--control-image=map.png"]
    code, _, err = run("txt2img", "a cat", *options, *FAST, "--out=a.png")
    assert (code, err) == (0, "")
    assert read_provenance("a.png")[0].tobytes() != read_provenance("base.png")[0].tobytes()
    (record,) = records("a.png")
    assert (record.kind, record.name, record.scale, record.end) == ("controlnet", "edges", 0.5, 0.5)
    assert run("reproduce", "a.png")[:2] == (0, "identical\n")
    code, _, err = run("txt2img", "a cat", "--controlnet=edges.safetensors", *FAST)
    assert code == 2
    assert "1 ControlNets and T2I-Adapters and 0 condition maps" in err
    Path("map.png").rename(tmp_path / "loras.png")
    code, _, err = run("reproduce", "a.png")
    assert code == 2
    assert "give its file with --adapters FOLDER" in err


def test_t2i_and_ip_adapters_are_described_recorded_and_attached_again(run, tiny_model, tmp_path):
    from daguerre.adapters.ip_adapter import cross_attention_paths
    from daguerre.models.clip import CLIPVision, CLIPVisionConfig
    from daguerre.models.t2i_adapter import T2IAdapterConfig, T2IAdapterModel

    torch.manual_seed(0)
    unet, factor = tiny_model.unet, tiny_model.autoencoder.downsample_factor
    assert factor == 4
    D = unet.config.context_width
    vision = CLIPVision(CLIPVisionConfig(size=28, width=32, layers=2, heads=16, mlp_width=64, projection=24))
    save_file(vision.state_dict(), "clip.safetensors")
    tensors = {"image_proj.proj.weight": torch.randn(4 * D, 24), "image_proj.proj.bias": torch.zeros(4 * D)}
    tensors |= {"image_proj.norm.weight": torch.ones(D), "image_proj.norm.bias": torch.zeros(D)}
    for i, path in enumerate(cross_attention_paths(unet)):
        width = len(unet.get_submodule(path).to_q.weight)
        tensors |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": torch.randn(width, D) for part in "kv"}
    save_file(tensors, "image.safetensors")
    assert run("txt2img", "a cat", *FAST, "--out=base.png")[0] == 0
    options = ["--ip-adapter=image.safetensors:0.5:0-0.5", "--ip-image=base.png", "--ip-image=base.png"]
    code, _, err = run("txt2img", "a cat", *options, *FAST)
    assert code == 1
    assert "give its folder or file with --image-encoder" in err
    code, _, err = run("txt2img", "a cat", *options, "--image-encoder=clip.safetensors", *FAST, "--out=a.png")
    assert (code, err) == (0, "")
    assert read_provenance("a.png")[0].tobytes() != read_provenance("base.png")[0].tobytes()
    (record,) = records("a.png")
    assert (record.kind, record.name, record.scale, record.end, record.images) == ("ip-adapter", "image", 0.5, 0.5, 2)
    assert run("reproduce", "a.png")[:2] == (0, "identical\n")
    assert "This is a plain adapter." in run("inspect", "image.safetensors")[1]
    config = T2IAdapterConfig(channels=(16, 32), halved=(False, True))
    save_file(T2IAdapterModel(config).state_dict(), "t2i.safetensors")
    text = run("inspect", "t2i.safetensors")[1]
    assert "t2i-adapter, diffusers names" in text
    assert "full adapter for maps of 3 channels" in text
    code, _, err = run("txt2img", "a cat", "--t2i-adapter=t2i.safetensors", "--control-image=base.png", *FAST)
    assert "is for models with features of the channels (16, 32) at 1/8 of the image, and 'tiny' has" in err
