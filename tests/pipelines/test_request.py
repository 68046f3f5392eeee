"""Requests are validated on construction and survive a round trip through JSON."""

import json
import math
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.adapters.record import AdapterRecord
from daguerre.errors import DaguerreError
from daguerre.pipelines.request import MAX_SEED, Request, RequestFields, Variation
from daguerre.pipelines.tasks import Hires

REQUESTS = st.builds(
    Request,
    prompt=st.one_of(st.text(), st.lists(st.text(), min_size=1, max_size=3).map(tuple)),
    negative_prompt=st.text(),
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(-20, 20),
    seed=st.integers(0, MAX_SEED - 8),
    num_images=st.integers(1, 8),
    width=st.none() | st.integers(1, 4096),
    eta=st.none() | st.floats(0, 1),
    initial_noise=st.sampled_from(["variance_preserving", "sigma_max"]),
)


@settings(max_examples=40, deadline=None)
@given(REQUESTS)
def test_json_round_trip(request_: Request):
    assert Request.from_json(json.loads(json.dumps(request_.to_json()))) == request_


@settings(max_examples=40, deadline=None)
@given(REQUESTS)
def test_split_gives_one_request_per_image_in_order(request_: Request):
    singles = request_.split()
    assert len(singles) == len(request_.prompts) * request_.num_images
    assert tuple((single.prompt, single.seed) for single in singles) == request_.items
    assert all(single.num_images == 1 for single in singles)
    assert all(single.split() == (single,) for single in singles)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"steps": -3}, "steps is -3"),
        ({"num_images": 0}, "num_images is 0"),
        ({"width": -8}, "width is -8"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed is"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan; it is a number such as 7.5"),
        ({"guidance_scale": 1e308}, r"guidance_scale is 1e\+308; .* between ±10000"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"prompt": ()}, "There is no prompt"),
        ({"steps": "20"}, "steps is '20'"),
        ({"steps": True}, "steps is True"),
        ({"steps": np.float32(2)}, r"steps is 2\.0; it must be a whole number\."),
        ({"width": "64"}, "width is '64'; it must be a whole number or None"),
        ({"seed": np.arange(2)}, "seed is "),
        ({"sampler": 3}, "sampler is 3; it must be a text or None"),
        ({"guidance_interval": [0.1]}, "it must be two numbers or None"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"prompt": 7}, "prompt is 7"),
        ({"prompt": ["a", 7]}, "prompt is"),
        ({"stepps": 20}, "no field 'stepps'.*Did you mean 'steps'"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        Request.from_json(fields)


def test_a_list_of_prompts_becomes_a_tuple():
    assert Request(prompt=["a", "b"]).prompts == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.int16, torch.tensor])
def test_whole_numbers_of_other_libraries_are_plain_in_json(number):
    request = Request(seed=number(3), steps=number(2), width=number(64), variation=Variation(number(5), 0.5))
    assert request == Request(seed=3, steps=2, width=64, variation=Variation(5, 0.5))
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16, torch.tensor])
def test_numbers_of_other_libraries_are_plain_in_json(number):
    request = Request(
        guidance_scale=number(3.5),
        guidance_interval=[number(0.25), number(0.5)],  # type: ignore[arg-type]
        cfg_plus_plus=np.bool_(True),  # type: ignore[arg-type]
        task=Hires(number(1.5), number(0.5)),
        variation=Variation(1, number(0.5)),
    )
    assert request == Request(
        guidance_scale=3.5, guidance_interval=(0.25, 0.5), cfg_plus_plus=True, task=Hires(1.5, 0.5), variation=Variation(1, 0.5)
    )
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_the_keyword_arguments_are_the_fields_of_a_request():
    assert get_type_hints(RequestFields) == get_type_hints(Request)
    assert not RequestFields.__required_keys__


def test_whole_numbers_and_floats_are_the_same_request():
    whole = Request(guidance_scale=2, guidance_interval=(0, 1), eta=1, variation=Variation(1, 1), task=Hires(2, 1))
    exact = Request(guidance_scale=2.0, guidance_interval=(0.0, 1.0), eta=1.0, variation=Variation(1, 1.0), task=Hires(2.0, 1.0))
    assert json.dumps(whole.to_json()) == json.dumps(exact.to_json())
    assert json.dumps(AdapterRecord("lora", "ink", scale=1).to_json()) == json.dumps(AdapterRecord("lora", "ink", scale=1.0).to_json())
    assert Request(steps=3).steps.__class__ is int
