"""Pictures of matplotlib as part of a page: its colours, its fonts, nothing that a policy forbids.

What is drawn is given colours of ``ROLES`` instead of real ones. ``inline`` turns them into
classes, so that the page's style sheet decides, in light and in dark; turns style attributes, which
a strict Content-Security-Policy ignores, into attributes of their own; and makes ids unique in the
page.
"""

import io
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from user_system.core.errors import MissingError

ROLES: Mapping[str, str] = {
    "ink": "#000001",
    "quiet": "#000002",
    "line": "#000003",
    "surface": "#000004",
    "accent": "#000005",
    "demo": "#000011",
    "auto": "#000012",
    "hold": "#000013",
    "rewind": "#000014",
    "recovery": "#000015",
    "correction": "#000016",
    "reset": "#000017",
    "synthetic": "#000018",
}
"""What a colour is for -> the colour that stands for it while drawing."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_ROLE_OF = {colour: role for role, colour in ROLES.items()}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "user-system",
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": ROLES["ink"],
    "axes.edgecolor": ROLES["line"],
    "axes.labelcolor": ROLES["quiet"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelsize": 10.5,
    "grid.color": ROLES["line"],
    "grid.linewidth": 0.8,
    "xtick.color": ROLES["line"],
    "ytick.color": ROLES["line"],
    "xtick.labelcolor": ROLES["quiet"],
    "ytick.labelcolor": ROLES["ink"],
    "xtick.labelsize": 10.5,
    "figure.facecolor": "none",
}


def settings() -> Any:
    """Return a context in which figures of the page are made and drawn.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        todo = "Install it: pip install 'user-system[head]'; or ask for --json, which needs none."
        raise MissingError("Python package matplotlib is missing", todo=todo) from error
    return matplotlib.rc_context(_SETTINGS)


def inline(figure: Any, name: str, label: str) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: of matplotlib, drawn within ``settings``.
        name: unique in the page.
        label: what somebody is told who does not see it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                parent.remove(child)
    for element in root.iter():
        _clean(element, name)
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img"}
    root.set("aria-label", label)
    for size in ("width", "height"):
        root.set(size, root.get(size, "").removesuffix("pt"))
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, name: str) -> None:
    """Turn what is written for a file of its own into what fits a page."""
    classes = []
    for part in element.attrib.pop("style", "").split(";"):
        key, colon, value = (text.strip() for text in part.partition(":"))
        if colon and (found := _attribute(element, key, value)):
            classes.append(found)
    for key in ("fill", "stroke"):
        if role := _ROLE_OF.get(element.get(key, "")):
            del element.attrib[key]
            classes.append(f"{key}-{role}")
    if classes:
        element.set("class", " ".join(classes))
    for key in ("id", _HREF, "clip-path"):
        if key in element.attrib:
            mine = rf"\g<1>{name}-"
            element.set(key, re.sub(r"^(#|url\(#|)", mine, element.attrib[key], count=1))


def _attribute(element: ElementTree.Element, key: str, value: str) -> str:
    """Set one property as an attribute; return the class to set instead, if it is a role's."""
    if key in {"fill", "stroke"} and value in _ROLE_OF:
        return f"{key}-{_ROLE_OF[value]}"
    if key == "font":
        size = re.search(r"([\d.]+)px", value)
        element.set("font-size", size[1] if size else "11")
        return "bold" if re.match(r"(bold|[6-9]00)\b", value) else ""
    element.set(key, value)
    return ""
