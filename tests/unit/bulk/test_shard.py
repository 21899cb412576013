"""`--shard`: every picture is in one shard, whatever else is among the sources."""

import os
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service.bulk.pictures import LeftOut, path_of
from service.bulk.shard import Shard, parse_shard
from service.bulk.sources import pictures
from tests.program import convoy_here, one_line


def test_shards_have_every_picture_once_and_about_as_many_each(tmp_path: Path) -> None:
    paths = [f"/photos/{number} ü.png" for number in range(2000)]
    shards = [[each.name for each in pictures(paths, LeftOut(), takes=Shard(index, 7).takes)] for index in range(7)]
    assert sorted(name for shard in shards for name in shard) == sorted(paths)
    assert all(200 < len(shard) < 400 for shard in shards)
    again = pictures(reversed([*paths, "/photos/new.png"]), LeftOut(), takes=Shard(3, 7).takes)
    assert {each.name for each in again} - {"/photos/new.png"} == set(shards[3])


def test_a_picture_is_in_one_shard_however_it_is_spelled_and_wherever_the_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(f"{number}.png" for number in range(40)), "@.png", os.fsdecode(b"caf\xe9.png"), "\udcff.png"]
    for home in ("a", "b/c"):
        (tmp_path / home / "photos" / "in").mkdir(parents=True)
        for name in names:
            (tmp_path / home / "photos" / "in" / name).touch()
    shards: list[set[str]] = []
    for index in range(3):
        monkeypatch.chdir(tmp_path / ("a" if index % 2 else "b/c"))
        sources = ["photos", "./photos/in", "photos//in/./*.png", *(f"photos/./in/{name}" for name in names)]
        found = pictures(sources, LeftOut(), takes=Shard(index, 3).takes)
        shards.append({Path(path_of(each.name)).name for each in found})
    assert set.union(*shards) == set(names)
    assert sum(map(len, shards)) == len(names)
    assert min(map(len, shards)) > 5


def test_relative_and_absolute_paths_are_not_in_one_sharded_run(tmp_path: Path) -> None:
    given = ["classify", "--model", "digits", "--output", f"{tmp_path}/rows.csv", "photos", "https://host/a.png"]
    for absolute in ("/photos", "file:///photos"):
        refused = convoy_here(*given, absolute, "--shard", "0/2")
        assert "--shard goes by the paths of pictures: give PATHs that are all absolute, or all relative" in one_line(refused)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_of_pictures_in_archives_and_of_what_cannot_be_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.png", b"picture")
    sources = [str(tmp_path / "photos.zip"), str(tmp_path / "none" / "*.png"), str(tmp_path / "\udcff.png")]
    shards = [{each.name for each in pictures(sources, LeftOut(), takes=Shard(index, 2).takes)} for index in range(2)]
    assert len(shards[0] | shards[1]) == len(shards[0]) + len(shards[1]) == 42
    assert min(len(shard) for shard in shards) > 5


def test_what_is_in_another_shard_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    for number in range(40):
        system.pipe(f"/shards/{number}.png", b"picture")
    fetched: list[str] = []
    whole = type(system).cat_file

    def cat_file(self: Any, path: str) -> bytes:
        fetched.append(path)
        content: bytes = whole(self, path)
        return content

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    names = [each.name for each in pictures(["memory://shards"], LeftOut(), takes=Shard(0, 2).takes)]
    assert 5 < len(names) < 35
    assert len(fetched) == len(names)


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard()), ("3/4", Shard(3, 4)), ("99999/100000", Shard(99_999, 100_000))])
def test_shards_are_numbered_from_0(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard


@pytest.mark.parametrize(
    "text", ["4/4", "0/0", "1", "1/", "/2", "-1/2", "1/2/3", "0/100001", "٣/٤", " 1/2", "1.0/2", "", "$(JOB)/4"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 0/4"):
        parse_shard(text)


def test_the_program_says_what_a_shard_is() -> None:
    refused = convoy_here("classify", "digit.png", "--model", "digits", "--shard", "4/4")
    assert "'4/4' is no shard: give I/N, with N of 1 to 100000 and I of 0 to N-1, such as 0/4." in one_line(refused)
