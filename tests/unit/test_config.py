"""Every setting of `convoy serve` and every key of `serving.toml`: default, range, environment variable, documentation.

The ranges are read from the JSON schemas that pydantic makes, so that a setting added later is tested without being listed here.
"""

import json
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel, ValidationError

from service.cli.serve import serve
from service.config import ServerConfig
from service.errors import UserError
from service.model.providers import ONNX_RUNTIME_NAMES, Provider, ProviderName
from service.policy import Policy, read_policy

ROOT = Path(__file__).parents[2]
Schema = dict[str, Any]


def schemas(model: type[BaseModel]) -> dict[str, Schema]:
    """The JSON schema of each field; of an optional one, that of its value."""
    properties = model.model_json_schema()["properties"]
    return {name: {**schema, **schema.get("anyOf", [{}])[0]} for name, schema in properties.items()}


def accepted(schema: Schema) -> list[Any]:
    """The ends of the range, all choices, or any value."""
    if "enum" in schema:
        return list(schema["enum"])
    kind = schema["type"]
    if kind in ("integer", "number"):
        step = 1 if kind == "integer" else 1e-6
        low = schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else schema["minimum"]
        return [low, schema.get("maximum", low)]
    examples: dict[str, list[Any]] = {"string": ["latest:2"], "object": [{"stable": 3}], "array": [("one",), ("one", "two")]}
    return examples[kind]


def refused(schema: Schema) -> list[Any]:
    """Values just outside the range, and values of other types."""
    if "enum" in schema:
        return ["nonsense", schema["enum"][0].upper()]
    if schema["type"] not in ("integer", "number"):
        return []
    step = 1 if schema["type"] == "integer" else 1e-6
    low = schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else schema["minimum"] - step
    high = [schema["maximum"] + step] if "maximum" in schema else []
    return [low, *high, "x", float("nan"), float("inf"), *([1.5] if schema["type"] == "integer" else [])]


def written(value: Any) -> str:
    """A value as the command line and the environment take it."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


OPTIONS = {option.name or "": option for option in serve.params if isinstance(option, click.Option) and not option.hidden}
SETTINGS = {name: schema for name, schema in schemas(ServerConfig).items() if name != "repository"}
KEYS = schemas(Policy)
VALUED = [name for name, schema in SETTINGS.items() if schema["type"] != "boolean"]
LISTS = [name for name, schema in SETTINGS.items() if schema["type"] == "array"]
FLAGS = [name for name, schema in SETTINGS.items() if schema["type"] == "boolean"]


def parsed(*words: str) -> dict[str, Any]:
    """The settings that a command line comes to, as `serve` gets them."""
    return serve.make_context("serve", ["models", *words]).params


def test_each_setting_is_one_option_with_its_environment_variable() -> None:
    assert OPTIONS.keys() == SETTINGS.keys()
    for name, option in OPTIONS.items():
        flag = "--" + ("no-" if SETTINGS[name].get("default") is True else "") + name.replace("_", "-")
        assert option.opts == [flag]
        assert option.envvar == "CONVOY_" + flag[2:].upper().replace("-", "_")
        assert option.help


def test_without_options_every_setting_has_its_default() -> None:
    assert ServerConfig(**parsed()) == ServerConfig(repository=Path("models"))
    assert parsed() == ServerConfig(repository=Path("models")).model_dump()


def test_what_control_was_called_still_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed("--no-control")["control"] == parsed("--control", "on", "--no-control")["control"] == "off"
    monkeypatch.setenv("CONVOY_NO_CONTROL", "true")
    assert parsed()["control"] == "off"
    monkeypatch.setenv("CONVOY_NO_CONTROL", "false")
    assert parsed()["control"] == "auto"


@pytest.mark.parametrize("name", VALUED)
def test_an_option_takes_its_range_and_nothing_outside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option, schema = OPTIONS[name], SETTINGS[name]
    for value in accepted(schema):
        config = ServerConfig(**parsed(option.opts[0], written(value)))
        assert str(getattr(config, name)) == str(type(getattr(config, name))(value))
        monkeypatch.setenv(str(option.envvar), written(value))
        assert ServerConfig(**parsed()) == config
        assert ServerConfig.model_validate({"repository": "models", name: value}) == config
    for value in refused(schema):
        with pytest.raises(click.BadParameter, match=f"Invalid value for '{option.opts[0]}'"):
            _raise_in_full(option.opts[0], str(value))
        monkeypatch.setenv(str(option.envvar), str(value))
        with pytest.raises(click.BadParameter, match=str(option.envvar)):
            _raise_in_full()
        with pytest.raises(ValidationError):
            ServerConfig.model_validate({"repository": "models", name: value})


def _raise_in_full(*words: str) -> None:
    """Parses what must be refused; the error's text is the one that the user reads."""
    try:
        parsed(*words)
    except click.BadParameter as error:
        raise click.BadParameter(error.format_message()) from None


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_a_repeated_option_or_separated_by_commas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option = OPTIONS[name]
    assert parsed(option.opts[0], "one", option.opts[0], " two, three")[name] == ("one", "two", "three")
    monkeypatch.setenv(str(option.envvar), "one, two")
    assert parsed()[name] == ("one", "two")
    monkeypatch.setenv(str(option.envvar), "")
    assert parsed()[name] == ServerConfig.model_fields[name].default
    for text in ("", ",", "one,,two", "one,"):
        with pytest.raises(click.BadParameter, match=f"Invalid value for '{option.opts[0]}'"):
            _raise_in_full(option.opts[0], text)
    for text in (",", "one,,two", "one,"):
        monkeypatch.setenv(str(option.envvar), text)
        with pytest.raises(click.BadParameter, match=str(option.envvar)):
            _raise_in_full()
    if SETTINGS[name].get("minItems"):
        with pytest.raises(ValidationError):
            ServerConfig.model_validate({"repository": "models", name: ()})


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_off_until_it_or_its_variable_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option, default = OPTIONS[name], SETTINGS[name]["default"]
    assert parsed()[name] is default
    assert parsed(option.opts[0])[name] is not default
    for text, is_set in (("1", True), ("true", True), ("0", False), ("false", False)):
        monkeypatch.setenv(str(option.envvar), text)
        assert parsed()[name] is (default != is_set)
    assert parsed(option.opts[0])[name] is not default
    monkeypatch.setenv(str(option.envvar), "perhaps")
    with pytest.raises(click.BadParameter):
        parsed()


@pytest.mark.parametrize("name", VALUED)
def test_an_option_wins_over_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [written(value) for value in [*accepted(SETTINGS[name]), "another"]][:2]
    monkeypatch.setenv(str(OPTIONS[name].envvar), values[0])
    expected = parsed(OPTIONS[name].opts[0], values[1])[name]
    assert expected != parsed()[name]
    monkeypatch.delenv(str(OPTIONS[name].envvar))
    assert parsed(OPTIONS[name].opts[0], values[1])[name] == expected


def write(folder: Path, key: str, value: Any) -> Path:
    """A `serving.toml` with one key."""
    path = folder / "pets" / "serving.toml"
    path.parent.mkdir(exist_ok=True)
    text = "{ stable = 3 }" if isinstance(value, dict) else value if isinstance(value, float) else json.dumps(value)
    path.write_text(f"{key} = {text}\n")
    return path


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("default", "traffic", "traffic_key")])  # see test_policy.py
def test_a_key_of_serving_toml_takes_its_range_and_nothing_outside(key: str, tmp_path: Path) -> None:
    schema = KEYS[key]
    assert schema["description"]
    numbers = schema.get("items", {}).get("type") == "integer"
    for value in [[1], [2**20, 3]] if numbers else accepted(schema):
        assert getattr(read_policy(write(tmp_path, key, value)), key) == (list(value) if isinstance(value, tuple) else value)
    wrong = [True, [0] if numbers else [1]] + (["1"] if schema["type"] in ("integer", "number") else [1])
    for value in [*refused(schema), *wrong]:
        with pytest.raises(UserError, match=rf"^pets/serving\.toml: {key}[:.]"):
            read_policy(write(tmp_path, key, value))


def test_numbers_of_seconds_may_be_written_as_integers(tmp_path: Path) -> None:
    assert read_policy(write(tmp_path, "max_queue_delay_seconds", 1)).max_queue_delay_seconds == 1.0


def test_providers_are_the_same_everywhere() -> None:
    assert set(ONNX_RUNTIME_NAMES) == set(get_args(ProviderName))
    assert get_args(Provider) == ("auto", *get_args(ProviderName))
    assert list(get_args(Provider)) == SETTINGS["provider"]["enum"] == KEYS["provider"]["enum"]


def test_the_help_has_every_option_under_a_heading_in_the_order_of_the_fields() -> None:
    assert ServerConfig.HEADINGS.keys() <= SETTINGS.keys()
    context = click.Context(serve, info_name="serve", terminal_width=120)
    lines = serve.get_help(context).splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(f"  {option.opts[0]} ")) for option in OPTIONS.values()]
    assert places == sorted(places)
    assert [line[:-1] for line in lines if line in {f"{heading}:" for heading in ServerConfig.HEADINGS.values()}] == list(
        ServerConfig.HEADINGS.values()
    )


def test_every_setting_is_documented() -> None:
    text = (ROOT / "service" / "CONFIGURATION.md").read_text()
    for name in [*(option.opts[0] for option in OPTIONS.values()), *KEYS]:
        assert f"\n| `{name}` | " in text
