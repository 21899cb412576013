"""The public keys whose signatures of versions are accepted: `--require-signatures`."""

import re
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.errors import InvalidModel, UserError
from service.model.signing import CURVES, SignedFiles, file_digest, fingerprint, read_envelope, read_statement

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
_MAX_FILE_BYTES = 2**20
_ACCEPTED = "accepted are PEM files with a public key or a certificate, of ECDSA on P-256, P-384 or P-521"


class TrustedKeys(NamedTuple):
    """Public keys, each with the name of its file. A certificate stands for its key: neither issuer nor dates matter."""

    keys: tuple[tuple[str, ec.EllipticCurvePublicKey], ...]

    @classmethod
    def read(cls, path: Path) -> "TrustedKeys":
        """The keys in a PEM file, or in all files of a folder but hidden ones. Raises UserError for anything else in them."""
        try:
            files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
            keys = tuple((file.name, key) for file in files for key in _read(file))
        except OSError as error:
            raise UserError(f"--require-signatures {str(path)!r}: {error.strerror}") from None
        if not keys:
            raise UserError(f"--require-signatures {str(path)!r}: there is no key in the folder; {_ACCEPTED}")
        return cls(keys)

    def verify_signature(self, folder: Path) -> SignedFiles:
        """What the signature of a version folder says, if one of the keys made it; the folder's other files are not read.

        Raises InvalidModel: it is not signed, by none of the keys, or in a form that is not accepted.
        """
        envelope = read_envelope(folder)
        signed = envelope.signed_bytes()
        for _, key in self.keys:
            try:
                key.verify(envelope.signature, signed, ec.ECDSA(CURVES[key.curve.name]()))
            except InvalidSignature:
                continue
            return read_statement(envelope, f"sha256:{fingerprint(key)}")
        raise InvalidModel("its signature is by none of the keys of --require-signatures, or the statement in it was changed")

    def verify(self, folder: Path) -> SignedFiles:
        """What the signature of a version folder says, if one of the keys made it and every file is what was signed.

        Raises InvalidModel. Files may change after this: hold what is loaded against the result.
        """
        signed = self.verify_signature(folder)
        signed.check_folder(folder)
        return signed

    def verify_file(self, path: Path) -> None:
        """Raises InvalidModel unless one file of a version folder is what one of the keys has signed. Other files are not read."""
        signed = self.verify_signature(path.parent).digests.get(path.name)
        if file_digest(path) != signed:
            raise InvalidModel(f"{path.name!r} is not what was signed")

    def name(self, signer: str) -> str:
        """The name of the file with a signer's key."""
        return next((name for name, key in self.keys if f"sha256:{fingerprint(key)}" == signer), "")


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a PEM file. Raises UserError for a file that cannot be read, or any other content."""
    try:
        with path.open("rb") as file:
            key: object = serialization.load_pem_private_key(file.read(_MAX_FILE_BYTES), None)
    except OSError as error:
        raise UserError(f"--key {str(path)!r}: {error.strerror}") from None
    except TypeError:
        raise UserError(f"--key {str(path)!r} is encrypted: decrypt it first (openssl pkey -in FILE)") from None
    except ValueError:
        raise UserError(f"--key {str(path)!r} is not a private key in PEM") from None
    except UnsupportedAlgorithm:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise UserError(
            f"--key {str(path)!r} is of another kind: accepted is ECDSA on P-256, P-384 or P-521 "
            "(openssl ecparam -name prime256v1 -genkey -noout)"
        )
    return key


def _read(path: Path) -> list[ec.EllipticCurvePublicKey]:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES)
    keys = []
    for block in _BLOCK.finditer(content):
        key: object = None
        if b"PRIVATE KEY" in block[1]:
            raise UserError(f"--require-signatures: {path.name!r} is a private key; give the server the public one alone")
        try:
            if block[1] == b"CERTIFICATE":
                key = x509.load_pem_x509_certificate(block[0]).public_key()
            elif block[1] == b"PUBLIC KEY":
                key = serialization.load_pem_public_key(block[0])
        except Exception:  # noqa: BLE001, S110 - cryptography's errors of many kinds; none of them gives a key
            pass
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
            raise UserError(f"--require-signatures: {path.name!r} holds something else; {_ACCEPTED}")
        keys.append(key)
    if not keys:
        raise UserError(f"--require-signatures: {path.name!r} holds no key; {_ACCEPTED}")
    return keys
