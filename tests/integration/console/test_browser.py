"""The pages in a real browser, with a training that runs meanwhile."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from madpo_client import Client, JobHandle
from tests.integration.console.site import Site

HOSTILE = "<img src=x onerror=alert(1)> \u05e9\u05dc\u05d5\u05dd " + "x" * 150
"""A name of markup, of letters that run the other way, and long."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here; `make test` installs it where it may")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """Logged in; what the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(site.url + site.login_path())
    yield page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def trainings(client: Client, base: str, other_pairs_file: Path) -> list[JobHandle]:
    pairs = client.datasets.upload(other_pairs_file, name="pairs for the browser")
    training = {"max_tokens": 64, "epochs": 4, "checkpoint_every_steps": 4, "global_batch_size": 16}
    jobs = [
        client.jobs.train_policy(
            model=base, dataset=pairs, method="dpo", params={"beta": beta}, training=training, name=f"browsed {beta}"
        )
        for beta in (0.1, 0.5)
    ]
    for job in jobs:
        job.wait(timeout_s=300)
    return jobs


def test_a_training_is_watched_to_its_end(
    page: Page, site: Site, client: Client, base: str, other_pairs_file: Path
) -> None:
    pairs = client.datasets.upload(other_pairs_file)
    job = client.jobs.train_policy(
        model=base, dataset=pairs, method="dpo", training={"max_tokens": 64, "epochs": 20}, name="watched"
    )
    page.goto(f"{site.url}/jobs")
    page.get_by_role("link", name="watched", exact=True).click()

    expect(page.locator("#state .badge")).to_have_text("succeeded", timeout=300_000)
    expect(page.locator("#plots figure").first).to_contain_text("loss")
    expect(page.locator("#plots canvas").first).to_be_visible()
    assert job.refresh().state.value == "SUCCEEDED"


def test_trainings_are_found_and_compared(page: Page, trainings: list[JobHandle]) -> None:
    page.get_by_label("Name").fill("browsed 0")
    for job in trainings:
        page.get_by_label(f"Compare {job.job.display_name}").check()
    page.get_by_role("button", name="Compare those ticked").click()

    expect(page.locator("#plots canvas").first).to_be_visible()
    expect(page.get_by_role("row", name="method.params.beta")).to_contain_text("0.1")
    expect(page.locator(".legend li")).to_have_count(2)


def test_a_job_is_cancelled_resumed_and_deleted(
    page: Page, site: Site, client: Client, base: str, other_pairs_file: Path
) -> None:
    pairs = client.datasets.upload(other_pairs_file)
    job = client.jobs.train_policy(
        model=base, dataset=pairs, method="dpo", training={"max_tokens": 64, "epochs": 4000}, name=HOSTILE
    )
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("h1")).to_have_text(HOSTILE)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete").click()

    page.wait_for_url(f"{site.url}/jobs")
    assert job.id not in {each.id for each in client.jobs.list()}


def test_rows_of_a_dataset_are_read_page_after_page(page: Page, site: Site, trainings: list[JobHandle]) -> None:
    dataset = trainings[0].job.spec["dataset"]["dataset_id"]
    page.goto(f"{site.url}/datasets/{dataset}")
    page.get_by_role("link", name="Rows behind").click()

    expect(page.locator("article")).to_have_count(10)
    expect(page.locator("article").first).to_contain_text("row 11")
    expect(page.locator("article").first).to_contain_text("a 1980s drama")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 2560])
def test_every_page_fits_and_can_be_used_by_all(
    browser: Browser, site: Site, trainings: list[JobHandle], scheme: str, width: int
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site.url}/login")
    paths = ["/login", "/jobs", "/datasets", "/models", "/system", "/jobs/nothing-of-that-name"]
    paths += [f"/jobs/{trainings[0].id}", "/compare?" + "&".join(f"job={job.id}" for job in trainings)]
    paths += [f"/datasets/{trainings[0].job.spec['dataset']['dataset_id']}"]
    for path in paths:
        page.goto(site.url + path)
        if path == "/login":
            findings = Axe().run(page).response["violations"]
            page.goto(site.url + site.login_path())
        else:
            page.wait_for_load_state("load")
            findings = Axe().run(page).response["violations"]
        serious = [each["id"] for each in findings if each["impact"] in ("serious", "critical")]
        assert (path, serious) == (path, [])
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
    context.close()


def test_the_first_page_is_small(browser: Browser, site: Site) -> None:
    context = browser.new_context()
    page = context.new_page()
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(len(response.body())) if response.status == 200 else None)
    page.goto(site.url + site.login_path(), wait_until="load")
    context.close()

    assert 0 < sum(sizes) < 300_000
