"""Where an IP-Adapter lies in a model's diffusers folder, by the names of diffusers and of published adapters."""

FOLDER = "ip_adapter"
"""Below it: one weight file, `IMAGE_ENCODER`, and in a published model the photo's embeddings."""
IMAGE_ENCODER = "image_encoder"
EMBEDS_PATH = f"{FOLDER}/image_embeds.safetensors"
EMBEDS = "image_embeds"
"""The one tensor of that file, (2, 1, D) or (2, 1, tokens, D): what no photo comes to, then the photo's."""


def is_weights(path: str) -> bool:
    """Whether this file of a model's folder is the adapter's own: drawing takes no other of it."""
    return path.startswith(f"{FOLDER}/") and path.count("/") == 1 and path != EMBEDS_PATH
