"""HTML that cannot be broken by what is written into it.

Text becomes markup only through `tag`, which escapes every child that is not markup already. A
method called `<script>` is therefore a method called `<script>`.
"""

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already."""


def escape(content: object) -> Markup:
    """Escapes a text, including quotes; markup stays as it is, and None is nothing."""

    if isinstance(content, Markup):
        return content

    return Markup("" if content is None else html.escape(str(content), quote=True))


def join(contents: Iterable[object], separator: str = "") -> Markup:
    """Escapes and joins."""

    return Markup(escape(separator).join(escape(content) for content in contents))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element with its children and attributes, all escaped.

    Arguments:
        name: The name of the element.
        children: Texts or markup.
        attributes: The attributes. A trailing underscore is dropped (`class_`), other underscores
            become hyphens; None and False leave an attribute out, True gives it no value.
    """

    parts = [name]
    for key, value in attributes.items():
        key = key.removesuffix("_").replace("_", "-")
        if value is None or value is False:
            continue
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')

    return Markup(f"<{' '.join(parts)}>{join(children)}</{name}>")
