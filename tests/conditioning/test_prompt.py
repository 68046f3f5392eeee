"""The prompt language: known prompts, and generated ones against the web UI's algorithm (first the schedule, then the weights)."""

import contextlib
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.conditioning.chunks import split_into_chunks
from daguerre.conditioning.prompt import Prompt, is_empty
from daguerre.errors import DaguerreError

Evaluate = Callable[[int, int], str]


def evaluate(prompt: str, step: int = 0, steps: int = 10) -> list[list[tuple[str, float]]]:
    """The weighted text of a prompt of one part, as plain lists."""
    (line,) = Prompt.parse(prompt).at(step, steps)
    return [[(piece.text, piece.weight) for piece in segment] for segment in line]


def texts(prompt: str, steps: int = 10) -> list[str]:
    """The text at each step, without weights."""
    return ["".join(text for segment in evaluate(prompt, step, steps) for text, _ in segment) for step in range(steps)]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("plain words", [("plain words", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(very ((loud)))", [("very ", 1.1), ("loud", 1.1**3)]),
        ("less [loud] here", [("less ", 1), ("loud", 1 / 1.1), (" here", 1)]),
        ("(red:1.3) apple", [("red", 1.3), (" apple", 1)]),
        ("(red : 1.3 )", [("red ", 1.3)]),
        ("(red:.5)(blue:-1)(grey:+2.)", [("red", 0.5), ("blue", -1), ("grey", 2)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(at 10:30:1.2)", [("at 10:30", 1.2)]),
        ("(red:blue)", [("red:blue", 1.1)]),
        ("(hmm:...)", [("hmm:...", 1.1)]),
        (r"\(literal\) \[signs\] \\ \: \| ", [(r"(literal) [signs] \ : | ", 1)]),
        ("ends in a backslash\\", [("ends in a backslash", 1)]),
        (r"(a\:1.3)", [("a:1.3", 1.1)]),
        ("a:1.3 b | c", [("a:1.3 b | c", 1)]),
        ("[red:blue]", [("red:blue", 1 / 1.1)]),
        ("[a:b:c:3]", [("a:b:c:3", 1 / 1.1)]),
        ("[a|b:3]", [("a|b:3", 1 / 1.1)]),
        ("(open to the end", [("open to the end", 1.1)]),
        ("x [open to the end", [("x ", 1), ("open to the end", 1 / 1.1)]),
        ("[a (b] c", [("a ", 1 / 1.1), ("b c", 1)]),
        ("closed) too ] often", [("closed) too ] often", 1)]),
        ("AN ANDROID BREAKS", [("AN ANDROID BREAKS", 1)]),
        ("at 3:30", [("at 3:30", 1)]),
        ("()[]", []),
        ("", []),
    ],
)
def test_weights(prompt, pieces):
    (segment,) = evaluate(prompt)
    assert segment == [(text, pytest.approx(weight, rel=1e-12)) for text, weight in pieces]


def test_break_splits_a_prompt_and_keeps_weights():
    assert evaluate("a BREAK b") == [[("a ", 1)], [(" b", 1)]]
    assert evaluate("(a BREAK b:1.5) c") == [[("a ", 1.5)], [(" b", 1.5), (" c", 1)]]
    assert evaluate("BREAK BREAK") == [[], [(" ", 1)], []]


@pytest.mark.parametrize(
    ("prompt", "steps", "expected"),
    [
        ("a [cat:dog:3]", 5, ["a cat"] * 3 + ["a dog"] * 2),
        ("a [cat:dog:.25]", 8, ["a cat"] * 2 + ["a dog"] * 6),
        ("a [cat:dog:0.5]", 5, ["a cat"] * 2 + ["a dog"] * 3),
        ("a [cat::.5]", 4, ["a cat"] * 2 + ["a "] * 2),
        ("a [:dog:.5]", 4, ["a "] * 2 + ["a dog"] * 2),
        ("a [dog:2]", 4, ["a "] * 2 + ["a dog"] * 2),
        ("a [dog: 2 ]", 4, ["a "] * 2 + ["a dog"] * 2),
        ("[cat:dog:0]", 3, ["dog"] * 3),
        ("[cat:dog:-1]", 3, ["dog"] * 3),
        ("[cat:dog:1.0]", 3, ["cat"] * 3),
        ("[cat:dog:1]", 3, ["cat", "dog", "dog"]),
        ("[cat:dog:1e99999]", 3, ["cat"] * 3),
        ("a[b:[c:d:2]:1]e", 4, ["abe", "ace", "ade", "ade"]),
        ("[a|b]", 4, ["a", "b", "a", "b"]),
        ("[fe|]male", 4, ["female", "male", "female", "male"]),
        ("[a|b|c] [x|y]", 4, ["a x", "b y", "c x", "a y"]),
        ("[[cat:dog:2]|cow]", 5, ["cat", "cow", "dog", "cow", "dog"]),
        ("((a][:b:c [d:3]", 4, ["a]:b:c "] * 3 + ["a]:b:c d"]),
    ],
)
def test_schedules(prompt, steps, expected):
    assert texts(prompt, steps) == expected


def test_a_weight_can_be_scheduled():
    assert evaluate("(a:[1:1.5:.5]) b", 0) == [[("a b", 1)]]
    assert evaluate("(a:[1:1.5:.5]) b", 5) == [[("a", 1.5), (" b", 1)]]
    assert evaluate("(a:[2|x])", 1) == [[("a:x", 1.1)]]


def test_and_joins_parts_with_weights():
    prompt = Prompt.parse("a cat AND (a dog:1.2) :0.5 AND [x:y:1] : -1.5")
    assert [part.weight for part in prompt.parts] == [1, 0.5, -1.5]
    assert ["".join(piece.text for piece in line[0]) for line in prompt.at(2, 4)] == ["a cat ", " a dog", " y"]
    assert len(Prompt.parse("a cat AND a dog", composed=False).parts) == 1
    assert [part.weight for part in Prompt.parse("at 3:30 AND dog").parts] == [30, 1]


def test_the_syntax_tree_as_text():
    assert Prompt.parse(r"a (red:1.3) [cat:dog:.5] \(BREAK\) AND [x|y] :0.7").tree().splitlines() == [
        "prompt, composed of parts",
        "├─ part 1 of 2, weight 1",
        "│  ├─ 'a '",
        "│  ├─ weight × 1.3",
        "│  │  └─ 'red'",
        "│  ├─ scheduled",
        "│  │  ├─ first .5 of all steps",
        "│  │  │  └─ 'cat'",
        "│  │  └─ then",
        "│  │     └─ 'dog'",
        "│  ├─ ' ('",
        "│  ├─ BREAK: the following text starts a new chunk",
        "│  └─ ') '",
        "└─ part 2 of 2, weight 0.7",
        "   └─ alternating, one per step",
        "      ├─ 1 of 2",
        "      │  └─ 'x'",
        "      └─ 2 of 2",
        "         └─ 'y'",
    ]
    assert Prompt.parse("(a:[1:2:3])").tree().splitlines()[1:4] == [
        "└─ weight × a scheduled number",
        "   ├─ number",
        "   │  └─ scheduled",
    ]
    assert Prompt.parse("").tree() == "prompt\n└─ nothing"


def test_warnings_have_positions():
    prompt = Prompt.parse("a (b AND c) [d")
    assert [(warning.at, warning.message[:3]) for warning in prompt.warnings] == [(2, "'('"), (10, "')'"), (12, "'['")]
    assert not Prompt.parse(r"(a) [b] \( x:y").warnings


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (red:1.2.3) b", r"Character 8 .*'1.2.3' in '\(red:1.2.3\) b' is not a number"),
        ("x AND (red:..5)", "Character 12 .*'..5' in .* is not a number"),
        (f"(a:{'9' * 400})", "Character 4 .*is not a number"),
        ("(" * 66, "Character 65 .*deeper"),
    ],
)
def test_errors_give_the_position(prompt, words):
    with pytest.raises(DaguerreError, match=words):
        Prompt.parse(prompt)


def test_too_large_weights_are_refused():
    with pytest.raises(DaguerreError, match=r"Character 1 .*1e\+08"):
        Prompt.parse("((a:10000):10000)").at(0, 1)


def webui_weights(text: str) -> list[list[tuple[str, float]]]:
    """The web UI's second pass, over text without schedules, written from its description: a stack for each kind of bracket."""
    pieces: list[list] = []
    stacks: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for piece in pieces[stacks[kind].pop() :]:
            piece[1] *= factor

    for token in re.findall(r":\s*[+-]?[.\d]+\s*\)|\\.|[()\[\]:]|[^\\()\[\]:]+", text):
        if token in stacks:
            stacks[token].append(len(pieces))
        elif token.startswith(":") and len(token) > 1 and stacks["("]:
            close("(", float(token[1:-1]))
        elif token == ")" and stacks["("]:
            close("(", 1.1)
        elif token == "]" and stacks["["]:
            close("[", 1 / 1.1)
        elif token.startswith("\\"):
            pieces.append([token[1:], 1.0])
        else:
            for number, part in enumerate(re.split(r"\bBREAK\b", token)):
                pieces += [[None, 1.0]] * bool(number) + [[part, 1.0]] * bool(part)
    segments: list[list[tuple[str, float]]] = [[]]
    for text_piece, weight in pieces:
        if text_piece is None:
            segments.append([])
        elif segments[-1] and segments[-1][-1][1] == weight:
            segments[-1][-1] = (segments[-1][-1][0] + text_piece, weight)
        else:
            segments[-1].append((text_piece, weight))
    return segments


def concatenated(parts: list[tuple[str, Evaluate]]) -> tuple[str, Evaluate]:
    return "".join(source for source, _ in parts), lambda step, steps: "".join(evaluate_at(step, steps) for _, evaluate_at in parts)


def wrapped(before: str, part: tuple[str, Evaluate], after: str) -> tuple[str, Evaluate]:
    return before + part[0] + after, lambda step, steps: before + part[1](step, steps) + after


def scheduled(before: tuple[str, Evaluate], after: tuple[str, Evaluate], when: str) -> tuple[str, Evaluate]:
    def evaluate_at(step: int, steps: int) -> str:
        last = int(float(when) * steps) if "." in when else int(when)
        return before[1](step, steps) if step + 1 <= last else after[1](step, steps)

    return f"[{before[0]}:{after[0]}:{when}]", evaluate_at


def alternating(options: list[tuple[str, Evaluate]]) -> tuple[str, Evaluate]:
    return f"[{'|'.join(source for source, _ in options)}]", lambda step, steps: options[step % len(options)][1](step, steps)


WORDS = st.sampled_from(["cat", " ", "a red ", "x,y", " BREAK ", r"\(", r"\]", "\\\\", " 10", "🍎"]).map(
    lambda text: (text, lambda *_: text)
)
NUMBERS = st.sampled_from(["1.3", "0.5", " 2", ".7 ", "-1", "1"])
WHENS = st.sampled_from(["0", "3", ".5", "0.25", "1.0", "12"])
PARTS = st.recursive(
    WORDS,
    lambda part: st.one_of(
        st.lists(part, max_size=4).map(concatenated),
        st.tuples(part).map(lambda p: wrapped("(", p[0], ")")),
        st.tuples(part).map(lambda p: wrapped("[", p[0], "]")),
        st.tuples(part, NUMBERS).map(lambda p: wrapped("(", p[0], f":{p[1]})")),
        st.tuples(part, part, WHENS).map(lambda p: scheduled(*p)),
        st.lists(part, min_size=2, max_size=3).map(alternating),
    ),
    max_leaves=12,
)


@given(PARTS, st.integers(0, 9))
@settings(max_examples=400, deadline=None)
def test_generated_prompts_equal_the_web_ui(part, step):
    source, evaluate_at = part
    assert evaluate(source, step, 10) == webui_weights(evaluate_at(step, 10))


CHARACTERS = st.lists(st.sampled_from([*"()[]:|\\ a1.-9,日", "AND", " AND ", "BREAK", ":1.2)", ":.5]"]), max_size=60).map("".join)


@given(CHARACTERS | st.text(max_size=80), st.integers(0, 20))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_prompt_or_a_clear_error(small, source, step):
    """A valid prompt has a tree, text at each step and complete chunks."""
    try:
        prompt = Prompt.parse(source)
        lines = prompt.at(step, 20)
    except DaguerreError:
        assert re.search(r"[.\d]", source), "only numbers can be invalid here"
        return
    assert len(lines) == len(prompt.parts) >= 1
    assert prompt.tree()
    assert all(0 <= warning.at < len(source) for warning in prompt.warnings)
    for line in lines:
        assert all(piece.text and math.isfinite(piece.weight) for segment in line for piece in segment)
        for chunk in split_into_chunks(small, line):
            assert len(chunk.ids) == len(chunk.weights) == 32
            assert chunk.ids[0] == small.bos
            assert small.eos in chunk.ids


@pytest.mark.parametrize(
    "source", ["(" * 60 + "a" * 50_000, "[a|" * 20_000, ":" * 50_000, "\\" * 50_001, "1" * 50_000, ":" + " " * 50_000, "AND " * 20_000]
)
def test_long_nonsense_is_parsed_in_linear_time(source):
    """A quadratic parser would take minutes."""
    with contextlib.suppress(DaguerreError):
        Prompt.parse(source).at(0, 1)


def test_is_empty():
    assert is_empty(Prompt.parse("  ( BREAK )").at(0, 1)[0])
    assert not is_empty(Prompt.parse("[a::1]").at(0, 2)[0])
    assert is_empty(Prompt.parse("[a::1]").at(1, 2)[0])
