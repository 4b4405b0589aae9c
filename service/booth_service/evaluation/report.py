"""A report as one HTML page: no script, no other file, for a phone as for a wide screen, light or dark. Pure."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from booth.contract.evaluation import Report, ReportRow, ReportTable
from booth.contract.jobs import PromptCase
from booth.contract.scores import Score, ScoredPicture
from booth_service.evaluation.page_style import STYLE
from booth_service.evaluation.table import IS_LOWER_BETTER, NAMES, Line, figures_of, lines

OPEN_SUBJECTS = 3  # reports of more begin with their subjects folded


def picture_keys(report: Report) -> list[str]:
    """Every picture that the page shows, by key, each once."""
    photos = [photo.key for of_subject in report.photos.values() for photo in of_subject]
    drawn = [each.key for row in report.rows for each in (*row.score.pictures, *row.score.class_pictures)]
    return list(dict.fromkeys([*photos, *drawn]))


def report_html(report: Report, pictures: Mapping[str, bytes], more: Mapping[str, bytes] | None = None) -> str:
    """The page. `pictures` are small copies by key (WebP, PNG or JPEG), laid into the page; one that is missing leaves
    an empty place. `more` are further pictures by name, as curves.png, shown below the table."""
    subjects = list(dict.fromkeys([*report.photos, *(row.subject for row in report.rows)]))
    shown = sum(len(row.score.pictures) for row in report.rows)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="sub">{_count(len(subjects), "subject")}, {_count(len(lines(report.rows)), "arm")}, '
        f"{_count(shown, 'scored picture')}</p>",
        _warnings(report),
        "<h2>Figures</h2>",
        _table(report.rows),
        *(
            f'<figure class="wide"><img alt="{escape(name)}" src="{_inline(body)}"></figure>'
            for name, body in (more or {}).items()
        ),
        *(_further(table) for table in report.tables),
        *(_subject(report, each, pictures, is_open=len(subjects) <= OPEN_SUBJECTS) for each in subjects),
        _words("Definitions", {NAMES.get(name, name): text for name, text in report.definitions.items()}),
        _words("Settings", report.settings),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _table(rows: Sequence[ReportRow]) -> str:
    if not rows:
        return "<p>There is no score.</p>"
    figures, found = list(figures_of(rows)), lines(rows)
    steps_differ = {line.arm for line in found if sum(other.arm == line.arm for other in found) > 1}
    head = "".join(f"<th>{escape(NAMES.get(name, name))} {_direction(name)}</th>" for name in figures)
    body = "".join(_row(line, figures, line.arm in steps_differ) for line in found)
    return (
        f'<div class="scroll"><table><thead><tr><th>Arm</th>{head}<th>Memorised</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="sub">Below each figure: the ceiling (the photos among themselves) and the floor (the frozen base). '
        "Brackets hold 95 % intervals over subjects.</p>"
    )


def _further(table: ReportTable) -> str:
    """A table that the report brings ready made."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    body = "".join(f"<tr>{''.join(_text_cell(n, text) for n, text in enumerate(row))}</tr>" for row in table.rows)
    note = f'<p class="sub">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _text_cell(place: int, text: str) -> str:
    return f"<th>{escape(text)}</th>" if place == 0 else f"<td>{escape(text)}</td>"


def _row(line: Line, figures: Sequence[str], with_step: bool) -> str:
    name = f"{line.arm}, step {line.step}" if with_step else line.arm
    labels = dict.fromkeys(f"{key} {value}" for row in line.rows[:1] for key, value in row.labels.items())
    told = f'<div class="beside">{escape(", ".join(labels))}</div>' if labels else ""
    warned = sum(len(texts) for texts in line.warnings.values())
    mark = f'<a class="warn" href="#warnings">{_count(line.memorised, "picture")}, {_count(warned, "warning")}</a>'
    none = "-" if line.step == 0 else "none"
    cells = "".join(f"<td>{_figure(line, figure)}</td>" for figure in figures)
    return f"<tr><th>{escape(name)}{told}</th>{cells}<td>{mark if warned else none}</td></tr>"


def _figure(line: Line, name: str) -> str:
    found = line.figures.get(name)
    if found is None:
        return "-"
    interval = "" if found.low is None else f' <span class="beside">[{found.low:.3f}, {found.high:.3f}]</span>'
    beside = [
        f"{word} {value[name]:.3f}"
        for word, value in (("ceiling", line.ceilings), ("floor", line.floors))
        if name in value
    ]
    return f'<b>{found.mean:.3f}</b>{interval}<div class="beside">{"<br>".join(beside)}</div>'


def _direction(name: str) -> str:
    lower = name in IS_LOWER_BETTER
    return f'<span title="{"lower" if lower else "higher"} is better">{"↓" if lower else "↑"}</span>'


def _warnings(report: Report) -> str:
    found: list[tuple[str, str]] = [("", text) for text in report.warnings]
    found += [
        (f"{line.arm}: {subject}" if subject != line.arm else line.arm, text)
        for line in lines(report.rows)
        for subject, texts in line.warnings.items()
        for text in texts
    ]
    items = "".join(f"<li>{f'<b>{escape(of)}.</b> ' if of else ''}{escape(text)}</li>" for of, text in found)
    return f'<section id="warnings"><h2>Warnings</h2><ul>{items}</ul></section>' if items else ""


def _subject(report: Report, subject: str, pictures: Mapping[str, bytes], *, is_open: bool) -> str:
    photos = report.photos.get(subject, [])
    rows = [row for row in report.rows if row.subject == subject]
    strip = "".join(_cell(photo.key, pictures, f"photo {number}", "") for number, photo in enumerate(photos))
    parts = [f'<h3>Photos</h3><div class="cells">{strip}</div>'] if photos else []
    seen: set[str] = set()
    for row in rows:
        parts.append(_arm(row, pictures, seen))
        seen |= {picture.key for picture in row.score.class_pictures}
    open_ = " open" if is_open else ""
    return f"<details{open_}><summary><h2>{escape(subject)}</h2></summary>{''.join(parts)}</details>"


def _arm(row: ReportRow, pictures: Mapping[str, bytes], seen: set[str]) -> str:
    """Its pictures as a grid of prompts and seeds, then those of the class that no arm before has shown."""
    score, seed = row.score, f", seed {row.seed}" if row.seed else ""
    if not score.pictures:
        return ""
    prompts = "".join(_prompt(number, case, score, pictures) for number, case in enumerate(score.cases))
    of_class = [each for each in score.class_pictures if each.key not in seen]
    if of_class:
        cells = "".join(_cell(each.key, pictures, f"seed {each.seed}", _said(each)) for each in of_class)
        prompts += (
            f'<div class="prompt"><div class="text">the class, for PRES</div><div class="cells">{cells}</div></div>'
        )
    step = f"step {score.step}" if score.step else "frozen"
    return f'<h3>{escape(row.arm)} <span class="beside">{step}{seed}</span></h3>{prompts}'


def _prompt(number: int, case: PromptCase, score: Score, pictures: Mapping[str, bytes]) -> str:
    cells = "".join(
        _cell(each.key, pictures, f"seed {each.seed}", _said(each), is_memorised=place in score.like_a_photo)
        for place, each in enumerate(score.pictures)
        if each.case == number
    )
    unseen = '<div class="beside">no photo shows this</div>' if case.is_unseen else ""
    text = f'<div class="text">{escape(case.prompt)}{unseen}</div>'
    return f'<div class="prompt">{text}<div class="cells">{cells}</div></div>' if cells else ""


def _cell(key: str, pictures: Mapping[str, bytes], name: str, said: str, *, is_memorised: bool = False) -> str:
    body = pictures.get(key)
    shown = (
        f'<img loading="lazy" alt="{escape(name)}" src="{_inline(body)}">' if body else '<div class="gone">gone</div>'
    )
    mark = ' class="memorised"' if is_memorised else ""
    caption = " · ".join(filter(None, [escape(name), said, "like a photo" if is_memorised else ""]))
    return f"<figure{mark}>{shown}<figcaption>{caption}</figcaption></figure>"


def _said(picture: ScoredPicture) -> str:
    figures = {"DINO": picture.dino, "CLIP-T": picture.clip_t}
    said = [f"{name} {value:.2f}" for name, value in figures.items() if value is not None]
    return " · ".join([*said, *(escape(label) for label in picture.attributes.values())])


def _words(title: str, words: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in words.items())
    return f"<section><h2>{title}</h2><dl>{items}</dl></section>" if items else ""


def _inline(body: bytes) -> str:
    kind = "webp" if body[8:12] == b"WEBP" else "png" if body.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
