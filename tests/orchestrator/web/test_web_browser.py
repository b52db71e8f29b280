"""The page in a real Chromium, served as `trimtab dashboard` serves it."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab.core.job import JobState
from trimtab.orchestrator.web.server import bind, make_server

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NO_PEAK = "the peak of 'CPU process' in fp32 is unknown: the cluster file gives none"


class Page:
    """A browser page that remembers what it complained about and asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.address}{path}")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, sample: Any) -> Iterator[Page]:
    listener = bind("127.0.0.1", 0)
    server = make_server(sample.root, host="127.0.0.1")
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    watched = Page(context.new_page(), address)
    try:
        yield watched
        assert watched.complaints == []
        assert [url for url in watched.requests if not url.startswith(f"{address}/")] == []
    finally:
        context.close()
        server.should_exit = True
        thread.join()
        listener.close()


def text_is(page: Any, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).wait_for()


def test_a_run_is_drawn_and_grows_without_a_reload(page: Page, sample: Any) -> None:
    sample.start().steps(1, 45)
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#tile-steps", "45 / 60")
    tab.evaluate("window.notReloaded = true")
    sample.steps(46, 48)
    text_is(tab, "#tile-steps", "48 / 60")
    text_is(tab, "#plan-number", "48")
    text_is(tab, "#chart-loss .legend", "step 48")
    assert tab.evaluate("window.notReloaded") is True
    sample.finish(JobState.SUCCEEDED, reason="all 48 steps done")
    text_is(tab, "#run-state", "succeeded")
    text_is(tab, "#notes-table", "all 48 steps done")
    text_is(tab, "#connection", "complete")
    assert tab.title() == "48/60 · demo · Trimtab"


def test_the_mfu_is_blank_and_the_page_says_why(page: Page, sample: Any) -> None:
    sample.start().steps(1, 3)
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#mfu-reason", f"Left blank: {NO_PEAK}.")
    assert tab.locator("#tile-mfu").inner_text() == "\N{EN DASH}"
    assert not tab.locator("#chart-mfu").is_visible()
    text_is(tab, "#mfu-precision", "fp32")
    assert "6 x matmul parameters" in tab.locator("#mfu-formula").inner_text()


def test_a_known_peak_shows_the_mfu_with_formula_precision_and_peak(
    page: Page, sample: Any
) -> None:
    sample.start(peak=1e12).steps(1, 3)
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#mfu-peak", "4 x 1 TFLOP/s dense fp32 (datasheet)")
    assert tab.locator("#chart-mfu canvas").is_visible()
    assert tab.locator("#tile-mfu").inner_text().endswith(" %")


def test_plans_are_chosen_by_keyboard_and_drawn_group_by_group(page: Page, sample: Any) -> None:
    sample.start().steps(1, 10)
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#plan-number", "10")
    tab.locator("#plan-step").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    text_is(tab, "#plan-number", "8")
    assert not tab.locator("#plan-follow").is_checked()
    tab.locator("#plan-drawing svg[aria-label^='Plan of step 8:']").wait_for()
    groups = tab.locator("#plan-drawing g.group").count()
    assert groups == tab.locator("#plan-table tbody tr").count() > 1
    sample.steps(11, 11)
    text_is(tab, "#tile-steps", "11 / 60")
    assert tab.locator("#plan-number").inner_text() == "8"
    tab.locator("#plan-follow").check()
    text_is(tab, "#plan-number", "11")


def test_an_alert_appears_live_with_its_severity(page: Page, sample: Any) -> None:
    sample.start().steps(1, 16)
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#notes-table", "attempt 1: 4 ranks")
    sample.steps(17, 17)
    text_is(tab, "#notes-table tr.warning", "the plan came 0.3 s late")
    tab.locator("#notes-filter").select_option("trouble")
    assert tab.locator("#notes-table tbody tr").count() == 1


def test_one_rank_s_parts_are_shown_on_choice(page: Page, sample: Any) -> None:
    sample.start().steps(1, 5)
    tab = page.open(f"/runs/{sample.job_id}")
    waiting = tab.locator("#chart-parts .key", has_text="waiting").locator("b")
    mean = waiting.inner_text()
    tab.locator("#rank-picker").select_option("2")
    tab.wait_for_function(
        "mean => [...document.querySelectorAll('#chart-parts .key')]"
        ".some(key => key.textContent.includes('waiting') && !key.textContent.includes(mean))",
        arg=mean,
    )


def test_a_text_from_a_rank_is_never_read_as_markup(page: Page, sample: Any) -> None:
    from trimtab.core.events import Alert

    attack = "<img src=x onerror=window.owned=1>"
    sample.start().append(Alert(time_s=1.0, severity="warning", message=attack))
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#notes-table", attack)
    assert tab.evaluate("window.owned") is None


def test_the_list_leads_to_a_run(page: Page, sample: Any) -> None:
    sample.start()
    tab = page.open("/")
    tab.locator("#runs-table a").click()
    text_is(tab, "#run-name", "demo")
    assert tab.url.endswith(f"/runs/{sample.job_id}")


def test_a_click_anywhere_in_a_row_of_the_list_opens_its_run(page: Page, sample: Any) -> None:
    sample.start()
    tab = page.open("/")
    tab.locator("#runs-table tbody tr td:nth-child(4)").click()
    text_is(tab, "#run-name", "demo")
    assert tab.url.endswith(f"/runs/{sample.job_id}")


@pytest.mark.parametrize("width", [360, 420])
def test_a_narrow_page_cuts_no_column_of_the_ranks(page: Page, sample: Any, width: int) -> None:
    sample.start().steps(1, 20)
    page.page.set_viewport_size({"width": width, "height": 800})
    tab = page.open(f"/runs/{sample.job_id}")
    tab.locator("#ranks-table tbody tr").first.wait_for()
    hidden = "box => box.scrollWidth - box.clientWidth"
    assert tab.locator("#ranks-table").locator("..").evaluate(hidden) <= 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_needs_sideways_scrolling(page: Page, sample: Any, width: int) -> None:
    sample.start().steps(1, 20)
    page.page.set_viewport_size({"width": width, "height": 800})
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#tile-steps", "20 / 60")
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_an_empty_run_explains_what_will_appear(page: Page, sample: Any) -> None:
    tab = page.open(f"/runs/{sample.job_id}")
    text_is(tab, "#plan-drawing", "as soon as the ranks have it")
    text_is(tab, "#chart-loss", "Appears with the first finished step.")
    text_is(tab, "#ranks-empty", "not been started yet")
    sample.start().steps(1, 1)
    text_is(tab, "#tile-steps", "1 / 60")
    tab.locator("#chart-loss canvas").wait_for()


def test_a_script_has_its_ranks_and_events_and_no_charts(page: Page, sample: Any) -> None:
    sample.become_script("python", "<b>train.py</b>")
    sample.start()
    opened = page.open(f"/runs/{sample.job_id}")
    text_is(opened, "#ranks-note", "4 of 4 running")
    assert "script: python '<b>train.py</b>'" in opened.text_content("#run-facts")
    assert opened.is_visible("#script-note")
    for hidden in ("#tiles", "#plan-title", "#chart-loss", "#checkpoints-title"):
        assert not opened.is_visible(hidden), hidden
    assert opened.title() == "running · my script · Trimtab"
