"""Tar and zip archives: their pictures one by one, as `photos.zip/cat.jpg`.

An archive may be a stranger's. Nothing of it is written, so its names lead nowhere. No member and no header of more than
`MAX_PICTURE_BYTES` is read, whatever a few bytes of the archive unfold to.
"""

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from service.bulk.path_set import PathSet
from service.bulk.pictures import MAX_PICTURE_BYTES, LeftOut, Picture, name_of

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ZIP = (".zip",)
SUFFIXES = (*TAR, *ZIP)

_ENCRYPTED = 1
_SKIP_BYTES = 1 << 20
_COUNT_ENDS = 1 << 16
"""Some programs count from 0 again where a zip has more members than the field of 16 bits can say."""
_END = bytes(tarfile.BLOCKSIZE)
"""What stands where a header would be after a tar's last member."""

_BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, OverflowError, struct.error, zlib.error, lzma.LZMAError,
    tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip
"""What the standard library raises for an archive that is broken, cut off, or of a kind that it does not know."""


def is_archive(name: str) -> bool:
    """By its name."""
    return name.lower().endswith(SUFFIXES)


def members(file: IO[bytes], name: str, left_out: LeftOut) -> Iterator[Picture]:
    """The pictures in an archive that is open for reading, in its order; a zip's file must be seekable. Closes the file.

    Where the archive breaks off, an error in its own name comes last.
    """
    try:
        with file:
            yield from _zip_members(file, name, left_out) if name.lower().endswith(ZIP) else _tar_members(file, name, left_out)
    except _BROKEN as error:
        yield Picture(name_of(name), None, f"the archive cannot be read to its end: {_reason(error)}")


def _zip_members(file: IO[bytes], name: str, left_out: LeftOut) -> Iterator[Picture]:
    with zipfile.ZipFile(file) as archive:
        seen = PathSet()
        for member in archive.infolist():
            if member.is_dir() or not _takes(member.filename, left_out, seen):
                continue
            picture = name_of(f"{name}/{member.filename}")
            if member.flag_bits & _ENCRYPTED:
                yield Picture(picture, None, "encrypted: unpack the archive with its password first")
            elif member.file_size > MAX_PICTURE_BYTES:
                yield _too_large(picture, member.file_size)
            else:
                try:
                    content = archive.read(member)
                except _BROKEN as error:
                    yield Picture(picture, None, f"cannot be read from the archive: {_reason(error)}")
                else:
                    yield Picture(picture, content)
        _check_directory(file, archive)


def _check_directory(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raises ValueError where zipfile reads fewer members than there are, and says nothing."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    read, said = len(archive.infolist()), end[zipfile._ECD_ENTRIES_TOTAL]  # type: ignore[attr-defined]
    if (read - said) % _COUNT_ENDS:
        raise ValueError(f"its directory is damaged: {read} of {said} members are in it")
    file.seek(0)
    if archive.start_dir > end[zipfile._ECD_OFFSET] and file.read(4) == b"PK\3\4":  # type: ignore[attr-defined]
        raise ValueError("another archive stands in front of it")


def _tar_members(file: IO[bytes], name: str, left_out: LeftOut) -> Iterator[Picture]:
    with _decompressed(file, name) as content, tarfile.TarFile(fileobj=cast(IO[bytes], forward := _Forward(content))) as archive:
        seen = PathSet()
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if member.isdir() or not _takes(member.name, left_out, seen):
                continue
            picture = name_of(f"{name}/{member.name}")
            if not member.isfile():
                left_out.counts["links in archives"] += 1
            elif member.size > MAX_PICTURE_BYTES:
                yield _too_large(picture, member.size)
            else:
                yield Picture(picture, cast(IO[bytes], archive.extractfile(member)).read())
        if forward.last != _END or not _is_zero(content):  # tarfile ends as quietly at a header that is damaged
            raise ValueError("a header is damaged, its end is missing, or more stands after its end")


def _is_zero(content: Any) -> bool:
    """Whether zeros alone come to the end of a file."""
    return not any(chunk.strip(b"\0") for chunk in iter(lambda: content.read(_SKIP_BYTES), b""))


def _takes(name: str, left_out: LeftOut, seen: PathSet) -> bool:
    folder, _, last = name.rpartition("/")
    if folder and any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in folder.split("/")):
        left_out.counts["hidden"] += 1
        return False
    if not left_out.takes(last):
        return False
    if not seen.add("/".join(part for part in name.split("/") if part not in ("", "."))):
        left_out.counts["later ones of the same name in an archive"] += 1
        return False
    return True


def _too_large(picture: str, size: int) -> Picture:
    return Picture(picture, None, f"too large: {size} bytes; a picture in an archive has at most {MAX_PICTURE_BYTES}")


def _decompressed(file: IO[bytes], name: str) -> Any:
    kind = name.lower().rpartition(".")[2]
    if kind in ("gz", "tgz"):
        return gzip.open(file)
    if kind in ("bz2", "tbz2"):
        return bz2.open(file)
    if kind in ("xz", "txz"):
        return lzma.open(file)
    if kind in ("zst", "tzst"):
        try:
            from compression import zstd  # type: ignore[import-not-found]
        except ModuleNotFoundError:
            raise ValueError("Zstandard needs Python 3.14 or newer: unpack it with `zstd -d` first") from None
        return zstd.open(file)
    return file


class _Forward:
    """A file that is read forward, for tarfile: seeks read on, and one byte back, as tarfile does after each member.

    Refuses to read more at once than a picture may have: names and attributes in headers have lengths that the archive chose.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._at = 0
        self._last = b""
        self.last = b""
        """What the last read has given."""
        self._back = 0

    def tell(self) -> int:
        return self._at - self._back

    def seek(self, at: int) -> None:
        if at == self._at - 1 and self._last:
            self._back = 1
            return
        if at < self._at:
            raise ValueError("the archive goes backwards")
        self._back = 0
        while self._at < at:
            if not self._read(min(_SKIP_BYTES, at - self._at)):
                return

    def read(self, size: int) -> bytes:
        if size > MAX_PICTURE_BYTES:
            raise ValueError(f"a header says that it has {size} bytes")
        if self._back and size:
            self._back = 0
            self.last = self._last + self._read(size - 1)
        else:
            self.last = self._read(size)
        return self.last

    def _read(self, size: int) -> bytes:
        content: bytes = self._file.read(size)
        self._at += len(content)
        self._last = content[-1:] or self._last
        return content


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:300]
