// XY grids: one image for every pair of values of two settings, on one labelled sheet that can be opened again.

import { axes, changed, form, fromRequest, replaceForm, toRequest, wholeNumber } from "../core/form.js";
import { t } from "../core/language.js";
import { html, live, nothing } from "../core/lit.js";
import { state } from "../core/state.js";
import { choice } from "./controls.js";

const MAX_CELLS = 64;
const FIELDS = [["seed", "Seed"], ["guidance_scale", "Guidance"], ["steps", "Steps"], ["sampler", "Sampler"], ["spacing", "Spacing"], ["prompt", "Prompt"],
	["negative_prompt", "Negative prompt"], ["guidance_rescale", "Rescale"], ["clip_skip", "CLIP skip"], ["eta", "Eta"]];
const WHOLE = new Set(["seed", "steps", "clip_skip"]);
const TEXTS = new Set(["prompt", "negative_prompt"]);
const NAMES = new Set(["sampler", "spacing"]);

// The values of an axis: "1, 2, 5-8, 2-4:0.5" for numbers, names, or one text a line. Throws Error for anything else.
export function axisValues({ field, text }) {
	if (TEXTS.has(field)) return text.split("\n").map((line) => line.trim()).filter((line, i, all) => line || all.length === 1);
	const parts = text.split(/[,;\n]/).map((part) => part.trim()).filter(Boolean);
	if (!parts.length) throw new Error(t("Write the values of the axis {field}, such as 1, 2, 3.", { field }));
	if (NAMES.has(field)) return parts;
	return parts.flatMap((part) => {
		const range = /^(-?[\d.]+)\s*(?:-|–|\.\.)\s*(-?[\d.]+)(?::([\d.]+))?$/.exec(part);
		if (!range) {
			const value = WHOLE.has(field) ? wholeNumber(part) : Number(part);
			if (value === null || (typeof value === "number" && !Number.isFinite(value))) throw new Error(t("“{value}” is no value of {field}.", { value: part, field }));
			return [value];
		}
		const [low, high, step] = [Number(range[1]), Number(range[2]), Number(range[3] ?? 1)];
		if (!(step > 0) || high < low || (high - low) / step > MAX_CELLS) throw new Error(t("“{value}” is no value of {field}.", { value: part, field }));
		return Array.from({ length: Math.floor((high - low) / step + 1e-9) + 1 }, (_each, i) => Number((low + i * step).toFixed(6)));
	});
}

function count() {
	try {
		return axisValues(axes.x).length * (axes.y.field ? axisValues(axes.y).length : 1);
	} catch (error) {
		return error;
	}
}

// The body of a request for a grid. Throws Error for values that cannot be read.
export function gridBody() {
	const side = (axis) => ({ field: axis.field, values: axisValues(axis) });
	const cells = count();
	if (cells instanceof Error) throw cells;
	if (cells > MAX_CELLS) throw new Error(t("{n} images; a grid has at most {max}.", { n: cells, max: MAX_CELLS }));
	const request = toRequest();
	delete request.num_images;
	if (axes.x.field !== "seed" && axes.y.field !== "seed" && form.seed === "") request.seed = Math.floor(Math.random() * 2 ** 31);
	else if (form.seed === "") request.seed = 0;
	return { request, model: state.model, x: side(axes.x), y: axes.y.field ? side(axes.y) : null };
}

// Open the grid of a dropped sheet: its axes and the settings of its images.
export function openGrid({ request, x, y }) {
	const text = (axis) => axis.values.map(String).join(TEXTS.has(axis.field) ? "\n" : ", ");
	axes.x = { field: x.field, text: text(x) };
	axes.y = y ? { field: y.field, text: text(y) } : { field: "", text: "" };
	replaceForm(fromRequest(request));
	location.hash = "#grid";
}

// Starting values for an axis that was just chosen.
function example(field) {
	const { samplers, spacings } = state.samplers;
	const names = { sampler: samplers, spacing: spacings }[field];
	if (names) return names.slice(0, 3).map((each) => each.name).join(", ");
	if (TEXTS.has(field)) return form[field];
	return { seed: "1-3", guidance_scale: "1, 2, 4", steps: "5, 10, 20", guidance_rescale: "0, 0.7", clip_skip: "1, 2", eta: "0, 0.5, 1" }[field] ?? "";
}

function axis(name, label) {
	const { field, text } = axes[name];
	const options = name === "y" ? [["", t("none")], ...FIELDS] : FIELDS;
	const set = (values) => {
		axes[name] = { ...axes[name], ...values };
		changed();
	};
	return html`<fieldset class="axis">
		<legend class="visually-hidden">${label}</legend>
		${choice(`axis-${name}`, label, options.map(([value, each]) => [value, t(each)]), field, (value) => set({ field: value, text: example(value) }))}
		${field
			? html`<textarea rows=${TEXTS.has(field) ? 3 : 1} aria-label=${t("Values of {axis}", { axis: label })} placeholder=${TEXTS.has(field) ? t("one text a line") : "1, 2, 5-8"} .value=${live(text)} @input=${(event) => set({ text: event.target.value })}></textarea>`
			: nothing}
	</fieldset>`;
}

export function axisFields() {
	const cells = count();
	const note = cells instanceof Error ? cells.message : cells > MAX_CELLS ? t("{n} images; a grid has at most {max}.", { n: cells, max: MAX_CELLS }) : t("{n} images on one sheet.", { n: cells });
	return html`<div class="stack">${axis("x", t("Across"))} ${axis("y", t("Down"))}<p class="hint ${cells instanceof Error || cells > MAX_CELLS ? "warn" : ""}">${note}</p></div>`;
}

