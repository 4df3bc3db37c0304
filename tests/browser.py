"""A browser: Chromium without a window, with a directory of its own, driven by chromedriver."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --force-color-profile=srgb --hide-scrollbars"
)


class Browser:
    """:param directory: what it keeps is there."""

    def __init__(self, directory: Path) -> None:
        binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if binary is None or driver is None:
            assert not os.environ.get("REQUIRE_CHROMIUM"), "no chromium and chromedriver"
            pytest.skip("needs chromium and chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in [*FLAGS.split(), f"--user-data-dir={directory}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(driver))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def all(self, query: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, query)

    def texts(self, query: str) -> list[str]:
        """What stands in these elements now."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        found: list[str] = self.run(script, query)
        return found

    def run(self, script: str, *arguments: t.Any) -> t.Any:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def complaints(self) -> list[str]:
        """What stands in the console."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, **features: str) -> None:
        """What the user has chosen, as `prefers_color_scheme="dark"`."""
        chosen = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})

    def shoot(self, path: Path) -> None:
        """Keep a picture of what is seen."""
        self.driver.save_screenshot(str(path))

    def close(self) -> None:
        self.driver.quit()
