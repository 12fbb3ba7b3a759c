"""What tests of reports look at: texts that touch, tags of a page."""

from html.parser import HTMLParser
from itertools import combinations

NASTY = "<script>alert('x')</script>"


def overlaps(figure):
    """Pairs of texts that touch, slanted tick labels left out."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()

    def drawn(artist):
        if not artist.get_visible():
            return
        children = artist.get_children()
        if isinstance(artist, Axis):  # it also keeps ticks outside of the view, which are not drawn
            low, high = sorted(artist.get_view_interval())
            ticks = [
                tick.label1
                for tick in artist.get_major_ticks()
                if low - 1e-9 <= tick.get_loc() <= high + 1e-9
            ]
            children = [artist.label, *ticks]
        for child in children:
            if isinstance(child, Text):
                if child.get_visible() and child.get_text().strip() and child.get_rotation() % 90 == 0:
                    yield child
            elif not (hasattr(child, "axison") and not child.axison):
                yield from drawn(child)

    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    found = [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.padded(-0.75).overlaps(y.padded(-0.75))]
    found += [(a, "edge") for a, x in boxes if min(x.x0, x.y0) < -1 or x.x1 > width + 1 or x.y1 > height + 1]
    return len(boxes), found


class Page(HTMLParser):
    """Tags with attributes, and the text outside of style and drawings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "path", "use", "rect", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, tag
