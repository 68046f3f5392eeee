// The left pane: prompt, settings, presets, and the button that starts a run.

import { applyFewStep, applyPreset, BUILT_IN_PRESETS, canUndo, change, DEFAULTS, deletePreset, form, formSize, presets, savePreset, showMore, undo } from "../core/form.js";
import { bytes, duration, t } from "../core/language.js";
import { html, live, nothing } from "../core/lit.js";
import { cancelEditing, saveEditing, start } from "../core/run.js";
import { currentModel, state } from "../core/state.js";
import { editFields } from "../edit/editor.js";
import { adapterFields } from "../parts/adapters.js";
import { button, checkbox, choice, held, left, numberField, slider, textField } from "../parts/controls.js";
import { askName } from "../parts/dialog.js";
import { axisFields } from "../parts/grid.js";
import { toast } from "../parts/toasts.js";
import { promptFields } from "./prompt.js";

const digits = (text) => text.replace(/[^\d]/g, "");

// A number of the form; an empty field is its default.
function number(name, label, limits = {}) {
	const set = (value) => change({ [name]: value ?? DEFAULTS[name] });
	return numberField(name, label, form[name] || DEFAULTS[name] === null ? form[name] : null, set, { ...(DEFAULTS[name] === 0 ? { placeholder: "0" } : {}), ...limits });
}

function sizeField() {
	const size = formSize();
	const { width, height } = state.samplers.default;
	const set = (text) => {
		const sides = text.match(/\d+/g)?.map(Number) ?? [null];
		change({ width: sides[0], height: sides[1] ?? sides[0] });
	};
	const sizes = [[1, 1], [1.5, 1], [1, 1.5], [2, 1], [2, 2]].map(([x, y]) => `${width * x}×${height * y}`);
	const text = `${size.width}×${size.height}`;
	return html`${textField("width", t("Size"), form.width === null && form.height === null ? "" : text, set, { placeholder: text, list: "sizes" })}
		<datalist id="sizes">${width ? sizes.map((each) => html`<option value=${each}></option>`) : nothing}</datalist>`;
}

const labelIn = (list, name) => list.find((each) => each.name === name)?.label ?? name;

// What an empty field stands for: the settings of a few-step file, else the model's own.
const ownSettings = () => ({ ...state.samplers.default, ...state.plan?.preset?.fields });

function samplerField() {
	const { samplers, spacings } = state.samplers;
	const own = ownSettings();
	const spacing = form.spacing ?? (form.sampler === null ? own.spacing : null);
	const ending = spacing ? ` · ${labelIn(spacings, spacing).toLowerCase()}` : "";
	const options = [["", own.sampler ? labelIn(samplers, own.sampler) + (form.sampler === null ? ending : "") : t("own")]];
	options.push(...samplers.map((each) => [each.name, each.label + (each.name === form.sampler ? ending : "")]));
	if (form.sampler && !samplers.some((each) => each.name === form.sampler)) options.push([form.sampler, form.sampler]);
	return choice("sampler", t("Sampler"), options, form.sampler ?? "", (value) => change({ sampler: value || null }));
}

function seedField() {
	const fresh = form.seed === "";
	const toggle = () => change({ seed: fresh ? String(state.shown?.seed ?? 0) : "" });
	return html`<div class="field">
		<label for="f-seed">${t("Seed")}</label>
		<input id="f-seed" inputmode="numeric" autocomplete="off" placeholder=${t("new each time")} .value=${held("f-seed", form.seed)}
			@change=${(event) => change({ seed: digits(event.target.value) })} @blur=${left}>
		${button("⟳", toggle, { label: t("A new seed each time"), pressed: fresh, kind: "quiet" })}
	</div>`;
}

function presetField() {
	const own = Object.keys(presets);
	const names = [...Object.keys(BUILT_IN_PRESETS).map((name) => [name, t(name)]), ...own.map((name) => [name, name])];
	const chosen = (event) => {
		const { value } = event.target;
		const name = value.slice(1);
		event.target.value = "";
		if (value === "save") askName(t("Save these settings"), savePreset);
		else if (value.startsWith("-")) toast(t("Deleted the preset {name}.", { name }), { label: t("Undo"), run: deletePreset(name) });
		else {
			if (value.startsWith("+")) applyFewStep(name);
			else applyPreset(name);
			toast(t("Settings: {name}.", { name: t(name) }), { label: t("Undo"), run: undo });
		}
	};
	return html`<div class="between">
		<select class="link" id="presets" aria-label=${t("Presets")} @change=${chosen}>
			<option value="" selected>${t("Presets")}</option>
			${names.map(([name, text]) => html`<option value="=${name}">${text}</option>`)}
			<optgroup label=${t("Few-step files")}>${Object.keys(state.samplers.presets).map((name) => html`<option value="+${name}">${name}</option>`)}</optgroup>
			<option value="save">${t("Save these settings as …")}</option>
			${own.map((name) => html`<option value="-${name}">${t("Delete {name}", { name })}</option>`)}
		</select>
		${button(t("Undo"), undo, { kind: "link", disabled: !canUndo(), title: "Ctrl Z" })}
	</div>`;
}

function hiresFields() {
	const { hires } = form;
	const set = (changes) => change({ hires: { ...hires, ...changes } });
	const part = (name, label, limits) => numberField(`hires_${name}`, label, hires[name], (value) => set({ [name]: value ?? DEFAULTS.hires[name] }), limits);
	return html`${checkbox("task", t("Hires fix: enlarge in a second pass"), hires.on, (on) => set({ on }))}
		${hires.on
			? html`<div class="row">${part("scale", t("Scale"), { min: 1.1, max: 8, step: 0.25 })} ${part("strength", t("Strength"))}</div>
					${choice("hires_upscaler", t("Upscaler"), [["lanczos", "Lanczos"], ["latent", t("Latent")]], hires.upscaler, (upscaler) => set({ upscaler }))}`
			: nothing}`;
}

function intervalFields() {
	const [low, high] = form.guidance_interval ?? [0, 1];
	const set = (from, to) => change({ guidance_interval: from <= 0 && to >= 1 ? null : [from, to] });
	return html`<div class="row">
		${numberField("guidance_interval", t("Guide from"), low, (value) => set(value ?? 0, high))} ${numberField("guidance_interval_end", t("to"), high, (value) => set(low, value ?? 1))}
	</div>`;
}

function more() {
	const spacings = [["", t("the sampler’s own")], ...state.samplers.spacings.map((each) => [each.name, each.label])];
	const tilings = [["none", t("none")], ["both", t("both axes")], ["x", t("across")], ["y", t("down")]];
	const open = state.layout?.more ?? false;
	const toggle = (event) => {
		event.preventDefault(); // what is open follows from the state alone, however often the page is rendered meanwhile
		showMore(!open);
	};
	return html`<details .open=${live(open)}>
		<summary @click=${toggle}>${t("More: spacing, hires fix, variation, tiling …")}</summary>
		<div class="stack">
			${choice("spacing", t("Spacing"), spacings, form.spacing ?? "", (value) => change({ spacing: value || null }))}
			${state.view === "edit" ? nothing : hiresFields()} ${adapterFields()}
			<div class="row">
				${textField("variation", t("Vary to seed"), form.variation_seed, (text) => change({ variation_seed: digits(text) }), { placeholder: "0", mode: "numeric" })} ${number("variation_strength", t("by"))}
			</div>
			${choice("tiling", t("Seamless"), tilings, form.tiling, (tiling) => change({ tiling }))} ${intervalFields()}
			<div class="row">${number("guidance_rescale", t("Rescale"))} ${number("clip_skip", t("CLIP skip"), { min: 1, max: 24, step: 1 })}</div>
			<div class="row">${number("eta", "Eta")} ${number("refiner_switch_at", t("Refiner at"))}</div>
			${checkbox("fast", t("Fast: skip about half of the steps"), form.fast, (on) => change({ fast: on }))}
			${checkbox("cfg_plus_plus", "CFG++", form.cfg_plus_plus, (on) => change({ cfg_plus_plus: on }))} ${checkbox("low_memory", t("Save memory"), form.low_memory, (on) => change({ low_memory: on }))}
		</div>
	</details>`;
}

// What the run will take, or why it cannot start.
function estimate() {
	const { plan } = state;
	const line = (content, kind = "") => html`<p class="hint ${kind}" id="estimate" role="status">${content}</p>`;
	if (!state.connected) return line(t("The server does not answer. Your settings are kept; this page goes on when it is back."), "warn");
	if (plan?.error) return line(plan.error, "warn");
	if (!plan) return line("\u00a0");
	const parts = [plan.seconds && t("About {time}", { time: duration(plan.seconds) }), plan.memory && bytes(plan.memory), plan.width && `${plan.width}×${plan.height}`];
	const warning = plan.warnings?.[0];
	const preset = plan.preset ? html`<br>${t("Settings of {name} for {file}", plan.preset)}` : nothing;
	return line(html`${parts.filter(Boolean).join(" · ")}${preset}${warning ? html`<br><span class="warn">${warning}</span>` : nothing}`);
}

function startButton() {
	if (state.editingJob) return html`<div class="row">${button(t("Leave as it was"), cancelEditing)} ${button(t("Change the job"), saveEditing, { kind: "button main" })}</div>`;
	const text = state.view === "grid" ? t("Generate the grid") : t("Generate");
	return html`<button class="go" type="button" id="go" aria-describedby="estimate" aria-keyshortcuts="Control+Enter" @click=${start}><span>${text}</span><kbd aria-hidden="true">Ctrl ↵</kbd></button>`;
}

export function settingsPane() {
	const own = ownSettings();
	const guidance = own.guidance_scale ?? currentModel()?.default_guidance ?? 7.5;
	const set = (name) => (value) => change({ [name]: value });
	return html`<section class="left" aria-label=${t("Settings")}>
		<div class="form">
			${promptFields()} ${state.view === "edit" ? editFields() : nothing} ${state.view === "grid" ? axisFields() : nothing}
			<div class="row">${sizeField()} ${state.view === "grid" ? nothing : numberField("num_images", t("Images"), form.num_images, (value) => change({ num_images: Math.max(1, value ?? 1) }), { min: 1, max: 16, step: 1 })}</div>
			${slider("steps", t("Steps"), form.steps ?? own.steps, { min: 1, max: 60, step: 1, most: 1000 }, set("steps"))}
			${slider("guidance_scale", t("Guidance"), form.guidance_scale ?? guidance, { min: 1, max: 15, step: 0.1, most: 100 }, set("guidance_scale"))}
			${samplerField()} ${seedField()} ${more()} ${presetField()}
		</div>
		<div class="start">${estimate()} ${startButton()}</div>
	</section>`;
}
