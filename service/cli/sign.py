"""`convoy sign`."""

from pathlib import Path

import click

from service.errors import InvalidModel, UserError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="VERSION_FOLDER")
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key (PEM): ECDSA on P-256, P-384 or P-521.")
def sign(folder: Path, key: Path) -> None:
    """Sign the version in VERSION_FOLDER (REPOSITORY/<model>/<version>) for `convoy serve --require-signatures`.

    Writes model.sig into the folder, in the format of OpenSSF model signing: it covers every file in the folder, and any later
    change makes it invalid. The server needs the public key: openssl pkey -in KEY -pubout.
    """
    from service.model.repository_layout import MODEL_FILE
    from service.model.signing import SIGNATURE_FILE, fingerprint, write_signature
    from service.model.trusted_keys import read_private_key
    from service.triton.settings import model_file_name

    private = read_private_key(key)
    model = folder.absolute().parent
    file = model_file_name(model.parent, model.name) or MODEL_FILE
    if not (folder / file).is_file():
        raise UserError(f"{str(folder)!r} is not a version folder: there is no {file} in it")
    try:
        count = write_signature(folder, private)
    except InvalidModel as error:
        raise UserError(f"{str(folder)!r} cannot be signed: {error}") from None
    files = "1 file" if count == 1 else f"{count} files"
    click.echo(f"{folder / SIGNATURE_FILE}: {files} signed with the key sha256:{fingerprint(private.public_key())}")
