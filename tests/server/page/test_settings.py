"""Settings in the browser: dropped images, links, presets, history, undo, grids, the language, and that nothing is lost."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

INFOTEXT = """a red apple
Negative prompt: rain
Steps: 7, Sampler: Euler a, CFG scale: 3.5, Seed: 9007199254740993, Size: 128x128, Model: dream, Wobble: 4"""


def drop(page: Any, name: str, data: bytes) -> None:
    """Drop a file on the page."""
    page.evaluate(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            const options = {bubbles: true, cancelable: true, dataTransfer: transfer};
            for (const kind of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, options));
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.wait_for_selector("dialog[open]")


@pytest.fixture
def foreign(tmp_path: Path) -> bytes:
    """A PNG with the settings of another program."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", INFOTEXT)
    Image.new("RGB", (128, 128), "white").save(tmp_path / "foreign.png", pnginfo=chunks)
    return (tmp_path / "foreign.png").read_bytes()


def test_a_dropped_image_of_another_program_fills_the_form_and_names_what_is_left(page, foreign, until):
    drop(page, "foreign.png", foreign)
    assert "Wobble" in page.inner_text(".unread")
    assert "dream" in page.inner_text("dialog .warn")
    page.click("text=Use these settings")
    until(page, "document.getElementById('f-prompt').value === 'a red apple'")
    values = {name: page.input_value(f"#f-{name}") for name in ("prompt", "negative_prompt", "steps", "seed", "sampler")}
    assert values == {"prompt": "a red apple", "negative_prompt": "rain", "steps": "7", "seed": "9007199254740993", "sampler": "euler_a"}
    assert page.input_value("#n-guidance_scale") == "3.5"
    page.click(".toast >> text=Undo")
    until(page, "document.getElementById('f-prompt').value === ''")


def test_a_dropped_image_is_made_again_exactly(page, server):
    (image,) = server.generate(prompt="a green crab", seed=9007199254740993, steps=2)  # more digits than JavaScript's numbers hold
    original = server.fetch(image["url"])
    drop(page, "crab.png", original)
    page.wait_for_selector("dialog >> text=can be made again exactly")
    page.click("dialog >> text=Make it again")
    server.wait(lambda: server.images()[0]["id"] != image["id"])
    again = server.images()[0]
    assert again["request"] == image["request"]
    first, second = (Image.open(io.BytesIO(data)) for data in (original, server.fetch(again["url"])))
    assert first.tobytes() == second.tobytes()
    assert json.loads(first.text["daguerre"]) == json.loads(second.text["daguerre"])


def test_settings_and_history_survive_a_reload_and_a_link_carries_them(page, open_page, server, until):
    page.fill("#f-prompt", "a parrot")
    page.fill("#n-steps", "2")
    page.fill("#f-seed", "77")
    page.click("#go")
    page.wait_for_selector("#image[alt='a parrot']")
    page.fill("#f-prompt", "a rocket")
    page.reload()
    page.wait_for_selector(".node")
    assert (page.input_value("#f-prompt"), page.input_value("#f-seed"), page.input_value("#n-steps")) == ("a rocket", "77", "2")
    page.focus("#f-prompt")
    page.keyboard.press("Alt+ArrowUp")
    until(page, "document.getElementById('f-prompt').value === 'a parrot'")
    page.keyboard.press("Alt+ArrowDown")
    until(page, "document.getElementById('f-prompt').value === 'a rocket'")
    request = {"prompt": "a <b>blue</b> 猫", "steps": 5, "seed": "18014398509481985", "guidance_scale": 3}
    text = base64.urlsafe_b64encode(json.dumps(request).encode()).decode().rstrip("=")
    linked = open_page(f"/#settings={text}", locale="en-US")
    until(linked, "document.getElementById('f-prompt').value === 'a <b>blue</b> 猫'")
    values = [linked.input_value(name) for name in ("#n-steps", "#f-seed", "#n-guidance_scale")]
    assert values == ["5", "18014398509481985", "3"]


def test_settings_that_did_not_reach_the_server_survive_a_reload(page, server):
    page.route("**/api/settings", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    page.fill("#f-prompt", "a rocket")
    page.reload()
    page.wait_for_selector(".node")
    assert page.input_value("#f-prompt") == "a rocket"
    page.unroute_all()
    page.reload()
    page.wait_for_selector(".node")
    assert page.input_value("#f-prompt") == "a rocket"
    server.wait(lambda: server.call("/api/settings")["form"]["form"]["prompt"] == "a rocket")


def test_a_long_history_is_stored_without_its_oldest_prompts(page, server, until):
    server.call("/api/settings", {"history": [f"prompt {i} {'x' * 390}" for i in range(120)]})
    page.reload()
    page.wait_for_selector(".node")
    page.fill("#f-prompt", "a pizza")
    page.fill("#n-steps", "1")
    page.click("#go")
    stored = server.wait(lambda: (history := server.call("/api/settings")["history"])[0] == "a pizza" and history)
    assert 90 < len(stored) < 102  # of about 400 characters each
    assert stored[1].startswith("prompt 0 ")


def test_every_setting_reaches_the_request(page, refused_requests):
    sent = refused_requests(page)
    page.click("summary")
    for name in ("task", "cfg_plus_plus", "fast", "low_memory"):
        page.check(f"#f-{name}")
    texts = {"f-prompt": "a cat", "f-negative_prompt": "rain", "f-width": "256x128", "f-num_images": "2", "n-steps": "30", "f-seed": "7"}
    texts |= {
        "n-guidance_scale": "3.5",
        "f-hires_scale": "1.5",
        "f-hires_strength": "0.4",
        "f-variation": "8",
        "f-variation_strength": "0.3",
    }
    texts |= {
        "f-guidance_interval": "0.2",
        "f-guidance_interval_end": "0.8",
        "f-guidance_rescale": "0.7",
        "f-clip_skip": "2",
        "f-eta": "0.5",
    }
    for name, text in {**texts, "f-refiner_switch_at": "0.9"}.items():
        page.fill(f"#{name}", text)
    for name, value in {"hires_upscaler": "latent", "sampler": "euler", "spacing": "karras", "tiling": "both"}.items():
        page.select_option(f"#f-{name}", value)
    page.click("#go")
    page.wait_for_selector(".toast.warn:has-text('refused')")
    assert sent == [
        {
            "prompt": "a cat",
            "negative_prompt": "rain",
            "width": 256,
            "height": 128,
            "num_images": 2,
            "steps": 30,
            "seed": 7,
            "guidance_scale": 3.5,
            "sampler": "euler",
            "spacing": "karras",
            "tiling": "both",
            "clip_skip": 2,
            "eta": 0.5,
            "guidance_interval": [0.2, 0.8],
            "guidance_rescale": 0.7,
            "refiner_switch_at": 0.9,
            "variation": {"seed": 8, "strength": 0.3},
            "cfg_plus_plus": True,
            "fast": True,
            "low_memory": True,
            "task": {"name": "hires", "scale": 1.5, "strength": 0.4, "upscaler": "latent"},
        }
    ]


def test_a_prompt_of_a_megabyte_is_cut_and_named(page, until):
    page.fill("#f-prompt", "x" * 1_000_000)
    page.wait_for_selector("#prompt-hint:has-text('A prompt has at most 32,000 characters')")
    assert len(page.input_value("#f-prompt")) == 32_000
    page.click("summary")
    until(page, "document.querySelector('details').open")
    page.click("summary")
    until(page, "!document.querySelector('details').open")


def test_weights_by_key(page):
    for text, selected, key, expected in (
        ("a red cat", [7, 7], "ArrowUp", "a red (cat:1.1)"),
        ("a red cat", [2, 9], "ArrowUp", "a (red cat:1.1)"),
        ("a red (cat:1.1)", [8, 8], "ArrowUp", "a red (cat:1.2)"),
        ("a red (cat:1.1)", [8, 8], "ArrowDown", "a red cat"),
        ("a red cat", [7, 7], "ArrowDown", "a red (cat:0.9)"),
    ):
        page.fill("#f-prompt", text)
        page.evaluate("([a, b]) => document.getElementById('f-prompt').setSelectionRange(a, b)", selected)
        page.keyboard.press(f"Control+{key}")
        assert page.input_value("#f-prompt") == expected
        page.keyboard.press("Control+z")  # the browser's own undo
        assert page.input_value("#f-prompt") == text


def test_presets_and_undo(page, until):
    page.fill("#n-steps", "33")
    page.fill("#f-prompt", "a pizza")
    page.select_option("#presets", "save")
    page.fill("#asked", "mine")
    page.press("#asked", "Enter")
    page.select_option("#presets", "=Quick look")
    until(page, "document.getElementById('n-steps').value === '8'")
    assert page.input_value("#f-prompt") == "a pizza"
    page.select_option("#presets", "=mine")
    until(page, "document.getElementById('n-steps').value === '33'")
    page.select_option("#presets", "-mine")
    page.click(".toast:has-text('Deleted') >> text=Undo")
    page.wait_for_selector("#presets option[value='=mine']", state="attached")
    page.locator("#image, .welcome").first.click(position={"x": 2, "y": 2})
    page.keyboard.press("Control+z")
    until(page, "document.getElementById('n-steps').value === '8'")


def test_few_step_files_set_what_is_empty_and_fast_is_a_setting(page, server, until):
    (server.folder / "loras").mkdir()
    (server.folder / "loras" / "lcm_ink.safetensors").write_bytes(b"")  # the name says what it needs
    page.fill("#f-prompt", "a cat <lora:lcm_ink:1>")
    page.wait_for_selector("#estimate:has-text('Settings of lcm for lcm_ink.safetensors')")
    assert (page.input_value("#n-steps"), page.input_value("#n-guidance_scale")) == ("4", "1")
    page.select_option("#presets", "+lightning-8")
    until(page, "document.getElementById('n-steps').value === '8'")
    assert page.input_value("#f-sampler") == "euler"
    page.click("summary")
    page.press("#f-fast", "Space")  # a key, because an answer of the server may still move the field under the mouse
    page.wait_for_selector("#estimate.warn:has-text('fast needs 10 steps or more')")
    page.fill("#n-steps", "20")
    page.press("#n-steps", "Enter")
    page.wait_for_selector("#estimate:not(.warn):has-text('128×128')")


def test_a_grid_is_labelled_and_opens_again_from_its_file(page, server, until):
    page.fill("#f-prompt", "a red apple")
    page.click("nav >> text=Grid")
    page.select_option("#f-axis-x", "seed")
    page.fill("[aria-label='Values of Across']", "1-2")
    page.select_option("#f-axis-y", "steps")
    page.fill("[aria-label='Values of Down']", "1, 2")
    page.wait_for_selector("text=4 images on one sheet.")
    page.click("#go")
    (sheet,) = server.wait(lambda: [image for image in server.images() if min(image["width"], image["height"]) > 2 * 128])  # with labels
    page.click("nav >> text=Create")
    drop(page, "grid.png", server.fetch(sheet["url"]))
    page.click("text=Open the grid")
    until(page, "location.hash === '#grid'")
    for name, value in (("Across", "1, 2"), ("Down", "1, 2")):
        until(page, f"""document.querySelector("[aria-label='Values of {name}']")?.value === '{value}'""")
    until(page, "document.getElementById('f-axis-y').value === 'steps'")


def test_chinese_covers_the_page_and_is_remembered(page, until):
    page.click("text=EN / 中文")
    until(page, "document.getElementById('go').innerText.includes('生成')")
    assert page.get_attribute("html", "lang") == "zh-CN"
    for view in ("create", "edit", "grid", "gallery"):
        page.evaluate(f"location.hash = '#{view}'")
        page.wait_for_timeout(60)
        words = page.evaluate("""() => [...document.querySelectorAll("button, label, summary, h2, p, a, option")]
            .filter((each) => each.offsetParent !== null && !each.querySelector("button, label") && !each.matches(".node"))
            .map((each) => each.textContent.trim())""")
        english = {word for word in words if word.isascii() and " " in word and not word.startswith(("a ", "Ctrl"))}
        allowed = {word for word in english if any(sign.isdigit() for sign in word) or word.startswith(("DPM", "Euler", "UniPC", "Align"))}
        assert english - allowed == set()
    page.reload()
    page.wait_for_selector(".galleryview")
    assert page.get_attribute("html", "lang") == "zh-CN"


def test_an_unknown_word_is_marked_as_one_types(page):
    unknown = [{"word": "zebu", "start": 2, "end": 6, "nearest": ["zebra"]}]
    found = {"tokens": 3, "chunks": 1, "words": ["a", "zebu"], "warnings": [], "error": None, "unknown": unknown}
    page.route("**/api/prompt", lambda route: route.fulfill(json=found))
    page.type("#f-prompt", "a zebu")
    page.wait_for_selector("mark.unknown")
    assert page.inner_text("mark.unknown") == "zebu"
    assert page.inner_text("#prompt-hint") == "“zebu” never occurred in the captions of this model. Near: zebra."


def test_a_lost_server_is_said_and_the_page_goes_on(page, until):
    page.fill("#f-prompt", "a tiger face")
    page.context.set_offline(True)
    page.click("#go")
    page.wait_for_selector(".toast.warn:has-text('The server does not answer.')")
    assert page.input_value("#f-prompt") == "a tiger face"
    page.context.set_offline(False)
    page.fill("#n-steps", "2")
    page.click("#go")
    page.wait_for_selector("#image[alt='a tiger face']")
