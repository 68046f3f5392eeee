"""Makes the screenshots of the studio: `python -m docs.studio.make`, a few minutes; needs Chromium and playwright.

On an otherwise idle machine, because the page states how long a run takes.
"""

import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.server_load import start

HERE = Path(__file__).parent
PROMPTS = ("a blue trophy", "a parrot on a pink background", "a tiger face", "an octopus", "a sunflower", "a rocket", "a cat face")
PROMPTS += ("a green crab", "a pizza", "a red apple", "a rainbow", "a cat and a pizza")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
SHOTS: dict[str, dict[str, Any]] = {
    "desktop": DESKTOP,
    "dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True, "device_scale_factor": 1.5},
}


def generate(http: httpx2.Client) -> None:
    """Fill the gallery."""
    for prompt in PROMPTS:
        http.post("/sdapi/v1/txt2img", json={"prompt": prompt, "seed": 7, "steps": 20, "cfg_scale": 2}).raise_for_status()


def shoot(browser: Any, address: str, name: str) -> None:
    """One screenshot: the latest image, where its second word acted, and a prompt with a word that the model does not know."""
    page = browser.new_context(locale="en-US", **SHOTS[name]).new_page()
    page.set_default_timeout(300_000)
    page.goto(address)
    page.locator("#gallery button").first.click()
    page.locator(".words button", has_text="pizza" if name == "phone" else "cat").click()
    page.wait_for_selector("#heat")
    page.fill("#f-prompt", "a cat riding a pizza")
    page.wait_for_selector("mark.unknown")
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    Image.open(BytesIO(page.screenshot())).save(HERE / f"{name}.webp", quality=88, method=6)
    page.context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        process, address = start(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        try:
            generate(httpx2.Client(base_url=address, timeout=600))
            for name in SHOTS:
                shoot(browser, address, name)
                print(HERE / f"{name}.webp")
        finally:
            browser.close()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
