"""OpenSSF model signing: the file `model.sig` of a version folder, which says who vouches for every file in it.

The format is that of the package model-signing 1.x with a key, and each reads what the other writes. `model.sig` is a sigstore
bundle 0.3 in JSON. In it is a DSSE envelope around an in-toto statement, whose predicate lists the files by their paths in the
folder, each with its SHA-256. The envelope is signed by ECDSA on P-256, P-384 or P-521, with the SHA-2 of that size.

What is accepted. Serialisation by files with SHA-256, which is model-signing's default; shards and BLAKE are refused by name. Every
file in the folder must be listed, but for those that model-signing leaves out: the signature, what belongs to git, and the
`ignore_paths` of the statement; a file that is loaded must be listed all the same. A link counts as the file that it leads to,
since its content is compared; a link to a folder is refused. The statement names the folder too, but only to tell people: a folder
may be moved or renamed. So may one that was signed long ago be put in the place of a newer one: the signature says who, not when.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.errors import FilesChanged, InvalidModel

SIGNATURE_FILE = "model.sig"
MAX_SIGNATURE_BYTES = 4 * 2**20
"""Enough for some 15,000 files; what is not trusted yet is parsed up to this size."""
CURVES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
"""The curves of keys that sign, and the hash that goes with each."""

LEFT_OUT = (SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore")

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20


class SignedFiles(NamedTuple):
    """What a signature says of a version folder, once it is known to be a trusted signer's.

    Attributes:
        signer: `sha256:` and the fingerprint of the signer's public key; see `fingerprint`.
        digests: the SHA-256 of each file, in hexadecimal, by its path in the folder.
        ignored: paths that the signer left out, with all below them.
    """

    signer: str
    digests: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    def check_read(self, name: str, content: bytes) -> None:
        """Checks what was read of a file to be loaded, after `check_folder`.

        Raises FilesChanged if it is no longer what was signed, InvalidModel if the signature leaves it out.
        """
        signed = self.digests.get(name)
        if signed is None:
            raise InvalidModel(f"{SIGNATURE_FILE} does not cover {name!r}, which the model needs")
        if hashlib.sha256(content).hexdigest() != signed:
            raise FilesChanged(f"{name!r} has changed since its signature was checked")

    def check_folder(self, folder: Path) -> None:
        """Reads every file of the folder. Raises InvalidModel for a file that is changed, missing or not listed."""
        found = _files(folder, self.ignored)
        for name in sorted(self.digests.keys() - found.keys()):
            raise InvalidModel(f"{name!r} is missing, which {SIGNATURE_FILE} covers")
        for name in sorted(found.keys() - self.digests.keys()):
            raise InvalidModel(f"{name!r} is an extra file, which {SIGNATURE_FILE} does not cover")
        for name, path in found.items():
            digest, signed = file_digest(path), self.digests[name]
            if digest != signed:
                raise InvalidModel(f"{name!r} is not what was signed: its SHA-256 is {digest[:12]}..., signed was {signed[:12]}...")


class Envelope(NamedTuple):
    """What is in a bundle, before anything of it is trusted."""

    payload: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What the signature is made over: DSSE's pre-authentication encoding."""
        return f"DSSEv1 {len(_PAYLOAD)} {_PAYLOAD} {len(self.payload)} ".encode() + self.payload


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal: `openssl pkey -pubin -outform DER | sha256sum`."""
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_envelope(folder: Path) -> Envelope:
    """The envelope in a version folder's signature. Raises InvalidModel if there is none, or of another form."""
    try:
        with open(folder / SIGNATURE_FILE, "rb", opener=_open_regular) as file:
            content = file.read(MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        raise InvalidModel(f"it is not signed: there is no {SIGNATURE_FILE}") from None
    except OSError as error:
        raise InvalidModel(f"cannot read {SIGNATURE_FILE}: {error.strerror}") from None
    if len(content) > MAX_SIGNATURE_BYTES:
        raise InvalidModel(f"{SIGNATURE_FILE} has more than {MAX_SIGNATURE_BYTES} bytes")
    try:
        bundle = json.loads(content)
        if bundle["mediaType"] != _BUNDLE:
            raise InvalidModel(f"{SIGNATURE_FILE} is a {str(bundle['mediaType'])[:100]!r}; accepted is {_BUNDLE}")
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != _PAYLOAD:
            raise InvalidModel(f"{SIGNATURE_FILE} holds a {str(envelope['payloadType'])[:100]!r}; accepted is {_PAYLOAD}")
        [signature] = envelope["signatures"]
        return Envelope(_decoded(envelope["payload"]), _decoded(signature["sig"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # ValueError is json's and binascii's too
        raise InvalidModel(f"{SIGNATURE_FILE} is not a sigstore bundle with one signature") from None


def read_statement(envelope: Envelope, signer: str) -> SignedFiles:
    """What a trusted signer's envelope says. Raises InvalidModel for what is not accepted here."""
    try:
        statement = json.loads(envelope.payload)
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
            kind = str(statement["predicateType"])[:100]
            raise InvalidModel(f"{SIGNATURE_FILE} is a statement {kind!r}; accepted is {_PREDICATE}: sign the folder anew")
        form = statement["predicate"]["serialization"]
        if (form["method"], form["hash_type"]) != ("files", "sha256"):
            given = f"{str(form['method'])[:40]} and {str(form['hash_type'])[:40]}"
            raise InvalidModel(f"{SIGNATURE_FILE} is by {given}; accepted are files and sha256, model-signing's defaults")
        digests, root = {}, hashlib.sha256()
        for resource in statement["predicate"]["resources"]:
            name, digest = resource["name"], resource["digest"]
            if resource["algorithm"] != "sha256" or not _DIGEST.fullmatch(digest) or not _is_inside(name) or name in digests:
                raise ValueError
            digests[name] = digest
            root.update(bytes.fromhex(digest))
        [subject] = statement["subject"]
        if subject["digest"]["sha256"] != root.hexdigest():
            raise ValueError
        return SignedFiles(signer, digests, tuple(map(str, form.get("ignore_paths", ()))))
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise InvalidModel(f"{SIGNATURE_FILE} does not hold a statement of model-signing") from None


def write_signature(folder: Path, key: ec.EllipticCurvePrivateKey) -> int:
    """Signs a version folder: writes its `model.sig`, or replaces it. Returns how many files it covers.

    Raises InvalidModel for a link or a file that cannot be read, OSError if the signature cannot be written.
    """
    found = _files(folder, ())
    for name, path in found.items():
        if path.is_symlink():
            raise InvalidModel(f"{name!r} is a link: a folder to sign has its files in it")
    names = sorted(found, key=PurePosixPath)
    digests = [file_digest(found[name]) for name in names]
    statement = {
        "_type": _STATEMENT,
        "subject": [
            {"name": folder.resolve().name, "digest": {"sha256": hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()}}
        ],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(LEFT_OUT)},
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in zip(names, digests, strict=True)
            ],
        },
    }
    envelope = Envelope(json.dumps(statement, indent=2).encode(), b"")
    public = key.public_key()
    signature = key.sign(envelope.signed_bytes(), ec.ECDSA(CURVES[public.curve.name]()))
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    # Beside the folder and not in it: a server that watches the folder would find an extra file.
    partial = folder.resolve().parent / f".{folder.resolve().name}.{SIGNATURE_FILE}"
    try:
        partial.write_text(json.dumps(bundle))
        partial.replace(folder / SIGNATURE_FILE)
    finally:
        partial.unlink(missing_ok=True)
    return len(names)


def file_digest(path: Path) -> str:
    """The SHA-256 of a regular file. Raises InvalidModel if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0, opener=_open_regular) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InvalidModel(f"cannot read {path.name!r}: {error.strerror}") from None
    return digest.hexdigest()


def _open_regular(path: str, flags: int) -> int:
    """Opens without waiting for a pipe's writer; that something is no regular file is an OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor


def _files(folder: Path, ignored: tuple[str, ...]) -> dict[str, Path]:
    """The files in a folder by their paths in it, without those that are left out. Raises InvalidModel if it cannot be read."""
    left_out = {*LEFT_OUT, *(path.rstrip("/") for path in ignored)}

    def fail(error: OSError) -> None:
        raise InvalidModel(f"cannot read the folder: {error.strerror}") from None

    found: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, onerror=fail):
        inside = Path(root).relative_to(folder)
        kept = []
        for name in folders:
            path = (inside / name).as_posix()
            if path in left_out:
                continue
            if os.path.islink(Path(root) / name):  # noqa: PTH114 - which raises if that cannot be said: the walk does, below
                raise InvalidModel(f"{path!r} is a link to a folder")
            kept.append(name)
        folders[:] = kept
        found |= {path: Path(root) / name for name in files if (path := (inside / name).as_posix()) not in left_out}
    return found


def _is_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and PurePosixPath(name).as_posix() == name and ".." not in name.split("/")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return base64.urlsafe_b64decode(text)
