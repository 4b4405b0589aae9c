"""The manifests: KubeRay's schemas take them, and every name in them means something."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import FOLDER, SCHEMAS, containers, of_kind, pod_specs, problems, rendered, schema, secret_keys

from booth_service.settings import Settings

ROOT = FOLDER.parents[1]
BASE, GPU = FOLDER / "base", FOLDER / "gpu"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

needs_schemas = pytest.mark.skipif(not SCHEMAS.exists(), reason="KubeRay's schemas are not at hand")
each_folder = pytest.mark.parametrize("folder", [BASE, GPU], ids=["base", "gpu"])


def cluster_of(folder: Path) -> dict[str, Any]:
    return of_kind(rendered(folder), "RayCluster")


@needs_schemas
@each_folder
def test_kuberay_knows_every_field_of_the_cluster(folder: Path) -> None:
    assert problems(cluster_of(folder), schema("rayclusters")) == []


@needs_schemas
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (["spec"], "authOption", {"mode": "token"}),
        (["spec", "authOptions"], "secret", "booth-ray"),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0], "imagePulPolicy", "Always"),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "securityContext"], "runAsRoot", False),
    ],
)
def test_a_misspelt_field_is_named(path: list[Any], key: str, value: Any) -> None:
    cluster = place = cluster_of(BASE)
    for part in path:
        place = place[part]
    place[key] = value
    (problem,) = problems(cluster, schema("rayclusters"))
    assert f"'{key}' was unexpected" in problem
    assert problem.startswith(".".join(map(str, path)) + ":")


@needs_schemas
@pytest.mark.parametrize(("key", "value"), [("mode", "tokens"), ("secretName", 7)])
def test_a_wrong_value_is_named(key: str, value: Any) -> None:
    cluster = cluster_of(BASE)
    cluster["spec"]["authOptions"][key] = value
    (problem,) = problems(cluster, schema("rayclusters"))
    assert problem.startswith(f"spec.authOptions.{key}: ")


def test_every_file_is_part_of_its_kustomization() -> None:
    for folder in (BASE, GPU):
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        assert files == {name for name in listed if name.endswith(".yaml")}


@each_folder
def test_every_secret_is_described_and_none_is_shipped(folder: Path) -> None:
    described = list(yaml.safe_load_all((FOLDER / "secrets.example.yaml").read_text()))
    known = {(secret["metadata"]["name"], key) for secret in described for key in secret["stringData"]}
    documents = rendered(folder)
    assert {pair for document in documents for pair in secret_keys(document)} == known
    assert "Secret" not in {document["kind"] for document in documents}
    assert all("<" in value for secret in described for value in secret["stringData"].values())


@each_folder
def test_every_variable_is_a_setting_or_of_a_program_that_we_run(folder: Path) -> None:
    documents = rendered(folder)
    settings = of_kind(documents, "ConfigMap")
    used = {variable["name"] for each in documents for box in containers(each) for variable in box.get("env", [])}
    known = {f"BOOTH_{name.upper()}" for name in Settings.model_fields}
    theirs = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_HUB_OFFLINE"}
    assert used | set(settings["data"]) <= known | theirs
    assert settings["data"]["RAY_AUTH_MODE"] == "token"
    for document in documents:
        for container in containers(document):
            assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]


def test_only_the_control_plane_knows_the_database() -> None:
    assert "booth-database" not in {secret for secret, _ in secret_keys(cluster_of(BASE))}


def test_services_find_their_pods_and_the_settings_their_services() -> None:
    documents = rendered(BASE)
    plane, service, cluster = (of_kind(documents, kind) for kind in ("Deployment", "Service", "RayCluster"))
    pod = plane["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == plane["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in ports
    assert str(ports["api"]) in pod["spec"]["containers"][0]["command"]

    head = f"http://{cluster['metadata']['name']}-head-svc"  # KubeRay's name for it
    at_head = {port["name"]: port["containerPort"] for port in containers(cluster)[0]["ports"]}
    settings = of_kind(documents, "ConfigMap")["data"]
    assert settings["BOOTH_API_URL"] == f"http://{service['metadata']['name']}:{port['port']}"
    assert settings["BOOTH_RAY_DASHBOARD_URL"] == f"{head}:{at_head['dashboard']}"
    assert settings["BOOTH_SERVE_URL"] == f"{head}:{at_head['serve']}"


def test_of_strangers_the_control_plane_alone_reaches_dashboard_and_serve() -> None:
    documents = rendered(BASE)
    plane, cluster, policy = (of_kind(documents, kind) for kind in ("Deployment", "RayCluster", "NetworkPolicy"))
    of_cluster = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    nodes, control_plane = policy["spec"]["ingress"]
    assert policy["spec"]["podSelector"] == of_cluster
    assert nodes == {"from": [{"podSelector": of_cluster}]}
    assert control_plane["from"] == [{"podSelector": {"matchLabels": plane["spec"]["selector"]["matchLabels"]}}]
    serve = yaml.safe_load((ROOT / "infra" / "ray" / "serve.yaml").read_text())["http_options"]
    at_head = {port["name"]: port["containerPort"] for port in containers(cluster)[0]["ports"]}
    assert serve["port"] == at_head["serve"]
    opened = [(port["protocol"], port["port"]) for port in control_plane["ports"]]
    assert opened == [("TCP", at_head["dashboard"]), ("TCP", at_head["serve"])]


@each_folder
def test_no_pod_runs_as_root_or_holds_a_kubernetes_token(folder: Path) -> None:
    pods = [pod for document in rendered(folder) for pod in pod_specs(document)]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "the service's links would begin with BOOTH_"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]


def test_probes_ask_for_routes_that_are_there() -> None:
    from booth_service.control.api import router

    routes = {route.path for route in router.routes}
    (container,) = containers(of_kind(rendered(BASE), "Deployment"))
    health, ready = "/v1/health", "/v1/ready"
    assert {health, ready} <= routes
    probes = {name: box["httpGet"]["path"] for name, box in container.items() if name.endswith("Probe")}
    assert probes == {"startupProbe": health, "livenessProbe": health, "readinessProbe": ready}


def test_versions_are_those_of_the_project() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["service"]
    (ray,) = [found[1] for each in dependencies if (found := re.fullmatch(r"ray\[.*\]==(\S+)", each))]
    assert str(cluster_of(BASE)["spec"]["rayVersion"]) == ray
    images = {container["image"] for document in rendered(GPU) for container in containers(document)}
    assert images == {f"registry.example.com/booth:{VERSION}", f"registry.example.com/booth:{VERSION}-gpu"}


def test_the_head_deploys_the_file_that_the_image_holds() -> None:
    hook = containers(cluster_of(BASE))[0]["lifecycle"]["postStart"]["exec"]["command"][-1]
    (path,) = re.findall(r"serve deploy (\S+);", hook)
    docker = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    (home,) = re.findall(r"^WORKDIR (\S+)$", docker, re.M)
    (source, target) = re.findall(r"^COPY (\S*serve.yaml) (\S+)$", docker, re.M)[0]
    assert f"{home}/{target}{Path(source).name}" == path


def test_gpus_are_for_workers_and_one_is_for_inference() -> None:
    documents = rendered(GPU)
    head, *workers = containers(of_kind(documents, "RayCluster"))
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert [worker["resources"]["limits"]["nvidia.com/gpu"] for worker in workers] == [1]
    assert [worker["image"].endswith("-gpu") for worker in workers] == [True]
    assert of_kind(documents, "ConfigMap")["data"]["BOOTH_SERVING_GPUS"] == "1"
