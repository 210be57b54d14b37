"""A headless Chromium that a test of the admin drives.

Set SCREENSHOTS to a directory to keep pictures of the pages: light, dark and as wide as a telephone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.test import Client
from django.urls import reverse

from tools import chromium

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

#: Width and height of the window; width of a telephone's.
WINDOW, TELEPHONE = (1400, 1000), 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    from selenium import webdriver

    programs = chromium.found()
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail(chromium.HELP)
        pytest.skip(chromium.HELP)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    # A container's root has no sandbox and little shared memory; the pages are our own, on loopback.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.set_page_load_timeout(180)
    yield driver
    driver.quit()


class Admin:
    """The browser, logged in."""

    def __init__(self, browser: Chrome, base: str) -> None:
        self.browser = browser
        self.base = base
        #: How often a link was followed or a button pressed. Typing is no click.
        self.clicks = 0

    def log_in(self, user: Any) -> None:
        """As the form does it, without the form."""
        client = Client()
        client.force_login(user)
        self.browser.get(self.base + "/robots.txt")  # a page of the site, for its cookies
        self.browser.delete_all_cookies()
        self.browser.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})
        self.browser.get_log("browser")

    def leave(self) -> None:
        """At the end of a test. Nothing may have gone wrong in the browser."""
        self.browser.get("about:blank")  # a page that looks again by itself would ask the next test's database
        complaints = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [complaint for complaint in complaints if "favicon" not in complaint]

    def open(self, name: str, *args: Any, query: str = "") -> None:
        self.browser.get(self.base + reverse(f"admin:{name}", args=args) + query)

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def click(self, css: str) -> None:
        self.clicks += 1
        self.find(css).click()

    def type(self, css: str, text: str) -> None:
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    def leave_by(self, css: str) -> None:
        """Click, and wait until another page has come."""
        from selenium.webdriver.support.ui import WebDriverWait

        before = self.find("html")
        self.click(css)
        WebDriverWait(self.browser, 120).until(lambda driver: driver.find_element("css selector", "html") != before)
        WebDriverWait(self.browser, 120).until(
            lambda driver: driver.execute_script("return document.readyState") == "complete"
        )

    @property
    def text(self) -> str:
        return str(self.find("body").text)

    @property
    def messages(self) -> str:
        return " | ".join(str(item.text) for item in self.browser.find_elements("css selector", ".messagelist li"))

    def picture(self, name: str) -> None:
        """Three, of the whole page: light, dark, and as a telephone shows it."""
        if not os.environ.get("SCREENSHOTS"):
            return
        for kind, theme, width in (
            ("", "light", WINDOW[0]),
            ("-dark", "dark", WINDOW[0]),
            ("-390", "light", TELEPHONE),
        ):
            self.browser.set_window_size(width, WINDOW[1])
            self.browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            height = self.browser.execute_script("return document.documentElement.scrollHeight")
            self.browser.set_window_size(width, max(WINDOW[1], min(height + 100, 2400)))
            self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            self.browser.save_screenshot(str(Path(os.environ["SCREENSHOTS"]) / f"{name}{kind}.png"))
        self.browser.set_window_size(*WINDOW)

    def fits_a_telephone(self) -> bool:
        """Whether nobody has to scroll the page sideways; tables scroll by themselves."""
        self.browser.set_window_size(TELEPHONE, WINDOW[1])
        try:
            return bool(self.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"))
        finally:
            self.browser.set_window_size(*WINDOW)

    def choose(self, field: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.find(f"select[name={field}]")).select_by_value(value)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.text)

    def wait_until(self, true: Callable[[], bool]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = [StaleElementReferenceException]  # a part of the page was exchanged meanwhile
        WebDriverWait(self.browser, 120, ignored_exceptions=ignored).until(lambda _: true())
