"""Sees to it that Chromium and its driver are there for the browser tests: python3 tools/chromium.py ensure

Where they are missing: Debian's packages chromium and chromium-driver, installed as root; otherwise it says what to do.
Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("chromium", "chromium-driver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRIVERS = ("chromedriver",)

HELP = (
    "The browser tests need Chromium and chromedriver. Debian: apt-get install chromium chromium-driver; elsewhere put "
    "both on the PATH."
)


def found() -> tuple[str, str] | None:
    """The paths of the browser and of its driver; None when one is missing."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = next((path for name in DRIVERS if (path := shutil.which(name))), None)
    return (browser, driver) if browser and driver else None


def ensure() -> bool:
    """Install what is missing, where that can be done. Returns whether both are there."""
    if found() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Chromium: installing Debian's {' and '.join(PACKAGES)}", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(
                ["apt-get", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                check=False,
            )
    return found() is not None


def main() -> int:
    if sys.argv[1:] != ["ensure"]:
        print(__doc__)
        return 2
    if not ensure():
        print(HELP, file=sys.stderr)
        return 1
    print("Chromium: {}, driver: {}".format(*(found() or ("", ""))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
