"""What a compressed message or body may become, beside what it is."""

import gzip
import random

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from service.errors import TooLarge, TooManyBytes
from service.http.bodies import read_body
from service.requests.byte_budget import ByteBudget, Holding
from service.rpc.compression import unfold

CONTENT = random.Random(0).randbytes(50_000)
FOLDED = gzip.compress(CONTENT)
BOTH = len(FOLDED) + len(CONTENT)


def unfolded(budget: ByteBudget) -> bytes | None:
    return unfold(FOLDED, budget, BOTH, "")


def body(budget: ByteBudget) -> bytes:
    headers = [("Content-Encoding", "gzip")]
    request = Request(EnvironBuilder(method="POST", data=FOLDED, headers=headers).get_environ())
    with Holding(budget) as holding:
        return read_body(request, BOTH, holding)


@pytest.mark.parametrize("way", [unfolded, body], ids=lambda way: way.__name__)
def test_one_that_can_never_fit_is_not_to_be_sent_again(way: object) -> None:
    assert callable(way)
    for limit, room, error in ((BOTH - 1, BOTH - 1, TooLarge), (BOTH, len(CONTENT) - 1, TooManyBytes)):
        budget = ByteBudget(limit)
        assert budget.take(limit - room)
        with pytest.raises(error, match="--max-inflight-bytes"):
            way(budget)
        assert budget.in_flight_bytes == limit - room
    budget = ByteBudget(BOTH)
    assert budget.take(len(FOLDED))
    assert way(budget) == CONTENT
