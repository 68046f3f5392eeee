// LoRAs and embeddings, which are inserted into the prompt, and ControlNets, each with the map it follows.

import { api, toDataUri } from "../core/api.js";
import { change, form } from "../core/form.js";
import { t } from "../core/language.js";
import { html, nothing } from "../core/lit.js";
import { state } from "../core/state.js";
import { button, choice, numberField } from "./controls.js";
import { attempt } from "./toasts.js";

// A list of adapters; each says which family of models it is for, and those for another one cannot be chosen.
function picker(name, label, list, take) {
	const option = ({ name: each, family, fits }) => html`<option value=${each} ?disabled=${fits === false}>${each}${family ? ` · ${family}` : ""}${fits === false ? ` · ${t("does not fit this model")}` : ""}</option>`;
	const chosen = ({ target }) => {
		take(target.value);
		target.value = "";
	};
	return list.length ? html`<div class="field"><label for="f-${name}">${label}</label><select id="f-${name}" @change=${chosen}><option value="">${t("add …")}</option>${list.map(option)}</select></div>` : nothing;
}

const insert = (text) => change({ prompt: `${form.prompt.trim()} ${text}`.trim() });

function setControl(index, changes) {
	change({ controls: form.controls.map((each, i) => (i === index ? { ...each, ...changes } : each)) });
}

// Take an input image for a ControlNet, or another preprocessor: the server computes the map.
function takeMap(index, source, preprocessor) {
	return attempt(async () => {
		const map = source && preprocessor ? (await api("/api/maps", { id: source, preprocessor })).id : source;
		setControl(index, { source, preprocessor, map });
	});
}

function controlFields(control, index) {
	const { name, scale, start, end, source, preprocessor, map } = control;
	const open = ({ target }) => target.files[0] && attempt(async () => takeMap(index, (await api("/api/inputs", { image: await toDataUri(target.files[0]) })).id, preprocessor));
	const part = (key, label, value, limits) => numberField(`control-${key}-${index}`, label, value, (given) => setControl(index, { [key]: given ?? control[key] }), limits);
	const ways = [["", t("as it is")], ...state.adapters.preprocessors.map((each) => [each, each])];
	return html`<fieldset class="control"><legend class="visually-hidden">ControlNet ${name}</legend>
		<div class="between"><b>${name}</b>${button("✕", () => change({ controls: form.controls.filter((_each, i) => i !== index) }), { label: t("Remove {name}", { name }), kind: "quiet" })}</div>
		<div class="row">
			<label class="button"><input class="visually-hidden" id="control-file-${index}" type="file" accept="image/png,image/jpeg,image/webp" @change=${open}>${t("Choose a file")}</label>
			${state.shown ? button(t("The image shown"), () => takeMap(index, state.shown.id, preprocessor)) : nothing}
		</div>
		${map ? html`<img class="map" src=${source === map && map.includes("-") ? `/api/images/${map}` : `/api/inputs/${map}`} alt=${t("the map for {name}", { name })}>` : html`<p class="hint">${t("Choose the image that it follows.")}</p>`}
		${choice(`control-way-${index}`, t("Preprocessor"), ways, preprocessor, (value) => takeMap(index, source, value))}
		<div class="row">${part("scale", t("Strength"), scale, { max: 2 })} ${part("start", t("From"), start)} ${part("end", t("to"), end)}</div>
	</fieldset>`;
}

export function adapterFields() {
	const { loras, embeddings, controlnets } = state.adapters;
	const add = (name) => change({ controls: [...form.controls, { name, scale: 1, start: 0, end: 1, guess_mode: false, source: null, preprocessor: "", map: null }] });
	return html`<div class="stack" id="f-adapters" tabindex="-1">${picker("loras", "LoRA", loras, (name) => insert(`<lora:${name}:1>`))} ${picker("embeddings", t("Embedding"), embeddings, insert)}
		${picker("controlnets", "ControlNet", controlnets, add)} ${form.controls.map(controlFields)}</div>`;
}
