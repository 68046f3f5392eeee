// The film: a slider through the steps of an image, each as the model predicted the result at that step.

import { api } from "../core/api.js";
import { t } from "../core/language.js";
import { html, live, nothing } from "../core/lit.js";
import { update } from "../core/state.js";

let film = null; // {id, steps: [{index, sigma}], at: position or null for the finished image}

async function load(image) {
	film = { id: image.id, steps: [], at: null };
	try {
		const { steps } = await api(`/api/images/${image.id}/steps`);
		if (film.id === image.id) film.steps = steps;
	} catch {
		return; // no steps were kept
	}
	update();
}

// The address of the step that the slider shows; null is the finished image.
export function filmSource(image) {
	if (image.steps_kept > 0 && film?.id !== image.id) load(image);
	if (film?.id !== image.id || film.at === null || !film.steps[film.at]) return null;
	return `/api/images/${image.id}/steps/${film.steps[film.at].index}`;
}

const format = (sigma) => (sigma === null ? "∞" : sigma >= 100 ? String(Math.round(sigma)) : String(Number(sigma.toPrecision(2))));

// The slider; nothing for an image whose steps were not kept.
export function filmSlider(image) {
	if (film?.id !== image.id || film.steps.length < 2) return nothing;
	const last = film.steps.length;
	const at = film.at === null ? last : film.at + 1;
	const set = (event) => {
		const value = Number(event.target.value);
		film.at = value >= last ? null : value - 1;
		update();
		if (film.at !== null) for (const next of [film.steps[film.at + 1], film.steps[film.at - 1]]) if (next) new Image().src = `/api/images/${image.id}/steps/${next.index}`;
	};
	const text = t("step {step} of {steps}", { step: at, steps: last });
	return html`<div class="film">
		<input type="range" id="film" min="1" max=${last} .value=${live(String(at))} aria-label=${t("Step")} aria-valuetext=${text} @input=${set}>
		<div class="ticks"><span>${t("noise")} σ ${format(film.steps[0].sigma)}</span><span>${text}${film.at === null ? "" : ` · σ ${format(film.steps[film.at].sigma)}`}</span><span>${t("image")}</span></div>
	</div>`;
}
