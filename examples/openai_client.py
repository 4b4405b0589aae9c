"""A picture from one of your models by OpenAI's own client (pip install openai).

python examples/openai_client.py MODEL_ID "a photo of sks dog on the moon"
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

from booth import config


def main() -> None:
    model, prompt = sys.argv[1:3]
    booth = config.load()  # or write your own URL and key here: nothing else of Booth is needed
    client = OpenAI(base_url=f"{booth.base_url}/v1", api_key=booth.api_key)
    answer = client.images.generate(
        model=model,
        prompt=prompt,
        response_format="b64_json",
        extra_body={"num_inference_steps": 20, "negative_prompt": "blurry"},  # what Booth knows beside OpenAI's own
    )
    for number, picture in enumerate(answer.data or []):
        path = Path(f"{number}.png")
        path.write_bytes(base64.b64decode(picture.b64_json or ""))
        print(path)


if __name__ == "__main__":
    main()
