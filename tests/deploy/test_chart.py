"""The Helm chart, by the real Helm SDK: it lints, makes what kustomize makes, and refuses values that it does not know."""

import contextlib
import copy
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.deploy import kit
from tests.deploy.kit import Object

CHART = kit.DEPLOY / "chart"
GPU: dict[str, Any] = yaml.safe_load((CHART / "values-gpu.yaml").read_text())
FIXED: dict[str, Any] = {"autoscaling": {"type": "none"}}

SAME = {
    "overlays/cpu": {},
    "overlays/gpu": GPU,
    "models-image": FIXED | {"models": {"source": "image"}},
    "models-object-storage": FIXED | {"models": {"source": "objectStorage"}},
    "http-probes": FIXED | {"probes": "http"},
    "tls": FIXED | {"tls": True},
    "auth": FIXED | {"tls": True, "auth": {"enabled": True}},
    "auth-insecure": FIXED | {"envoy": True, "gateway": {"enabled": True}, "auth": {"enabled": True, "insecure": True}},
    "keda": {"autoscaling": {"type": "keda"}},
    "hpa-inflight": {"autoscaling": {"type": "cpuAndInflight"}},
    "gateway": FIXED | {"gateway": {"enabled": True}},
    "envoy": FIXED | {"envoy": True},
}
"""Renderings of kustomize, and the values that give the same."""


def rendered(values: dict[str, Any], namespace: str = "convoy") -> tuple[Object, ...]:
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(values))
        files = chart.render(values, name="convoy", namespace=namespace)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return tuple(found for text in texts for found in yaml.safe_load_all(text) if found)


def comparable(objects: tuple[Object, ...]) -> dict[str, Object]:
    """Objects by key, without what either tool does in its own way: namespaces, and how a changed ConfigMap rolls the pods."""
    result = {}
    for found in copy.deepcopy(objects):
        if found["kind"] == "Namespace":
            continue  # helm install --create-namespace
        found["metadata"].pop("namespace", None)
        found["metadata"].pop("annotations", None)
        if found["kind"] == "ConfigMap":
            found["metadata"]["name"] = without_hash(found["metadata"]["name"])
        if found["kind"] == "Deployment":
            found["spec"]["template"]["metadata"].pop("annotations", None)
            for volume in found["spec"]["template"]["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = without_hash(volume["configMap"]["name"])
            pod = found["spec"]["template"]["spec"]
            pod["volumes"].sort(key=lambda volume: str(volume["name"]))
            for container in kit.containers(pod):
                container["volumeMounts"].sort(key=lambda mount: str(mount["name"]))
                container.get("env", []).sort(key=lambda variable: str(variable["name"]))
        assert kit.key(found) not in result
        result[kit.key(found)] = found
    return result


def without_hash(name: str) -> str:
    return re.sub(r"-[a-z0-9]{10}$", "", name)


@pytest.mark.parametrize("name", SAME)
def test_the_chart_makes_the_same_objects_as_kustomize(name: str) -> None:
    ours, theirs = comparable(rendered(SAME[name])), comparable(kit.render(name))
    assert ours.keys() == theirs.keys()
    for found, expected in theirs.items():
        assert ours[found] == expected, found


def test_every_component_is_in_the_chart() -> None:
    assert set(kit.COMBINATIONS) <= SAME.keys()


def test_monitoring_is_the_same() -> None:
    without = comparable(rendered({})).keys()
    ours = comparable(rendered({"monitoring": {"enabled": True}}))
    assert {found: ours[found] for found in ours.keys() - without} == comparable(kit.render("monitoring"))


@pytest.mark.parametrize("values", [{}, GPU], ids=["cpu", "gpu"])
def test_helm_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True, kube_version="v1.31.0")
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"replica": 3}, "replica"),
        ({"models": {"source": "nfs"}}, "source"),
        ({"autoscaling": {"type": "memory"}}, "autoscaling"),
        ({"policies": {"digits": "max_batch_size = 4"}}, "policies"),
        ({"extraArgs": ["-x"]}, "extraArgs"),
        ({"replicas": 0}, "replicas"),
        ({"extraArgs": ["--drain-seconds=300"]}, "extraArgs"),
        ({"extraArgs": ["--grpc-port=9001"]}, "extraArgs"),
        ({"extraArgs": ["--lame-duck-seconds=60"]}, "extraArgs"),
        ({"resources": {"requests": {"cpu": "0"}, "limits": {"cpu": "1"}}}, "takes cores, such as 2 or 1.5"),
        ({"resources": {"requests": {"cpu": "500000u"}, "limits": {"cpu": "1"}}}, "takes cores, such as 2 or 1.5"),
        ({"env": [{"name": "CONVOY_GRPC_PORT", "value": "9001"}]}, "env/0/name"),
        ({"env": [{"name": "CONVOY_LAME_DUCK_SECONDS", "value": "60"}]}, "env/0/name"),
        ({"env": [{"name": "CONVOY_WORKERS", "value": 2}]}, "env/0/value"),
        ({"drainSeconds": None}, "missing property 'drainSeconds'"),
        ({"autoscaling": {"minReplicas": None}}, "missing property 'minReplicas'"),
        ({"gateway": None}, "missing property 'gateway'"),
        ({"tls": True, "envoy": True}, "tls cannot be combined with envoy or gateway"),
        ({"tls": True, "gateway": {"enabled": True}}, "tls cannot be combined with envoy or gateway"),
        ({"auth": {"enabled": True}}, "auth needs tls"),
        ({"auth": {"enabled": True}, "envoy": True}, "auth needs tls"),
        ({"auth": {"secretName": "mine"}}, "auth"),
        ({"extraArgs": ["--auth=/etc/auth.toml"]}, "extraArgs"),
        ({"env": [{"name": "CONVOY_INSECURE", "value": "true"}]}, "env/0/name"),
        ({"resources": {"limits": {"memory": "1Gi"}}}, "autoscaling by CPU needs resources.requests.cpu"),
    ],
)
def test_values_that_it_does_not_know_are_refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(helm.HelmError, match=what):
        rendered(values)


def test_empty_keys_are_as_if_they_were_not_there() -> None:
    empty = ["env", "extraArgs", "egress", "imagePullSecrets", "podAnnotations", "policies", "resources", "tolerations", "affinity"]
    assert rendered(dict.fromkeys(empty)) == rendered({})


def test_flags_that_are_refused_are_refused_as_variables_too() -> None:
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    flags = properties["extraArgs"]["items"]["not"]["pattern"]
    variables = properties["env"]["items"]["properties"]["name"]["not"]["pattern"]
    assert re.findall("[a-z-]{3,}", flags) == re.findall("[a-z-]{3,}", variables.removeprefix("^CONVOY_").lower().replace("_", "-"))


def test_values_reach_the_objects() -> None:
    values = {
        "image": {"repository": "registry.example.com/convoy", "tag": "1"},
        "resources": {"limits": {"cpu": "8"}},
        "extraArgs": ["--compression=gzip"],
        "env": [{"name": "CONVOY_LOG_LEVEL", "value": "debug"}],
        "policies": {"cats.toml": "max_batch_size = 4\n"},
        "models": {"claim": {"storageClassName": "nfs", "storage": "1Gi", "accessMode": "ReadWriteOnce"}},
        "nodeSelector": {"pool": "serving"},
        "tolerations": [{"key": "serving", "operator": "Exists"}],
        "podAnnotations": {"a": "b"},
        "priorityClassName": "high",
    }
    objects = comparable(rendered(values))
    pod = objects["Deployment/convoy"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "registry.example.com/convoy:1"
    assert container["resources"] == {"limits": {"cpu": "8"}}
    assert container["args"][-1] == "--compression=gzip"
    assert {"name": "CONVOY_LOG_LEVEL", "value": "debug"} in container["env"]
    assert objects["ConfigMap/convoy-policies"]["data"] == {"cats.toml": "max_batch_size = 4\n"}
    claim = objects["PersistentVolumeClaim/convoy-models"]["spec"]
    assert (claim["storageClassName"], claim["accessModes"]) == ("nfs", ["ReadWriteOnce"])
    assert pod["nodeSelector"] == {"pool": "serving"}
    assert pod["tolerations"] == [{"key": "serving", "operator": "Exists"}]
    assert pod["priorityClassName"] == "high"


@pytest.mark.parametrize(
    ("resources", "target"),
    [
        ({}, 140),
        ({"requests": {"cpu": "4"}, "limits": {"cpu": "4"}}, 70),
        ({"limits": {"cpu": 8}}, 70),
        ({"requests": {"cpu": "500m"}, "limits": {"cpu": "1.5"}}, 210),
        ({"requests": {"cpu": 2}}, 70),
        ({"requests": {"cpu": "0.5"}, "limits": {"cpu": "10"}}, 1400),
        ({"requests": {"cpu": "1"}, "limits": None}, 70),
    ],
)
def test_pods_are_added_before_they_use_all_that_they_may(resources: dict[str, Any], target: int) -> None:
    [hpa] = kit.of_kind(rendered({"resources": resources}), "HorizontalPodAutoscaler")
    assert hpa["spec"]["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": target}
    [scaled] = kit.of_kind(rendered({"resources": resources, "autoscaling": {"type": "keda"}}), "ScaledObject")
    assert scaled["spec"]["triggers"][1]["metadata"]["value"] == str(target)


def deployed(values: dict[str, Any]) -> tuple[Object, Object]:
    """The pod and its container."""
    pod = kit.of_kind(rendered(values), "Deployment")[0]["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_a_gpu_stays_whatever_else_is_asked_for() -> None:
    resources = {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"cpu": "8", "memory": "16Gi"}}
    limits = deployed(GPU | {"resources": resources})[1]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "1"}
    two = deployed(GPU | {"resources": {"limits": {"nvidia.com/gpu": "2"}}})[1]["resources"]
    assert two == {"limits": {"nvidia.com/gpu": "2"}}


def test_workers_are_probed_by_what_answers_while_they_load() -> None:
    ways = {"": "grpc", "1": "grpc", "2": "httpGet", "16": "httpGet", "auto": "httpGet"}
    for value, way in ways.items():
        arguments = [f"--workers={value}"] if value else []
        container = deployed({"extraArgs": arguments})[1]
        assert all(way in container[f"{probe}Probe"] for probe in ("startup", "liveness", "readiness")), arguments

    variable = [{"name": "CONVOY_WORKERS", "value": "4"}]
    assert "httpGet" in deployed({"env": variable})[1]["startupProbe"]


def test_resources_may_be_anything_where_nothing_is_scaled_by_them() -> None:
    for resources in ({"limits": None, "requests": {"memory": "1Gi"}}, {"requests": {"cpu": "1k"}}):
        assert deployed({"resources": resources, "autoscaling": {"type": "none"}})[1]["resources"]


def test_the_grace_has_room_for_the_drain() -> None:
    pod, container = deployed({"drainSeconds": 300})
    assert pod["terminationGracePeriodSeconds"] == 315
    assert [argument for argument in container["args"] if "drain" in argument] == ["--drain-seconds=300"]


def test_servers_may_be_let_out() -> None:
    collector = {"to": [{"namespaceSelector": {}}], "ports": [{"port": 4317}]}
    for values in ({}, {"models": {"source": "objectStorage"}}):
        [closed] = kit.of_kind(rendered(values), "NetworkPolicy")
        [opened] = kit.of_kind(rendered(values | {"egress": [collector]}), "NetworkPolicy")
        assert opened["spec"]["egress"] == [*closed["spec"]["egress"], collector]


def test_a_change_of_the_policies_rolls_the_pods() -> None:
    templates = [
        kit.of_kind(rendered(values), "Deployment")[0]["spec"]["template"]["metadata"]["annotations"]
        for values in ({}, {"policies": {"cats.toml": "max_batch_size = 4\n"}})
    ]
    assert templates[0] != templates[1]


def test_a_change_of_envoys_configuration_rolls_its_pods() -> None:
    [envoy] = [found for found in rendered({"envoy": True}) if kit.key(found) == "Deployment/convoy-envoy"]
    digest = hashlib.sha256((CHART / "components" / "envoy" / "config.yaml").read_bytes()).hexdigest()
    assert envoy["spec"]["template"]["metadata"]["annotations"] == {"convoy/envoy": digest}


def test_the_namespace_of_the_release_is_asked_for_at_the_prometheus_given() -> None:
    address = "http://thanos.elsewhere.svc:9090"
    [scaled] = kit.of_kind(
        rendered({"autoscaling": {"type": "keda", "prometheus": address}}, namespace="elsewhere"), "ScaledObject"
    )
    asked = scaled["spec"]["triggers"][0]["metadata"]
    assert 'namespace="elsewhere"' in asked["query"]
    assert asked["serverAddress"] == address


def test_rules_and_dashboard_are_of_one_installation() -> None:
    without = comparable(rendered({})).keys()
    ours = comparable(rendered({"monitoring": {"enabled": True, "rules": False, "dashboard": False}})).keys()
    assert ours - without == {"ServiceMonitor/convoy"}


@contextlib.contextmanager
def cluster(version: str, replicas: int) -> Iterator[helm.Config]:
    """As much of an API server as Helm asks: its version, and the Deployment with so many pods."""
    group = {"name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}]}
    resource = {"name": "deployments", "namespaced": True, "kind": "Deployment", "verbs": ["get"]}
    answers = {
        "/version": {"major": "1", "minor": version.partition(".")[2], "gitVersion": f"v{version}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
        "/apis": {"kind": "APIGroupList", "groups": [group]},
        "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [resource]},
        "/apis/apps/v1/namespaces/convoy/deployments/convoy": {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "convoy"}, "spec": {"replicas": replicas},
        },
    }  # fmt: skip

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [{"name": "me", "user": {}}],
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "convoy"}}],
        }  # fmt: skip
        try:
            with helm.Config(kubeconfig_content=json.dumps(kubeconfig), namespace="convoy", storage_driver="memory") as config:
                yield config
        finally:
            server.shutdown()


@pytest.mark.parametrize(("values", "replicas"), [({}, 7), (FIXED, 2)])
def test_an_autoscaler_starts_from_the_pods_that_are_there(values: dict[str, Any], replicas: int) -> None:
    with cluster("1.33", replicas=7) as config, helm.Chart.load(CHART) as chart:
        files = config.render(chart, chart.merge_values(values), name="convoy", namespace="convoy")
    assert yaml.safe_load(files["convoy/templates/deployment.yaml"])["spec"]["replicas"] == replicas


def test_models_in_an_image_need_a_cluster_whose_restricted_profile_takes_them() -> None:
    values = {"models": {"source": "image"}}
    with cluster("1.32", replicas=2) as config, pytest.raises(helm.HelmError, match="needs Kubernetes"):
        config.install(CHART, "convoy", values, dry_run="server")
    # Rendered, and then stopped for want of schemas.
    with cluster("1.33", replicas=2) as config, pytest.raises(helm.HelmError, match="download openapi"):
        config.install(CHART, "convoy", values, dry_run="server")
