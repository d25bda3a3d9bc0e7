"""Markdown for a browser: a guide is written once and shown by the hub, too."""

from __future__ import annotations

from collections.abc import Callable

from markdown_it import MarkdownIt


def html_from_markdown(text: str) -> str:
    """Return Markdown with tables as HTML; HTML inside it is shown as text and not obeyed."""
    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return rendered


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[[str], str]]:
        """Return the filters by name."""
        return {"html_from_markdown": html_from_markdown}
