"""What schemas say of every object of the kit, and what they do not: that names, ports, labels, flags and times fit each other."""

import json
import shlex
from pathlib import Path
from typing import Any

import click
import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import cli
from service.policy import read_policy
from service.server import STOP_SECONDS
from tests.conftest import Serve
from tests.deploy import cluster, kit
from tests.deploy.kit import Object
from tests.integration.test_edges import get

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "Gateway", "GRPCRoute", "ClusterServingRuntime", "InferenceService"}
FROM_ELSEWHERE = {
    "Secret/convoy-tls",  # cert-manager's, or the operator's own
    "Secret/convoy-auth",  # the operator's file for --auth
    "Secret/convoy-models-storage",  # the operator's credentials
    "PersistentVolumeClaim/convoy-pictures",  # the operator's own
    "PersistentVolumeClaim/convoy-models",  # the overlay's, where the Jobs are rendered alone
    "Service/convoy",  # likewise, for the monitoring
}

rendering = pytest.mark.parametrize("name", kit.RENDERINGS)


def test_every_component_is_rendered_somewhere() -> None:
    components = {path.parent.name for path in (kit.DEPLOY / "components").glob("*/kustomization.yaml")}
    assert components
    assert components == {component for used in kit.COMBINATIONS.values() for component in used}


@pytest.mark.parametrize("version", ["1.31", "1.32", "1.33", "1.34", "1.35"])
def test_every_object_is_valid(version: str) -> None:
    valid = set()  # many objects are in many renderings
    for name in kit.RENDERINGS:
        objects = [found for found in kit.render(name) if found["kind"] not in CUSTOM]
        assert objects or name in ("monitoring", "overlays/kserve")
        for found in objects:
            written = json.dumps(found, sort_keys=True)
            if written not in valid:
                kubernetes_validate.validate(found, version, strict=True)
                valid.add(written)


def test_the_validation_can_fail() -> None:
    [deployment] = kit.of_kind(kit.render("overlays/cpu"), "Deployment")
    spoilt = {**deployment, "spec": {**deployment["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, "1.35", strict=True)


@rendering
def test_names_are_unique_and_labelled(name: str) -> None:
    objects = kit.render(name)
    assert len({kit.key(found) for found in objects}) == len(objects)
    for found in kit.of_kind(objects, *({found["kind"] for found in objects} - {"Namespace", "ConfigMap"})):
        assert found["metadata"]["labels"]["app.kubernetes.io/name"], kit.key(found)
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "convoy", kit.key(found)


@rendering
def test_selectors_match_the_pods_they_are_for(name: str) -> None:
    objects = kit.render(name)
    labels = [template["metadata"]["labels"] for _, template in kit.templates(objects)]
    # Istio puts a Gateway's labels on the pods that it makes.
    labels += [found["metadata"]["labels"] for found in kit.of_kind(objects, "Gateway")]
    for found in kit.of_kind(objects, "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = found["spec"]
        selector = spec["podSelector"] if found["kind"] == "NetworkPolicy" else spec["selector"]
        wanted = selector if found["kind"] == "Service" else selector["matchLabels"]
        assert wanted, kit.key(found)
        assert sum(matches(wanted, have) for have in labels) == 1, kit.key(found)
    for _, pod in kit.pods(objects):
        for constraint in pod.get("topologySpreadConstraints", []):
            assert any(matches(constraint["labelSelector"]["matchLabels"], have) for have in labels)


def matches(wanted: dict[str, str], have: dict[str, str]) -> bool:
    return wanted.items() <= have.items()


@rendering
def test_ports_that_are_named_exist(name: str) -> None:
    objects = kit.render(name)
    for found in kit.of_kind(objects, "Service"):
        [pod] = [
            template["spec"]
            for _, template in kit.templates(objects)
            if matches(found["spec"]["selector"], template["metadata"]["labels"])
        ]
        for port in found["spec"]["ports"]:
            assert port["targetPort"] in port_names(pod), kit.key(found)
    for found in kit.of_kind(objects, "NetworkPolicy"):
        pods = [
            template["spec"]
            for _, template in kit.templates(objects)
            if matches(found["spec"]["podSelector"]["matchLabels"], template["metadata"]["labels"])
        ]
        named = [port["port"] for rule in found["spec"]["ingress"] for port in rule.get("ports", [])]
        assert all(port in port_names(pod) for pod in pods for port in named)
    for found in kit.of_kind(objects, "ServiceMonitor"):
        services = kit.of_kind(kit.render("overlays/cpu"), "Service")
        [service] = [one for one in services if matches(found["spec"]["selector"]["matchLabels"], one["metadata"]["labels"])]
        assert {endpoint["port"] for endpoint in found["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    for found in kit.of_kind(objects, "GRPCRoute"):
        ports = {
            (one["metadata"]["name"], port["port"]) for one in kit.of_kind(objects, "Service") for port in one["spec"]["ports"]
        }
        for rule in found["spec"]["rules"]:
            assert {(backend["name"], backend["port"]) for backend in rule["backendRefs"]} <= ports
        for parent in found["spec"]["parentRefs"]:
            [gateway] = [one for one in kit.of_kind(objects, "Gateway") if one["metadata"]["name"] == parent["name"]]
            assert parent["sectionName"] in {listener["name"] for listener in gateway["spec"]["listeners"]}


def port_names(pod: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for container in kit.containers(pod) for port in container.get("ports", [])}


@rendering
def test_what_is_referred_to_is_there(name: str) -> None:
    objects = kit.render(name)
    there = {kit.key(found) for found in objects} | FROM_ELSEWHERE
    wanted = set()
    for _, pod in kit.pods(objects):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            for field, kind, part in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ):
                if field in volume:
                    wanted.add(f"{kind}/{volume[field][part]}")
        for container in kit.containers(pod):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            if name != "base":  # which leaves the volume of models to a component
                assert mounted <= volumes.keys()
        if "serviceAccountName" in pod:
            wanted.add(f"ServiceAccount/{pod['serviceAccountName']}")
    for found in kit.of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = found["spec"]["scaleTargetRef"]
        wanted.add(f"{target.get('kind', 'Deployment')}/{target['name']}")
        [deployment] = [one for one in kit.of_kind(objects, "Deployment") if one["metadata"]["name"] == target["name"]]
        assert "replicas" not in deployment["spec"], "each apply would set back what the autoscaler has decided"
    for found in kit.of_kind(objects, "InferenceService"):
        wanted.add(f"ClusterServingRuntime/{found['spec']['predictor']['model']['runtime']}")
    assert wanted <= there


@rendering
def test_pods_are_within_the_restricted_profile_and_their_limits(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for owner, pod in kit.pods(kit.render(name)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        if name == "models-image":  # which says that it needs 1.33
            allowed.add("image")
        assert all(set(volume) & allowed for volume in pod["volumes"])
        for container in kit.containers(pod):
            what = f"{owner} {container['name']}"
            security = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"] is True, what
            assert security["runAsUser"] > 0, what
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, what
            assert security["allowPrivilegeEscalation"] is False, what
            assert security["capabilities"] == {"drop": ["ALL"]}, what
            assert security["readOnlyRootFilesystem"] is True, what
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            for resource in ("cpu", "memory"):
                assert kit.quantity(requests[resource]) <= kit.quantity(limits[resource]), what
            assert limits["memory"] == requests["memory"], f"{what}: memory cannot be taken back from a pod that has it"
        if not owner.startswith("ClusterServingRuntime"):
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False


@rendering
def test_a_rolling_update_never_has_fewer_pods_than_wanted_and_gives_them_time_to_drain(name: str) -> None:
    objects = kit.render(name)
    for found in kit.of_kind(objects, "Deployment"):
        assert found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for pod, container in kit.servers(objects):
        settings = parsed(container)
        drain = settings["drain_seconds"] + settings["lame_duck_seconds"] + STOP_SECONDS
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"] if "lifecycle" in container else 0
        assert pause + settings["lame_duck_seconds"] >= 6, "what routes to the pod must have noticed before it refuses"
        # 30 is what Kubernetes gives where nothing is said.
        assert pod.get("terminationGracePeriodSeconds", 30) >= pause + drain


@rendering
def test_servers_take_no_orders_in_requests(name: str) -> None:
    assert {parsed(container)["control"] for _, container in kit.servers(kit.render(name))} <= {"off"}


@rendering
def test_flags_and_variables_are_those_of_the_program(name: str) -> None:
    """Parsed by the program itself, values and all."""
    for _, container in kit.convoy_containers(kit.render(name)):
        parsed(container)


def parsed(container: Object) -> dict[str, Any]:
    """The settings that a container's command line and environment come to. Raises click.UsageError for what is not accepted."""
    words = arguments(container)
    command = cli.program.get_command(click.Context(cli.program), words[0])
    assert command is not None, words
    variables = {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
    known = {parameter.envvar for parameter in command.params if parameter.envvar}
    assert {variable for variable in variables if variable.startswith("CONVOY_")} <= known
    return dict(command.make_context(words[0], words[1:]).params)


def arguments(container: Object) -> list[str]:
    """The words after `convoy`, be they given as such or in a shell's line."""
    if "command" not in container:  # the kubelet expands variables; those of an indexed Job are the controller's
        return [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["args"]]
    assert container["command"][:2] == ["sh", "-ec"]
    [line] = [line for line in container["command"][2].replace("\\\n", " ").splitlines() if line.startswith("exec ")]
    words = [word for word in shlex.split(line) if word != "$resume"]
    start = words.index("service.cli") if "service.cli" in words else words.index("convoy")
    return words[start + 1 :]


def test_a_flag_that_is_not_there_is_found() -> None:
    [(_, container)] = kit.servers(kit.render("overlays/cpu"))
    with pytest.raises(click.NoSuchOption, match="--drain-minutes"):
        parsed({**container, "args": [*container["args"], "--drain-minutes=1"]})


@pytest.mark.parametrize("path", sorted((kit.DEPLOY / "base" / "policies").iterdir()), ids=lambda path: str(path.name))
def test_policies_are_such_as_the_server_takes(path: Path) -> None:
    assert read_policy(path).max_queue_items > 0


def test_probes_ask_for_what_a_server_answers(repository: Path, serve: Serve) -> None:
    server = serve(repository)
    probes = []
    for name in kit.RENDERINGS:
        for pod, container in kit.servers(kit.render(name)):
            names = port_names(pod)
            kinds = container.keys() & {"startupProbe", "livenessProbe", "readinessProbe"}
            probes += [(container[kind], names) for kind in sorted(kinds)]
    assert len(probes) > 3
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for probe, names in probes:
            if "grpc" in probe:
                assert probe["grpc"]["port"] == 8001, "what `convoy serve` takes by default"
                asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
                assert health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
            else:
                assert names[probe["httpGet"]["port"]] == 8003
                assert get(server, probe["httpGet"]["path"])[0] == 200


def test_the_rules_and_the_dashboard_are_those_of_the_monitoring() -> None:
    objects = kit.render("monitoring")
    [rule] = kit.of_kind(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((kit.DEPLOY / "rules" / "convoy.yaml").read_text())
    [dashboard] = kit.of_kind(objects, "ConfigMap")
    assert dashboard["data"] == {"convoy.json": (kit.DEPLOY / "dashboards" / "convoy.json").read_text()}
    assert len(dashboard["data"]["convoy.json"]) < 250_000, "kubectl apply writes it into an annotation, of at most 256 KiB"


def test_autoscalers_ask_the_prometheus_that_the_monitoring_is_for() -> None:
    [scaled] = kit.of_kind(kit.render("keda"), "ScaledObject")
    adapter = yaml.safe_load((kit.DEPLOY / "components" / "hpa-inflight" / "prometheus-adapter-values.yaml").read_text())[
        "prometheus"
    ]
    assert f"{adapter['url']}:{adapter['port']}" == scaled["spec"]["triggers"][0]["metadata"]["serverAddress"]


def test_keda_can_take_the_place_of_the_autoscaler_and_fall_back() -> None:
    [hpa] = kit.of_kind(kit.render("overlays/cpu"), "HorizontalPodAutoscaler")
    assert hpa["metadata"]["annotations"]["validations.keda.sh/hpa-ownership"] == "false"
    [scaled] = kit.of_kind(kit.render("keda"), "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metricType"] == "AverageValue", "what `fallback` works with"


def test_what_make_test_cluster_applies_is_valid(tmp_path: Path, model_file: Path) -> None:
    cluster.write(tmp_path.resolve(), "registry.example.com:5000/convoy:1", model_file)
    objects = kit.kustomize(tmp_path.resolve())
    for found in objects:
        kubernetes_validate.validate(found, "1.35", strict=True)
    images = {container["image"] for _, pod in kit.pods(objects) for container in kit.containers(pod)}
    assert images == {"registry.example.com:5000/convoy:1"}
    [model] = [found for found in objects if found["metadata"]["name"].startswith("model-")]
    assert sum(len(content) for content in model["binaryData"].values()) < 2**20, "a ConfigMap holds at most 1 MiB"
