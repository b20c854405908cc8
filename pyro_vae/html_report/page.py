"""Sections as one HTML page that needs no other file and fetches nothing."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from .sections import Picture, Section, Table
from .style import STYLE
from .text import decisive, number_columns

__all__ = ["html_page"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    closing: str = "",
) -> str:
    """The page as text.

    Every text is escaped, pictures are part of the page, and the page's own policy forbids a
    browser to fetch or to run anything.

    Args:
        title: Title and headline.
        sections: Questions and answers; an overview that links to them stands before them.
        lead: A sentence below the headline.
        facts: What the page is about: names to values.
        closing: A line at the end.

    Example:
        >>> page = html_page("<run>", [Section("Is it fine?", "good", "It is.")])
        >>> "<h1>&lt;run&gt;</h1>" in page, "<run>" in page
        (True, False)
    """
    about = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in (facts or {}).items())
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>' if lead else "",
        f"<dl>{about}</dl>" if about else "",
        _overview(sections) if len(sections) > 1 else "",
        *(_section(number, section) for number, section in enumerate(sections, 1)),
        f"<footer>{escape(closing)}</footer>" if closing else "",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _overview(sections: Sequence[Section]) -> str:
    rows = [
        f'<tr><th scope="row"><a href="#q{number}">{escape(section.question)}</a></th>'
        f"<td>{_badge(section)}</td><td>{escape(decisive(section))}</td></tr>"
        for number, section in enumerate(sections, 1)
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Question", "Verdict", "Figure"))
    return (
        '<nav aria-label="Overview"><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></nav>"
    )


def _section(number: int, section: Section) -> str:
    measures = [
        [m.name + (f", {m.unit}" if m.unit else ""), m.text, m.wanted or "–"]
        for m in section.measures
    ]
    parts = [
        f'<div class="head"><h2>{escape(section.question)}</h2>{_badge(section)}</div>',
        f"<p>{escape(section.sentence)}</p>",
        _table(Table("", ("figure", "value", "wanted"), measures)) if measures else "",
        f'<p class="next"><b>What to do:</b> {escape(section.next_step)}</p>'
        if section.next_step
        else "",
        *(f'<p class="remark">{escape(remark)}</p>' for remark in section.remarks),
        *(_picture(picture) for picture in section.pictures),
        *(_table(table) for table in section.tables),
    ]
    return f'<section id="q{number}">{"".join(parts)}</section>'


def _badge(section: Section) -> str:
    name = section.verdict.replace(" ", "-")
    return f'<span class="badge {name}">{escape(section.mark)}</span>'


def _table(table: Table) -> str:
    numeric = number_columns(table)
    kind = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f'<th scope="col"{kind[index]}>{escape(name)}</th>'
        for index, name in enumerate(table.columns)
    )
    rows = []
    for row in table.rows:
        cells = "".join(
            f"<td{kind[index]}>{escape(cell.replace('-', '−') if numeric[index] else cell)}</td>"
            for index, cell in enumerate(row)
            if index > 0
        )
        rows.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _picture(picture: Picture) -> str:
    caption = escape(picture.caption)
    width = round(96 * picture.figure.get_figwidth())
    return (
        f'<figure><div class="scroll"><img src="data:image/png;base64,{_png(picture.figure)}" '
        f'alt="{caption}" '
        f'width="{width}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _png(figure: Figure) -> str:
    """The figure at one and a half pixels for each of the page's; the same bytes at every call."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode("ascii")
