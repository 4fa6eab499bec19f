"""The report page in a real browser: what a person sees, with the mouse, the keyboard, a phone."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_report import make_inputs, report, write_overlay
from made_scores import make_scores

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)

N_BSCANS = 7
DISEASED, HEALTHY, SCORED, BARE = "test_07", "test_01", "score_00", "test_02"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    scores = make_scores(splits=(("validation", 2, 2), ("test", 4, 4), ("score", 1, 0)))
    arguments = make_inputs(folder, scores, methods=("anogan", "pca"))
    overlays = [
        write_overlay(folder / name, name, name[:-3], label, N_BSCANS)
        for name, label in ((DISEASED, 1), (HEALTHY, 0), (SCORED, -1))
    ]
    overlays.append(write_overlay(folder / BARE, BARE, "test", 0, 1))
    leave_bare(folder / BARE / "viewer.zip")
    page = folder / "report" / "index.html"
    report([*arguments, "--overlays", *overlays], page, draw=False)
    return page.as_uri()


def leave_bare(path: Path) -> None:
    """Take from a viewer.zip all that a volume may lack: layers, heat, scores, en-face maps."""
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read("viewer.json"))
        gray = archive.read("000-gray.webp")
    facts["enface"] = {"residual": None, "score": None}
    facts["scale"]["residual"] = None
    facts["spacing_um"][0] = 0
    nothing = {"residual": None, "score": None, "outlines": [], "max_score": None}
    facts["bscans"][0] |= {"layers": {"ilm": [], "rpe": [], "bm": []}, **nothing}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("viewer.json", json.dumps(facts))
        archive.writestr("000-gray.webp", gray)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    if os.geteuid() == 0:  # Chromium has no sandbox for root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address) -> "Page":
    browser.get_log("performance")  # drops what earlier tests and the start of the browser left
    browser.set_window_size(1200, 900)
    browser.get(address)
    return Page(browser)


class Page:
    """The page's viewer as a person uses it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def __getitem__(self, part: str):
        return self.browser.find_element(By.CSS_SELECTOR, f"#viewer [data-part={part}]")

    def choose(self, volume: str) -> None:
        entries = Select(self["volume"])
        (entry,) = (e for e in entries.options if e.get_attribute("text").startswith(volume))
        entries.select_by_value(entry.get_attribute("value"))

    def press(self, key: str) -> None:
        self["slider"].send_keys(key)

    @property
    def status(self) -> str:
        return self["status"].text

    @property
    def picture(self) -> str:
        return self["gray"].get_attribute("src")

    def drawn(self, shape: str) -> int:
        return len(self["drawing"].find_elements(By.CSS_SELECTOR, shape))

    def width_of_content(self) -> int:
        return self.browser.execute_script("return document.documentElement.scrollWidth")


def test_no_error_and_no_request_to_any_network(page):
    page.choose(DISEASED)
    for _ in range(N_BSCANS):
        page.press(Keys.ARROW_RIGHT)
    assert page.browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in page.browser.get_log("performance")]
    requested = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith("file:") for url in requested)
    assert all(url.startswith(("file:", "data:")) for url in requested)


def test_the_slider_changes_the_picture_and_says_so(page):
    page.choose(DISEASED)
    assert page.status.startswith("B-scan 4 (0 to 6), highest score 704")  # the highest
    seen = {page.picture}
    page.press(Keys.HOME)
    for number in range(N_BSCANS - 1):
        seen.add(page.picture)
        assert page.status.startswith(f"B-scan {number} (0 to 6),")
        assert page["slider"].get_attribute("aria-valuetext") == f"B-scan {number} (0 to 6)"
        page.press(Keys.ARROW_RIGHT)
    seen.add(page.picture)
    assert len(seen) == N_BSCANS
    assert page["status"].get_attribute("aria-live") == "polite"
    width = "return arguments[0].naturalWidth"
    assert page.browser.execute_script(width, page["gray"]) == 256


def test_keys_switch_layers_heat_map_and_annotation(page):
    page.choose(DISEASED)
    assert (page.drawn(".ilm"), page.drawn(".outline")) == (1, 1)
    assert page["heatmap"].is_displayed()
    for key, part in (("l", "layers"), ("h", "heat"), ("a", "annotation")):
        page.press(key)
        assert page[part].get_attribute("aria-pressed") == "false"
    assert (page.drawn(".ilm"), page.drawn(".outline")) == (0, 0)
    assert not page["heatmap"].is_displayed()
    assert page.status.endswith("Shown: the scan alone.")
    page["heat"].click()
    assert page["heatmap"].is_displayed()
    assert page.status.endswith("Shown: heat map of the residual.")
    Select(page["kind"]).select_by_value("score")
    assert page.status.endswith("Shown: heat map of the score.")


def test_a_volume_without_heat_or_annotation_says_so(page):
    page.choose(HEALTHY)
    assert not page["heat"].is_enabled()
    assert not page["annotation"].is_enabled()
    page.press("h")
    assert page.status.endswith("Shown: layers.")


def test_a_volume_of_one_bare_bscan_is_shown(page):
    page.choose(BARE)
    assert page.status == "B-scan 0 (0 to 0), no score. Shown: the scan alone."
    for key in (*"lhat", Keys.ARROW_RIGHT, Keys.END):
        page.press(key)
    assert page.status == "B-scan 0 (0 to 0), no score. Shown: the scan alone."
    assert not any(page[part].is_enabled() for part in ("layers", "heat", "annotation", "kind"))
    assert not page["front"].is_displayed()
    page.choose(DISEASED)
    assert page.status.endswith("Shown: layers, heat map of the residual, annotation.")
    assert page.browser.get_log("browser") == []


def test_letters_typed_in_the_list_of_volumes_switch_nothing(page):
    page.choose(DISEASED)
    for key in "lha":
        page["volume"].send_keys(key)
    pressed = [page[part].get_attribute("aria-pressed") for part in ("layers", "heat")]
    assert pressed == ["true", "true"]


def test_a_press_on_the_map_goes_to_that_bscan(page):
    page.choose(DISEASED)
    box = page["enface"].rect
    for share, number in ((0.02, N_BSCANS - 1), (0.98, 0)):  # the first B-scan is at the bottom
        actions = webdriver.ActionChains(page.browser)
        offset = round((share - 0.5) * box["height"])
        actions.move_to_element_with_offset(page["enface"], 0, offset).click().perform()
        assert page.status.startswith(f"B-scan {number} (0 to 6)")


def test_the_wheel_turns_bscans_once_the_viewer_has_the_focus(page):
    page.choose(DISEASED)
    page.browser.execute_script("document.activeElement.blur()")
    page.browser.execute_script("arguments[0].scrollIntoView()", page["stage"])

    def wheel(pixels: int) -> str:
        origin = ScrollOrigin.from_element(page["stage"])
        webdriver.ActionChains(page.browser).scroll_from_origin(origin, 0, pixels).perform()
        return page.status

    assert wheel(-100).startswith("B-scan 4 ")
    page["stage"].click()
    assert wheel(-100).startswith("B-scan 3 ")
    assert wheel(-30).startswith("B-scan 3 ")
    assert wheel(-30).startswith("B-scan 2 ")
    assert wheel(100).startswith("B-scan 3 ")


def test_the_name_of_a_volume_opens_it(page):
    link = page.browser.find_element(By.CSS_SELECTOR, "#volumes a[data-volume='1']")
    assert link.text == DISEASED
    link.send_keys(Keys.ENTER)
    chosen = Select(page["volume"]).first_selected_option.get_attribute("text")
    assert chosen.startswith(DISEASED)
    top = page.browser.execute_script(
        "return document.getElementById('viewer').getBoundingClientRect().top"
    )
    assert 0 <= top < 900
    assert page.browser.switch_to.active_element == page["slider"]  # its keys work at once


def test_every_control_is_reached_by_the_keyboard_and_has_a_name(page):
    page.choose(DISEASED)
    page.browser.execute_script("arguments[0].focus()", page["volume"])
    reached = {}
    for _ in range(8):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        control = page.browser.switch_to.active_element
        reached[control.get_attribute("data-part")] = control.accessible_name
    expected = ["layers", "heat", "annotation", "kind", "previous", "slider", "next", "top"]
    assert list(reached) == expected
    assert all(reached.values())


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_the_screen(page, width):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        page.browser.execute_script(
            "for (const d of document.querySelectorAll('details')) d.open = true"
        )
        page.choose(DISEASED)
        assert page.width_of_content() <= width
        assert page["stage"].rect["width"] > 300
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_javascript_the_page_says_where_the_pictures_are(page, address):
    page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.browser.get(address)
        section = page.browser.find_element(By.ID, "scans")
        assert "The viewer needs JavaScript" in section.text
        assert not page.browser.find_element(By.ID, "viewer").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
