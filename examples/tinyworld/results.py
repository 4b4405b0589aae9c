"""RESULTS.md: verdicts, tables over steps and picture rows, as Markdown. Pure."""

from collections.abc import Mapping, Sequence

from claim_arms import ARMS_OF_CLAIMS, is_first_with_its_arms, shown_name
from claims import Finding, Rows, Verdict, figures, steps_of

from booth_service.evaluation.intervals import Interval

METRICS = {
    "dino": "subject fidelity",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "pres": "PRES",
    "div": "DIV",
    "context": "context right",
    "noun": "noun right",
}
UNSETTLED = "within the noise"


def results_page(
    rows: Rows,
    verdicts: Mapping[str, Verdict],
    pictures: Mapping[str, Sequence[str]],
    validity: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, str],
) -> str:
    """The whole file. `pictures` are links by claim, to curves and picture rows."""
    subjects, seeds = ({getattr(row, name) for row in rows} for name in ("subject", "seed"))
    parts = [
        "# The paper's claims on tinyworld",
        f"`make reproduce` wrote this: {len(subjects)} subjects ({', '.join(sorted(subjects))}), {len(seeds)} seed"
        f"{'' if len(seeds) == 1 else 's'}. Figures are means over subjects, differences are paired by subject, and "
        "brackets are 95 % bootstrap intervals over subjects. Absolute values are not comparable with the paper's: "
        "these encoders were trained on this world.",
        f'A bound is met by the mean; "{UNSETTLED}" says that the interval does not settle it.',
        table(["claim", "verdict"], [[verdict.claim, f"**{in_words(verdict)}**"] for verdict in verdicts.values()]),
    ]
    for name, verdict in verdicts.items():
        parts += [f"## {verdict.claim}", f"Verdict: **{in_words(verdict)}**."]
        parts += [findings_table(verdict)] if verdict.findings else []
        is_first = is_first_with_its_arms(name, verdicts)
        parts += [steps_table(rows, name) if is_first else "Steps and curves are those above."]
        parts += [f"![{link}]({link})" for link in pictures.get(name, ())]
    parts += ["## The encoders", "What they can be trusted with, on identities that they never saw:"]
    parts += [validity_table(validity), "## Settings", table(["", ""], [[key, text] for key, text in settings.items()])]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_words(verdict: Verdict) -> str:
    """The verdict; one that every mean meets and not every interval is no plain "holds"."""
    if verdict.holds is None:
        return "was not run"
    if not verdict.holds:
        return "does not hold"
    return "holds" if verdict.is_settled else f"holds on average, in part {UNSETTLED}"


def findings_table(verdict: Verdict) -> str:
    """Every comparison of a claim, those that were asserted with what was asked."""
    lines = [
        [finding.what, in_brackets(finding.interval), finding.asked, said(finding)] for finding in verdict.findings
    ]
    return table(["", "mean [95 %]", "asked", ""], lines)


def said(finding: Finding) -> str:
    """Whether the bound is met; empty where there is none."""
    if finding.holds is None:
        return ""
    return ("yes" if finding.holds else "**no**") + ("" if finding.is_settled else f", {UNSETTLED}")


def steps_table(rows: Rows, claim: str) -> str:
    """Means over subjects of every metric, by arm and step; empty where no cell of them was run."""
    lines = []
    for arm in ARMS_OF_CLAIMS[claim]:
        for step in steps_of(rows, arm):
            means = [figures(rows, arm, step, metric) for metric in METRICS]
            lines.append([shown_name(claim, arm), str(step), *(mean_of(values) for values in means)])
    return table(["arm", "steps", *METRICS.values()], lines) if lines else ""


def mean_of(values: Mapping[str, float]) -> str:
    return f"{sum(values.values()) / len(values):.3f}" if values else "-"


def in_brackets(interval: Interval) -> str:
    """The mean with its interval; of one subject there is none."""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def validity_table(validity: Mapping[str, Mapping[str, float]]) -> str:
    kinds = list(validity)
    names = list(validity[kinds[0]]) if kinds else []
    return table(["", *kinds], [[name, *(f"{validity[kind][name]:.3f}" for kind in kinds)] for name in names])


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars within a cell are written so that they do not end it."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
