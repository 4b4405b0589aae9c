"""Schedulers by name, with the betas and the prediction type of a base model's own."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from booth.contract.drawing import SchedulerName

CLASSES: dict[SchedulerName, Any] = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
}
OPTIONS: dict[SchedulerName, dict[str, Any]] = {
    "dpmsolver++": {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},  # 2M
}


def scheduler_of(own: Any, name: SchedulerName) -> Any:
    """A new scheduler of this name that has seen no steps; "base" is one like the base model's own.

    `own` is read, never changed. Raises ValueError for a name that is none.
    """
    if name == "base":
        return type(own).from_config(own.config)
    if name not in CLASSES:
        raise ValueError(f"scheduler {name!r} is not one of base, {', '.join(CLASSES)}")
    options = dict(OPTIONS.get(name, {}))
    if name == "ddim":
        # DDIM's class clips what it predicts to -1..1 where a folder does not speak of it: that is for pixels, and
        # latents reach further.
        options["clip_sample"] = own.config.get("clip_sample", False)
    return CLASSES[name].from_config(own.config, **options)
