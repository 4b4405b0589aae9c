"""Several subjects at once: submit all, then collect each model as it is done.

python examples/many_subjects.py photos/rex=dog photos/tom=cat
"""

import argparse
from pathlib import Path

import booth

SUBJECTS = Path(__file__).parent / "tinyworld" / "subjects"
DEFAULTS = [f"{SUBJECTS / 'teapot'}=teapot", f"{SUBJECTS / 'dog'}=dog"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", default=DEFAULTS, metavar="FOLDER=CLASS")
    parser.add_argument("--steps", type=int, help="optimizer steps; the base model's recipe without it")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    arguments = parser.parse_args()

    client = booth.Client()
    jobs = []
    for subject in arguments.subjects:
        folder, _, class_noun = subject.rpartition("=")
        # The key makes a second run of this script find the first one's jobs instead of starting new ones.
        key = f"many-subjects:{Path(folder).resolve()}:{class_noun}:{arguments.steps}"
        name = Path(folder).name
        jobs.append(client.personalize(folder, None, class_noun, name=name, steps=arguments.steps, idempotency_key=key))
        print(jobs[-1])

    arguments.out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        try:
            model = job.wait()
        except booth.JobError as error:  # one subject's failure is no reason to lose the others
            print(f"{job.name}: {error}")
            continue
        [picture] = model.generate(f"a photo of {model.prompt_prefix}")
        print(picture.save(arguments.out / f"{job.name}.png"))


if __name__ == "__main__":
    main()
