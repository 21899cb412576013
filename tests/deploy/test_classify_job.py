"""The pods of jobs/classify as processes: each takes its share of the list, and one that is killed goes on where it was."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet

from export.data.datasets import Dataset
from service.bulk.shard import Shard
from tests.deploy import kit
from tests.program import convoy_here

BLOCK = 1000
"""So many rows are written at once at the latest."""
[JOB] = kit.of_kind(kit.render("jobs/classify"), "Job")
PODS = range(JOB["spec"]["completions"])


def arguments(index: int, volumes: Path) -> list[str]:
    """The arguments of a pod, with its number, as the kubelet puts it in, and with folders in place of volumes."""
    [container] = JOB["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["args"]]
    mounts = "|".join(mount["mountPath"] for mount in container["volumeMounts"])
    return [re.sub(rf"=(?=({mounts})/)", f"={volumes}", word) for word in words]


def test_there_are_as_many_shares_as_pods() -> None:
    [shard] = {word for word in arguments(len(PODS) - 1, Path("/volumes")) if word.startswith("--shard=")}
    assert shard == f"--shard={len(PODS) - 1}/{len(PODS)}"
    assert JOB["spec"]["completionMode"] == "Indexed"


def test_pods_classify_every_picture_of_the_list_once_though_one_is_killed(
    repository: Path, digits: Dataset, tmp_path: Path
) -> None:
    photos, results = tmp_path / "pictures", tmp_path / "results"
    photos.mkdir()
    results.mkdir()
    paths = [photos / f"{number}.png" for number in range(10 * BLOCK)]
    first = [path for path in paths if Shard(0, len(PODS)).takes(str(path))][: BLOCK + 100]
    paths = sorted({*first, *paths[:40]})
    for number, path in enumerate(paths):
        path.write_bytes(digits.test.encoded(number % 50))
    (photos / "broken.png").write_text("no picture")
    listed = [*map(str, paths), str(photos / "broken.png"), str(photos / "missing.png")]
    (photos / "list.txt").write_text("".join(f"{path}\n" for path in listed))
    for index in PODS[1:]:
        ended = convoy_here(*arguments(index, tmp_path))
        assert ended.returncode == 0, ended.stderr

    whole = (photos / "list.txt").rename(tmp_path / "list.txt")
    os.mkfifo(photos / "list.txt")
    pod = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments(0, tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with (photos / "list.txt").open("w") as pipe:  # the pod waits for the rest of it
            pipe.writelines(f"{path}\n" for path in listed[:-3])
            pipe.flush()
            part = wait_for_rows(results)
            pod.kill()
    finally:
        pod.kill()
        pod.wait()
    whole.replace(photos / "list.txt")
    assert not part.with_suffix("").exists(), "it was killed before the end"
    before = part.read_bytes().count(b"\n")
    again = convoy_here(*arguments(0, tmp_path))
    assert again.returncode == 0, again.stderr
    assert f"{before:,} were done before" in again.stderr

    rows = rows_of(results)
    assert len(rows) == len(listed)
    assert {row["path"] for row in rows} == set(listed)
    assert {Path(row["path"]).name for row in rows if row["error"]} == {"broken.png", "missing.png"}
    assert len(list(results.iterdir())) == len(PODS)


def wait_for_rows(results: Path) -> Path:
    while not (found := list(results.glob("*.partial"))) or not found[0].stat().st_size:
        time.sleep(0.05)
    return found[0]


def rows_of(results: Path) -> list[dict[str, Any]]:
    return [row for file in results.glob("*.parquet") for row in pyarrow.parquet.read_table(file).to_pylist()]
