"""Whether a file has changed is seen without reading it."""

import os
import shutil
from pathlib import Path

from service.model.files import file_state


def test_a_file_is_changed_by_other_content_of_the_same_size_and_time(tmp_path: Path) -> None:
    """As by `cp -p` of weights from a folder whose files all have one time, as builds that can be repeated make them."""
    weights, new = tmp_path / "weights", tmp_path / "new"
    for path, content in ((weights, b"old"), (new, b"new")):
        path.write_bytes(content)
        os.utime(path, (10**9, 10**9))
    before = file_state(weights)
    assert file_state(weights) == before
    shutil.copyfile(new, weights)
    shutil.copystat(new, weights)
    after = file_state(weights)
    assert after != before
    assert before is not None
    assert after is not None
    assert after[:3] == before[:3], "only the change time tells"


def test_a_file_that_is_not_there_has_no_state(tmp_path: Path) -> None:
    assert file_state(tmp_path / "none") is None
