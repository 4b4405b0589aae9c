"""From a folder of photos to new pictures of what they show.

python examples/quickstart.py photos/ dog --context "in the jungle"
"""

import argparse
from pathlib import Path

import booth

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="?", default=HERE / "tinyworld" / "subjects" / "teapot", help="3 to 5 photos")
    parser.add_argument("class_noun", nargs="?", default="teapot", help="what they show")
    parser.add_argument("--token", default="sks", help="the word that will name the subject")
    parser.add_argument("--context", default="in the city", help="where to draw it")
    parser.add_argument("--steps", type=int, help="optimizer steps; the base model's recipe without it")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    arguments = parser.parse_args()

    client = booth.Client()
    job = client.personalize(arguments.photos, arguments.token, arguments.class_noun, steps=arguments.steps)
    print(job)
    model = job.wait(on_event=lambda event: print(f"{event.status}: {event.message}"))

    arguments.out.mkdir(parents=True, exist_ok=True)
    prompt = f"a photo of {model.prompt_prefix} {arguments.context}"
    for number, picture in enumerate(model.generate(prompt, num_images=4)):
        print(picture.save(arguments.out / f"{number}-seed{picture.seed}.png"))


if __name__ == "__main__":
    main()
