"""The R-precision protocol: 99 others, half of the same thing, none of them true; held-out prompts that training never shows."""

from dataclasses import replace

import numpy as np
import pytest

from daguerre.data import EmojiDataset, ShapesDataset, is_held_out
from daguerre.data.colours import PAINTS
from daguerre.data.emoji.dataset import EmojiScene, PlacedThing
from daguerre.data.emoji.names import with_article
from daguerre.data.shapes import SHAPES
from daguerre.errors import DaguerreError
from daguerre.evaluation.prompts_emoji import WHOLE, EvalPrompt, held_out_prompts, known_prompts
from daguerre.evaluation.prompts_shapes import shapes_prompts


@pytest.fixture(scope="module")
def source() -> EmojiDataset:
    return EmojiDataset(64)


@pytest.fixture(scope="module")
def trials(source: EmojiDataset) -> list[EvalPrompt]:
    return [*known_prompts(source, 12, seed=3), *held_out_prompts(source, 8, seed=3)]


def test_each_prompt_is_told_from_99_others_half_of_its_thing(trials: list[EvalPrompt], source: EmojiDataset):
    bases = {thing.base for thing in source.things}
    for trial in trials:
        assert len({claim.prompt for claim in trial.candidates}) == 100
        things = [base for base in bases if base in trial.prompt]
        assert all(any(base in distractor.prompt for base in things) for distractor in trial.distractors[:49])
    kinds = [trial.kind for trial in trials]
    assert {kind: kinds.count(kind) for kind in kinds} == {"known": 12, "colour": 8, "background": 8, "pair": 8, "and": 8}


def test_held_out_prompts_are_held_out(trials: list[EvalPrompt], source: EmojiDataset):
    things = {thing.name: thing for thing in source.things}
    words = {f"{colour} {thing.base}": (thing.base, colour) for thing in source.things for colour in source.colours_of(thing)}
    written = {with_article(thing.name): thing.name for thing in source.things}
    for trial in trials:
        bare = trial.prompt.removeprefix("a ").removeprefix("an ").removeprefix("the ")
        if trial.kind == "colour":
            assert is_held_out("colour", *words[bare])
        elif trial.kind == "background":
            name, _, ground = bare.partition(" on a")
            assert is_held_out("background", things[name].name, ground.split()[-2])
        elif trial.kind == "known":
            assert bare in things
        else:
            assert is_held_out("pair", *sorted(written[words] for _, words in trial.candidate.parts))


def test_the_true_render_shows_the_prompt(source: EmojiDataset, trials: list[EvalPrompt]):
    """A known thing's render is the thing in the middle of white paper."""
    for trial in trials[:12]:
        bare = trial.prompt.removeprefix("a ").removeprefix("an ").removeprefix("the ")
        thing = next(thing for thing in source.things if thing.name == bare)
        expected = source.render(EmojiScene("single", (PlacedThing(thing),), ""))
        assert trial.image.tobytes() == expected.tobytes()
    for trial in trials[12:]:
        assert trial.image.size == (64, 64)
        assert np.asarray(trial.image).std() > 10


def test_a_pairs_render_has_its_things_where_the_prompt_says(source: EmojiDataset):
    from daguerre.evaluation.prompts_emoji import _beside

    cat, pizza = (next(thing for thing in source.things if thing.name == name) for name in ("cat", "pizza"))
    for relation, axis, sign in (("left", 1, -1), ("right", 1, 1), ("above", 0, -1), ("below", 0, 1)):
        scene = _beside(cat, relation, pizza)
        centres = []
        for placed in scene.placed:
            alone = np.asarray(source.render(replace(scene, placed=(placed,))), dtype=float)
            centres.append(np.argwhere(alone.min(-1) < 200).mean(0)[axis])
        assert sign * (centres[0] - centres[1]) > 20


def test_a_pairs_claim_speaks_of_the_two_places(trials: list[EvalPrompt]):
    boxes = {" to the left of ": ((0, 0.25, 0.5, 0.75), (0.5, 0.25, 1, 0.75)), " above ": ((0.25, 0, 0.75, 0.5), (0.25, 0.5, 0.75, 1))}
    boxes |= {" to the right of ": boxes[" to the left of "][::-1], " below ": boxes[" above "][::-1]}
    boxes |= {" and ": boxes[" to the left of "]}  # side by side as one reads
    told, joined = ([trial for trial in trials if trial.kind == kind][-1] for kind in ("pair", "and"))
    assert " and " in joined.prompt
    for claim in (*told.candidates, *joined.candidates):
        word = next((word for word in boxes if word in claim.prompt), None)
        expected = ((WHOLE, claim.prompt),) if word is None else tuple(zip(boxes[word], claim.prompt.split(word), strict=True))
        assert claim.parts == expected


def test_the_same_seed_gives_the_same_trials(source: EmojiDataset):
    first, again, other = (held_out_prompts(source, 3, seed=seed, kinds=("pair",)) for seed in (5, 5, 6))
    assert [(t.prompt, t.distractors) for t in first] == [(t.prompt, t.distractors) for t in again]
    assert [t.prompt for t in first] != [t.prompt for t in other]


def test_more_than_there_are_is_refused(source: EmojiDataset):
    with pytest.raises(DaguerreError, match="there are 1861 things"):
        known_prompts(source, 2000, seed=0)
    with pytest.raises(DaguerreError, match="held-out background prompts were asked for; there are"):
        held_out_prompts(source, 5000, seed=0, kinds=("background",))


def test_shapes_are_told_from_all_that_differ_in_one_thing_and_the_render_shows_what_is_asked():
    found = shapes_prompts(32, 12, seed=3)
    assert [trial.kind for trial in found] == [kind for kind in ("known", "colour", "background", "count") for _ in range(12)]
    trained = ShapesDataset(32, split="train")
    for trial in found:
        assert len({claim.prompt for claim in trial.candidates}) == 100
        words = trial.prompt.split()
        colour = words[1]
        shape = next(name for name in SHAPES if words[2].startswith(name))
        others = [other.prompt for other in trial.distractors]
        assert sum(shape in prompt and colour not in prompt for prompt in others) >= 8
        assert sum(colour in prompt and shape not in prompt for prompt in others) >= 8
        assert trained.allowed("shape colour", colour, shape) == (trial.kind != "colour")
        ground = words[-2] if "background" in words else "white"
        assert trained.allowed("shape background", shape, ground) or trial.kind != "known"
        pixels = np.asarray(trial.image).reshape(-1, 3).astype(int)
        shown = (np.abs(pixels - PAINTS[colour]).max(axis=1) < 60).mean()  # a paint varies a little
        assert shown > 0.03
        assert (np.abs(pixels - PAINTS[ground]).max(axis=1) == 0).mean() > 0.2


def test_shapes_are_asked_for_again_where_there_are_few():
    again = [trial for trial in shapes_prompts(32, 20, seed=0) if trial.kind == "colour"]
    assert len(again) == 20 > len({trial.prompt for trial in again})
    assert len({trial.image.tobytes() for trial in again}) == 20
