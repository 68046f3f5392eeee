"""The R-precision protocol: 99 distractors, half with the same thing; held-out prompts are not in the training split."""

from dataclasses import replace

import numpy as np
import pytest

from daguerre.data import EmojiDataset, ShapesDataset, is_held_out
from daguerre.data.colours import PAINTS
from daguerre.data.emoji.dataset import EmojiScene, PlacedThing
from daguerre.data.emoji.names import with_article
from daguerre.data.shapes import SHAPES
from daguerre.errors import DaguerreError
from daguerre.evaluation.prompts_emoji import FULL_IMAGE, EvalPrompt, held_out_prompts, known_prompts
from daguerre.evaluation.prompts_shapes import shapes_prompts


@pytest.fixture(scope="module")
def source() -> EmojiDataset:
    return EmojiDataset(64)


@pytest.fixture(scope="module")
def prompts(source: EmojiDataset) -> list[EvalPrompt]:
    return [*known_prompts(source, 12, seed=3), *held_out_prompts(source, 8, seed=3)]


def test_each_prompt_has_99_distractors_half_with_its_thing(prompts: list[EvalPrompt], source: EmojiDataset):
    bases = {thing.base for thing in source.things}
    for prompt in prompts:
        assert len({candidate.prompt for candidate in prompt.candidates}) == 100
        things = [base for base in bases if base in prompt.prompt]
        assert all(any(base in distractor.prompt for base in things) for distractor in prompt.distractors[:49])
    kinds = [prompt.kind for prompt in prompts]
    assert {kind: kinds.count(kind) for kind in kinds} == {"known": 12, "colour": 8, "background": 8, "pair": 8, "and": 8}


def test_held_out_prompts_are_not_in_the_training_split(prompts: list[EvalPrompt], source: EmojiDataset):
    things = {thing.name: thing for thing in source.things}
    words = {f"{colour} {thing.base}": (thing.base, colour) for thing in source.things for colour in source.colours_of(thing)}
    written = {with_article(thing.name): thing.name for thing in source.things}
    for prompt in prompts:
        bare = prompt.prompt.removeprefix("a ").removeprefix("an ").removeprefix("the ")
        if prompt.kind == "colour":
            assert is_held_out("colour", *words[bare])
        elif prompt.kind == "background":
            name, _, ground = bare.partition(" on a")
            assert is_held_out("background", things[name].name, ground.split()[-2])
        elif prompt.kind == "known":
            assert bare in things
        else:
            assert is_held_out("pair", *sorted(written[words] for _, words in prompt.candidate.parts))


def test_true_render_shows_the_prompt(source: EmojiDataset, prompts: list[EvalPrompt]):
    """The render of a known prompt is the thing in the centre of a white background."""
    for prompt in prompts[:12]:
        bare = prompt.prompt.removeprefix("a ").removeprefix("an ").removeprefix("the ")
        thing = next(thing for thing in source.things if thing.name == bare)
        expected = source.render(EmojiScene("single", (PlacedThing(thing),), ""))
        assert prompt.image.tobytes() == expected.tobytes()
    for prompt in prompts[12:]:
        assert prompt.image.size == (64, 64)
        assert np.asarray(prompt.image).std() > 10


def test_pair_render_matches_the_relation(source: EmojiDataset):
    from daguerre.evaluation.prompts_emoji import _pair

    cat, pizza = (next(thing for thing in source.things if thing.name == name) for name in ("cat", "pizza"))
    for relation, axis, sign in (("left", 1, -1), ("right", 1, 1), ("above", 0, -1), ("below", 0, 1)):
        scene = _pair(cat, relation, pizza)
        centres = []
        for placed in scene.placed:
            alone = np.asarray(source.render(replace(scene, placed=(placed,))), dtype=float)
            centres.append(np.argwhere(alone.min(-1) < 200).mean(0)[axis])
        assert sign * (centres[0] - centres[1]) > 20


def test_pair_candidates_have_a_box_per_thing(prompts: list[EvalPrompt]):
    boxes = {" to the left of ": ((0, 0.25, 0.5, 0.75), (0.5, 0.25, 1, 0.75)), " above ": ((0.25, 0, 0.75, 0.5), (0.25, 0.5, 0.75, 1))}
    boxes |= {" to the right of ": boxes[" to the left of "][::-1], " below ": boxes[" above "][::-1]}
    boxes |= {" and ": boxes[" to the left of "]}  # from left to right
    with_relation, and_pair = ([prompt for prompt in prompts if prompt.kind == kind][-1] for kind in ("pair", "and"))
    assert " and " in and_pair.prompt
    for candidate in (*with_relation.candidates, *and_pair.candidates):
        word = next((word for word in boxes if word in candidate.prompt), None)
        expected = ((FULL_IMAGE, candidate.prompt),) if word is None else tuple(zip(boxes[word], candidate.prompt.split(word), strict=True))
        assert candidate.parts == expected


def test_seed_determines_the_prompts(source: EmojiDataset):
    first, again, other = (held_out_prompts(source, 3, seed=seed, kinds=("pair",)) for seed in (5, 5, 6))
    assert [(t.prompt, t.distractors) for t in first] == [(t.prompt, t.distractors) for t in again]
    assert [t.prompt for t in first] != [t.prompt for t in other]


def test_too_many_prompts_raise(source: EmojiDataset):
    with pytest.raises(DaguerreError, match="in 1 … 1861"):
        known_prompts(source, 2000, seed=0)
    with pytest.raises(DaguerreError, match="held-out 'background' prompts, not 5000"):
        held_out_prompts(source, 5000, seed=0, kinds=("background",))


def test_shapes_distractors_differ_in_one_property_and_render_shows_the_prompt():
    prompts = shapes_prompts(32, 12, seed=3)
    assert [prompt.kind for prompt in prompts] == [kind for kind in ("known", "colour", "background", "count") for _ in range(12)]
    trained = ShapesDataset(32, split="train")
    for prompt in prompts:
        assert len({candidate.prompt for candidate in prompt.candidates}) == 100
        words = prompt.prompt.split()
        colour = words[1]
        shape = next(name for name in SHAPES if words[2].startswith(name))
        others = [other.prompt for other in prompt.distractors]
        assert sum(shape in prompt and colour not in prompt for prompt in others) >= 8
        assert sum(colour in prompt and shape not in prompt for prompt in others) >= 8
        assert trained.allowed("shape colour", colour, shape) == (prompt.kind != "colour")
        ground = words[-2] if "background" in words else "white"
        assert trained.allowed("shape background", shape, ground) or prompt.kind != "known"
        pixels = np.asarray(prompt.image).reshape(-1, 3).astype(int)
        shown = (np.abs(pixels - PAINTS[colour]).max(axis=1) < 60).mean()  # a paint varies a little
        assert shown > 0.03
        assert (np.abs(pixels - PAINTS[ground]).max(axis=1) == 0).mean() > 0.2


def test_shapes_prompts_repeat_with_other_renders():
    again = [prompt for prompt in shapes_prompts(32, 20, seed=0) if prompt.kind == "colour"]
    assert len(again) == 20 > len({prompt.prompt for prompt in again})
    assert len({prompt.image.tobytes() for prompt in again}) == 20
