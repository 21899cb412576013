from pathlib import Path

import pytest

from service.errors import UserError
from service.policy import Policy, read_policy


def test_a_policy_has_defaults_and_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "pets" / "serving.toml"
    assert read_policy(path) == Policy()
    path.parent.mkdir()
    path.write_text("max_batch_size = 8\ndefault_timeout_seconds = 1.5\nprovider = 'cpu'\n")
    assert read_policy(path) == Policy(max_batch_size=8, default_timeout_seconds=1.5, provider="cpu")


def test_one_key_alone_is_enough(tmp_path: Path) -> None:
    assert Policy(max_queue_items=5).max_request_items == 5
    assert Policy(priority_levels=1).default_priority == 1
    assert Policy().max_request_items == 512


def test_versions_and_aliases_go_to_the_largest_int64() -> None:
    policy = Policy(versions="3, 9223372036854775807", aliases={"now": 1764442800})
    assert policy.named([1]) == {3, 1764442800, 2**63 - 1}


def test_a_version_with_a_share_of_the_requests_is_served() -> None:
    policy = Policy(versions="1", default=2, aliases={"old": 4}, traffic={"3": 1, "old": 2, "latest": 3})
    assert policy.named([7]) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size = 0", "pets/serving.toml: max_batch_size: .*greater than or equal to 1"),
        ("max_batch_size = 'many'", "pets/serving.toml: max_batch_size: "),
        ("batch_size = 2", "pets/serving.toml: batch_size: unknown key; the keys are max_batch_size, "),
        ("max_queue_items = 5\nmax_request_items = 6", r"serving.toml: max_request_items \(6\) is above max_queue_items \(5\)"),
        ("default_priority = 3", r"pets/serving.toml: default_priority \(3\) is above priority_levels \(2\)"),
        ("instances = 0", "pets/serving.toml: instances: .*greater than or equal to 1"),
        ("max_queue_delay_seconds = -1", "pets/serving.toml: max_queue_delay_seconds: .*greater than or equal to 0"),
        ("provider = 'gpu'", "pets/serving.toml: provider: Input should be 'auto', 'cuda'"),
        ("default_timeout_seconds = inf", "pets/serving.toml: default_timeout_seconds: "),
        ("default_timeout_seconds = 2e9", "pets/serving.toml: default_timeout_seconds: .*less than or equal to 1000000000"),
        ("max_batch_size = true", "pets/serving.toml: max_batch_size: Input should be a valid integer"),
        ("max_queue_delay_seconds = '0.1'", "pets/serving.toml: max_queue_delay_seconds: Input should be a valid number"),
        ("versions = '007'", "pets/serving.toml: versions: accepted are .*1 to 9223372036854775807"),
        ("versions = '1,9223372036854775808'", "pets/serving.toml: versions: accepted are"),
        ("versions = 'latest:-1'", "pets/serving.toml: versions: accepted are"),
        ("[aliases]\nold = 9223372036854775808", "pets/serving.toml: aliases.old: .*less than or equal to 9223372036854775807"),
        ("max_batch_size 8", "pets/serving.toml: Expected"),
        ("scores = 'softmax'", "pets/serving.toml: scores: Input should be 'auto', 'logits', 'probabilities'"),
        ("input_shape = [224, 0]", "pets/serving.toml: input_shape.1: .*greater than or equal to 1"),
        ("default = 'canary'", "pets/serving.toml: default: 'canary' is no alias; accepted are 'latest' and version numbers"),
        *(
            (f"default = {bad}", "pets/serving.toml: default: accepted are .*, 1 to 9223372036854775807")
            for bad in ("0", "1.0", "true")
        ),
        (
            "[aliases]\nnew = 2\n[traffic]\nnew = 5\nold = 95",
            "serving.toml: traffic: 'old' is no alias; accepted are 'latest', 'new' and",
        ),
        ("[traffic]\n1 = -5", "pets/serving.toml: traffic.1: .*greater than or equal to 0"),
        ("[traffic]\n1 = inf", "pets/serving.toml: traffic.1: "),
        ("[traffic]\n1 = '5 %'", "pets/serving.toml: traffic.1: Input should be a valid number"),
        ("[traffic]\n1 = 0\n2 = 0", "pets/serving.toml: traffic: one weight must be above 0"),
        ("traffic_key = 'x-user'", "pets/serving.toml: traffic_key: there is no traffic"),
        ("traffic_key = 'X User'\n[traffic]\n1 = 1", "pets/serving.toml: traffic_key: accepted are request-id, and names of"),
        ("labels = ['cat', ' ']", "pets/serving.toml: labels: a name is empty"),
    ],
)
def test_a_bad_policy_names_the_key_and_what_it_accepts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pets" / "serving.toml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_policy(path)


def test_a_policy_may_be_saved_by_a_windows_editor(tmp_path: Path) -> None:
    path = tmp_path / "pets" / "serving.toml"
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbfmax_batch_size = 8\r\n[aliases]\r\nstable = 3\r\n")
    assert read_policy(path) == Policy(max_batch_size=8, aliases={"stable": 3})
    path.write_text("max_batch_size = 8\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"^pets/serving.toml: the file is UTF-16; save it as UTF-8$"):
        read_policy(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"^pets/serving.toml: not a regular file$"):
        read_policy(path)
