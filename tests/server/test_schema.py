"""Whatever the OpenAPI document allows, and much that it does not, gets an answer below 500; 501 is the typed "not served"."""

from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from daguerre.server.config import Limits, ServerConfig

# Streams do not end, a paused queue does not answer, and another model takes long.
LEFT_OUT = r"/events|/pause|/select"
NOT_SERVED = (501,)
EXAMPLES = 20  # of each operation
SECONDS = 300  # for a call that waits for its images behind the jobs of earlier ones
SMALL = Limits(side=64, steps=20, images=2, work=100_000, queued=1000)


@pytest.fixture(scope="module")
def config(config: ServerConfig) -> ServerConfig:
    return replace(config, limits=SMALL)


@pytest.mark.long
def test_no_request_gives_a_server_error(address: str):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json").exclude(path_regex=LEFT_OUT)
    errors, operations = [], [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            reply = case.call(timeout=SECONDS)
            if reply.status_code >= 500 and reply.status_code not in NOT_SERVED:
                errors.append(f"{case.method} {case.path}: {reply.status_code} {reply.text[:200]}")

        check()
    assert not errors, errors[:5]
