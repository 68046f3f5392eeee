// The middle: the image, the words and where each acted, the slider through its steps, and what to do with it.

import { duration, t } from "../core/language.js";
import { html, nothing } from "../core/lit.js";
import { actions, cancel, progressOf } from "../core/run.js";
import { jobById, state, update } from "../core/state.js";
import { editorView } from "../edit/editor.js";
import { attentionCanvas, attentionWords } from "../image/attention.js";
import { compareView, startCompare } from "../image/compare.js";
import { filmSlider, filmSource } from "../image/film.js";
import { button, progressBar } from "../parts/controls.js";
import { deleteImages, galleryImages, neighbour, open } from "./gallery.js";

const TOOLS = [
	["again", "Again", "Make this image again, with the same settings and seed"],
	["vary", "Vary", "A similar image: the noise moves towards another seed"],
	["edit", "Edit part", "Paint over a part, extend, or start from this image"],
	["enlarge", "Enlarge ×2", "Hires fix: generate at twice the size"],
	["settings", "Settings", "Bring its settings into the form"],
	["link", "Link", "Copy a link that carries the settings"],
];

// The job that the stage shows, while it has no finished image.
function activeJob() {
	const job = jobById(state.shownJob);
	return job?.state === "running" || (job?.state === "queued" && !state.shown) ? job : null;
}

function jobView(job) {
	const progress = progressOf(job);
	const { width, height } = sizeOf(job);
	const text = job.state === "queued" ? t("waits in the queue") : progress.text;
	const left = progress.seconds_left ? t("{time} left", { time: duration(progress.seconds_left) }) : "";
	return html`<figure class="canvas" .style=${shape(width, height)} aria-label=${t("Preview")}>
			${progress.preview ? html`<img class="preview" src=${progress.preview} alt=${t("Preview: {prompt}", { prompt: job.request.prompt ?? "" })}>` : html`<div class="blank"></div>`}
		</figure>
		<div class="film">${progressBar(t("Progress"), progress)}
			<div class="ticks"><span>${progress.sigma ? `σ ${format(progress.sigma)}` : ""}</span><span>${text}</span><span>${left}</span></div></div>
		<div class="tools">${button(t("Cancel"), () => cancel(job.id), { title: "Ctrl ." })}</div>`;
}

export const format = (sigma) => (sigma >= 100 ? Math.round(sigma) : Number(sigma.toPrecision(2)));

function sizeOf(job) {
	const own = state.samplers.default;
	const scale = job.request.task?.name === "hires" ? job.request.task.scale : 1;
	return { width: (job.request.width ?? state.plan?.width ?? own.width ?? 512) * scale, height: (job.request.height ?? state.plan?.height ?? own.height ?? 512) * scale };
}

// The largest box of an image's proportions that leaves room for what is below it.
export const shape = (width, height) => `--w:${width};--h:${height}`;

function siblings(image) {
	const job = jobById(image.job);
	const ids = job?.images ?? [];
	const images = ids.map((id) => galleryImages().find((each) => each.id === id)).filter(Boolean);
	if (images.length < 2) return nothing;
	return html`<div class="siblings" role="group" aria-label=${t("Images of this run")}>
		${images.map((each) => html`<button type="button" aria-pressed=${each.id === image.id} @click=${() => update({ shown: each })}>
			<img src=${each.thumbnail} alt=${t("seed {seed}", { seed: each.seed })}></button>`)}
	</div>`;
}

function imageView(image) {
	const film = filmSource(image);
	const keys = (event) => {
		const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
		const next = by && neighbour(image.id, by);
		if (next) open(next);
		if (event.key === "Delete") deleteImages([image.id]);
	};
	return html`<figure class="canvas" .style=${shape(image.width, image.height)} tabindex="0" @keydown=${keys} aria-label=${t("Image; the arrow keys show the next one")}>
			<img id="image" src=${film ?? image.url} alt=${image.prompt || t("image without a prompt")}>
			${attentionCanvas(image)}
		</figure>
		${siblings(image)} ${attentionWords(image)} ${filmSlider(image)}
		<div class="tools" role="group" aria-label=${t("What to do with the image")}>
			<a class="button" href="${image.url}?download=1" download>${t("Save")}</a>
			${TOOLS.map(([name, text, title]) => button(t(text), () => actions[name](image), { title: t(title) }))} ${button(t("Compare"), () => startCompare(image))}
			${button(t("Delete"), () => deleteImages([image.id]), { title: t("Delete; can be undone") })}
		</div>
		<p class="hint caption">${image.prompt} · ${t("seed {seed}", { seed: image.seed })} · ${image.width}×${image.height} · ${image.model}</p>`;
}

function welcome() {
	return html`<div class="welcome">
		<p>${t("Write what the image shows and press Generate.")}</p>
		${state.suggestions.length
			? html`<ul>${state.suggestions.slice(0, 6).map((text) => html`<li>${button(text, () => actions.suggest(text))}</li>`)}</ul>`
			: nothing}
		<p class="hint">${t("Or drop an image here: its settings are read, whichever program made it.")}</p>
	</div>`;
}

export function stagePane() {
	const job = activeJob();
	let content;
	if (state.view === "edit") content = editorView();
	else if (state.compare) content = compareView();
	else if (job && state.following) content = jobView(job);
	else if (state.shown) content = imageView(state.shown);
	else content = welcome();
	return html`<main class="stage" id="stage" tabindex="-1" aria-label=${t("Image")}>${content}</main>`;
}
