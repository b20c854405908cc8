"""The page: nothing is fetched, nothing is run, every text arrives as it was given."""

import base64
import math
import re
import struct
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from pyro_vae.html_report import (
    MARKS,
    Measure,
    Picture,
    Section,
    Table,
    html_page,
    table_text,
    verdicts_text,
)

EVIL = """<script>alert("x")</script>&amp;'"><img src=http://x.example/y onerror=z>"""


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def figure():
    made = Figure(figsize=(3, 2))
    made.subplots().plot([0, 1])
    return made


def evil_page():
    section = Section(
        EVIL,
        "bad",
        EVIL,
        [Measure(EVIL, 1.0, 0.1, EVIL, EVIL)],
        EVIL,
        [EVIL],
        [Table(EVIL, (EVIL, EVIL), [[EVIL, EVIL]])],
        [Picture(EVIL, figure())],
    )
    return html_page(EVIL, [section, section], lead=EVIL, facts={EVIL: EVIL}, closing=EVIL)


def test_every_text_is_escaped():
    page = Page(evil_page())
    assert page.named("script") == []
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert len(page.named("img")) == 2  # the pictures alone
    assert page.named("img")[0]["alt"] == EVIL
    # Title, headline, lead, fact (2), and in each section: question, sentence, next step, remark,
    # table (5) and the picture's caption.
    assert sum(EVIL in text for text in page.texts) >= 5 + 2 * 10 + 1


def test_nothing_is_fetched_from_outside():
    page = Page(evil_page())
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert re.match(r"data:image/png;base64,|#q\d+$", attrs.get(name, "#q1"))
    style = re.search("<style>(.*?)</style>", evil_page(), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_policy_stands_before_anything_it_governs():
    text = html_page("title", [])
    policy = Page(text).named("meta")[1]
    assert policy == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    }
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_picture_is_part_of_the_page_and_of_its_own_size():
    source = Page(html_page("t", [Section("q", "good", "s", pictures=[Picture("c", figure())])]))
    (image,) = source.named("img")
    png = base64.b64decode(image["src"].partition(",")[2], validate=True)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (3 * 144, 2 * 144)
    assert image["width"] == str(3 * 96)


def test_page_is_the_same_bytes_each_time():
    assert evil_page() == evil_page()


def test_overview_links_to_each_section():
    page = Page(html_page("t", [Section(name, "good", "s") for name in ("a", "b", "c")]))
    ids = [attrs["id"] for attrs in page.named("section")]
    assert [attrs["href"] for attrs in page.named("a")] == [f"#{name}" for name in ids]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("verdict", MARKS)
def test_verdict_is_told_by_word_and_sign(verdict):
    page = Page(html_page("t", [Section("q", verdict, "s")]))
    assert f"{MARKS[verdict]} {verdict}" in page.texts


def test_unknown_verdict_raises():
    with pytest.raises(ValueError, match=r"verdict must be one of good, .*; got 'fine'\."):
        Section("q", "fine", "s")


def test_columns_of_numbers_are_flush_right_with_a_minus_and_texts_stay():
    table = Table("", ("a-b", "value", "text"), [["x-1", "-1.5 ± 0.2", "c-d"], ["y", "–", "-2"]])
    text = html_page("t", [Section("q", "good", "s", tables=[table])])
    assert '<td class="number">−1.5 ± 0.2</td><td>c-d</td>' in text
    assert '<th scope="row">x-1</th>' in text
    assert '<td class="number">–</td><td>-2</td>' in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.2345, 0.067, "1.234 ± 0.067"),
        (1.2345, math.nan, "1.23"),
        (3, math.nan, "3"),
        (-12345.678, math.nan, "-12346"),
        (1.23456, 1e-9, "1.2346 ± 0.0001"),
        (1.2345, 0.0, "1.234"),
    ],
)
def test_measure_is_printed_to_its_error(value, error, text):
    assert Measure("m", value, error).text == text


def test_verdicts_as_text_name_the_decisive_figure_and_what_is_wanted():
    sections = [
        Section("One?", "doubtful", "s", [Measure("gap", 2.0, 0.5, "nats", "at most 1")]),
        Section("Another?", "does not apply", "No such thing."),
    ]
    assert verdicts_text(sections).splitlines() == [
        "question  verdict         figure",
        "One?      doubtful        gap: 2.00 ± 0.50 nats (at most 1)",
        "Another?  does not apply  No such thing.",
    ]


def test_table_as_text_keeps_its_caption():
    assert table_text(Table("what", ("a", "b"), [["x", "1"]])) == "what\na  b\nx  1"
