"""`daguerre score`: the embedded CLIP names images of emoji, and its numbers are those of transformers."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from daguerre.cli.main import main
from daguerre.data import EmojiDataset, EmojiMix
from daguerre.data.images import to_tensor
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.weights.catalog import clip_folder

NAMES = ("cat face", "pizza", "red apple", "guitar", "octopus")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    emoji = EmojiDataset(32, mix=EmojiMix(recoloured=0, background=0, pair=0, centred=1))
    return [emoji.sample(next(t.index for t in emoji.things if t.name == name), np.random.default_rng(0)).image for name in NAMES]


def test_each_image_matches_its_own_name(images):
    scorer = load_clip_scorer()
    for number, image in enumerate(images):
        scores = scorer.score(image, [f"a {name}" for name in NAMES])
        assert max(range(len(NAMES)), key=lambda i: scores[i].similarity) == number
        assert math.isclose(sum(score.probability for score in scores), 1, rel_tol=1e-6)


def test_probabilities_are_those_of_transformers(images):
    reference = transformers.CLIPModel.from_pretrained(clip_folder()).eval().float()
    tokens = transformers.CLIPTokenizer.from_pretrained(clip_folder())(
        list(NAMES),
        padding="max_length",
        max_length=reference.config.text_config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    side = reference.config.vision_config.image_size
    image = images[0].resize((side, side), Image.Resampling.BICUBIC)
    with torch.no_grad():
        expected = reference(input_ids=tokens.input_ids, pixel_values=to_tensor(image)[None]).logits_per_image.softmax(-1)[0]
    scores = load_clip_scorer().score(image, NAMES)
    assert torch.allclose(torch.tensor([score.probability for score in scores]), expected, atol=1e-3)


def test_the_command_prints_the_best_text_first_and_json(images, tmp_path, capsys):
    images[1].save(tmp_path / "image.png")
    assert main(["score", str(tmp_path / "image.png"), "a cat face", "a pizza"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("a pizza")
    assert lines[2].startswith("a cat face")
    assert main(["score", str(tmp_path / "image.png"), "a cat face", "a pizza", "--json"]) == 0
    cat, pizza = json.loads(capsys.readouterr().out)
    assert (cat["text"], pizza["text"]) == ("a cat face", "a pizza")
    assert pizza["similarity"] > cat["similarity"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat.png"], "no text to compare"),
        (["none.png", "a cat"], "none.png"),
        (["cat.png", "a cat", "--clip=none"], "There is no directory 'none'"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("cat.png")
    assert main(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
