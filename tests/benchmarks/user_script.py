"""The user's own copy of train_dreambooth.py beside Booth's loop: CPU seconds a step of each, and their ratio.

python tests/benchmarks/user_script.py --script PATH/train_dreambooth.py

The script runs twice on the miniature, for a few and for more steps; the difference is what the further steps cost,
without start-up and saving. It draws its own random numbers, so losses cannot be compared here as C1 does; it needs
accelerate and torchvision. Its output goes to stderr.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import duels
from workload import Workload, miniature

FEW_STEPS, MORE_STEPS = 4, 24


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--script", type=Path, required=True, help="a copy of diffusers' train_dreambooth.py")
    script = parser.parse_args(argv).script
    with tempfile.TemporaryDirectory(prefix="booth-script-") as name:
        workload = miniature(Path(name) / "workload", duels.STEPS)
        few, more = (script_cpu_s(script, workload, steps) for steps in (FEW_STEPS, MORE_STEPS))
        theirs = (more - few) / (MORE_STEPS - FEW_STEPS)
        spent, _ = duels.fight(workload, {"booth": duels.BOOTH}, Path(name), duels.NUM_TURNS)
    ours = sum(turn.cpu_s for turn in spent["booth"][1:]) / (duels.STEPS_PER_TURN * (duels.NUM_TURNS - 1))
    print(f"script {theirs:.3f} s, ours {ours:.3f} s of CPU a step: {theirs / ours:.2f}x")
    return 0


def script_cpu_s(script: Path, workload: Workload, steps: int) -> float:
    """CPU seconds of the whole script for so many steps. Raises CalledProcessError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(script, workload, steps), check=True, stdout=sys.stderr, env=os.environ | ONE_THREAD)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(script: Path, workload: Workload, steps: int) -> list[str]:
    """The script's command line for this workload."""
    params = workload.params
    values = {
        "pretrained_model_name_or_path": workload.base,
        "instance_data_dir": workload.folder / "photos",
        "class_data_dir": workload.folder / "class_images",
        "instance_prompt": params.instance_prompt,
        "class_prompt": params.class_prompt,
        "num_class_images": params.num_class_images,
        "prior_loss_weight": params.prior_loss_weight,
        "resolution": params.resolution,
        "train_batch_size": params.train_batch_size,
        "learning_rate": params.learning_rate,
        "max_grad_norm": params.max_grad_norm,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": steps,
        "checkpointing_steps": 10**6,
        "seed": 0,
        "output_dir": workload.folder / f"script-{steps}",
    }
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(script), "--with_prior_preservation", "--train_text_encoder", *options]


if __name__ == "__main__":
    sys.exit(main())
