"""`--explain DIR`: one picture's failure is its own, a busy server is waited for, and what is written is not explained."""

from pathlib import Path

import pytest

from service.bulk.explaining import explain_into
from service.bulk.pictures import LeftOut, Picture
from service.bulk.results_folder import ResultsFolder
from service.bulk.sources import pictures
from service.bulk.whole_file import beside_of
from service.client import CallFailed, Explanation, Prediction, RequestTooLarge
from service.errors import UserError
from tests.conftest import full_disk


class Server:
    """Fails as it is told, each time once, and explains everything else."""

    def __init__(self, *failures: CallFailed) -> None:
        self._failures = list(failures)

    def explain(self, images: list[str | bytes], model: str, *, version: str) -> list[Explanation]:
        if self._failures:
            raise self._failures.pop(0)
        [image] = images
        assert isinstance(image, bytes)
        heat = memoryview(bytes(4)).cast("f", (1, 1))
        return [Explanation(Prediction("ann", 0, 0.9), "occlusion", heat, b"png of " + image)]


def explained(server: Server, folder: Path, *, wait_seconds: float = 10.0) -> tuple[list[str], list[float]]:
    """What became of two pictures, and the pauses."""
    pauses: list[float] = []
    found = iter([Picture("a.jpg", b"1"), Picture("b.jpg", b"2")])
    rows = [
        f"{picture.name}: {outcome if isinstance(outcome, str) else path.read_bytes().decode()}"
        for picture, outcome, path in explain_into(folder, server, found, "people", "", wait_seconds, pauses.append)
    ]
    return rows, pauses


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (RequestTooLarge(9, 5), "too large: the request has 9 bytes"),
        (CallFailed("DEADLINE_EXCEEDED", "too late"), "DEADLINE_EXCEEDED: too late"),
        (CallFailed("INTERNAL", "model failed"), "INTERNAL: model failed"),
        (CallFailed("RESOURCE_EXHAUSTED", "needs too much memory"), "RESOURCE_EXHAUSTED: needs too much memory"),
        (CallFailed("INVALID_ARGUMENT", "item 0: not an image", "items[0].encoded"), "not an image"),
    ],
)
def test_the_others_are_explained(failure: CallFailed, text: str, tmp_path: Path) -> None:
    [first, second], pauses = explained(Server(failure), tmp_path)
    assert first.startswith(f"a.jpg: {text}")
    assert second == "b.jpg: png of 2"
    assert not pauses


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    busy = [CallFailed("RESOURCE_EXHAUSTED", "full", "", 3.0), CallFailed("UNAVAILABLE", "loading"), CallFailed("UNAVAILABLE", "x")]
    rows, pauses = explained(Server(*busy), tmp_path)
    assert rows == ["a.jpg: png of 1", "b.jpg: png of 2"]
    assert pauses == [3.0, 0.2, 0.2]


def test_it_is_not_waited_for_without_end(tmp_path: Path) -> None:
    rows, pauses = explained(Server(*[CallFailed("RESOURCE_EXHAUSTED", "full", "", 4.0)] * 4), tmp_path)
    assert rows == ["a.jpg: RESOURCE_EXHAUSTED: full", "b.jpg: png of 2"]
    assert pauses == [4.0, 4.0, 2.0]
    with pytest.raises(CallFailed, match="gone"):
        explained(Server(*[CallFailed("UNAVAILABLE", "gone")] * 2), tmp_path, wait_seconds=0.1)


@pytest.mark.parametrize("failure", [CallFailed("NOT_FOUND", "none"), CallFailed("INVALID_ARGUMENT", "not so", "version")])
def test_what_concerns_all_ends_the_run(failure: CallFailed, tmp_path: Path) -> None:
    with pytest.raises(CallFailed):
        explained(Server(failure), tmp_path)


def test_a_second_run_writes_nothing_twice_and_nothing_over_another(tmp_path: Path) -> None:
    """As after a kill: what it leaves has no name that could be taken for a picture's."""
    found = [Picture("a/b.jpg", b"1"), Picture("a_b.jpg", b"1"), Picture("c.jpg", b"2")]
    (tmp_path / "c.jpg.png").write_bytes(b"of mine")

    def run() -> list[str]:
        return [path.name for *_, path in explain_into(tmp_path, Server(), iter(found), "people", "", 1.0)]

    expected = ["a_b.jpg.png", "a_b.jpg_2.png", "c.jpg_2.png"]
    assert run() == expected
    Path(beside_of(tmp_path / "x", "c.jpg")).write_bytes(b"half")
    assert run() == expected
    assert {path.name for path in tmp_path.iterdir()} == {*expected, "c.jpg.png"}
    assert (tmp_path / "c.jpg.png").read_bytes() == b"of mine"


def test_a_full_disk_leaves_no_part_of_an_explanation(tmp_path: Path) -> None:
    with full_disk(3), pytest.raises(UserError, match="cannot be written: File too large"):
        explained(Server(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--explain .*file: is a file: give a folder"):
        explained(Server(), tmp_path / "file")


def test_explanations_are_no_sources(tmp_path: Path) -> None:
    out = tmp_path / "photos" / "why"
    for name in ("photos/a.png", "photos/why/b.png", "photos/why/more/c.png", "photos/why2/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "link").symlink_to(out)
    results = ResultsFolder(out)
    for source in (f"{tmp_path}/photos", f"{tmp_path}/photos/**/*.png", f"{tmp_path}/photos/*"):
        found = [each.name for each in pictures([source], LeftOut(), results.is_it) if not results.holds(each.path or "")]
        assert found == [f"{tmp_path}/photos/a.png", f"{tmp_path}/photos/why2/d.png"]
