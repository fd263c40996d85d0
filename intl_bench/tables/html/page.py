"""The shell of a page: head, style, script, navigation, and the details that the script shows."""

import html
import itertools
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

# A page that loads anything from elsewhere is refused by the browser itself.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


class Page:
    """One HTML page, built from top to bottom.

    Args:
        title: the title of the page, as plain text.
        about: what is below the title, as plain text.
    """

    def __init__(self, title: str, about: str = "") -> None:
        self.title, self.about = title, about
        self._given: set[str] = set()
        self._links: list[tuple[str, str]] = []
        self._parts: list[str] = []
        self._details: dict[str, Mapping[str, Any]] = {}

    def add(self, markup: str) -> None:
        """Append markup to the body."""
        self._parts.append(markup)

    def link(self, anchor: str, name: str) -> None:
        """Add a link of the navigation to an element with this id."""
        self._links.append((identifier(anchor), name))

    def unused(self, text: str) -> str:
        """Return a text as an id that no earlier call returned, with a number if "a b" and "a-b" have the same one."""
        names = (identifier(text if number == 1 else f"{text}-{number}") for number in itertools.count(1))
        found = next(name for name in names if name not in self._given)
        self._given.add(found)
        return found

    def detail(self, values: Mapping[str, Any]) -> str:
        """Store the details of a cell; return their key for the attribute `data-about`.

        Args:
            values: "title"; "facts", pairs of a term and a text; "seeds", pairs of a name and a number; and "groups",
                pairs of a heading and facts.
        """
        key = str(len(self._details))
        self._details[key] = values
        return key

    def text(self) -> str:
        """Return the whole page."""
        links = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in self._links)
        navigation = f'<nav aria-label="Sections">{links}</nav>\n' if len(self._links) > 1 else ""
        about = f'<p class="about">{html.escape(self.about)}</p>\n' if self.about else ""
        # In a script element, only `</` and `<!--` have a meaning for the reader of HTML.
        details = json.dumps(self._details, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}"/>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
            '<meta name="color-scheme" content="light dark"/>\n<link rel="icon" href="data:,"/>\n'
            f"<title>{html.escape(self.title)} – intl-bench</title>\n<style>\n{_packaged('style.css')}</style>\n"
            f"</head>\n<body>\n<header>\n<h1>{html.escape(self.title)}</h1>\n{about}</header>\n{navigation}"
            f'<main>\n{"".join(self._parts)}</main>\n<div id="about" role="tooltip" popover="manual"></div>\n'
            f'<script type="application/json" id="details">{details}</script>\n'
            f"<script>\n{_packaged('script.js')}</script>\n</body>\n</html>\n"
        )


def identifier(text: str) -> str:
    """Return a text as the id of an element."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def _packaged(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
