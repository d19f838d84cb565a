"""What pytest leaves out: what needs an extra that is not installed, and with --quick most cases.

Tiers: ``pytest --quick`` while editing, ``pytest`` before a commit, ``pytest -m exhaustive`` before
a release.
"""

import gc
from collections import defaultdict
from typing import IO

import pytest

try:
    from torch import Tensor  # noqa: F401
except ImportError:
    collect_ignore = ["numsim/torch"]

# Compiling makes many objects that stay: looking for cycles among them took a tenth of the time.
gc.set_threshold(200_000, 20, 100)

CASES = 3  # of one test function that --quick keeps: the first, the one in the middle, the last


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --quick."""
    parser.addoption(
        "--quick", action="store_true",
        help=f"at most {CASES} cases of each test, and none that is marked slow",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what a tier runs."""
    if not config.getoption("--quick"):
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            cases[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for some in cases.values():
        places = {round(i * (len(some) - 1) / (CASES - 1)) for i in range(CASES)}
        kept |= {id(some[place]) for place in places}
    left_out = [item for item in items if id(item) not in kept]
    items[:] = [item for item in items if id(item) in kept]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def unrendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say what stands in each figure in place of its pixels: rendering is most of a report's time.

    A test that is marked ``rendered`` looks at pixels or outlines.
    """
    if request.node.get_closest_marker("rendered") is not None:
        return
    from matplotlib.collections import Collection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    shown = ((Text, "get_text"), (Line2D, "get_xydata"), (Collection, "get_offsets"))

    def save(figure: Figure, out: IO[bytes], **_: object) -> None:
        for kind, name in shown:
            for artist in figure.findobj(kind):
                out.write(f"{getattr(artist, name)()}\n".encode())

    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)
    monkeypatch.setattr(Figure, "savefig", save)
