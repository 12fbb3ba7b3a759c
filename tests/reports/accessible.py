"""What keeps people out of a page: read with a screen reader, by keyboard, on a phone, or without colours."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input"}
LANDMARKS = ("header", "main", "nav", "footer")
WORDED = {"holds", "partly", "fails", "unknown"}
"""Classes whose looks say what was found."""


class Element:
    """A tag with what is inside."""

    def __init__(self, tag, attrs, parent):
        self.tag, self.attrs, self.parent = tag, attrs, parent
        self.children, self.texts = [], []

    def all(self, *tags):
        for child in self.children:
            if not tags or child.tag in tags:
                yield child
            yield from child.all(*tags)

    def around(self):
        element = self.parent
        while element is not None:
            yield element
            element = element.parent

    @property
    def text(self):
        return " ".join(" ".join([*self.texts, *(child.text for child in self.children)]).split())

    @property
    def classes(self):
        return set(self.attrs.get("class", "").split())

    def __str__(self):
        return f"<{self.tag} {self.attrs.get('id') or self.attrs.get('aria-label') or self.text[:40]}>"


class Tree(HTMLParser):
    """A page as elements."""

    def __init__(self, text):
        super().__init__()
        self.root = self.at = Element("", {}, None)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        return element

    def handle_endtag(self, tag):
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.texts.append(data)


def complaints(text):
    """What is wrong with a page, in words; nothing if it is well."""
    page = Tree(text).root
    checks = (_document, _headings, _ids, _drawings, _tables, _regions, _keyboard, _loads, _words)
    return [said for check in checks for said in check(page)]


def _document(page):
    (html,) = page.all("html")
    if not html.attrs.get("lang"):
        yield "no lang"
    if not any(title.text for title in page.all("title") if title.parent.tag == "head"):
        yield "no title"
    view = [meta.attrs["content"] for meta in page.all("meta") if meta.attrs.get("name") == "viewport"]
    if len(view) != 1 or "width=device-width" not in view[0]:
        yield "no viewport"
    if any("user-scalable" in said or "maximum-scale" in said for said in view):
        yield "can't be zoomed"
    for tag in LANDMARKS:
        if len(list(page.all(tag))) != 1:
            yield f"not one <{tag}>"
    if any(not nav.attrs.get("aria-label") for nav in page.all("nav")):
        yield "<nav> has no name"
    first = next(page.all("a"), None)
    (main,) = list(page.all("main")) or [page]
    if first is None or first.parent.tag != "body" or first.attrs.get("href") != f"#{main.attrs.get('id')}":
        yield "no link past the header"


def _headings(page):
    levels = [int(found.tag[1]) for found in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    if levels.count(1) != 1:
        yield f"{levels.count(1)} h1"
    for before, level in zip(levels, levels[1:], strict=False):
        if level > before + 1:
            yield f"h{level} after h{before}"
    if any(not found.text for found in page.all("h1", "h2", "h3")):
        yield "an empty heading"


def _ids(page):
    ids = [element.attrs["id"] for element in page.all() if "id" in element.attrs]
    yield from {f"two of id {name}" for name in ids if ids.count(name) > 1}
    for element in page.all():
        target = element.attrs.get("href", element.attrs.get("xlink:href", ""))
        if target.startswith("#") and target[1:] not in ids:
            yield f"{target} leads nowhere"


def _drawings(page):
    for drawing in page.all("svg", "img"):
        name = drawing.attrs.get("alt") or drawing.attrs.get("aria-label")
        if not name or (drawing.tag == "svg" and drawing.attrs.get("role") != "img"):
            yield f"{drawing} has no text instead"
    for figure in page.all("figure"):
        if not any(caption.text for caption in figure.all("figcaption")):
            yield f"{figure} has no caption"


def _tables(page):
    for table in page.all("table"):
        if not table.attrs.get("aria-label") and not any(caption.text for caption in table.all("caption")):
            yield f"{table} has no name"
        rows = [[cell for cell in row.children if cell.tag in ("th", "td")] for row in table.all("tr")]
        if len({sum(int(cell.attrs.get("colspan", 1)) for cell in row) for row in rows}) != 1:
            yield f"{table} has rows of different lengths"
        heads = list(table.all("th"))
        if any(cell.attrs.get("scope") not in ("col", "row") for cell in heads):
            yield f"{table} has a heading without scope"
        if any(not cell.text for cell in heads):
            yield f"{table} has an empty heading"
        if {cell.attrs.get("scope") for cell in rows[0]} != {"col"}:
            yield f"{table} does not begin with headings"
        if any(row[0].attrs.get("scope") != "row" for row in rows[1:]):
            yield f"{table} has a row without a name"


def _regions(page):
    regions = [element for element in page.all() if "scroll" in element.classes]
    for region in regions:
        if (region.attrs.get("role"), region.attrs.get("tabindex")) != ("region", "0"):
            yield f"{region} can't be scrolled by keyboard"
    names = [region.attrs.get("aria-label") for region in regions]
    yield from {f"two regions called {name}" for name in names if names.count(name) > 1 or not name}
    for wide in page.all("table", "svg"):
        if not any(element in regions for element in wide.around()):
            yield f"{wide} makes the page wide"
    for block in page.all("pre"):
        if "terminal" in block.classes and not any(element in regions for element in block.around()):
            yield f"{block} makes the page wide"


def _keyboard(page):
    for element in page.all():
        if int(element.attrs.get("tabindex", 0)) > 0:
            yield f"{element} jumps the queue"
        if any(name.startswith("on") for name in element.attrs):
            yield f"{element} waits for a pointer"
        if element.tag == "a" and not (element.text and element.attrs.get("href")):
            yield f"{element} is a link without words or target"
        if element.tag == "details" and (
            not element.children or element.children[0].tag != "summary" or not element.children[0].text
        ):
            yield f"{element} can't be opened"


def _loads(page):
    for element in page.all():
        if element.tag in ("script", "link", "iframe", "object", "embed"):
            yield f"<{element.tag}>"
        for name in ("src", "href", "xlink:href"):
            target = element.attrs.get(name, "")
            if re.match(r"(https?:)?//", target):
                yield f"loads {target}"
        if "style" in element.attrs and not any(up.tag == "svg" for up in [element, *element.around()]):
            yield f"{element} has looks of its own"
    for style in page.all("style"):
        if "@import" in style.text or "url(" in style.text:
            yield "the style loads something"


def _words(page):
    for element in page.all():
        if element.classes & WORDED:
            said = [found for found in element.all("span") if "badge" in found.classes]
            if not (said and said[0].text) and "headline" not in element.classes:
                yield f"{element} says what was found by its looks alone"
