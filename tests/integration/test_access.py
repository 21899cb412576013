"""`--auth`: who may do what over gRPC, REST, the page and /metrics, with one worker and two."""

import datetime as dt
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from export.data.datasets import Dataset
from service.access.authenticator import Authenticator
from service.access.rights import GRPC, HTTP
from service.http import server as http_server
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.call import Unary
from service.server import Server
from tests.conftest import Serve, ServerProcess, Spawn, convoy, put
from tests.integration.access_file import RIGHTS, bearer, entry, metadata, write_auth_file
from tests.integration.test_classify import classify_on, encoded
from tests.integration.test_classify_stream import Talk
from tests.integration.test_repository import eventually
from tests.integration.test_rest import INFER
from tests.program import one_line

LOST_RIGHTS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
HAVE_DESCRIBE = ("infer", "read", "admin")


@pytest.fixture
def auth(tmp_path: Path) -> Path:
    return write_auth_file(tmp_path / "auth.toml")


@pytest.fixture
def server(repository: Path, serve: Serve, auth: Path) -> Server:
    return serve(repository, auth=auth, channelz=True)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_retries", 0)]) as opened:
        yield opened


def code(stub: Any, request: Any, who: str | None, *, unary: bool = True) -> tuple[str, str]:
    """How a call ends: the name of its code, and its message. To a stream one message is sent."""
    try:
        if unary:
            stub(request, timeout=20, metadata=metadata(who))
        else:
            next(stub(iter([request]), timeout=20, metadata=metadata(who)), None)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code().name, failed.details()
    return "OK", ""


def send(channel: grpc.Channel, path: str, who: str | None, *, unary: bool = True) -> tuple[str, str]:
    """Sends an empty message to a method."""
    return code(channel.unary_unary(path) if unary else channel.stream_stream(path), b"", who, unary=unary)


def ask(
    server: Server | ServerProcess,
    method: str,
    path: str,
    authorization: str | None = None,
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)) as connection:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given if authorization is None else given | {"Authorization": authorization})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def failures(server: Server | ServerProcess) -> dict[tuple[str, str], int]:
    """`convoy_auth_failures_total` by surface and reason, without those that are 0."""
    text = ask(server, "GET", "/metrics", bearer("metrics"))[2].decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("convoy_auth_failures_total{"):
            labels, value = line.removeprefix("convoy_auth_failures_total{").rsplit("} ", 1)
            reason, surface = (label.split('"')[1] for label in sorted(labels.split(",")))
            if float(value):
                found[surface, reason] = int(float(value))
    return found


def having(right: str) -> tuple[str, ...]:
    return HAVE_DESCRIBE if right == "describe" else (right, "admin")


def test_every_method_needs_its_right_and_there_is_no_other(server: Server, channel: grpc.Channel) -> None:
    methods: Any = server._transport._options.methods  # type: ignore[attr-defined]
    assert {method.path for method in methods} == set(GRPC)
    for method in methods:
        right, unary = GRPC[method.path].right, isinstance(method, Unary)
        if right == "open":
            if not method.path.endswith("/Watch"):  # which goes on
                assert send(channel, method.path, None, unary=unary)[0] not in LOST_RIGHTS, method.path
            continue
        assert send(channel, method.path, None, unary=unary)[0] == "UNAUTHENTICATED", method.path
        assert send(channel, method.path, "nobody", unary=unary) == ("UNAUTHENTICATED", "the token is not known"), method.path
        for who in RIGHTS:
            name, message = send(channel, method.path, who, unary=unary)
            if who in having(right):
                assert name not in LOST_RIGHTS, (method.path, who)
            else:
                assert name == "PERMISSION_DENIED", (method.path, who)
                assert message == f"'{who}' of group '{who}' does not have the right '{right}'"


def test_what_names_models_is_for_those_who_may_read(server: Server, channel: grpc.Channel) -> None:
    for path in (
        "/grpc.health.v1.Health/List",
        "/convoy.v1.Classifier/ListModels",
        "/inference.GRPCInferenceService/RepositoryIndex",
    ):
        got = [send(channel, path, who)[0] for who in (None, "infer", "read")]
        assert got == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"], path
    assert send(channel, "/grpc.health.v1.Health/Check", None)[0] == "OK"


def test_every_route_needs_its_right_and_there_is_no_other(server: Server) -> None:
    page: Any = server._http._app
    rules = [rule for routes in (http_server._ROUTES, page._routes, page._app._routes) for rule in routes.iter_rules()]
    assert {rule.rule for rule in rules} == set(HTTP)
    for rule in rules:
        if rule.endpoint in http_server.APP:
            continue  # a rule of the application's, which is here too
        right = HTTP[rule.rule]
        path = rule.rule.replace("<model>", "digits").replace("<version>", "1").replace("<region>", "r")
        path = path.replace("<path:rest>", "status").replace("<name>", "page.js")
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        if right == "open":
            assert ask(server, method, path)[0] == 200, path
            continue
        status, headers, body = ask(server, method, path)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="convoy"'), path
        assert json.loads(body)["error"].startswith("no credentials"), path
        status, headers, _ = ask(server, method, path, bearer("nobody"))
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="convoy", error="invalid_token"'), path
        for who in RIGHTS:
            allowed = who in having(right)
            if allowed and rule.rule.endswith("load"):
                continue  # the models stay as they are
            assert (ask(server, method, path, bearer(who), b"{}" if method == "POST" else None)[0] == 403) != allowed, (path, who)


def test_models_are_allowed_by_pattern(repository: Path, serve: Serve, auth: Path, model_file: Path, digits: Dataset) -> None:
    put(model_file, repository, "team-a-cats", 1)
    server = serve(repository, auth=auth)
    image = digits.test.encoded(0)
    pages = {"infer": "/page/classify/{}", "describe": "/v2/models/{}"}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        get_model: Any = channel.unary_unary("/convoy.v1.Classifier/GetModel", pb.GetModelRequest.SerializeToString)
        ready: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelReady", oip.ModelReadyRequest.SerializeToString)
        infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString)
        for who, model, allowed in (
            ("digits", "digits", True), ("digits", "team-a-cats", False), ("digits", "no such model", False),
            ("others", "team-a-cats", True), ("others", "digits", False), ("others", "steam-a-cats", False),
        ):  # fmt: skip
            got = [
                code(classify_on(channel), pb.ClassifyRequest(model=model, items=encoded(image)), who)[0],
                code(get_model, pb.GetModelRequest(model=model), who)[0],
                code(ready, oip.ModelReadyRequest(name=model), who)[0],
            ]
            assert got == ["OK" if allowed else "PERMISSION_DENIED"] * 3, (who, model)
            # Whether there is such a model does not show.
            got = [code(infer, oip.ModelInferRequest(model_name=model), who)[0]]
            assert got == ["INVALID_ARGUMENT" if allowed else "PERMISSION_DENIED"], (who, model)
            path = model.replace(" ", "%20")
            status = [ask(server, "POST", pages["infer"].format(path), bearer(who), image)[0]]
            status += [ask(server, "POST", f"/v2/models/{path}/infer", bearer(who), image, Inference_Header_Content_Length="0")[0]]
            status += [ask(server, "GET", pages["describe"].format(path), bearer(who))[0]]
            assert status == [200 if allowed else 403] * 3, (who, model)


def test_a_message_for_another_model_fails_alone_in_its_stream(server: Server, channel: grpc.Channel) -> None:
    talk = Talk(channel, metadata=metadata("digits"))
    for model in ("secret", "digits"):
        talk.write(model, bytes(784), id=model)
    answers = {answer.id: answer for answer in (talk.read(), talk.read())}
    assert answers["secret"].error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert answers["digits"].response.model == "digits"
    infer: Any = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer", oip.ModelInferRequest.SerializeToString,
        oip.ModelStreamInferResponse.FromString,
    )  # fmt: skip
    requests = iter([oip.ModelInferRequest(model_name="secret", id="7")])
    [answer] = list(infer(requests, timeout=20, metadata=metadata("digits")))
    assert "does not have the right 'infer' for model 'secret'" in answer.error_message
    assert answer.infer_response.id == "7"
    eventually(lambda: failures(server) == {("grpc", "forbidden"): 2})


def test_shared_memory_in_a_request_is_a_right_of_its_own(server: Server, channel: grpc.Channel) -> None:
    place = {"shared_memory_region": oip.InferParameter(string_param="r")}
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString)
    for request in (
        oip.ModelInferRequest(
            model_name="digits", inputs=[oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", parameters=place)]
        ),
        oip.ModelInferRequest(
            model_name="digits", inputs=[tensor], raw_input_contents=[bytes(784)],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="logits", parameters=place)],
        ),
    ):  # fmt: skip
        got = {who: code(infer, request, who)[0] for who in ("digits", "admin")}
        assert got == {"digits": "PERMISSION_DENIED", "admin": "NOT_FOUND"}
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1]}
    there = {"parameters": {"shared_memory_region": "r"}}
    for document in (
        {"inputs": [image | there]},
        {"inputs": [image | {"data": [0] * 784}], "outputs": [{"name": "logits"} | there]},
    ):
        body = json.dumps(document).encode()
        assert [ask(server, "POST", INFER, bearer(who), body)[0] for who in ("digits", "admin")] == [403, 404]


def test_priority_levels_are_a_right(repository: Path, serve: Serve, auth: Path) -> None:
    (repository / "digits" / "serving.toml").write_text("priority_levels = 3\ndefault_priority = 1\n")
    server = serve(repository, auth=auth)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub, pixels = classify_on(channel), [pb.Item(pixels=bytes(784))]
        got = {
            (who, priority): code(stub, pb.ClassifyRequest(model="digits", items=pixels, priority=priority), who)
            for who in ("infer", "patient")
            for priority in (0, 1, 2, 3)
        }
    refused = {key: outcome for key, outcome in got.items() if outcome[0] != "OK"}
    assert refused == {("patient", 1): ("PERMISSION_DENIED", "priority 1 is not allowed to this client: its first level is 2")}
    data = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    body = json.dumps({"inputs": [data], "parameters": {"priority": 1}}).encode()
    assert [ask(server, "POST", INFER, bearer(who), body)[0] for who in ("infer", "patient")] == [200, 403]


def test_what_is_no_token_is_refused_and_never_repeated(
    server: Server, channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    def list_models(*authorizations: str) -> tuple[str, str]:
        call: Any = channel.unary_unary("/convoy.v1.Classifier/ListModels")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20, metadata=[("authorization", each) for each in authorizations])
        failed: Any = caught.value
        return failed.code().name, failed.details()

    for authorization in ("Basic c2VjcmV0OnNlY3JldA==", "Bearer", "secret", "Bearer secret"):
        name, message = list_models(authorization)
        assert (name, "secret" in message) == ("UNAUTHENTICATED", False)
        status, _, body = ask(server, "GET", "/v2/models", authorization)
        assert (status, b"secret" in body) == (401, False)
    assert list_models(bearer("read"), bearer("read")) == ("UNAUTHENTICATED", "the call has two authorizations")
    assert failures(server) == {
        ("grpc", "malformed"): 4, ("grpc", "unknown"): 1, ("http", "malformed"): 3, ("http", "unknown"): 1,
    }  # fmt: skip
    assert not any("secret" in record.getMessage() for record in caplog.records if record.name.startswith("service"))


def test_the_file_is_read_again_and_streams_end_whose_token_is_gone(
    server: Server, channel: grpc.Channel, auth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def listed(who: str) -> bool:
        return send(channel, "/convoy.v1.Classifier/ListModels", who)[0] == "OK"

    stays, goes = (Talk(channel, metadata=metadata(who)) for who in ("infer", "digits"))
    for talk in (stays, goes):
        talk.write("digits", bytes(784))
        assert talk.read().response.model == "digits"
    assert not listed("new")
    auth.write_text("[groups")
    eventually(lambda: "what the file said before stays in force" in caplog.text)
    assert listed("read")
    auth.unlink()
    eventually(lambda: "No such file or directory; what the file said" in caplog.text)
    assert listed("read")
    kept = [entry(name) for name in ("infer", "metrics")]
    auth.write_text("\n".join([*kept, entry("new", "readers"), '[groups]\nreaders.rights = ["read"]\ninfer.infer = ["d*"]\n'
                               'metrics.rights = ["metrics"]']))  # fmt: skip
    eventually(lambda: listed("new"))
    assert not listed("read")
    with pytest.raises(grpc.RpcError) as caught:
        goes.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    stays.write("digits", bytes(784))
    assert stays.read().response.model == "digits"
    stays.write("cats", bytes(784))
    assert stays.read().error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]


def test_an_error_while_credentials_are_looked_at_ends_that_call_alone(
    server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = Talk(channel, metadata=metadata("digits"))
    stays.write("digits", bytes(784))
    assert stays.read().response.model == "digits"
    grant = Authenticator.grant

    def failing(self: Authenticator, authorization: str | None, names: Any) -> Any:
        if authorization == bearer("infer"):
            raise OverflowError("secret")
        return grant(self, authorization, names)

    open_before = Talk(channel, metadata=metadata("infer"))
    open_before.write("digits", bytes(784))
    assert open_before.read().response.model == "digits"
    monkeypatch.setattr(Authenticator, "grant", failing)
    expected = ("INTERNAL", "internal error; see the server's log")
    assert send(channel, "/convoy.v1.Classifier/GetModel", "infer") == expected
    assert send(channel, "/convoy.v1.Classifier/ClassifyStream", "infer", unary=False) == expected
    assert ask(server, "GET", "/v2", bearer("infer"))[0] == 500
    with pytest.raises(grpc.RpcError) as caught:
        open_before.read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    stays.write("digits", bytes(784))
    assert stays.read().response.model == "digits"


def test_a_token_expires_and_so_do_its_streams(repository: Path, serve: Serve, tmp_path: Path) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)
    auth = write_auth_file(tmp_path / "auth.toml", entry("brief", "infer", expires=soon.isoformat()),
                           entry("over", "infer", expires="2020-01-01T00:00:00Z"))  # fmt: skip
    server = serve(repository, auth=auth)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        talk = Talk(channel, metadata=metadata("brief"))
        talk.write("digits", bytes(784))
        assert talk.read().response.model == "digits"
        method = "/inference.GRPCInferenceService/ServerMetadata"
        assert send(channel, method, "over") == ("UNAUTHENTICATED", "the token 'over' has expired")
        with pytest.raises(grpc.RpcError) as caught:
            talk.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert send(channel, method, "brief")[0] == "UNAUTHENTICATED"
        assert ask(server, "GET", "/v2", bearer("brief"))[0] == 401


def test_two_workers_and_their_supervisor_ask_alike(repository: Path, spawn: Spawn, auth: Path, digits: Dataset) -> None:
    process = spawn(repository, "--workers", "2", "--auth", str(auth))
    image = digits.test.encoded(0)
    for _ in range(4):  # REST goes to each worker in turn, a connection to either
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = pb.ClassifyRequest(model="digits", items=encoded(image))
            names = [code(classify_on(channel), request, who)[0] for who in (None, "nobody", "read", "digits")]
        assert names == ["UNAUTHENTICATED", "UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]
        authorizations = (None, bearer("nobody"), bearer("read"), bearer("digits"))
        answers = [ask(process, "POST", INFER, who, image, Inference_Header_Content_Length="0") for who in authorizations]
        assert [status for status, *_ in answers] == [401, 401, 403, 200]
        assert answers[0][1]["WWW-Authenticate"] == 'Bearer realm="convoy"'
    assert [ask(process, "GET", "/metrics", who)[0] for who in (None, bearer("read"))] == [401, 403]
    assert [ask(process, "GET", path)[0] for path in ("/livez", "/readyz", "/v2/health/ready", "/")] == [200] * 4
    # 1 and 1 of /metrics are the supervisor's.
    expected = {
        ("grpc", "missing"): 4, ("grpc", "unknown"): 4, ("grpc", "forbidden"): 4,
        ("http", "missing"): 5, ("http", "unknown"): 4, ("http", "forbidden"): 5,
    }  # fmt: skip
    eventually(lambda: failures(process) == expected)


def test_a_broken_file_at_the_start_is_one_line(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "auth.toml"
    path.write_text("[groups")
    for workers in ("1", "2"):
        line = one_line(convoy("serve", repository, "--grpc-port", "0", "--http-port", "0", "--workers", workers, "--auth", path))
        assert line.startswith(f"convoy: --auth {str(path)!r}: Expected ']'")


def test_tokens_do_not_cross_a_network_unencrypted(repository: Path, auth: Path) -> None:
    for workers in ("1", "2"):
        ports = ("--grpc-port", "0", "--http-port", "0", "--workers", workers)
        line = one_line(convoy("serve", repository, *ports, "--host", "0.0.0.0", "--auth", auth))
        assert line.startswith(f"convoy: --auth {str(auth)!r} has tokens, which would cross the network unencrypted")


@pytest.mark.parametrize(("workers", "transport_name"), [("1", "public"), ("2", "fast")])
def test_beyond_this_machine_control_has_to_be_asked_for(repository: Path, spawn: Spawn, workers: str) -> None:
    path = "/v2/repository/models/digits/load"
    server = spawn(repository, "--host", "0.0.0.0", "--workers", workers)
    assert ask(server, "POST", path, None, b"{}")[0] == 501
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        load: Any = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
        assert code(load, oip.RepositoryModelLoadRequest(model_name="digits").SerializeToString(), None)[0] == "UNIMPLEMENTED"
    assert "control and shared memory by request are off" in server.log.read_text()
    assert server.terminate() == 0
