"""A small job, as the control plane resolves it."""

from booth.contract.jobs import Params
from booth.contract.models import Recipe

STEPS = 6
PARAMS = Params(
    base_model="tiny",
    token="sks",
    class_noun="teapot",
    instance_prompt="a photo of sks teapot",
    class_prompt="a photo of a teapot",
    steps=STEPS,
    learning_rate=1e-3,
    text_encoder_learning_rate=5e-4,
    prior_loss_weight=0.5,
    num_class_images=3,
    train_text_encoder=True,
    resolution=32,
    train_batch_size=2,
    seed=7,
    weight_decay=0.01,
    max_grad_norm=1.0,
    lr_warmup_steps=2,
    random_flip=True,
    checkpoint_interval_steps=4,
)
RECIPE = Recipe(
    source="test",
    steps=STEPS,
    learning_rate=1e-3,
    text_encoder_learning_rate=5e-4,
    num_class_images=3,
    resolution=32,
    train_batch_size=2,
    guidance_scale=3,
    num_inference_steps=4,
    class_guidance_scale=3,
    class_num_inference_steps=4,
)
