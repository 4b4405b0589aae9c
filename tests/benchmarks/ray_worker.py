"""An arm: Booth's whole loop inside a Ray Train worker, on a small Ray of its own that ends with this process.

python tests/benchmarks/ray_worker.py WORKLOAD BASE, as a duel starts it.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# One-machine mode: every port of this Ray is on loopback. Read when ray is imported.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from booth_loop import run
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from workload import Workload


def train_loop_per_worker(config: dict[str, Any]) -> None:
    run(config["workload"], zero_stage=0)


def main(folder: str, base: str) -> int:
    with tempfile.TemporaryDirectory(prefix="booth-ray-", dir="/tmp") as place:  # Ray's socket paths must be short
        ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=place, log_to_driver=False)
        TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"workload": Workload(Path(folder), Path(base))},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.9}),
            run_config=RunConfig(name="benchmark", storage_path=str(Path(folder) / "ray")),
        ).fit()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
