"""Learning rates by optimizer step. Pure."""

import math

from booth.contract.jobs import Params


def learning_rates(params: Params, step: int) -> tuple[float, float]:
    """The UNet's and the text encoder's rate for optimizer step `step`, counted from 0.

    Both grow over lr_warmup_steps, then stay or fall to 0 at params.steps; the text encoder's is 0 from its stop step.
    """
    share = _warm_up(params.lr_warmup_steps, step) * _decay(params, step)
    stopped = params.text_encoder_stop_step is not None and step >= params.text_encoder_stop_step
    return params.learning_rate * share, 0.0 if stopped else params.text_encoder_learning_rate * share


def _warm_up(lr_warmup_steps: int, step: int) -> float:
    return min(1.0, (step + 1) / max(1, lr_warmup_steps))


def _decay(params: Params, step: int) -> float:
    if params.lr_schedule == "constant" or step < params.lr_warmup_steps:
        return 1.0
    done = (step - params.lr_warmup_steps) / max(1, params.steps - params.lr_warmup_steps)
    return 1.0 - done if params.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
