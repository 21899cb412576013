from pathlib import Path

import pytest

from service.model.text_files import read_text

TEXT = "grüße = 1\nb = 2\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),  # as Notepad and PowerShell write it
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_marks_and_line_ends_of_editors_make_no_difference(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert read_text(path) == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "the file is UTF-16; save it as UTF-8"),
        (TEXT.encode("utf-32"), "the file is UTF-32; save it as UTF-8"),
        ("b = 2\n".encode("utf-16-le"), "line 1 contains a NUL byte; save the file as UTF-8 text"),
        (TEXT.encode() + bytes(512), "line 3 contains a NUL byte; save the file as UTF-8 text"),
        ("b = 2\n# grüße".encode("latin-1"), r"line 2 is not UTF-8 \(byte 0xfc\); save the file as UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_text(path)
