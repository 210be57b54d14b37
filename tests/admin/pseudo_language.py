"""A language for tests: each text that can be translated stands in ⟦ ⟧, so that one which can't is seen.

It is an ordinary catalog, which ``LOCALE_PATHS`` puts before those of Django and of the app.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import django

CATALOGS = (
    *(
        Path(django.__file__).parent / f"{app}/locale/en/LC_MESSAGES/django.po"
        for app in ("conf", "contrib/admin", "contrib/auth")
    ),
    Path(__file__).resolve().parents[2] / "reliable_jobs/locale/de/LC_MESSAGES/django.po",
)
#: Attributes that a person sees or hears.
READ = {"title", "alt", "placeholder", "aria-label", "data-title"}


def write(folder: Path) -> None:
    """The catalog, below a folder for ``LOCALE_PATHS``, in the place of German."""
    whole = subprocess.run(
        ["msgcat", "--use-first", "--no-wrap", *map(str, CATALOGS)], capture_output=True, check=True, encoding="utf-8"
    ).stdout
    entries = ['msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals=2; plural=n!=1;\\n"']
    entries += [_entry(block) for block in whole.split("\n\n")[1:] if "\nmsgid " in f"\n{block}"]
    target = folder / "de/LC_MESSAGES"
    target.mkdir(parents=True)
    (target / "django.po").write_text("\n\n".join(entries), encoding="utf-8")
    subprocess.run(["msgfmt", "-o", str(target / "django.mo"), str(target / "django.po")], check=True)


def _entry(block: str) -> str:
    lines = [line for line in block.split("\n") if not line.startswith("#")]
    parts = re.split(r"\n(?=msg)", "\n".join(lines))
    texts = {part.split()[0]: part.partition(" ")[2] for part in parts}
    kept = "\n".join(part for part in parts if not part.startswith("msgstr"))
    if "msgid_plural" in texts:
        return f'{kept}\nmsgstr[0] "⟦"\n{texts["msgid"]}\n"⟧"\nmsgstr[1] "⟦"\n{texts["msgid_plural"]}\n"⟧"'
    return f'{kept}\nmsgstr "⟦"\n{texts["msgid"]}\n"⟧"'


class _Reader(HTMLParser):
    """What a person reads of a page: the text, and apart from it the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unread += tag in ("script", "style")
        given = {name: value or "" for name, value in attrs}
        self.attributes += [value for name, value in given.items() if name in READ]
        if tag == "input" and given.get("type") in ("submit", "button", "reset"):
            self.attributes.append(given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        self._unread -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.text.append(data)


def untranslated(page: str, stored: Iterable[str] = ()) -> Iterator[str]:
    """The words of a page that stand outside ⟦ ⟧. A word with a digit is data: the tests name everything that way. So
    is the beginning of an id, which has none now and then.

    Args:
        stored: texts that are data as a whole.
    """
    reader = _Reader()
    reader.feed(re.sub(r'<nav [^>]*id="nav-sidebar".*?</nav>', "", page, flags=re.S))  # it names other apps, too
    for text in ("\n".join(reader.text), *reader.attributes):
        outside = text
        for one in sorted(stored, key=len, reverse=True):
            outside = outside.replace(one, " ")
        while outside != (outside := re.sub(r"⟦[^⟦⟧]*⟧", " ", outside)):
            pass
        words = (word for word in outside.split() if re.search(r"[^\W\d_]", word) and not re.search(r"\d", word))
        yield from (word for word in words if not re.fullmatch(r"\W*[0-9a-f]{8}\W*", word))
