// Two images over each other, with a slider between them.

import { t } from "../core/language.js";
import { html, live } from "../core/lit.js";
import { state, update } from "../core/state.js";
import { neighbour } from "../panes/gallery.js";
import { shape } from "../panes/stage.js";
import { button } from "../parts/controls.js";

let at = 50; // percent of the width that shows the first image

// Compare an image with the one before it; a click in the gallery chooses another.
export function startCompare(image) {
	at = 50;
	update({ compare: { a: image, b: neighbour(image.id, 1) ?? neighbour(image.id, -1) ?? image } });
}

function differences(a, b) {
	const shown = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
	const names = Object.keys({ ...a.request, ...b.request }).filter((name) => shown(a.request[name]) !== shown(b.request[name]));
	if (a.model !== b.model) names.unshift("model");
	const value = (image, name) => (name === "model" ? image.model : shown(image.request[name]));
	return names.map((name) => ({ name, a: value(a, name), b: value(b, name) }));
}

export function compareView() {
	const { a, b } = state.compare;
	const set = (event) => {
		at = Number(event.target.value);
		update();
	};
	const swap = () => update({ compare: { a: b, b: a } });
	const rows = differences(a, b);
	return html`<figure class="canvas compare" .style=${`${shape(a.width, a.height)};--at:${at}%`}>
			<img src=${b.url} alt=${t("second: {prompt}", { prompt: b.prompt })}>
			<img class="over" src=${a.url} alt=${t("first: {prompt}", { prompt: a.prompt })}>
			<span class="edge"></span>
			<input type="range" id="compare" min="0" max="100" step="0.5" .value=${live(String(at))} aria-label=${t("Share of the first image")} @input=${set}>
		</figure>
		<div class="tools">
			${button(t("Swap"), swap)} ${button(t("Done"), () => update({ compare: null }))}
		</div>
		<p class="hint">${t("Choose another image in the gallery to compare with it.")}</p>
		<table class="facts"><caption class="visually-hidden">${t("Settings that differ")}</caption>
			<tbody>${rows.length ? rows.map((row) => html`<tr><th scope="row">${row.name}</th><td>${row.a}</td><td>${row.b}</td></tr>`) : html`<tr><td>${t("The settings are equal.")}</td></tr>`}</tbody></table>`;
}
