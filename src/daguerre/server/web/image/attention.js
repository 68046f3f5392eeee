// Attention: point at a word, or press it, and the image shows where the word acted.

import { api } from "../core/api.js";
import { t } from "../core/language.js";
import { html, nothing } from "../core/lit.js";
import { addJob } from "../core/run.js";
import { jobById, state, update } from "../core/state.js";
import { failed } from "../parts/toasts.js";

// From black over violet and orange to pale yellow, with the opacity of the least and the most attention.
const COLOURS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const OPACITY = [0.45, 0.75];
let maps = null; // {id, words: with their maps, texts: words without, asked: job id, wanted: index of the word that was pressed first}
let pressed = null; // index of the word that stays shown
let pointed = null; // index of the word under the pointer or with the focus

async function load(id) {
	try {
		const { words } = await api(`/api/images/${id}/attention`);
		if (maps?.id === id) {
			pressed = maps.wanted ?? pressed;
			maps = { id, words };
		}
		update();
	} catch (error) {
		if (maps?.id !== id) return;
		maps = { id, words: null, failed: error.code !== "attention_not_computed" };
		update();
	}
}

// Which words the prompt of an image has; each has a map once it is computed.
async function loadTexts(image) {
	try {
		const { words } = await api("/api/prompt", { prompt: image.prompt });
		if (maps?.id === image.id) maps.texts = words;
		update();
	} catch {
		return; // a model without prompts
	}
}

// Compute the maps by generating the image once more, then show that of a word.
async function compute(image, wanted) {
	maps.wanted = wanted;
	if (maps.asked) return update();
	try {
		const job = await api(`/api/images/${image.id}/attention`, {});
		if (maps.id === image.id) maps.asked = job.id;
		addJob(job);
	} catch (error) {
		failed(error);
	}
}

function current(image) {
	if (maps?.id !== image.id) {
		maps = { id: image.id, words: null };
		pressed = pointed = null;
		if (image.has_attention) load(image.id);
		else if (image.prompt?.trim()) loadTexts(image);
	}
	const job = maps.asked && jobById(maps.asked);
	if (job?.state === "done" && !maps.words && !maps.loading) {
		maps.loading = true;
		load(image.id);
	}
	return maps;
}

export function attentionWords(image) {
	const { words, texts, asked, failed: none } = current(image);
	if (none || !image.prompt?.trim()) return nothing;
	if (!words) {
		const waiting = asked && ["queued", "running", "done"].includes(jobById(asked)?.state ?? "queued");
		const title = waiting ? t("computing where each word acted …") : t("Press to compute where this word acted");
		if (!texts?.length) return nothing;
		return html`<div class="words" role="group" aria-label=${t("Show where each word acted")} aria-busy=${waiting ? "true" : "false"}>
			${texts.map((text, i) => html`<button type="button" class=${waiting && maps.wanted === i ? "waiting" : ""} title=${title} aria-pressed="false" @click=${() => compute(image, i)}>${text}</button>`)}
		</div>`;
	}
	if (!words.length) return nothing;
	const point = (i) => {
		pointed = i;
		update();
	};
	const press = (i) => {
		pressed = pressed === i ? null : i;
		pointed = null;
		update();
	};
	return html`<div class="words" role="group" aria-label=${t("Show where each word acted")} @pointerleave=${() => point(null)}>
		${words.map((word, i) => html`<button type="button" aria-pressed=${pressed === i} title=${t("{low} to {high} of the attention", { low: percent(word.low), high: percent(word.high) })}
			@pointerenter=${(event) => event.pointerType === "mouse" && point(i)} @focus=${(event) => event.target.matches(":focus-visible") && point(i)} @blur=${() => point(null)} @click=${() => press(i)}>${word.text}</button>`)}
	</div>`;
}

const percent = (share) => `${Math.round(100 * share)} %`;

// The overlay on the image; nothing while no word is pointed at.
export function attentionCanvas(image) {
	const word = maps?.id === image.id && maps.words?.[pointed ?? pressed];
	if (!word) return nothing;
	return html`<img class="heat" id="heat" alt=${t("where “{word}” acted", { word: word.text })} src=${overlay(word)}>`;
}

// The map of a word as a small image, which the browser scales up smoothly.
function overlay(word) {
	if (word.source) return word.source;
	const canvas = document.createElement("canvas");
	Object.assign(canvas, { width: word.width, height: word.height });
	const context = canvas.getContext("2d");
	const pixels = context.createImageData(word.width, word.height);
	const values = Uint8Array.from(atob(word.values), (each) => each.charCodeAt(0));
	values.forEach((value, i) => {
		const position = (value / 255) * (COLOURS.length - 1);
		const below = Math.min(Math.floor(position), COLOURS.length - 2);
		const share = position - below;
		for (let c = 0; c < 3; c += 1) pixels.data[4 * i + c] = COLOURS[below][c] * (1 - share) + COLOURS[below + 1][c] * share;
		pixels.data[4 * i + 3] = 255 * (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * (value / 255));
	});
	context.putImageData(pixels, 0, 0);
	word.source = canvas.toDataURL();
	return word.source;
}
