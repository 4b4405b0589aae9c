"""A picture as a PNG file that says where it comes from."""

import base64
import io
import json
import re
from xml.sax.saxutils import escape

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from booth.contract.serving import Draw, DrawRequest

XMP_KEYWORD = "XML:com.adobe.xmp"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's mark for pictures made by a trained model."""

_NOT_IN_XML = re.compile("[^\\t\\n\\r\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")  # XML 1.0, production 2
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>Booth</xmp:CreatorTool>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def png_base64(image: Image, *, prompt: str, seed: int, model: str, settings: dict[str, str]) -> str:
    """A PNG in base64 that says where it comes from: prompt, seed, model, and IPTC's mark for pictures made by a model.

    `settings` are further texts, keyword to value: what else it takes to make the picture again. Signs that XML and PNG
    cannot hold (NUL and its like) stand as U+FFFD, whatever the texts are.
    """
    info = PngInfo()
    for key, value in {"prompt": prompt, "seed": str(seed), "model": model, **settings}.items():
        info.add_itxt(key, _storable(value))
    info.add_itxt(XMP_KEYWORD, xmp(prompt))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


def settings_of(request: DrawRequest, draw: Draw) -> dict[str, str]:
    """What a picture's file says of how it was drawn, beside prompt, seed and model."""
    said = {
        "negative_prompt": draw.negative_prompt,
        "scheduler": request.scheduler,
        "num_inference_steps": str(request.num_inference_steps),
        "guidance_scale": str(request.guidance_scale),
        "size": f"{request.width}x{request.height}",
    }
    if request.image_base64 is not None:
        said["strength"] = str(request.strength)
    if draw.edit is not None:
        said["edit"] = json.dumps(draw.edit.model_dump(), ensure_ascii=False)
    return said


def xmp(prompt: str) -> str:
    """The XMP packet of a picture that a model drew from this prompt."""
    text = escape(_storable(prompt), {"\r": "&#13;"})  # a bare one would be read as a line feed
    return _XMP.format(source_type=SOURCE_TYPE, prompt=text)


def _storable(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)
