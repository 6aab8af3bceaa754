"""Draw every form of mixture in the same style.

Units are pixels of a picture of 360 x 200, with y upwards. Parts that run are
solid, and the others are pale.
"""

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

WIDTH, HEIGHT = 360, 200
MIDDLE = 98  # of the height between title and note
ROWS_3, ROWS_4 = (141, 98, 55), (149, 115, 81, 47)  # heights of experts
INK, PALE_INK, PALE_TEXT = "#24292f", "#b4bac1", "#8c959f"
FILLS = {  # of parts that run
    "data": "#dfe3e8",
    "router": "#ffd58a",
    "expert": "#8fc1f2",
    "combine": "#a9dfb0",
    "text": "#f6b8b0",
    "image": "#c9b8f0",
    "sound": "#a6dcd9",
}
PALE = "#f6f7f8"
STYLE = {"svg.hashsalt": "keras_moe", "font.family": "DejaVu Sans"}


class Sketch:
    """Draws a white picture with a title above and a line of text below."""

    def __init__(self, title, note):
        inches = WIDTH / 96, HEIGHT / 96
        self.figure = Figure(figsize=inches, facecolor="none")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")
        self._rectangle(1, 1, WIDTH - 2, HEIGHT - 2, "white", "#d0d7de", 6)
        self.text(12, HEIGHT - 14, title, size=8, weight="bold", ha="left")
        self.text(12, 12, note, size=6.5, color="#57606a", ha="left")

    def box(
        self, x, y, text="", kind="expert", runs=True, w=54, h=24, size=6.5
    ):
        """Draw a part with its name, around (x, y)."""
        fill, ink = (FILLS[kind], INK) if runs else (PALE, PALE_INK)
        self._rectangle(x - w / 2, y - h / 2, w, h, fill, ink, 3)
        self.text(x, y, text, size=size, color=INK if runs else PALE_TEXT)

    def frame(self, x, y, w, h, text="", runs=True, size=6):
        """Draw a named frame around parts that belong together."""
        ink = "#57606a" if runs else PALE_TEXT
        self._rectangle(x - w / 2, y - h / 2, w, h, "none", ink, 4, dashed=True)
        self.text(x, y + h / 2 + 6, text, size=size, color=ink)

    def tokens(self, x, y, kinds, runs=None, row=False, side=11):
        """Draw a column of squares, or a row of them, around (x, y)."""
        runs = [True] * len(kinds) if runs is None else runs
        for n, (kind, on) in enumerate(zip(kinds, runs, strict=True)):
            along = (n - (len(kinds) - 1) / 2) * (side + 3)
            place = (x + along, y) if row else (x, y - along)
            self.box(*place, kind=kind, runs=on, w=side, h=side)

    def mix(self, x, y, text="+", runs=True):
        """Draw the place at which outputs are weighted and summed."""
        fill, ink = (FILLS["combine"], INK) if runs else (PALE, PALE_INK)
        self.axes.add_patch(
            Circle((x, y), 9, facecolor=fill, edgecolor=ink, lw=0.8)
        )
        self.text(x, y - 0.5, text, size=8, color=ink)

    def arrow(self, start, end, runs=True, bend=0.0, both=False):
        """Draw an arrow between two points."""
        style = "<|-|>" if both else "-|>"
        self.axes.annotate(
            "",
            end,
            start,
            zorder=3 if runs else 2,
            arrowprops={
                "arrowstyle": f"{style},head_width=0.16,head_length=0.32",
                "connectionstyle": f"arc3,rad={bend}",
                "color": INK if runs else PALE_INK,
                "lw": 0.9 if runs else 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )

    def line(self, points, runs=True):
        """Draw a line through points, with an arrowhead at the last one."""
        xs, ys = zip(*points[:-1], strict=True)
        color, width = (INK, 0.9) if runs else (PALE_INK, 0.6)
        self.axes.plot(xs, ys, color=color, lw=width)
        self.arrow(points[-2], points[-1], runs)

    def bank(self, x, heights, names, runs=None, **size):
        """Draw experts above one another; return their places."""
        for n, (y, name) in enumerate(zip(heights, names, strict=True)):
            self.box(x, y, name, runs=runs is None or runs[n], **size)
        return [(x, y) for y in heights]

    def fan(self, start, places, runs=None, w=54):
        """Draw arrows from a point to the left sides of boxes of width w."""
        for n, (x, y) in enumerate(places):
            self.arrow(start, (x - w / 2, y), runs is None or runs[n])

    def gather(self, places, end, runs=None, w=54):
        """Draw arrows from the right sides of boxes of width w to a point."""
        for n, (x, y) in enumerate(places):
            self.arrow((x + w / 2, y), end, runs is None or runs[n])

    def text(self, x, y, text, size=6.5, color=INK, **options):
        """Draw text around (x, y)."""
        options = {"ha": "center", "va": "center", **options}
        self.axes.text(x, y, text, fontsize=size, color=color, **options)

    def save(self, path):
        """Write an SVG, with the same bytes each time."""
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(path, metadata={"Date": None})

    def _rectangle(self, x, y, w, h, fill, ink, radius, dashed=False):
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                w,
                h,
                boxstyle=f"round,pad=0,rounding_size={radius}",
                facecolor=fill,
                edgecolor=ink,
                lw=0.7,
                ls=(0, (3, 2)) if dashed else "-",
            )
        )
