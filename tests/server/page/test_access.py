"""The page for everyone: screen readers, the keyboard alone, a phone; small, quick, and from this machine alone."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import daguerre

WEB = Path(daguerre.__file__).parent / "server" / "web"
ROOT = Path(__file__).parents[3]
AXE = ROOT / "tests" / "fixtures" / "axe-core" / "axe.min.js"
MAX_BYTES = 75_000  # of scripts and styles, as they are transferred
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


def serious(page: Any) -> list[str]:
    """What axe-core finds to be serious or critical."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{each['id']}: {node['html'][:150]}" for each in found if each["impact"] in ("serious", "critical") for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(apple, open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.locator("#gallery button").first.click()
    page.wait_for_selector("#film")
    page.locator("summary").click()
    assert serious(page) == []
    page.click(".stage >> text=Edit part")
    page.wait_for_selector("#board")
    assert serious(page) == []
    page.click("text=Extend")
    page.wait_for_selector("#frame")
    assert serious(page) == []
    for view in ("Grid", "Gallery"):
        page.click(f"nav >> text={view}")
        page.wait_for_timeout(100)
        assert serious(page) == []
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    assert serious(page) == []


def test_the_keyboard_alone_generates_opens_and_deletes(page, server):
    def tab_to(condition: str) -> None:
        for _ in range(80):
            if page.evaluate(f"() => {{ const each = document.activeElement; return Boolean({condition}); }}"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"not reached: {condition}")

    tab_to("each.id === 'f-prompt'")
    page.keyboard.press("Control+a")
    page.keyboard.type("a sunflower")
    tab_to("each.id === 'n-steps'")
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    tab_to("each.id === 'go'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#image[alt='a sunflower']")
    tab_to("each.id === 'film'")
    page.keyboard.press("Home")
    tab_to("each.dataset.id")
    page.keyboard.press("Delete")
    page.wait_for_selector(".toast:has-text('The image is deleted.')")
    tab_to("each.closest('.toast')")
    page.keyboard.press("Enter")
    server.wait(lambda: any(image["prompt"] == "a sunflower" for image in server.images()))
    page.keyboard.press("/") if page.evaluate("document.activeElement === document.body") else page.focus("#search")
    assert page.evaluate("document.activeElement.id") == "search"


def test_a_phone_shows_the_image_first_and_the_button_at_the_thumb(open_page, server):
    page = open_page(**PHONE)
    page.locator("#f-prompt").tap()
    page.fill("#f-prompt", "a pizza")
    page.fill("#n-steps", "2")
    page.locator("#go").tap()
    page.wait_for_selector("#image[alt='a pizza']")
    width, height = 390, 800
    button = page.locator("#go").bounding_box()
    assert height - 100 < button["y"] + button["height"] <= height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    top = "(name) => document.querySelector(name).getBoundingClientRect().top + scrollY"
    image, tools, prompt = (page.evaluate(top, name) for name in ("#image", ".tools", "#f-prompt"))
    assert image < tools < prompt
    small = page.evaluate("""() => [...document.querySelectorAll(".stage button, .stage a, .tabs a")]
        .map((each) => each.getBoundingClientRect().height).filter((height) => height && height < 44).length""")
    assert small == 0  # each is large enough for a thumb
    assert serious(page) == []


def test_scripts_and_styles_are_small_and_quick(page):
    files = [path for path in WEB.rglob("*") if path.suffix in (".js", ".css")]
    loaded = page.evaluate("performance.getEntriesByType('resource').map((each) => each.name).filter((name) => /(js|css)$/.test(name))")
    assert len(loaded) == len(files)  # nothing more, and nothing that is not used
    sent = 0
    for address in loaded:
        with urlopen(Request(address, headers={"Accept-Encoding": "gzip"})) as answer:
            sent += len(answer.read())
    assert 0 < sent <= MAX_BYTES


def test_the_page_refers_to_no_other_address_and_writes_no_markup_from_text():
    for path in WEB.rglob("*"):
        if path.suffix not in (".js", ".css", ".html") or "vendor" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|//cdn|innerHTML|insertAdjacentHTML|\beval\(|new Function", text), path
        assert not re.search(r"""<[a-z][^>]* (style|on[a-z]+)=["']""", text), f"{path}: the content security policy forbids it"


def test_vendored_files_are_those_that_notice_names():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for path in [*(WEB / "vendor").rglob("*.js"), AXE]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in notice, path


def test_every_text_has_a_translation():
    chinese = json.loads((WEB / "chinese.json").read_text(encoding="utf-8"))
    used = set()
    for path in WEB.rglob("*.js"):
        if "vendor" not in path.parts:
            used |= {json.loads(f'"{found}"') for found in re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))}
    assert len(used) > 100
    assert used - chinese.keys() == set()
    for english, text in chinese.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", text)), english


def test_ten_thousand_images_scroll_with_few_in_the_page(apple, page, until):
    def answer(route: Any) -> None:
        query = dict(part.split("=") for part in route.request.url.split("?")[1].split("&"))
        first, limit = int(query.get("before", 0)), int(query["limit"])
        images = [{**apple, "id": f"{i:016x}-0", "prompt": f"image {i}"} for i in range(first, min(first + limit, 10_000))]
        route.fulfill(json={"images": images, "total": 10_000, "next": str(first + limit) if first + limit < 10_000 else None})

    page.route(re.compile(r"/api/images\?"), answer)
    page.goto(page.url.split("#")[0] + "#gallery")
    page.reload()
    page.wait_for_selector("#gallery button")
    until(page, "document.getElementById('gallery').scrollHeight > 100000")
    assert page.locator("#gallery button").count() < 200
    page.evaluate("document.getElementById('gallery').scrollTop = 20000")
    until(page, "[...document.querySelectorAll('#gallery img')].some((each) => Number(each.alt.split(' ')[1]) > 900)")
    assert page.locator("#gallery button").count() < 200
    page.locator("#gallery button[tabindex='0']").first.focus()
    before = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("ArrowRight")
    until(page, f"document.activeElement.dataset.id && document.activeElement.dataset.id !== '{before}'")
