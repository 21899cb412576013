"""The model of many cores: the resource that is used up first decides, and more of anything never makes it slower."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import scaling
from tests.benchmarks.scaling import Call, Rate

SMALL = Call("small", 1, 25.0, 15.0, 5.0, 5.0, 40.0, 60.0, 10.0, 16.0, 0.5, 1.1, 0.0)
LARGE = dataclasses.replace(SMALL, inference=5000.0, item=6000.0, parallel=1.0, threads_cost=1.0)

microseconds = st.floats(1.0, 10_000.0)
calls = st.builds(
    Call, st.just("any"), st.just(1), *[microseconds] * 6, st.just(1.0), st.just(1.0), st.floats(0.0, 1.0), st.floats(1.0, 2.0),
    st.just(0.0),
)  # fmt: skip


def check(rate: Rate, calls_per_second: float, limit: str) -> None:
    assert rate.limit == limit
    assert rate.calls_per_second == pytest.approx(calls_per_second)


def test_an_inline_call_takes_a_worker_for_all_of_its_parts_and_two_workers_answer_twice_as_much() -> None:
    check(scaling.convoy(SMALL, 1, 1), 1e6 / 90, "a worker's thread")
    check(scaling.convoy(SMALL, 2, 1), 1e6 / 80, "a worker's thread")
    check(scaling.convoy(SMALL, 64, 64), 64e6 / 90, "a worker's thread")


def test_a_long_model_uses_the_cores_up_with_one_worker_until_its_thread_has_no_time_left() -> None:
    check(scaling.convoy(LARGE, 2, 1), 2e6 / 5050, "cores")
    check(scaling.convoy(LARGE, 400, 1), 1e6 / 50, "a worker's thread")
    assert scaling.best_convoy(LARGE, 64)[0] == 1


def test_a_client_on_the_same_cores_takes_its_share_of_them() -> None:
    check(scaling.convoy(SMALL, 1, 1, client_here=True), 1e6 / 100, "cores")


@given(calls, st.integers(1, 64), st.integers(1, 64))
def test_no_server_answers_more_than_its_cores_can(call: Call, cores: int, number: int) -> None:
    most = 1e6 * cores / (call.serial + call.inference)
    assert scaling.convoy(call, cores, number).calls_per_second <= most * (1 + 1e-9)
    least = call.inference + call.c_core + call.kernel + 20.0
    assert scaling.triton(call, cores, 20.0, number).calls_per_second <= 1e6 * cores / least * (1 + 1e-9)


@given(calls, st.integers(1, 63))
def test_with_a_worker_a_core_one_more_answers_as_much_more(call: Call, cores: int) -> None:
    more = scaling.convoy(call, cores + 1, cores + 1).calls_per_second
    assert more / scaling.convoy(call, cores, cores).calls_per_second == pytest.approx((cores + 1) / cores)


def test_what_triton_adds_follows_from_the_ratio_and_is_never_below_its_schedulers_part() -> None:
    mine = scaling.convoy(SMALL, 2, 1, client_here=True).calls_per_second
    added = scaling.overhead_by_ratio(SMALL, 1.0)
    assert 2e6 / (added + SMALL.c_core + SMALL.kernel + SMALL.inference_cpu(2) + SMALL.client) == pytest.approx(mine)
    assert scaling.overhead_by_ratio(SMALL, 0.1) == scaling.SCHEDULER_US
    assert scaling.kind_overhead(SMALL) + 60 == pytest.approx(90 * 60 / 76)


def test_two_grpc_handlers_are_the_limit_of_triton_on_many_cores_and_more_of_them_are_not() -> None:
    check(scaling.triton(SMALL, 64, 43.0, 64), 2e6 / 60, "gRPC handlers")
    assert scaling.triton(SMALL, 64, 43.0, 64, 64).limit == "scheduler"
    check(scaling.triton(SMALL, 16, 43.0, 16, 16), 16e6 / 103, "cores")


def test_a_split_engine_answers_what_its_fronts_the_engine_its_device_or_the_cores_allow() -> None:
    batch = SMALL.batch
    front, engine = 50 + scaling.FRONT_ROUND_US / batch, scaling.ENGINE_ROUND_US / batch
    check(scaling.on_device(SMALL, 8), 20_000, "a worker's thread")
    check(scaling.on_device(SMALL, 8, 100.0), 10_000, "device")
    check(scaling.split(SMALL, 8, 2), 2e6 / front, "fronts")
    check(scaling.split(SMALL, 64, 63), 1e6 / engine, "engine")
    check(scaling.split(SMALL, 64, 63, 10.0), 100_000, "device")
    check(scaling.split(SMALL, 1, 2), 1e6 / (front + engine), "cores")


def test_amdahls_share_is_found_from_a_speed_up_of_two_threads() -> None:
    assert [scaling.parallel_share(speedup) for speedup in (0.9, 1.0, 4 / 3, 2.0, 2.1)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_few_connections_leave_workers_without_one_more_so_by_chance() -> None:
    assert scaling.idle_workers(1, 1) == scaling.idle_workers(1, 1, at_random=True) == 0
    assert [scaling.idle_workers(8, connections) for connections in (2, 8, 9)] == [0.75, 0, 0]
    assert scaling.idle_workers(2, 4, at_random=True) == pytest.approx(1 / 16)
