"""The files of the page, as the server sends them."""

import re

from daguerre.server.app import WEB


def test_the_page_asks_for_all_modules_and_facts_at_once(client):
    found = re.findall(r'<link rel="(modulepreload|preload)".*? href="([^"]+)">', client.get("/").text)
    modules = {address for kind, address in found if kind == "modulepreload"}
    assert modules == {f"/web/{file.relative_to(WEB).as_posix()}" for file in WEB.rglob("*.js")}
    (size,) = re.findall(r"const PAGE = (\d+)", (WEB / "panes" / "gallery.js").read_text())
    assert f"/api/images?limit={size}" in {address for kind, address in found if kind == "preload"}  # else it is asked for twice
    for _, address in found:
        assert client.get(address).status_code == 200
