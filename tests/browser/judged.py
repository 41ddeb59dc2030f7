"""What can be judged of a page by its computed styles and its accessibility tree.

Source: WCAG 2.2, 1.4.3 (contrast of text), 1.4.10 (reflow), 1.4.11 (of controls), 4.1.2 (names).
"""

from __future__ import annotations

from typing import Any

from tests.browser.chromium import Window

# [what, ratio or pixels] of each text below 4.5:1 or 14 px, and of each control whose border is below 3:1.
_LOOKS = """
const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const linear = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ratio = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = rgb(getComputedStyle(one).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
const judge = (element, text) => {
  const style = getComputedStyle(element);
  if (!text.trim() || !element.checkVisibility({visibilityProperty: true})) return;
  if (element.closest(".unseen")) return;
  const contrast = ratio(rgb(style.color), behind(element));
  if (contrast < 4.5) found.push([text.trim().slice(0, 40), contrast]);
  if (parseFloat(style.fontSize) < 14) found.push([text.trim().slice(0, 40), parseFloat(style.fontSize)]);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) judge(walker.currentNode.parentElement, walker.currentNode.textContent);
for (const control of document.querySelectorAll("input, textarea, select, button")) {
  judge(control, control.value);
  if (!control.checkVisibility()) continue;
  const [edge, inside] = [rgb(getComputedStyle(control).borderTopColor), behind(control)];
  const contrast = Math.max(ratio(edge, behind(control.parentElement)), ratio(inside, behind(control.parentElement)));
  if (contrast < 3) found.push([`border of ${control.id || control.textContent}`, contrast]);
}
return found;
"""
# [what, its right edge] of what sticks out of the window.
_OVERFLOW = """
const width = document.documentElement.clientWidth;
const out = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > width + 0.5);
const all = out.filter((one) => !one.closest(".unseen") && one.checkVisibility());
const scrolls = document.documentElement.scrollWidth > width;
return [...(scrolls ? [["the page", document.documentElement.scrollWidth]] : []),
        ...all.map((one) => [one.tagName + "." + one.className, one.getBoundingClientRect().right])];
"""
_IDS = "return [...document.querySelectorAll('[id]')].map((one) => one.id)"
_NAMED = {"button", "textbox", "combobox", "img", "image", "link", "dialog", "DisclosureTriangle"}


def looks(window: Window) -> list[Any]:
    """Texts and controls that are too faint or too small, and what is wider than the window."""
    return [*window.run(_LOOKS), *window.run(_OVERFLOW)]


def structure(window: Window, headings: int = 1) -> list[str]:
    """Controls and pictures without a name; ids that are there twice; headings of level 1, if not so many."""
    nodes = window.command("Accessibility.getFullAXTree", {})["nodes"]
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value", ""), node)
        for node in nodes
        if not node.get("ignored") and "role" in node
    ]
    nameless = [f"{role} without a name" for role, name, _ in roles if role in _NAMED and not name.strip()]
    ids = window.run(_IDS)
    silent = window.run("return [...document.images].filter((one) => !one.alt).map((one) => `${one.src} lacks alt`)")
    twice = [f"id {one} twice" for one in set(ids) if ids.count(one) > 1]
    tops = sum(1 for role, _, node in roles if role == "heading" and _level(node) == 1)
    live = window.run("return document.querySelectorAll('[role=status][aria-live=polite]').length")
    return [
        *nameless,
        *silent,
        *twice,
        *([] if tops == headings else [f"{tops} headings of level 1"]),
        *([] if live else ["no live"]),
    ]


def _level(node: dict[str, Any]) -> int:
    return next((int(one["value"]["value"]) for one in node.get("properties", ()) if one["name"] == "level"), 0)
