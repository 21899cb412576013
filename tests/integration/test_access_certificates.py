"""`--auth` with client certificates and with JWTs, over gRPC and HTTP."""

import datetime as dt
import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from prometheus_client import CollectorRegistry

from service.access.access import Access
from service.access.authenticator import Authenticator
from service.errors import PermissionDenied, Unauthenticated, Unavailable, UserError
from service.http.certificates import PEER_CERTIFICATE, certificate_names
from service.http.gate import Gate
from tests.conftest import Serve
from tests.integration.access_file import bearer, metadata, write_auth_file
from tests.integration.test_repository import eventually
from tests.integration.test_rest import ask

CERTIFICATES = """
[[certificates]]
name = "reader.internal"
group = "read"
[[certificates]]
name = "spiffe://cluster/infer"
group = "infer"
"""


def outcome(stub: Any, given: Any) -> tuple[str, str]:
    """The code and the message of a call."""
    try:
        stub(b"", timeout=20, metadata=given)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code().name, failed.details()
    return "OK", ""


def der_of(certificate: trustme.LeafCert) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


def test_a_certificate_counts_by_its_names_and_less_than_a_token(repository: Path, serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    issued.cert_chain_pems[0].write_to_path(str(paths["cert"]))
    issued.private_key_pem.write_to_path(str(paths["key"]))
    auth = write_auth_file(tmp_path / "auth.toml", CERTIFICATES)
    server = serve(repository, auth=auth, tls_cert=paths["cert"], tls_key=paths["key"], tls_client_ca=paths["ca"])
    clients = {
        "alternative name": authority.issue_cert("elsewhere.internal", "reader.internal"),
        "common name": authority.issue_cert("elsewhere.internal", common_name="reader.internal"),
        "unknown": authority.issue_cert("stranger.internal"),
    }
    found: dict[str, list[Any]] = {}
    for kind, client in clients.items():
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(), client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
        )
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            list_models: Any = channel.unary_unary("/convoy.v1.Classifier/ListModels")
            found[kind] = [outcome(list_models, metadata(who))[0] for who in (None, "metrics")]
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        client.configure_cert(context)
        with closing(http.client.HTTPSConnection("127.0.0.1", server.http_port, timeout=30, context=context)) as connection:
            for who in (None, "metrics"):
                connection.request("GET", "/v2/models", headers={} if who is None else {"Authorization": bearer(who)})
                response = connection.getresponse()
                response.read()
                found[kind].append(response.status)
    assert found == {
        "alternative name": ["OK", "PERMISSION_DENIED", 200, 403],
        "common name": ["OK", "PERMISSION_DENIED", 200, 403],
        "unknown": ["UNAUTHENTICATED", "PERMISSION_DENIED", 401, 403],
    }


def test_over_http_it_counts_likewise(tmp_path: Path) -> None:
    """The gate as it is, with what the HTTP server puts into a request's environment."""
    access = Access(write_auth_file(tmp_path / "auth.toml", CERTIFICATES), CollectorRegistry())
    gate = Gate(Authenticator(access, "http"))
    authority = trustme.CA()
    reader = der_of(authority.issue_cert("elsewhere.internal", common_name="reader.internal"))
    assert certificate_names(reader) == ("reader.internal", "elsewhere.internal")
    assert certificate_names(der_of(authority.issue_cert("10.0.0.7", "a@b.internal"))) == ("a@b.internal", "10.0.0.7")
    gate.check("/v2/models", {}, {PEER_CERTIFICATE: reader, "PATH_INFO": "/v2/models"})
    with pytest.raises(PermissionDenied):
        gate.check("/metrics", {}, {PEER_CERTIFICATE: reader})
    gate.check("/metrics", {}, {PEER_CERTIFICATE: reader, "HTTP_AUTHORIZATION": bearer("metrics")})
    with pytest.raises(Unauthenticated, match="no name in the client's certificate is known"):
        gate.check("/v2/models", {}, {PEER_CERTIFICATE: der_of(authority.issue_cert("stranger.internal"))})
    with pytest.raises(Unauthenticated, match="certificate cannot be read"):
        gate.check("/v2/models", {}, {PEER_CERTIFICATE: b"of a kind that cryptography does not read"})


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwks(**keys: Any) -> str:
    listed = []
    for kid, key in keys.items():
        algorithm: Any = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
        listed.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    return json.dumps({"keys": [*listed, {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}, "nonsense"]})


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: Any) -> str:
    now = dt.datetime.now(dt.UTC)
    default = {"sub": "robot", "iss": "https://issuer", "aud": "convoy", "exp": now + dt.timedelta(hours=1), "groups": ["team-x"]}
    given = {name: value for name, value in (default | claims).items() if value is not None}
    return jwt.encode(given, key, algorithm, {} if kid is None else {"kid": kid})


def write(tmp_path: Path, source: str, more: str = "") -> Path:
    settings = f'[jwt]\njwks = "{source}"\nissuer = "https://issuer"\naudience = "convoy"\n{more}\n'
    return write_auth_file(tmp_path / "auth.toml", settings + '[jwt.groups]\nteam-x = "read"\nboss = "admin"\n')


PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def test_a_jwt_is_checked_in_every_respect(repository: Path, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(jwks(one=RSA, two=EC))
    server = serve(repository, auth=write(tmp_path, "keys.json"))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    now = dt.datetime.now(dt.UTC)
    good = {
        "RSA": signed(), "EC": signed(EC, "ES256", "two"), "of several groups": signed(groups=["nobody", "boss"]),
        "groups as text": signed(groups="nobody team-x"), "one of several audiences": signed(aud=["x", "convoy"]),
    }  # fmt: skip
    unknown = {
        "another key": signed(other), "unknown key": signed(other, kid="three"), "no key": signed(kid=None),
        "of a secret that both know": signed(b"c" * 32, "HS256", "shared"), "unsigned": signed(None, "none"),
        "algorithm not allowed": signed(RSA, "RS512"), "key of another kind": signed(EC, "ES256", "one"),
        "audience": signed(aud="others"), "no audience": signed(aud=None), "issuer": signed(iss="https://other"),
        "no issuer": signed(iss=None), "no end": signed(exp=None), "not yet": signed(nbf=now + dt.timedelta(hours=1)),
        "for ever": signed(exp=10**400),
        "over": signed(exp=PAST), "nobody's": signed(sub=None), "torn": signed()[:-5], "no JWT": "a.b.c",
    }  # fmt: skip
    denied = {"no group": signed(groups=None), "unknown group": signed(groups=["nobody"])}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        list_models: Any = channel.unary_unary("/convoy.v1.Classifier/ListModels")
        for expected, status, tokens in (("OK", 200, good), ("UNAUTHENTICATED", 401, unknown), ("PERMISSION_DENIED", 403, denied)):
            for kind, text in tokens.items():
                authorization = f"Bearer {text}"
                code, message = outcome(list_models, [("authorization", authorization)])
                assert (kind, code, text in message) == (kind, expected, False)
                assert (kind, ask(server, "GET", "/v2/models", Authorization=authorization)[0]) == (kind, status)
    (tmp_path / "keys.json").write_text(jwks(two=EC))
    eventually(lambda: ask(server, "GET", "/v2/models", Authorization=f"Bearer {good['RSA']}")[0] == 401)
    assert ask(server, "GET", "/v2/models", Authorization=f"Bearer {good['EC']}")[0] == 200


@pytest.fixture
def issuer() -> Iterator[ThreadingHTTPServer]:
    """A web server of keys; without `content` it answers 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content: str = issued.content  # type: ignore[attr-defined]
            self.send_response(200 if content else 500)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            pass

    issued = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issued.content = ""  # type: ignore[attr-defined]
    threading.Thread(target=issued.serve_forever, daemon=True).start()
    yield issued
    issued.shutdown()
    issued.server_close()


def test_keys_are_fetched_and_fetched_again_for_one_that_is_new(
    issuer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.access.jwks.RETRY_SECONDS", 0.1)
    access = Access(write(tmp_path, f"http://127.0.0.1:{issuer.server_port}/keys"), CollectorRegistry())
    authenticator = Authenticator(access, "grpc")

    def whose(text: str) -> str:
        try:
            return authenticator.grant(f"Bearer {text}", tuple).principal.name
        except (Unauthenticated, Unavailable) as error:
            return type(error).__name__

    access.start()
    try:
        eventually(lambda: "could not be read, trying again" in caplog.text)
        assert whose(signed()) == "Unavailable"
        issuer.content = jwks(one=RSA)
        eventually(lambda: whose(signed()) == "robot")
        assert whose(signed(EC, "ES256", "two")) == "Unauthenticated"
        issuer.content = jwks(one=RSA, two=EC)
        eventually(lambda: whose(signed(EC, "ES256", "two")) == "robot")
        assert whose(signed()) == "robot"
    finally:
        access.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://issuer.example/keys", "must begin with https://"),
        ("none.json", "No such file or directory"),
        ("auth.toml", "Expecting value"),
    ],
)
def test_keys_that_anybody_could_change_or_that_are_none_are_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Access(write(tmp_path, source), CollectorRegistry())


def test_algorithms_with_a_shared_secret_cannot_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(jwks(one=RSA))
    with pytest.raises(UserError, match=r"jwt.algorithms.0: Input should be 'RS256'"):
        Access(write(tmp_path, "keys.json", 'algorithms = ["HS256"]'), CollectorRegistry())
