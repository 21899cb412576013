"""Signatures of version folders, against OpenSSF's model-signing in both directions, and every way in which one is refused."""

import base64
import datetime as dt
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from service.errors import FilesChanged, InvalidModel, UserError
from service.model.signing import SIGNATURE_FILE, fingerprint, write_signature
from service.model.trusted_keys import TrustedKeys, read_private_key
from tests.conftest import convoy
from tests.program import convoy_here

# model-signing 1.1 imports pyOpenSSL, which it does not require, for the chains of certificates that it verifies.
sys.modules.setdefault("OpenSSL", types.SimpleNamespace(crypto=None))  # type: ignore[arg-type]
import model_signing  # noqa: E402

openssf: Any = model_signing  # without types

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


class Pair:
    """A private key and its public one, in files."""

    def __init__(self, folder: Path, name: str, curve: ec.EllipticCurve) -> None:
        self.key = ec.generate_private_key(curve)
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pem"
        self.private.write_bytes(private_pem(self.key))
        self.public.write_bytes(
            self.key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    return pem


@pytest.fixture(params=CURVES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(tmp_path, "alice", CURVES[request.param])


@pytest.fixture
def alice(tmp_path: Path) -> Pair:
    return Pair(tmp_path, "alice", CURVES["P-256"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder whose paths do not sort as texts do."""
    found = tmp_path / "digits" / "3"
    for name in ("model.onnx", "weights.bin", "a/b.bin", "a-c.bin", "a.bin", "größe \U0001f600.txt", "deep/er/x"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_bytes(name.encode() * 100)
    return found


def theirs_signs(folder: Path, key: Path, form: Callable[[Any], Any] = lambda config: config) -> None:
    hashing = form(openssf.hashing.Config().use_file_serialization())
    hashing.add_ignored_paths(model_path=folder, paths=[SIGNATURE_FILE])
    signing = openssf.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashing)
    signing.sign(folder, folder / SIGNATURE_FILE)


def theirs_verifies(folder: Path, key: Path) -> None:
    openssf.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, folder / SIGNATURE_FILE)


def test_model_signing_verifies_what_we_sign(pair: Pair, folder: Path) -> None:
    assert write_signature(folder, pair.key) == 7
    theirs_verifies(folder, pair.public)
    (folder / "a.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match="Hash mismatch for"):
        theirs_verifies(folder, pair.public)


def test_we_verify_what_model_signing_signs(pair: Pair, folder: Path) -> None:
    theirs_signs(folder, pair.private)
    signed = TrustedKeys.read(pair.public).verify(folder)
    assert len(signed.digests) == 7
    assert signed.signer == f"sha256:{fingerprint(pair.key.public_key())}"


def test_a_signature_is_replaced_and_a_folder_may_move(alice: Pair, folder: Path, tmp_path: Path) -> None:
    keys = TrustedKeys.read(alice.public)
    for content in (b"1", b"2"):
        (folder / "model.onnx").write_bytes(content)
        write_signature(folder, alice.key)
        keys.verify(folder)
    keys.verify(folder.rename(tmp_path / "elsewhere"))
    assert [path.name for path in (tmp_path / "digits").iterdir()] == []


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    change(bundle)
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))


def with_payload(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def change_payload(bundle: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    rewritten(folder, change_payload)


def made_to_hold_another_file(folder: Path) -> None:
    """What a thief without the key would do: the digests of the file that is there now."""
    (folder / "a.bin").write_bytes(b"other")
    with_payload(folder, lambda statement: statement["predicate"]["resources"][0].update(digest="0" * 64))


def replaced(folder: Path, name: str, how: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    how(folder / name)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unsigned": (lambda folder: (folder / SIGNATURE_FILE).unlink(), "it is not signed: there is no model.sig"),
    "changed": (lambda folder: (folder / "model.onnx").write_bytes(b"other"), "'model.onnx' is not what was signed"),
    "one byte more": (lambda folder: os.truncate(folder / "a.bin", 501), "'a.bin' is not what was signed"),
    "missing": (lambda folder: (folder / "deep/er/x").unlink(), "'deep/er/x' is missing"),
    "extra": (lambda folder: (folder / "extra.so").write_bytes(b""), "'extra.so' is an extra file"),
    "extra, hidden and deep": (lambda folder: (folder / "deep/.extra").write_bytes(b""), "'deep/.extra' is an extra file"),
    "renamed": (lambda folder: (folder / "a.bin").rename(folder / "b.bin"), "'a.bin' is missing"),
    "a pipe": (lambda folder: replaced(folder, "a.bin", os.mkfifo), "cannot read 'a.bin': not a regular"),
    "a pipe for a signature": (
        lambda folder: replaced(folder, SIGNATURE_FILE, os.mkfifo), "cannot read model.sig",
    ),
    "a link to a folder": (lambda folder: (folder / "more").symlink_to("/etc"), "'more' is a link to a folder"),
    "a link to another file": (
        lambda folder: replaced(folder, "a.bin", lambda path: path.symlink_to("/etc/hostname")), "'a.bin' is not what was",
    ),
    "a broken link": (
        lambda folder: replaced(folder, "a.bin", lambda path: path.symlink_to("nothing")), "cannot read 'a.bin'",
    ),
    "another statement": (made_to_hold_another_file, "by none of the keys"),
    "no JSON": (lambda folder: (folder / SIGNATURE_FILE).write_bytes(b"\xff"), "is not a sigstore bundle"),
    "deep JSON": (lambda folder: (folder / SIGNATURE_FILE).write_text("[" * 100_000), "is not a sigstore bundle"),
    "another JSON": (lambda folder: (folder / SIGNATURE_FILE).write_text("[1]"), "is not a sigstore bundle"),
    "too large": (lambda folder: os.truncate(folder / SIGNATURE_FILE, 2**25), "model.sig has more than"),
    "another bundle": (
        lambda folder: rewritten(folder, lambda bundle: bundle.update(mediaType="x")), "model.sig is a 'x'; accepted is",
    ),
    "another payload": (
        lambda folder: rewritten(folder, lambda bundle: bundle["dsseEnvelope"].update(payloadType="x")), "model.sig holds a 'x'",
    ),
    "no signature in it": (
        lambda folder: rewritten(folder, lambda bundle: bundle["dsseEnvelope"].update(signatures=[])), "is not a sigstore bundle",
    ),
    "a broken signature": (
        lambda folder: rewritten(folder, lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="AAAA")), "by none of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_as_it_was_signed_is_refused(case: str, alice: Pair, folder: Path) -> None:
    change, message = REFUSED[case]
    write_signature(folder, alice.key)
    change(folder)
    with pytest.raises(InvalidModel) as raised:
        TrustedKeys.read(alice.public).verify(folder)
    assert message in str(raised.value)
    assert str(folder) not in str(raised.value)


def test_another_s_signature_is_refused(alice: Pair, folder: Path, tmp_path: Path) -> None:
    bob = Pair(tmp_path, "bob", CURVES["P-384"])
    write_signature(folder, bob.key)
    with pytest.raises(InvalidModel, match="by none of the keys"):
        TrustedKeys.read(alice.public).verify(folder)


SHARDS = "is by shards and sha256; accepted are files and sha256"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda config: config.use_shard_serialization(), SHARDS),
        (lambda config: config.use_file_serialization(hashing_algorithm="blake2"), "is by files and blake2b"),
        (lambda config: config.use_file_serialization(hashing_algorithm="blake3"), "is by files and blake3"),
    ],
)
def test_other_forms_of_model_signing_are_refused_by_name(
    alice: Pair, folder: Path, form: Callable[[Any], Any], message: str
) -> None:
    theirs_signs(folder, alice.private, form)
    with pytest.raises(InvalidModel, match=message):
        TrustedKeys.read(alice.public).verify(folder)


def test_what_the_signer_left_out_may_be_there_but_not_be_loaded(alice: Pair, folder: Path) -> None:
    def leave_out(config: Any) -> Any:
        return config.set_ignored_paths(paths=["weights.bin", "deep"])

    theirs_signs(folder, alice.private, leave_out)
    (folder / "weights.bin").write_bytes(b"other")
    (folder / "deep" / "more").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"")
    signed = TrustedKeys.read(alice.public).verify(folder)
    assert signed.digests.keys().isdisjoint({"weights.bin", "deep/er/x"})
    with pytest.raises(InvalidModel, match=r"does not cover 'weights\.bin'"):
        signed.check_read("weights.bin", b"other")
    with pytest.raises(FilesChanged):
        signed.check_read("model.onnx", b"other")
    signed.check_read("model.onnx", (folder / "model.onnx").read_bytes())


def test_a_link_counts_as_the_file_that_it_leads_to(alice: Pair, folder: Path, tmp_path: Path) -> None:
    write_signature(folder, alice.key)
    (folder / "a.bin").rename(tmp_path / "moved")
    (folder / "a.bin").symlink_to(tmp_path / "moved")
    TrustedKeys.read(alice.public).verify(folder)
    with pytest.raises(InvalidModel, match=r"'a\.bin' is a link"):
        write_signature(folder, alice.key)


def test_keys_come_from_a_folder_and_from_certificates(alice: Pair, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    bob = Pair(tmp_path, "bob", CURVES["P-384"])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bob")])
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(bob.key.public_key()).serial_number(1)
        .not_valid_before(yesterday).not_valid_after(yesterday + dt.timedelta(days=900)).sign(bob.key, hashes.SHA384())
    )  # fmt: skip
    (keys / "bob.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (keys / "alice.pem").symlink_to(alice.public)
    (keys / "..data").mkdir()
    trusted = TrustedKeys.read(keys)
    for each, file in ((alice, "alice.pem"), (bob, "bob.crt")):
        write_signature(folder, each.key)
        assert trusted.name(trusted.verify(folder).signer) == file


BAD_KEYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no key"),
    "a private key": (private_pem(ec.generate_private_key(CURVES["P-256"])), "is a private key"),
    "another curve": (
        ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ), "holds something else",
    ),
    "RSA": (
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ), "holds something else",
    ),
    "broken": (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds something else"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_file_that_is_no_key_is_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD_KEYS[case]
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        TrustedKeys.read(tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError):
        TrustedKeys.read(tmp_path / "nothing")


def test_the_command_signs(alice: Pair, folder: Path, tmp_path: Path) -> None:
    done = convoy("sign", folder, "--key", alice.private)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}/model.sig: 7 files signed with the key sha256:{fingerprint(alice.key.public_key())}\n"
    TrustedKeys.read(alice.public).verify(folder)
    theirs_verifies(folder, alice.public)
    for arguments, message in (
        ((folder, "--key", alice.public), "is not a private key in PEM"),
        ((folder, "--key", tmp_path / "none"), "No such file"),
        ((tmp_path, "--key", alice.private), "is not a version folder: there is no model.onnx in it"),
    ):
        refused = convoy_here("sign", *arguments)
        assert (refused.returncode, refused.stderr.count("\n"), message in refused.stderr) == (2, 1, True), refused.stderr


def test_an_encrypted_or_foreign_private_key_is_one_line(tmp_path: Path) -> None:
    key = ec.generate_private_key(CURVES["P-256"])
    path = tmp_path / "key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(UserError, match="is encrypted"):
        read_private_key(path)
    for foreign in (private_pem(rsa.generate_private_key(65537, 2048)), SECP112R1, SM2):
        path.write_bytes(foreign)
        with pytest.raises(UserError, match="is of another kind"):
            read_private_key(path)


# Of curves that cryptography does not know, made by OpenSSL.
SECP112R1 = b"""-----BEGIN PRIVATE KEY-----
ME4CAQAwEAYHKoZIzj0CAQYFK4EEAAYENzA1AgEBBA6/7xvAVriM4TA+xfHdfKEg
Ax4ABHBfmGmEEMdYRAB/ZjOEMeGuC3Ra81vc8To/70M=
-----END PRIVATE KEY-----
"""
SM2 = b"""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqBHM9VAYItBG0wawIBAQQg0ML+LrGtTcM725CX
2tMrKwDz/RH8qP6iZcwpiZOKHz2hRANCAAThM3zYKMI2Fpo841JJ7uocBI7RHB5F
gOUbCppn4jLtPOKhOiy9Plia4Oi4Ld3tceeXmjgakbHtjLtE3RAfWA+Q
-----END PRIVATE KEY-----
"""
