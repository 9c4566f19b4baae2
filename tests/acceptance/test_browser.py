"""The pages as people use them: in a real Chromium, with a keyboard, without JavaScript, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import Engine

from etl.web.overview import report_html
from tests.support.browser import (
    COVERAGE_GAP,
    HOSTILE_NAME,
    HOSTILE_ORG,
    NOW,
    PAGES,
    Watched,
    browser,
    drawn,
    month,
    site,
    watch,
)

__all__ = ["browser", "month"]

NAMELESS = """() => {
    const all = selector => [...document.querySelectorAll(selector)];
    const ids = all('[id]').map(element => element.id);
    return [
        ...all('input:not([type=hidden]), select').filter(field => !field.labels.length),
        ...all('table').filter(table => !table.caption),
        ...all('thead th').filter(head => head.scope !== 'col'),
        ...all('[role=img]').filter(image => !image.ariaLabel),
        ...all('[aria-labelledby]').filter(e => !document.getElementById(e.getAttribute('aria-labelledby'))),
        ...ids.filter((id, place) => ids.indexOf(id) !== place),
    ].map(String);
}"""


SCROLLS = """() => [...document.querySelectorAll('.scroll')]
    .filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"""


@pytest.fixture(scope="module")
def address(month: Callable[[str], Engine]) -> Iterator[str]:
    with site(month("sqlite")) as server:
        yield server.url


@pytest.fixture(scope="module")
def report(month: Callable[[str], Engine], tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    report_html(month("sqlite"), now=NOW, file=file, coverage_gap=COVERAGE_GAP)
    return file.as_uri()


@pytest.fixture
def looked() -> list[Watched]:
    return []


@pytest.fixture
def page(browser: Browser, looked: list[Watched], request: pytest.FixtureRequest) -> Iterator[Page]:
    """A new tab. A test fails for whatever the browser complains of; its parameter is for the context."""
    context = browser.new_context(**getattr(request, "param", {}))
    looked.append(watch(context))
    yield context.new_page()
    context.close()
    assert looked[0].complaints == []


def texts(page: Page, selector: str) -> list[str]:
    page.wait_for_load_state()  # a list of elements does not wait for them
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


@pytest.mark.parametrize("page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True, ids=str)
def test_every_page_loads_and_draws_without_a_complaint(page, looked, address):
    """It requests its own server only, and every element has a name for screen readers."""
    for path in PAGES:
        answer = page.goto(address + path)
        assert answer is not None
        assert answer.ok, path
        drawn(page)
        assert page.locator("main h1").count() == 1
        for role in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(role).count(), role
        assert page.evaluate(NAMELESS) == [], path
    assert page.title() == "Workflow 5 · Flowtrail"
    assert [url for url in looked[0].requests if not url.startswith(address + "/")] == []


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True, ids=["phone"])
def test_on_a_phone_nothing_scrolls_sideways_and_every_cell_says_its_column(page, address):
    for path in PAGES:
        page.goto(address + path)
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, path
        assert page.evaluate(SCROLLS) == [], path
        assert page.locator("tbody td:not([colspan]):not([data-label])").count() == 0, path


@pytest.mark.parametrize("page", [{"timezone_id": "Asia/Shanghai"}], indirect=True, ids=["Shanghai"])
def test_times_are_the_readers_with_utc_beside(page, address):
    page.goto(f"{address}/targets/o1/bob?as_of=2026-03-15T18:30:00Z")
    assert page.locator("#coverage time").inner_text() == "2026-03-16 02:30:00 2026-03-15 18:30:00 UTC"
    assert "your zone (Asia/Shanghai)" in page.get_by_role("contentinfo").inner_text()


def test_plots_follow_a_change_from_light_to_dark(page, address):
    page.goto(address)
    drawn(page)
    legend = page.locator(".plot .legendtext").first
    light = legend.evaluate("text => getComputedStyle(text).fill")
    page.emulate_media(color_scheme="dark")
    expect(legend).not_to_have_css("fill", light)


def test_an_invalid_time_is_reported_where_it_was_typed(page, looked, address):
    page.goto(f"{address}/trail")
    page.get_by_label("From").fill("gestern")
    page.get_by_role("button", name="Filter").click()
    assert "gestern" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("From").input_value() == "gestern"
    assert looked[0].complaints.pop().endswith("400 (Bad Request)")


def test_older_pages_lead_to_the_end_of_the_trail(page, address):
    page.goto(f"{address}/trail?since=&kind=baseline&kind=added&kind=removed")
    seen = texts(page, "#events tbody tr")
    while page.get_by_role("link", name="Older").count():
        page.get_by_role("link", name="Older").click()
        page.wait_for_load_state()
        seen += texts(page, "#events tbody tr")
    assert len(seen) == len(set(seen)) > 120


def test_a_hostile_name_stays_text(page, address):
    page.goto(f"{address}/trail?flow=%3D66")
    assert page.locator("#events td.name").first.inner_text() == HOSTILE_NAME
    page.get_by_role("link", name="66").first.click()
    drawn(page)
    assert page.title() == "Workflow 66 · Flowtrail"
    assert page.locator(".lead bdi").first.inner_text() == HOSTILE_NAME
    assert HOSTILE_NAME[:30] in page.locator(".plot .bartext").first.text_content()
    label = page.locator(".plot .ytick").first.text_content()
    assert label.startswith(HOSTILE_ORG.user_id)
    assert page.locator(".plot a, .plot b, main img, main script:not([type='application/json'])").count() == 0


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True, ids=["no script"])
def test_without_javascript_every_number_is_in_a_table(page, address):
    page.goto(address)
    assert page.locator(".plot:visible").count() == 0
    page.get_by_text("The numbers").first.click()
    assert page.get_by_role("table", name="Events per day by kind").is_visible()
    page.get_by_role("link", name="Trail", exact=True).click()
    page.get_by_label("Name", exact=True).fill("PUMP_1")
    page.get_by_role("button", name="Filter").click()
    assert texts(page, "#events td.name")
    assert all("pump_1" in row for row in texts(page, "#events tbody tr"))


def test_a_keyboard_goes_from_the_top_to_the_bottom(page, address):
    page.goto(f"{address}/trail")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tops = []
    for _ in range(16):
        page.keyboard.press("Tab")
        tops.append(page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert tops == sorted(tops)
    assert page.evaluate("document.activeElement.matches('.filters *')") is False, "past the form"


def test_the_report_opens_without_a_network(page, looked, report):
    page.goto(report)
    drawn(page)
    assert looked[0].requests == [report]
    assert page.locator(".plot .main-svg").count() > 4
    assert page.get_by_role("table", name="Latest changes, the newest first").is_visible()
    assert page.locator("main a").count() == 0


def test_the_trail_of_a_report_can_be_searched(page, report):
    page.goto(report)
    page.get_by_label("Find in this table").fill("o2 cycle changed")
    rows = texts(page, "#events tbody tr:visible")
    assert rows
    assert all("o2" in row and "cycle changed" in row for row in rows)
    assert page.locator("output").inner_text() == f"{len(rows)} found"
