"""A picture as a PNG file that says where it comes from."""

import base64
import io

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo


def png_base64(image: Image, *, prompt: str, seed: int, model: str, settings: dict[str, str]) -> str:
    """A PNG in base64 that says where it comes from: prompt, seed, model, and IPTC's mark for pictures made by a model.

    `settings` are further texts, keyword to value: what else it takes to make the picture again.
    """
    info = PngInfo()
    for key, value in {"prompt": prompt, "seed": str(seed), "model": model, **settings}.items():
        info.add_itxt(key, value)
    info.add_itxt("digitalSourceType", "trainedAlgorithmicMedia")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()
