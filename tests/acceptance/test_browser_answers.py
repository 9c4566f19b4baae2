"""Questions of docs/sql.md, answered in a real Chromium by clicking, from the first page on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import Engine

from etl.report.listings import FLOWS, HISTORY
from tests.support.browser import BOB, browser, drawn, month, site, watch

__all__ = ["browser", "month"]


@pytest.fixture(scope="module")
def engine(month: Callable[[str], Engine]) -> Engine:
    return month("sqlite")


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with site(engine) as server:
        yield server.url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The first page, on a phone, which has to do with the least; what the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    looked = watch(context)
    opened = context.new_page()
    opened.goto(address)
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390, "nothing scrolls sideways"
    context.close()
    assert looked.complaints == []


def go(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name=name, exact=True).click()


def column(page: Page, table: str, label: str) -> list[str]:
    page.wait_for_load_state()  # a list of elements does not wait for them
    return [text.strip() for text in page.locator(f"#{table} [data-label='{label}']").all_inner_texts()]


def open_target(page: Page, user: str) -> None:
    go(page, "Targets")
    page.get_by_label("User", exact=True).fill(user[1:])
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name=user, exact=True).click()
    assert page.locator("h1").inner_text() == f"User {user}"


def test_what_does_a_user_see_now(page: Page, engine: Engine) -> None:
    open_target(page, BOB.user_id)
    known = [flow.flow_id for flow in FLOWS.rows(engine, org=BOB.org_id, user=BOB.user_id)]
    assert column(page, "workflows", "Workflow") == known
    assert "last observed 5 h ago" in page.locator("section", has_text="Now").inner_text()


def test_what_changed_for_a_user_between_two_moments(page: Page) -> None:
    open_target(page, BOB.user_id)
    page.get_by_label("List as of").fill("2026-03-15 13:00")
    page.get_by_label("Compare with").fill("2026-03-13 13:00")
    page.get_by_role("button", name="Show").click()
    assert "as_of=2026-03-15" in page.url, "the address says it all"
    changes = zip(column(page, "difference", "Kind"), column(page, "difference", "Workflow"), strict=True)
    assert set(changes) == {("added", "114"), ("removed", "22")}


def test_what_a_version_brought_is_one_click_from_the_list(page: Page) -> None:
    open_target(page, BOB.user_id)
    page.get_by_role("link", name="What changed in version 3", exact=True).click()
    assert set(column(page, "difference", "Workflow")) == {"114", "22"}
    page.get_by_role("link", name="The list of version 1", exact=True).click()
    assert "21" in column(page, "workflows", "Workflow")


def test_when_was_nobody_looking_and_did_something_change(page: Page, engine: Engine) -> None:
    go(page, "Gaps")
    changed = column(page, "gaps-table", "Changed inside")
    assert {text.partition(":")[0] for text in changed} == {"yes", "no", "not known yet"}


def open_organisation(page: Page, org: str) -> None:
    go(page, "Workflows")
    page.get_by_role("link", name=org, exact=True).click()


def show(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).select_option(value)
    page.get_by_role("button", name="Show").click()


def test_which_workflows_hang_on_a_single_user_and_who_is_that(page: Page) -> None:
    open_organisation(page, "o1")
    show(page, "Show", "those that one user alone sees")
    assert set(column(page, "workflows", "Users")) == {"1"}
    page.locator("#workflows").get_by_role("link", name="136", exact=True).click()
    assert column(page, "seen", "User") == ["bob"]


def test_what_was_first_seen_this_month(page: Page) -> None:
    open_organisation(page, "o1")
    show(page, "Order", "newest first")
    seen = column(page, "workflows", "First listed")
    assert seen == sorted(seen, reverse=True)
    assert column(page, "workflows", "Workflow")[:3] == ["138", "136", "134"]


def test_who_sees_a_workflow_and_what_was_its_life(page: Page, engine: Engine) -> None:
    open_organisation(page, "o2")
    page.get_by_label("Workflow", exact=True).fill("name 3")
    page.get_by_role("button", name="Show").click()
    page.locator("#workflows").get_by_role("link").first.click()
    flow = page.locator("h1").inner_text().removeprefix("Workflow ")
    drawn(page)
    assert set(column(page, "seen", "User")) <= {"carol", "dave"}
    page.get_by_text("The numbers").click()
    known = [state.user_id for state in HISTORY.rows(engine, flow=flow, org="o2")]
    assert column(page, "states", "User") == known
    assert {"renamed", "cycle changed"} & set(column(page, "story", "Kind"))


def only_kind(page: Page, kind: str) -> None:
    for box in page.get_by_role("checkbox").all():
        box.set_checked(box.get_attribute("value") == kind)


def filter_events(page: Page, kind: str, **fields: str) -> None:
    go(page, "Events")
    only_kind(page, kind)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="Filter").click()


def test_which_daily_workflows_became_hourly_and_what_were_renamed_ones_called_before(page: Page) -> None:
    filter_events(page, "cycle_changed", Organisation="o2", From="2026-03-01", Before="2026-04-01")
    assert set(column(page, "story", "Kind")) == {"cycle changed"}
    assert any(what.startswith("day") and what.endswith("hour") for what in column(page, "story", "What"))
    filter_events(page, "renamed", Organisation="o2")
    assert all(what.startswith("was ") for what in column(page, "story", "What"))


def test_who_lost_access_last_week_or_what_disappeared_and_whose_lists_showed_it(page: Page) -> None:
    filter_events(page, "disappeared", Organisation="o1")
    assert set(column(page, "story", "Kind")) == {"disappeared"}
    page.locator("#story summary").first.click()
    assert page.locator("#story .behind").first.inner_text() == "bob removed"


def test_one_field_finds_a_workflow_a_user_and_an_organisation(page: Page) -> None:
    for sought, table, name in [
        ("PUMP_36", "workflows", "136"),
        ("aro", "users", "carol"),
        ("o3", "organisations", "o3"),
    ]:
        field = page.get_by_role("search").get_by_role("searchbox")
        field.fill(sought)
        field.press("Enter")
        page.locator(f"#{table}").get_by_role("link", name=name, exact=True).click()
        assert name in page.locator("main").inner_text()
