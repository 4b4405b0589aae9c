"""The cluster's Serve file is valid, and says the same as the one-machine stack."""

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from booth_service.local.serve_app import IMPORT_PATH

FILE = Path(__file__).parents[1] / "infra" / "ray" / "serve.yaml"


def test_the_cluster_serves_the_same_application() -> None:
    config = yaml.safe_load(FILE.read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert (application.name, application.import_path, application.route_prefix) == ("booth", IMPORT_PATH, "/")
    known = set(ServeDeploySchema.model_fields)
    assert set(config) <= known, "Ray takes unknown keys in silence"
