"""The local stack: what it mounts is there, it asks for what is served, and its containers are held as the kit's are."""

import yaml

from tests.deploy import kit

COMPOSE = kit.DEPLOY / "compose"


def test_the_compose_file_and_what_it_mounts_fit() -> None:
    stack = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    services = stack["services"]
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    files = [mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) == 5
    for file in files:
        assert (COMPOSE / file).is_file(), file
    convoy = services["convoy"]
    assert (COMPOSE / convoy["build"]["context"] / convoy["build"]["dockerfile"]).resolve() == kit.DEPLOY / "Dockerfile"
    assert (convoy["read_only"], convoy["cap_drop"]) == (True, ["ALL"])
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "nothing is opened to the network"


def test_prometheus_scrapes_the_port_that_is_served_and_reads_the_rules() -> None:
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    stack = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["convoy:8002"]
    assert "127.0.0.1:8002:8002" in stack["services"]["convoy"]["ports"]
    [rules] = config["rule_files"]
    assert any(mount.split(":")[1] == f"/etc/prometheus/{rules}" for mount in stack["services"]["prometheus"]["volumes"])


def test_grafana_finds_its_source_and_the_dashboard() -> None:
    [source] = yaml.safe_load((COMPOSE / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((COMPOSE / "grafana" / "dashboards.yaml").read_text())["providers"]
    stack = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert any(
        mount.split(":")[1].startswith(provider["options"]["path"] + "/") for mount in stack["services"]["grafana"]["volumes"]
    )
