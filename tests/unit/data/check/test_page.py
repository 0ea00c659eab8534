"""The HTML page: complete without anything else, and readable by a browser."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from madpo.data.check.check import DatasetCheck
from madpo.data.check.report import (
    CheckReport,
    Distribution,
    Histogram,
    OverlongOutcome,
    RenderedExample,
    Span,
    TemplateCheck,
    TokenFigures,
)
from madpo.pages.check_page import render_page
from madpo.types import PreferencePair

pytestmark = pytest.mark.data

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ["figures", "findings", "length-bias", "characters", "tokens", "overlong", "template", "texts"]


class Page(HTMLParser):
    """Ids, text and plots; refuses tags that do not match and anything to be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.shown = ""
        self.plots = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "img", "link", "iframe", "object")
        assert not {"src", "href", "xlink:href", "onclick"} & set(given)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.plots += tag == "svg"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "line")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.shown += data


@pytest.fixture(scope="module")
def report() -> CheckReport:
    rows = [
        PreferencePair(f"what is {row} <b>", f"it is {row} & more, {'x' * row}", f"no {row}", row=row)
        for row in range(1, 60)
    ]
    check = DatasetCheck(held_out=rows[:3])
    list(check.watch([*rows, PreferencePair("what is 1 <b>", "it is 1 & more, x", "no 1", row=60)]))
    lengths = Distribution(
        count=3,
        mean=20,
        smallest=10,
        largest=30,
        quantiles={"0.5": 20, "0.95": 30},
        histogram=Histogram(edges=(10, 20, 30), counts=(1, 2)),
    )
    outcome = OverlongOutcome(kept=2, truncated=0, dropped=1, refused=False, lost_tokens=30)
    tokens = TokenFigures(
        model="tiny",
        tokenizer_sha256="0" * 64,
        template_sha256="1" * 64,
        max_tokens=25,
        lengths={"sequence": lengths},
        length_bias=None,
        shared_response_prefix=None,
        overlong={"drop": outcome},
        template=(TemplateCheck(name="keeps what is said", passed=False, detail="system is <dropped>"),),
        examples=(
            RenderedExample(
                row=1,
                side="chosen",
                tokens=2,
                loss_tokens=1,
                spans=(Span(text="<s>hi", in_loss=False), Span(text=" there</s>", in_loss=True)),
            ),
        ),
    )
    return check.report("rows <1>.jsonl", tokens=tokens)


def test_the_page_is_well_formed_and_needs_nothing_else(report: CheckReport) -> None:
    text = render_page(report)

    page = Page(text)

    assert page.ids == SECTIONS
    assert page.plots >= 8
    assert "rows <1>.jsonl" in page.shown
    assert "http" not in text
    assert "<mark> there&lt;/s&gt;</mark>" in text
    for finding in report.findings:
        assert finding.title[1:] in page.shown


def test_an_empty_file_has_a_page_too() -> None:
    check = DatasetCheck()
    assert list(check.watch([])) == []

    page = Page(render_page(check.report("nothing")))

    assert "There are no rows" in page.shown


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; the parser above looks at the same page")
def test_a_browser_shows_the_page(report: CheckReport, tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_page(report))
    browser = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]

    dom = subprocess.run(
        [*browser, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    size = "--window-size=1000,3000"
    subprocess.run(
        [*browser, size, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True
    )

    for section in SECTIONS:
        assert f'id="{section}"' in dom
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (3000, 1000, 3)
    colours = {*map(int, np.unique(pixels @ (0x10000, 0x100, 1)))}
    # Ink, the bars of the plots, the marked tokens of the example.
    assert {0x1C2329, 0x4878A8, 0xCFE8D5} <= colours
