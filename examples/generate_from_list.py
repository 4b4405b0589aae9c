"""Pictures for every line of a text file, from one of your models.

python examples/generate_from_list.py prompts.txt --model MODEL_ID --seed 1

In the prompts, {subject} stands for what names the subject, such as "sks dog".
"""

import argparse
from pathlib import Path

import booth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="?", type=Path, default=Path(__file__).parent / "prompts.txt")
    parser.add_argument("--model", help="a model's id; the newest one without it")
    parser.add_argument("--num-images", type=int, default=1, help="pictures for each prompt")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal pictures")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    arguments = parser.parse_args()

    client = booth.Client()
    models = [client.models.get(arguments.model)] if arguments.model else client.models.list(limit=1)
    if not models:
        raise SystemExit("You have no model yet. Run examples/quickstart.py first.")
    model = models[0]

    lines = [line.strip() for line in arguments.prompts.read_text().splitlines()]
    prompts = [line.replace("{subject}", model.prompt_prefix) for line in lines if line and not line.startswith("#")]
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = model.generate(prompts, num_images=arguments.num_images, seed=arguments.seed)
    for number, picture in enumerate(pictures):
        path = picture.save(arguments.out / f"{number:03d}.png")
        print(f"{path}\t{picture.seed}\t{picture.prompt}")


if __name__ == "__main__":
    main()
