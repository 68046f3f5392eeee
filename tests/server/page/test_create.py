"""From a prompt to an image in the browser: preview, cancel, queue, gallery, film, attention, comparison."""

import io
import re
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

import daguerre
from daguerre.models.controlnet import ControlNetConfig, ControlNetModel

STEPS = 3


def generate(page: Any, prompt: str, steps: int = STEPS) -> None:
    page.fill("#f-prompt", prompt)
    page.fill("#n-steps", str(steps))
    page.keyboard.press("Control+Enter")


WATCH = """() => {
    window.seen = {titles: [], previews: 0, working: new Set()};
    new MutationObserver(() => {
        seen.titles.push(document.title);
        if (document.querySelector("figure img.preview[src^='data:image/webp;base64,']")) seen.previews += 1;
        for (const node of document.querySelectorAll(".node.on")) seen.working.add(node.dataset.node);
    }).observe(document, {subtree: true, childList: true, attributes: true});
}"""


def test_a_prompt_becomes_an_image_with_a_preview_and_a_title(page, server, until):
    page.evaluate(WATCH)
    generate(page, "a red apple", 6)
    page.wait_for_selector("#image")
    until(page, "document.title === 'Daguerre'")
    titles, previews, working = page.evaluate("() => [seen.titles, seen.previews, [...seen.working]]")
    assert any(re.match(r"\d+ %( · .* s)? · a red apple", title) for title in titles)
    assert previews > 0
    assert "sampler" in working  # the plan strip shows what works
    (image,) = [each for each in server.images() if each["prompt"] == "a red apple" and each["request"]["steps"] == 6]
    assert page.get_attribute("#image", "src") == image["url"]
    assert page.evaluate("document.getElementById('image').decode().then(() => document.getElementById('image').naturalWidth)") == 128
    assert page.locator("#gallery button").first.get_attribute("data-id") == image["id"]


def test_cancel_ends_the_running_job_and_leaves_the_next(page, server):
    generate(page, "a slow rocket", 400)
    page.wait_for_selector("figure img.preview")
    generate(page, "a green crab")
    page.locator(".tools >> text=Cancel").click()
    page.wait_for_selector("#image[alt='a green crab']")
    states = {job["request"]["prompt"]: job["state"] for job in server.call("/api/jobs")["jobs"]}
    assert (states["a slow rocket"], states["a green crab"]) == ("cancelled", "done")


def test_the_queue_is_paused_reordered_edited_and_survives_a_reload(page, server, until):
    page.click("text=pause")
    page.wait_for_selector("text=Paused.")
    for prompt in ("a purple pizza", "a rocket", "a parrot"):
        generate(page, prompt)
        page.wait_for_selector(f".job:has-text('{prompt}')")

    def order() -> list[str]:
        return page.locator(".job .name").all_inner_texts()

    assert order() == ["a purple pizza", "a rocket", "a parrot"]
    page.reload()
    page.wait_for_selector(".job")
    assert order() == ["a purple pizza", "a rocket", "a parrot"]
    page.locator(".job").nth(2).hover()
    page.locator("[aria-label='Earlier: a parrot']").click()
    until(page, "document.querySelectorAll('.job .name')[1]?.innerText === 'a parrot'")
    page.locator(".job").nth(0).hover()
    page.locator("[aria-label='Edit a purple pizza']").click()
    page.fill("#f-prompt", "a blue trophy")
    page.click("text=Change the job")
    until(page, "document.querySelectorAll('.job .name')[0]?.innerText === 'a blue trophy'")
    until(page, "document.getElementById('f-prompt').value === 'a parrot'")  # what was in the form is back
    page.locator(".job:has-text('a rocket') button[aria-label^=Cancel]").click()
    page.click("text=go on")
    until(page, "document.querySelectorAll('.job').length === 0")
    prompts = [image["prompt"] for image in server.images()]
    assert prompts[:2] == ["a parrot", "a blue trophy"]
    assert "a purple pizza" not in prompts


def test_search_delete_undo_and_compare(page, server, until):
    server.generate(2, prompt="a cat face")
    page.fill("#search", "cat face")
    until(page, "document.querySelectorAll('#gallery button').length === 2")
    page.locator("#gallery button").first.click()
    page.wait_for_selector("#image[alt='a cat face']")
    page.locator(".stage >> text=Delete").click()
    until(page, "document.querySelectorAll('#gallery button').length === 1")
    page.click(".toast >> text=Undo")
    until(page, "document.querySelectorAll('#gallery button').length === 2")
    assert len([image for image in server.images() if image["prompt"] == "a cat face"]) == 2
    page.click(".stage >> text=Compare")
    slider = page.locator("#compare")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    until(page, "getComputedStyle(document.querySelector('.compare .over')).clipPath === 'inset(0px 52.5% 0px 0px)'")
    assert "seed" in page.locator("table.facts").inner_text()


def test_the_film_shows_every_step(apple, page, server, until):
    page.click(f"#gallery [data-id='{apple['id']}']")
    page.wait_for_selector("#film")
    page.locator("#film").focus()
    page.keyboard.press("Home")
    until(page, f"document.getElementById('image').getAttribute('src') === '/api/images/{apple['id']}/steps/0'")
    first = Image.open(io.BytesIO(server.fetch(f"/api/images/{apple['id']}/steps/0")))
    last = Image.open(io.BytesIO(server.fetch(apple["url"])))
    assert first.size == last.size
    assert np.abs(np.asarray(first.convert("L"), float) - np.asarray(last.convert("L"), float)).mean() > 1
    assert page.get_attribute("#film", "aria-valuetext") == "step 1 of 3"
    page.keyboard.press("End")
    until(page, f"document.getElementById('image').getAttribute('src') === '{apple['url']}'")


def test_a_word_shows_where_it_acted(open_page, server):
    server.generate(prompt="a cat and a pizza", seed=21, steps=5)
    page = open_page()
    page.locator("#gallery button").first.click()
    page.locator(".words button", has_text="pizza").click()
    page.wait_for_selector("#heat")
    assert page.get_attribute("#heat", "alt") == "where “pizza” acted"
    page.locator(".words button", has_text="cat").hover()
    page.wait_for_selector("#heat[alt='where “cat” acted']")
    centre = """async (word) => {
        const image = document.getElementById("heat"); await image.decode();
        const canvas = document.createElement("canvas"); canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        let total = 0, sum = 0;
        for (let i = 0; i < data.length; i += 4) { total += data[i]; sum += data[i] * ((i / 4) % canvas.width); }
        return sum / total / canvas.width; }"""
    cat = page.evaluate(centre)
    page.mouse.move(5, 5)
    page.wait_for_selector("#heat[alt='where “pizza” acted']")
    assert cat < page.evaluate(centre)  # captions name the left one first


def test_several_images_of_a_run_and_their_settings(page, until):
    page.fill("#f-num_images", "3")
    generate(page, "a sunflower")
    until(page, "document.querySelectorAll('.siblings button').length === 3")
    page.locator(".siblings button").nth(2).click()
    seed = re.search(r"seed (\d+)", page.inner_text(".caption"))[1]
    page.click(".stage >> text='Settings'")
    until(page, f"document.getElementById('f-seed').value === '{seed}'")
    page.click(".toast >> text=Undo")
    until(page, "document.getElementById('f-seed').value === ''")


def test_a_controlnet_follows_an_image(page, server, until):
    model = daguerre.load()
    network = ControlNetModel(ControlNetConfig(model.unet.config, (4, 8, 8, 8)))
    (server.folder / "controlnets").mkdir()
    save_file(network.state_dict(), server.folder / "controlnets" / "edges.safetensors")
    page.reload()
    page.click("summary")
    page.select_option("#f-controlnets", "edges")
    page.click("#go")  # it has no image yet
    page.wait_for_selector(".toast.warn:has-text('Choose the image that the ControlNet edges follows.')")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    page.set_input_files("#control-file-0", {"name": "teal.png", "mimeType": "image/png", "buffer": file.getvalue()})
    source = page.wait_for_selector("img.map").get_attribute("src")
    page.select_option("#f-control-way-0", "canny")
    until(page, f"document.querySelector('img.map').getAttribute('src') !== '{source}'")
    map_id = page.get_attribute("img.map", "src").rpartition("/")[2]
    page.fill("#f-control-scale-0", "0.5")
    generate(page, "a blue trophy")
    page.wait_for_selector("#image[alt='a blue trophy']")
    request = server.images()[0]["request"]
    assert [(each["name"], each["scale"], each["end"]) for each in request["adapters"]] == [("edges", 0.5, 1.0)]
    assert [each["id"] for each in request["control_images"]] == [map_id]
    page.click("[aria-label='Remove edges']")
    until(page, "document.querySelectorAll('.control').length === 0")
    page.click(".stage >> text='Settings'")
    assert page.wait_for_selector("img.map").get_attribute("src") == f"/api/inputs/{map_id}"
    assert page.input_value("#f-control-scale-0") == "0.5"
