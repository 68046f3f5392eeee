// The page's controls: buttons, sliders with a number, fields for numbers, texts and choices.

import { t } from "../core/language.js";
import { html, live, noChange, nothing } from "../core/lit.js";
import { update } from "../core/state.js";

// A number from a text field; `fallback` for an empty one or anything else.
export const numberOf = (text, fallback = null) => (text.trim() === "" || !Number.isFinite(Number(text)) ? fallback : Number(text));

// The value of the field with this id; what is being typed stays until the field is left, whatever is rendered meanwhile.
export const held = (id, value) => (document.activeElement?.id === id ? noChange : live(value));

// Render when a field is left, so that it shows the value that was taken.
export const left = () => update();

// A button. title: what it does, in full. label: for screen readers, where the text is a sign.
export function button(text, run, { title, label, pressed, disabled = false, kind = "button", id } = {}) {
	return html`<button type="button" class=${kind} id=${id ?? nothing} title=${title ?? label ?? nothing} aria-label=${label ?? nothing} aria-pressed=${pressed ?? nothing} ?disabled=${disabled} @click=${run}>${text}</button>`;
}

export function slider(name, label, value, { min, max, step, most = max }, set) {
	const take = (event) => set(numberOf(event.target.value));
	return html`<div class="labelled slider">
		<div class="between">
			<label for="f-${name}">${label}</label>
			<input class="value" id="n-${name}" type="number" aria-label=${label} min=${min} max=${most} step=${step} .value=${held(`n-${name}`, String(value))} @change=${take} @blur=${left}>
		</div>
		<input type="range" id="f-${name}" min=${min} max=${max} step=${step} .value=${live(String(value))} @input=${take}>
	</div>`;
}

export function textField(name, label, value, set, { placeholder = "", mode = "text", list } = {}) {
	return html`<div class="field">
		<label for="f-${name}">${label}</label>
		<input id="f-${name}" inputmode=${mode} autocomplete="off" list=${list ?? nothing} placeholder=${placeholder} .value=${held(`f-${name}`, value)} @change=${(event) => set(event.target.value)} @blur=${left}>
	</div>`;
}

// A labelled number; null, an empty field, is the model's own value.
export function numberField(name, label, value, set, { min = 0, max = 1, step = 0.05, placeholder = t("own") } = {}) {
	return html`<div class="field">
		<label for="f-${name}">${label}</label>
		<input id="f-${name}" type="number" min=${min} max=${max} step=${step} placeholder=${placeholder} .value=${held(`f-${name}`, value === null ? "" : String(value))}
			@change=${(event) => set(numberOf(event.target.value))} @blur=${left}>
	</div>`;
}

export function choice(name, label, options, value, set) {
	return html`<div class="field">
		<label for="f-${name}">${label}</label>
		<select id="f-${name}" @change=${(event) => set(event.target.value)}>
			${options.map(([key, text]) => html`<option value=${key} ?selected=${key === value}>${text}</option>`)}
		</select>
	</div>`;
}

export function checkbox(name, text, value, set) {
	return html`<label class="check"><input type="checkbox" id="f-${name}" .checked=${live(value)} @change=${(event) => set(event.target.checked)}>${text}</label>`;
}

export function progressBar(label, { fraction }) {
	const share = Math.round(100 * fraction);
	return html`<div class="bar" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${share}><i .style=${`width:${share}%`}></i></div>`;
}
