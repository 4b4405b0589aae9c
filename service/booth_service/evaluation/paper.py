"""Figures that the paper prints (Ruiz et al., CVPR 2023, arXiv 2208.12242), to stand beside one's own.

They were measured with the paper's own models, encoders and 30 subjects: only the order of lines can be compared with
what another base model or other encoders come to.
"""

from booth.contract.evaluation import ReportTable

SOURCE = "Ruiz et al., DreamBooth, CVPR 2023"

TABLE_1 = ReportTable(
    title="The paper's Table 1: subject and prompt fidelity",
    head=["Method", "DINO", "CLIP-I", "CLIP-T"],
    rows=[
        ["Real images", "0.774", "0.885", "-"],
        ["DreamBooth (Imagen)", "0.696", "0.812", "0.306"],
        ["DreamBooth (Stable Diffusion)", "0.668", "0.803", "0.305"],
        ["Textual Inversion (Stable Diffusion)", "0.569", "0.780", "0.255"],
    ],
    note=f"{SOURCE}: 30 subjects, 25 prompts each, 4 pictures of each prompt.",
)

TABLE_3 = ReportTable(
    title="The paper's Table 3: prior preservation",
    head=["Loss", "PRES", "DIV", "DINO", "CLIP-I", "CLIP-T"],
    rows=[
        ["with prior preservation", "0.493", "0.391", "0.684", "0.815", "0.308"],
        ["without", "0.664", "0.371", "0.712", "0.828", "0.306"],
    ],
    note=f"{SOURCE}: Imagen, 15 subjects. PRES: lower is better; DIV: higher is.",
)

TABLE_4 = ReportTable(
    title="The paper's Table 4: the class noun",
    head=["Class noun", "DINO", "CLIP-I"],
    rows=[["correct", "0.744", "0.853"], ["wrong (random)", "0.454", "0.728"], ["none", "0.303", "0.607"]],
    note=f"{SOURCE}: Imagen, 5 subjects.",
)


def beside(kind: str, varied: set[str]) -> list[ReportTable]:
    """The paper's tables that belong beside a benchmark, or beside a sweep in which these dials vary."""
    found = [TABLE_1] if kind == "benchmark" or "method" in varied else []
    found += [TABLE_3] if varied & {"prior_loss_weight", "num_class_images"} else []
    found += [TABLE_4] if "class_noun" in varied else []
    return found
