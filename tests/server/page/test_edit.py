"""Editing in the browser: painting a mask with mouse, touch and keys, inpainting, image to image, extending."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def editor(apple, page) -> Any:
    """The page's editor with a generated image in it."""
    page.click(f"#gallery [data-id='{apple['id']}']")
    page.click(".stage >> text=Edit part")
    page.wait_for_selector("#board")
    page.fill("#n-steps", "3")
    return page


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def stroke(page: Any, *points: tuple[float, float]) -> None:
    """Paint through points, each a share of the surface's sides."""
    box = page.locator("#board").bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def painted(page: Any) -> np.ndarray:
    """The painted pixels of the mask, (H, W), once the page has rendered."""
    values = page.evaluate("""async () => { const frame = () => new Promise(requestAnimationFrame); await frame(); await frame();
        const c = document.getElementById("mask");
        const {data} = c.getContext("2d").getImageData(0, 0, c.width, c.height);
        return Array.from(data).filter((_, i) => i % 4 === 3); }""")
    return np.array(values).reshape(128, 128)


def test_a_painted_part_is_generated_and_every_other_byte_stays(editor, apple, server):
    stroke(editor, (0.3, 0.3), (0.5, 0.3))
    mask = painted(editor)
    assert 0 < (mask > 0).mean() < 0.3
    editor.fill("#f-prompt", "a blue apple")
    editor.click("#go")
    editor.wait_for_selector("#image[alt='a blue apple']")
    after = server.images()[0]
    assert after["task"] == "inpaint"
    old, new = pixels(server.fetch(apple["url"])), pixels(server.fetch(after["url"]))
    assert np.array_equal(old[mask == 0], new[mask == 0])
    assert (old[mask == 255] != new[mask == 255]).any()


def test_undo_redo_eraser_invert_and_clear(editor):
    stroke(editor, (0.2, 0.2), (0.8, 0.2))
    first = painted(editor)
    editor.click("text=Eraser")
    stroke(editor, (0.5, 0.1), (0.5, 0.3))
    erased = painted(editor)
    assert erased.sum() < first.sum()
    editor.click("[aria-label='Undo the stroke']")
    assert np.array_equal(painted(editor), first)
    editor.click("[aria-label='Redo the stroke']")
    assert np.array_equal(painted(editor), erased)
    editor.click("text=Invert")
    assert np.abs(painted(editor) - (255 - erased)).max() <= 1  # the rounding of 8 bits
    editor.reload()  # nothing is lost
    editor.wait_for_selector("#board")
    assert np.abs(painted(editor) - (255 - erased)).max() <= 1
    editor.click("text=Clear")
    assert painted(editor).max() == 0


def test_painting_by_keys_alone(editor):
    editor.focus("#board")
    editor.keyboard.press("Space")
    for _ in range(12):
        editor.keyboard.press("ArrowRight")
    editor.keyboard.press("Space")
    mask = painted(editor)
    assert mask[64, 64] == 255
    rows, columns = np.nonzero(mask)
    assert columns.max() - columns.min() > 1.5 * (rows.max() - rows.min())
    editor.keyboard.press("Control+z")
    assert painted(editor).max() == 0


def test_zoom_keeps_painting_at_the_pointer(editor):
    editor.click("[aria-label='Zoom in']")
    editor.click("[aria-label='Zoom in']")
    stroke(editor, (0.5, 0.5))
    rows, columns = np.nonzero(painted(editor))
    assert abs(rows.mean() - 63.5) < 1.5
    assert abs(columns.mean() - 63.5) < 1.5


def test_the_feather_and_the_painted_part_alone_reach_the_request(editor, refused_requests):
    sent = refused_requests(editor)
    stroke(editor, (0.3, 0.3), (0.5, 0.3))
    editor.fill("#f-mask_blur", "7")
    editor.check("#f-crop")
    editor.click("#go")
    editor.wait_for_selector(".toast.warn:has-text('refused')")
    task = sent[0]["task"]
    assert (task["name"], task["mask_blur"], task["crop_padding"] > 0) == ("inpaint", 7, True)


def test_image_to_image_starts_from_the_image(editor, server):
    editor.click("text=Whole image")
    editor.fill("#n-strength", "0.5")
    editor.fill("#f-prompt", "a green apple")
    editor.keyboard.press("Control+Enter")
    editor.wait_for_selector("#image[alt='a green apple']")
    image = server.images()[0]
    assert (image["task"], image["request"]["task"]["strength"]) == ("img2img", 0.5)


def test_dragging_an_edge_extends_the_image(editor, apple, server):
    editor.click("text=Extend")
    handle = editor.locator(".handle.right").bounding_box()
    scale = editor.locator("#frame").bounding_box()["width"] / 128
    editor.mouse.move(handle["x"] + 8, handle["y"] + 20)
    editor.mouse.down()
    editor.mouse.move(handle["x"] + 8 + 32 * scale, handle["y"] + 20, steps=5)
    editor.mouse.up()
    editor.focus(".handle.bottom")
    editor.keyboard.press("ArrowDown")
    assert [editor.input_value(f"#f-{side}") for side in ("left", "right", "top", "bottom")] == ["0", "32", "0", "8"]
    editor.click("#go")
    server.wait(lambda: server.images()[0]["task"] == "outpaint")
    after = server.images()[0]
    assert (after["width"], after["height"]) == (160, 136)
    assert np.array_equal(pixels(server.fetch(after["url"]))[:128, :128], pixels(server.fetch(apple["url"])))


def test_an_edit_without_a_mask_says_what_to_do(editor, server):
    count = len(server.call("/api/jobs")["jobs"])
    editor.click("#go")
    editor.wait_for_selector(".toast.warn:has-text('Paint the part to change first.')")
    assert len(server.call("/api/jobs")["jobs"]) == count


def test_two_fingers_zoom_and_one_paints(apple, open_page):
    page = open_page(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.locator(f"#gallery [data-id='{apple['id']}']").tap()
    assert page.evaluate("scrollY") == 0  # the image is in view
    page.locator(".stage >> text=Edit part").tap()
    page.wait_for_selector("#board")
    box = page.locator("#board").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (x - 40, y))
    touch("touchMove", (x + 40, y))
    touch("touchEnd")
    once = painted(page)
    assert once[64, 64] == 255
    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 80, y), (x + 80, y))
    touch("touchEnd")
    assert np.array_equal(painted(page), once)  # the first finger of two left no stroke
    assert "scale(4)" in page.get_attribute(".sheet", "style")
