"""Each translation has every text of the code, and what is shipped is what is written.

Needs GNU gettext, as Django's own makemessages does: ``tools/debian.py ensure`` installs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import call_command

PACKAGE = Path(__file__).resolve().parents[2] / "reliable_jobs"
CATALOGS = sorted(PACKAGE.glob("locale/*/LC_MESSAGES/django.po"))

if shutil.which("msgcmp") is None and os.environ.get("CI") != "true":
    pytestmark = pytest.mark.skip(reason="needs GNU gettext, Debian's package gettext; in CI it fails without")


def said(*command: object) -> str:
    """What a program of gettext prints, with its complaints."""
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, encoding="utf-8")
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makemessages finds in the code now."""
    copy = tmp_path_factory.mktemp("messages") / "reliable_jobs"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("locale", "static", "migrations", "__pycache__"))
    (copy / "locale").mkdir()
    before = Path.cwd()
    os.chdir(copy)  # makemessages works on the current directory
    try:
        call_command("makemessages", locale=["en"], no_wrap=True, no_location=True, verbosity=0)
    finally:
        os.chdir(before)
    return copy / "locale/en/LC_MESSAGES/django.po"


def test_german_is_there() -> None:
    assert PACKAGE / "locale/de/LC_MESSAGES/django.po" in CATALOGS


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_no_text_is_missing_untranslated_fuzzy_or_left_over(catalog: Path, found: Path) -> None:
    assert said("msgcmp", catalog, found) == "", "run: make messages"


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_placeholders_of_a_translation_are_those_of_the_text(catalog: Path, found: Path, tmp_path: Path) -> None:
    # The code says which texts have placeholders, not the catalog, which may have lost its mark.
    said("msgmerge", "--quiet", "--output-file", tmp_path / "django.po", catalog, found)
    assert "fuzzy" not in (tmp_path / "django.po").read_text(encoding="utf-8"), "run: make messages"
    assert said("msgfmt", "--check", "--output-file", tmp_path / "django.mo", tmp_path / "django.po") == ""


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[-3])
def test_the_compiled_catalog_is_the_written_one(catalog: Path, tmp_path: Path) -> None:
    said("msgfmt", "--output-file", tmp_path / "django.mo", catalog)
    shipped = said("msgunfmt", catalog.with_suffix(".mo"))
    assert "msgstr" in shipped
    assert shipped == said("msgunfmt", tmp_path / "django.mo"), "run: make messages"
