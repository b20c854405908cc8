"""Pages of what strangers named: nothing in a name is obeyed, by a browser or by a terminal."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, ran

import pyro_vae as pv
from pyro_vae.commands import comparing_runs, fitting
from pyro_vae.html_report import Section, Table, printable, table_text, verdicts_text

SCRIPT, IMAGE = "<script>alert(1)</script>", """"><img src=x onerror=alert(2)>'"""


class Page(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def assert_harmless(text):
    """Nothing is run or fetched, whatever stands in it."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "object", "embed", "link", "form", "base", "svg", "iframe"}
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert re.match(r"data:image/png;base64,|#q\d+$", attributes.get(name) or "#q1")
        assert "url(" not in (attributes.get("style") or "")
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in text
    return page


@pytest.fixture(scope="module")
def found():
    """A diagnosis in which everything that can be named is named so."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    table = pd.DataFrame(
        np.random.default_rng(0).normal(size=(60, 3)), columns=[SCRIPT, IMAGE, "plain"]
    )
    vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=(8,))
    pv.fit(vae, table, epochs=1, seed=0)
    return pv.diagnose(
        vae,
        table,
        num_data=40,
        num_samples=50,
        quick=True,
        title=f"Run {SCRIPT}",
        facts={f"key {IMAGE}": f"value {SCRIPT}"},
        name=f"rows {IMAGE}",
    )


def test_page_of_a_diagnosis_shows_names_and_obeys_none(found, tmp_path):
    found.html(tmp_path / "page.html")
    page = assert_harmless((tmp_path / "page.html").read_text("utf-8"))
    for shown in (f"Run {SCRIPT}", f"key {IMAGE}", f"value {SCRIPT}", f"rows {IMAGE}"):
        assert shown in page.text
    assert page.text.count(SCRIPT) > 2  # and the columns


def test_notebook_shows_the_same_page_in_a_frame_that_runs_nothing(found, tmp_path):
    frame = Page(found._repr_html_())
    ((tag, attributes),) = frame.tags
    assert (tag, attributes["sandbox"]) == ("iframe", None)  # all is forbidden
    assert set(attributes) == {"sandbox", "srcdoc", "title", "style"}
    assert attributes["title"] == f"Run {SCRIPT}"
    assert frame.text == ""
    page = assert_harmless(attributes["srcdoc"])
    assert SCRIPT in page.text
    assert "<script" not in found._repr_html_()


def test_page_of_a_comparison_shows_names_of_runs_and_obeys_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # conftest puts it back
    monkeypatch.setattr(fitting, "_draw", lambda *_: None)
    monkeypatch.setattr(comparing_runs, "GAP_ROWS", 0)
    columns = [SCRIPT, IMAGE, "c"]
    pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=columns).to_csv(
        "x.csv", index=False
    )
    names = ['"><img src=x onerror=alert(1)>', "<script>alert(2)<"]
    ran("fit", "--data", "x.csv", *TINY, "--out", names[0])
    shutil.copytree(names[0], names[1])
    shown = ran("compare", *names, "--num-data", 20, "--num-samples", 20, "--out", "page.html")
    page = assert_harmless((tmp_path / "page.html").read_text("utf-8"))
    assert all(name in page.text for name in names)
    assert names[0] in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü ± 日本 \U0001f600", "plain äöü ± 日本 \U0001f600"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08", r"a\rb\x08"),
        ("txt\u202egnp", r"txt\u202egnp"),
        ("\u2066\u2069", r"\u2066\u2069"),
        ("\udcff", r"\udcff"),
        ("a\tb\nc", "a\tb\nc"),
    ],
)
def test_terminal_is_shown_signs_in_place_of_commands(text, shown):
    assert printable(text) == shown


def test_tables_for_the_terminal_hold_no_commands():
    evil = "a\x1b[2J\nb"
    for text in (
        table_text(Table("", (evil, "x"), [[evil, evil]])),
        verdicts_text([Section(evil, "good", evil)]),
    ):
        assert "\x1b" not in text
        assert len(text.splitlines()) == 2
