"""A model of yours in plain diffusers, without Booth: the folder is an ordinary pipeline.

python examples/use_in_diffusers.py --model MODEL_ID --prompt "a photo of {subject} on the beach"
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import booth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's id; the newest one without it")
    parser.add_argument("--folder", type=Path, help="where to put the model; a folder of its id without it")
    parser.add_argument("--prompt", default="a photo of {subject} on the beach")
    parser.add_argument("--num-inference-steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("diffusers.png"))
    arguments = parser.parse_args()

    client = booth.Client()
    models = [client.models.get(arguments.model)] if arguments.model else client.models.list(limit=1)
    if not models:
        raise SystemExit("You have no model yet. Run examples/quickstart.py first.")
    model = models[0]
    folder = arguments.folder or Path(model.id)
    if not folder.exists():
        model.download(folder)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DiffusionPipeline.from_pretrained(folder).to(device)
    picture = pipeline(
        arguments.prompt.replace("{subject}", model.prompt_prefix),
        num_inference_steps=arguments.num_inference_steps,
        generator=torch.Generator(device).manual_seed(arguments.seed),
    ).images[0]
    picture.save(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
