// The settings of the next run: the form, its history for undo, presets, and the conversion to and from a request.

import { api, parseJson, writeJson } from "./api.js";
import { debounce, state, update } from "./state.js";

const HIRES = { on: false, scale: 2, strength: 0.55, upscaler: "lanczos" };
// Null is the model's own value. The seed is a text, since it can exceed the exact numbers of JavaScript; "" is a new one each time.
export const DEFAULTS = Object.freeze({
	prompt: "", negative_prompt: "", width: null, height: null, num_images: 1, steps: null, guidance_scale: null, sampler: null,
	spacing: null, seed: "", hires: HIRES, controls: [], variation_seed: "", variation_strength: 0, tiling: "none", clip_skip: null,
	guidance_rescale: 0, guidance_interval: null, cfg_plus_plus: false, eta: null, refiner_switch_at: 0.8, fast: false, low_memory: false,
});
export const BUILT_IN_PRESETS = {
	Default: {},
	"Quick look": { steps: 8 },
	"More steps": { steps: 40 },
	Seamless: { tiling: "both" },
	"Four at once": { num_images: 4 },
};
const PLAIN = ["num_images", "steps", "guidance_scale", "sampler", "spacing", "tiling", "clip_skip", "guidance_rescale",
	"guidance_interval", "cfg_plus_plus", "eta", "refiner_switch_at", "fast", "low_memory", "width", "height"];
const MAX_UNDO = 200;
const MAX_HISTORY = 200; // prompts, and all together not more than the server stores in one setting
const MAX_HISTORY_CHARACTERS = 40_000;
const MAX_KEEPALIVE = 20_000; // characters; browsers send at most 64 KiB for a page that is gone
const UNSAVED = "daguerre.unsaved"; // in the storage of the tab

export const form = { ...DEFAULTS };
export const edit = { input: null, mode: "part", strength: { whole: 0.6, part: 1 }, resize_mode: "crop", mask_blur: null, crop: false, margins: { left: 0, top: 0, right: 0, bottom: 0 } };
export const axes = { x: { field: "seed", text: "1, 2, 3" }, y: { field: "guidance_scale", text: "1, 2, 4" } };
export const presets = {}; // name -> form fields
export const promptHistory = []; // texts, the latest first
const past = [];
const future = [];
let watch = () => {};

export function onFormChange(action) {
	watch = action;
}

// Change fields of the form; each call is one step of undo, successive changes of the same text field are one.
export function change(changes) {
	const key = Object.keys(changes).join();
	const last = past.at(-1);
	if (!last || key.includes(",") || last.key !== key || Date.now() - last.time > 1500) past.push({ key, time: Date.now(), form: { ...form } });
	else last.time = Date.now();
	if (past.length > MAX_UNDO) past.shift();
	future.length = 0;
	Object.assign(form, changes);
	changed();
}

// Replace the whole form.
export function replaceForm(values) {
	change({ ...DEFAULTS, ...values });
}

export const canUndo = () => past.length > 0;

export function undo() {
	travel(past, future);
}
export function redo() {
	travel(future, past);
}

function travel(from, to) {
	const step = from.pop();
	if (!step) return;
	to.push({ key: step.key, time: 0, form: { ...form } });
	Object.assign(form, step.form);
	changed();
}

// Note a change of the settings outside the form, such as those of the editor: store them and plan again.
export function changed() {
	save();
	watch();
	update();
}

const save = debounce(() => store({ form: stored() }), 400);

// Everything about the form that survives a reload; the mask is not part of it.
function stored() {
	const { strokes: _strokes, ...rest } = edit;
	return { form, edit: rest, axes };
}

const unsaved = {}; // settings that the server has not confirmed yet

// Write settings to the server. What does not reach it stays in the tab, see `unsavedSettings`.
export async function store(values) {
	Object.assign(unsaved, values);
	try {
		await api("/api/settings", values, { keepalive: writeJson(values).length < MAX_KEEPALIVE });
	} catch {
		return;
	}
	for (const key of Object.keys(values)) if (unsaved[key] === values[key]) delete unsaved[key];
}

// Keep in the tab what the server has not confirmed, and nothing else.
function keepUnsaved() {
	try {
		if (Object.keys(unsaved).length) sessionStorage.setItem(UNSAVED, writeJson(unsaved));
		else sessionStorage.removeItem(UNSAVED);
	} catch {
		// a full or closed storage: the request to the server is all there is
	}
}

// Open or close the settings under "More"; the page remembers it.
export function showMore(open) {
	update({ layout: { ...state.layout, more: open } });
	store({ layout: state.layout });
}

// A page that is loaded again asks for its settings before the last write has reached the server.
addEventListener("pagehide", () => {
	save.now();
	keepUnsaved();
});

// The settings that this tab had not saved when it was last left; they are sent once more.
export function unsavedSettings() {
	let values;
	try {
		values = parseJson(sessionStorage.getItem(UNSAVED) ?? "null");
		sessionStorage.removeItem(UNSAVED);
	} catch {
		return {}; // the browser stores nothing, or something else wrote there
	}
	if (values) store(values);
	return values ?? {};
}

// Take over what the server has stored.
export function restoreSettings(settings) {
	const saved = settings.form ?? {};
	for (const [target, values] of [[form, saved.form], [edit, saved.edit], [axes, saved.axes]]) {
		for (const name of Object.keys(target)) if (values?.[name] !== undefined) target[name] = values[name];
	}
	form.hires = { ...HIRES, ...form.hires };
	Object.assign(presets, settings.presets ?? {});
	promptHistory.push(...(settings.history ?? []).filter((text) => typeof text === "string"));
}

export function remember(prompt) {
	if (!prompt.trim()) return;
	const at = promptHistory.indexOf(prompt);
	if (at >= 0) promptHistory.splice(at, 1);
	promptHistory.unshift(prompt);
	let room = MAX_HISTORY_CHARACTERS;
	const full = promptHistory.findIndex((text) => (room -= text.length) < 0);
	promptHistory.length = Math.min(full < 0 ? promptHistory.length : full, MAX_HISTORY);
	store({ history: promptHistory });
}

// Store the form as a preset; its prompt, seed and size belong to it only if `withPrompt`.
export function savePreset(name) {
	const { prompt: _prompt, negative_prompt: _negative, seed: _seed, variation_seed: _variation, ...rest } = form;
	const values = Object.fromEntries(Object.entries(rest).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(DEFAULTS[key])));
	presets[name] = form.negative_prompt ? { ...values, negative_prompt: form.negative_prompt } : values;
	store({ presets });
	update();
}

// Delete a preset; returns a function that brings it back.
export function deletePreset(name) {
	const values = presets[name];
	delete presets[name];
	store({ presets });
	update();
	return () => {
		presets[name] = values;
		store({ presets });
		update();
	};
}

// Apply a preset: everything but prompts and seed becomes as stored.
export function applyPreset(name) {
	const values = presets[name] ?? BUILT_IN_PRESETS[name];
	if (!values) return;
	const { prompt, negative_prompt, seed } = form;
	replaceForm({ prompt, negative_prompt, seed, ...values });
}

// Take the settings of few-step files: they stay with LoRAs and models whose names do not say what they need.
export function applyFewStep(name) {
	const { sampler, spacing, steps, guidance_scale } = state.samplers.presets[name];
	change({ sampler, spacing, steps, guidance_scale });
}

// A whole number as a JSON value that keeps all digits; null for "".
export function wholeNumber(text) {
	const trimmed = String(text).trim();
	if (!/^-?\d+$/.test(trimmed)) return null;
	const value = Number(trimmed);
	return Number.isSafeInteger(value) ? value : BigInt(trimmed);
}

// The form as a request; `task` is that of the editor, if any.
export function toRequest(task = null) {
	const request = { prompt: form.prompt, negative_prompt: form.negative_prompt, seed: wholeNumber(form.seed) ?? -1 };
	for (const name of PLAIN) {
		const value = form[name];
		if (value !== null && JSON.stringify(value) !== JSON.stringify(DEFAULTS[name])) request[name] = value;
	}
	if (form.variation_strength > 0) {
		request.variation = { seed: wholeNumber(form.variation_seed) ?? 0, strength: form.variation_strength };
	}
	// Units without a map are left out; `start` asks for the map.
	const controls = form.controls.filter((each) => each.map);
	if (controls.length) {
		request.adapters = controls.map(({ name, scale, start, end, guess_mode }) => ({ kind: "controlnet", name, scale, start, end, guess_mode }));
		request.control_images = controls.map(({ map }) => ({ id: map }));
	}
	if (task) request.task = task;
	else if (form.hires.on) {
		const { scale, strength, upscaler } = form.hires;
		request.task = { name: "hires", scale, strength, upscaler };
	}
	return request;
}

// The form as a request in which no field is left out, to replace that of a job.
export function completeRequest(task) {
	const plain = Object.fromEntries(PLAIN.map((name) => [name, DEFAULTS[name]]));
	return { ...plain, steps: state.samplers.default.steps, variation: null, adapters: [], control_images: [], task: { name: "txt2img" }, ...toRequest(task) };
}

// The form fields of a request, such as that of an image or a dropped file.
export function fromRequest(request) {
	const values = { ...DEFAULTS };
	for (const name of PLAIN) if (request[name] !== undefined && request[name] !== null) values[name] = request[name];
	values.prompt = Array.isArray(request.prompt) ? request.prompt.join(" | ") : (request.prompt ?? "");
	values.negative_prompt = request.negative_prompt ?? "";
	values.seed = request.seed === undefined || request.seed === null || request.seed < 0 ? "" : String(request.seed);
	if (request.variation) Object.assign(values, { variation_seed: String(request.variation.seed), variation_strength: request.variation.strength });
	const maps = (request.control_images ?? []).map(({ id, sha256 }) => id ?? sha256?.slice(0, 32));
	for (const { kind, name, scale = 1, start = 0, end = 1, guess_mode = false } of request.adapters ?? []) {
		if (kind === "lora" && !values.prompt.includes(`:${name}:`)) values.prompt += ` <lora:${name}:${scale}>`;
		if (kind !== "controlnet") continue;
		const map = maps.shift() ?? null;
		values.controls = [...values.controls, { name, scale, start, end, guess_mode, source: map, preprocessor: "", map }];
	}
	const { task } = request;
	if (task?.name === "hires") values.hires = { on: true, scale: task.scale ?? 2, strength: task.strength ?? 0.55, upscaler: task.upscaler ?? "lanczos" };
	return values;
}

export function linkTo(request) {
	const text = new TextEncoder().encode(JSON.stringify(request, (_key, value) => (typeof value === "bigint" ? String(value) : value)));
	const base64 = btoa(String.fromCharCode(...text)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
	return `${location.origin}${location.pathname}#settings=${base64}`;
}

// The request in a link that `linkTo` made; null if there is none or it is damaged.
export function requestOfLink(hash) {
	const found = /#settings=([\w-]+)/.exec(hash);
	if (!found) return null;
	try {
		const binary = atob(found[1].replaceAll("-", "+").replaceAll("_", "/"));
		const request = JSON.parse(new TextDecoder().decode(Uint8Array.from(binary, (each) => each.charCodeAt(0))));
		return request && typeof request === "object" && !Array.isArray(request) ? request : null;
	} catch {
		return null;
	}
}

// The model's own width and height, or those of the form.
export function formSize() {
	const own = state.samplers.default;
	return { width: form.width ?? own.width ?? 512, height: form.height ?? own.height ?? 512 };
}
