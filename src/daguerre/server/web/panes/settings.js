/** The left pane: prompt, settings, presets, and the button that starts a run. */

import { askName } from "../parts/dialog.js";
import { axisFields } from "../parts/grid.js";
import { editFields } from "../edit/editor.js";
import { applyPreset, BUILT_IN_PRESETS, canUndo, change, deletePreset, form, formSize, presets, savePreset, undo } from "../core/form.js";
import { bytes, duration, t } from "../core/language.js";
import { promptFields } from "./prompt.js";
import { cancelEditing, saveEditing, start } from "../core/run.js";
import { currentModel, state, update } from "../core/state.js";
import { toast } from "../parts/toasts.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";

/** A number from a text field, null for an empty one. */
const numberOf = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));

/** A slider with a number that can be typed. Null shows the model's own value. */
function slider(name, label, { min, max, step, own, most = max }) {
  const value = form[name] ?? own;
  const set = (event) => change({ [name]: numberOf(event.target.value) });
  return html`<div class="labelled slider">
    <div class="between">
      <label for="f-${name}">${label}</label>
      <input class="value" type="number" aria-label=${label} min=${min} max=${most} step=${step} .value=${live(String(value))} @change=${set}>
    </div>
    <input type="range" id="f-${name}" min=${min} max=${max} step=${step} .value=${live(String(value))} @input=${set}>
  </div>`;
}

/** A labelled number; empty is the model's own value, or none. */
function numberField(name, label, { min = 0, max = 1, step = 0.05, placeholder = t("own"), value = form[name], set } = {}) {
  const take = (event) => (set ?? ((changed) => change({ [name]: changed })))(numberOf(event.target.value));
  return html`<div class="field">
    <label for="f-${name}">${label}</label>
    <input id="f-${name}" type="number" min=${min} max=${max} step=${step} placeholder=${placeholder} .value=${live(value === null ? "" : String(value))} @change=${take}>
  </div>`;
}

function select(name, label, options, value, set) {
  return html`<div class="field">
    <label for="f-${name}">${label}</label>
    <select id="f-${name}" @change=${(event) => set(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} ?selected=${key === value}>${text}</option>`)}
    </select>
  </div>`;
}

function sizeField() {
  const size = formSize();
  const { width, height } = state.samplers.default;
  const shown = form.width === null && form.height === null ? "" : `${size.width}×${size.height}`;
  const set = (event) => {
    const found = /^\s*(\d+)\s*[x×*, ]\s*(\d+)\s*$/i.exec(event.target.value);
    const one = /^\s*(\d+)\s*$/.exec(event.target.value);
    if (found) change({ width: Number(found[1]), height: Number(found[2]) });
    else if (one) change({ width: Number(one[1]), height: Number(one[1]) });
    else change({ width: null, height: null });
  };
  const own = width && height ? [[1, 1], [1.5, 1], [1, 1.5], [2, 1], [2, 2]].map(([x, y]) => `${width * x}×${height * y}`) : [];
  return html`<div class="field">
    <label for="f-width">${t("Size")}</label>
    <input id="f-width" list="sizes" autocomplete="off" placeholder="${size.width}×${size.height}" .value=${live(shown)} @change=${set}>
    <datalist id="sizes">${own.map((each) => html`<option value=${each}></option>`)}</datalist>
  </div>`;
}

const label = (list, name) => list.find((each) => each.name === name)?.label ?? name;

function samplerField() {
  const { samplers, spacings, default: own } = state.samplers;
  const spacing = form.spacing ?? (form.sampler === null ? own.spacing : null);
  const ending = spacing ? ` · ${label(spacings, spacing).toLowerCase()}` : "";
  const options = [["", own.sampler ? `${label(samplers, own.sampler)}${form.sampler === null ? ending : ""}` : t("own")]];
  options.push(...samplers.map((each) => [each.name, each.label + (each.name === form.sampler ? ending : "")]));
  if (form.sampler && !samplers.some((each) => each.name === form.sampler)) options.push([form.sampler, form.sampler]);
  return select("sampler", t("Sampler"), options, form.sampler ?? "", (value) => change({ sampler: value || null }));
}

function seedField() {
  const set = (event) => change({ seed: event.target.value.trim().replace(/[^\d]/g, "") });
  return html`<div class="field">
    <label for="f-seed">${t("Seed")}</label>
    <input id="f-seed" inputmode="numeric" autocomplete="off" placeholder=${t("new each time")} .value=${live(form.seed)} @change=${set}>
    <button class="quiet" type="button" title=${t("A new seed each time")} aria-label=${t("A new seed each time")} aria-pressed=${form.seed === ""}
      @click=${() => change({ seed: form.seed === "" ? String(state.shown?.seed ?? 0) : "" })}>⟳</button>
  </div>`;
}

function presetField() {
  const names = [...Object.keys(BUILT_IN_PRESETS).map((name) => [name, t(name)]), ...Object.keys(presets).map((name) => [name, name])];
  const chosen = (event) => {
    const [action, name] = [event.target.value, event.target.value.slice(1)];
    event.target.value = "";
    if (action === "save") {
      askName(t("Save these settings"), savePreset);
    } else if (action.startsWith("-")) {
      toast(t("Deleted the preset {name}.", { name }), { label: t("Undo"), run: deletePreset(name) });
    } else {
      applyPreset(name);
      toast(t("Settings: {name}.", { name: t(name) }), { label: t("Undo"), run: undo });
    }
  };
  return html`<div class="between">
    <select class="link" aria-label=${t("Presets")} @change=${chosen}>
      <option value="" selected>${t("Presets")}</option>
      ${names.map(([name, text]) => html`<option value="=${name}">${text}</option>`)}
      <option value="save">${t("Save these settings as …")}</option>
      ${Object.keys(presets).map((name) => html`<option value="-${name}">${t("Delete {name}", { name })}</option>`)}
    </select>
    <button class="link" type="button" ?disabled=${!canUndo()} title="Ctrl Z" @click=${undo}>${t("Undo")}</button>
  </div>`;
}

function hiresFields() {
  const { hires } = form;
  const set = (changes) => change({ hires: { ...hires, ...changes } });
  return html`<label class="check"><input type="checkbox" id="f-task" .checked=${live(hires.on)} @change=${(event) => set({ on: event.target.checked })}>
      ${t("Hires fix: enlarge in a second pass")}</label>
    ${hires.on
      ? html`<div class="row">
            ${numberField("hires_scale", t("Scale"), { min: 1.1, max: 8, step: 0.25, value: hires.scale, set: (scale) => set({ scale: scale ?? 2 }) })}
            ${numberField("hires_strength", t("Strength"), { value: hires.strength, set: (strength) => set({ strength: strength ?? 0.55 }) })}
          </div>
          ${select("hires_upscaler", t("Upscaler"), [["lanczos", "Lanczos"], ["latent", t("Latent")]], hires.upscaler, (upscaler) => set({ upscaler }))}`
      : nothing}`;
}

function intervalFields() {
  const [low, high] = form.guidance_interval ?? [0, 1];
  const set = (from, to) => change({ guidance_interval: from <= 0 && to >= 1 ? null : [from, to] });
  return html`<div class="row">
    ${numberField("guidance_interval", t("Guide from"), { value: low, set: (value) => set(value ?? 0, high) })}
    ${numberField("guidance_interval_end", t("to"), { value: high, set: (value) => set(low, value ?? 1) })}
  </div>`;
}

function variationFields() {
  return html`<div class="row">
    <div class="field">
      <label for="f-variation">${t("Vary to seed")}</label>
      <input id="f-variation" inputmode="numeric" placeholder="0" .value=${live(form.variation_seed)}
        @change=${(event) => change({ variation_seed: event.target.value.replace(/[^\d]/g, "") })}>
    </div>
    ${numberField("variation_strength", t("by"), { placeholder: "0", set: (value) => change({ variation_strength: value ?? 0 }) })}
  </div>`;
}

/** Lists of LoRAs, embeddings and ControlNets; each says which family of models it fits. */
function adapterFields() {
  const { loras, embeddings, controlnets } = state.adapters;
  const insert = (event, write) => {
    const name = event.target.value;
    event.target.value = "";
    if (name) change({ prompt: `${form.prompt.trim()} ${write(name)}`.trim() });
  };
  const picker = (name, text, list, write) =>
    list.length
      ? html`<div class="field">
          <label for="f-${name}">${text}</label>
          <select id="f-${name}" @change=${(event) => insert(event, write)}>
            <option value="">${t("add …")}</option>
            ${list.map((each) => html`<option value=${each.name} ?disabled=${!each.fits}>${each.name} · ${each.family ?? "?"}${each.fits ? "" : ` · ${t("does not fit this model")}`}</option>`)}
          </select>
        </div>`
      : nothing;
  return html`${picker("loras", "LoRA", loras, (name) => `<lora:${name}:1>`)} ${picker("embeddings", t("Embedding"), embeddings, (name) => name)}
    ${controlnets.length ? html`<p class="hint">ControlNet: ${controlnets.map(({ name, family }) => `${name} · ${family ?? "?"}`).join(", ")}</p>` : nothing}`;
}

function more() {
  const { spacings } = state.samplers;
  const tilings = [["none", t("none")], ["both", t("both axes")], ["x", t("across")], ["y", t("down")]];
  const open = state.layout?.more ?? false;
  return html`<details .open=${live(open)} @toggle=${(event) => event.target.open !== open && update({ layout: { ...state.layout, more: event.target.open } })}>
    <summary>${t("More: spacing, hires fix, variation, tiling …")}</summary>
    <div class="stack">
      ${select("spacing", t("Spacing"), [["", t("the sampler’s own")], ...spacings.map((each) => [each.name, each.label])], form.spacing ?? "", (value) => change({ spacing: value || null }))}
      ${state.view === "edit" ? nothing : hiresFields()} ${adapterFields()} ${variationFields()}
      ${select("tiling", t("Seamless"), tilings, form.tiling, (tiling) => change({ tiling }))}
      ${intervalFields()}
      <div class="row">
        ${numberField("guidance_rescale", t("Rescale"), { placeholder: "0", set: (value) => change({ guidance_rescale: value ?? 0 }) })}
        ${numberField("clip_skip", "CLIP skip", { min: 1, max: 24, step: 1 })}
      </div>
      <div class="row">
        ${numberField("eta", "Eta")}
        ${numberField("refiner_switch_at", t("Refiner at"), { set: (value) => change({ refiner_switch_at: value ?? 0.8 }) })}
      </div>
      <label class="check"><input type="checkbox" id="f-cfg_plus_plus" .checked=${live(form.cfg_plus_plus)} @change=${(event) => change({ cfg_plus_plus: event.target.checked })}>CFG++</label>
      <label class="check"><input type="checkbox" id="f-low_memory" .checked=${live(form.low_memory)} @change=${(event) => change({ low_memory: event.target.checked })}>${t("Save memory")}</label>
    </div>
  </details>`;
}

/** What the run will take, or why it cannot start. */
function estimate() {
  const { plan } = state;
  if (!state.connected) return html`<p class="hint warn" role="status">${t("The server does not answer. Your settings are kept; this page goes on when it is back.")}</p>`;
  if (plan?.error) return html`<p class="hint warn" id="estimate" role="status">${plan.error}</p>`;
  if (!plan) return html`<p class="hint" id="estimate">&nbsp;</p>`;
  const parts = [];
  if (plan.seconds) parts.push(t("About {time}", { time: duration(plan.seconds) }));
  if (plan.memory) parts.push(bytes(plan.memory));
  const size = plan.width ? `${plan.width}×${plan.height}` : "";
  const warning = plan.warnings?.[0];
  return html`<p class="hint" id="estimate">${[...parts, size].filter(Boolean).join(" · ")}${warning ? html`<br><span class="warn">${warning}</span>` : nothing}</p>`;
}

function startButton() {
  if (state.editingJob) {
    return html`<div class="row">
      <button class="button" type="button" @click=${cancelEditing}>${t("Leave as it was")}</button>
      <button class="button main" type="button" @click=${saveEditing}>${t("Change the job")}</button>
    </div>`;
  }
  const text = state.view === "grid" ? t("Generate the grid") : t("Generate");
  return html`<button class="go" type="button" id="go" aria-describedby="estimate" aria-keyshortcuts="Control+Enter" @click=${start}><span>${text}</span><kbd aria-hidden="true">Ctrl ↵</kbd></button>`;
}

/** The left pane. */
export function settingsPane() {
  const own = state.samplers.default;
  const model = currentModel();
  const guidance = own.guidance_scale ?? model?.default_guidance ?? 7.5;
  return html`<section class="left" aria-label=${t("Settings")}>
    <div class="form">
      ${promptFields()} ${state.view === "edit" ? editFields() : nothing} ${state.view === "grid" ? axisFields() : nothing}
      <div class="row">
        ${sizeField()} ${numberField("num_images", t("Images"), { min: 1, max: 16, step: 1, set: (value) => change({ num_images: Math.max(1, value ?? 1) }) })}
      </div>
      ${slider("steps", t("Steps"), { min: 1, max: 60, step: 1, own: own.steps, most: 1000 })}
      ${slider("guidance_scale", t("Guidance"), { min: 1, max: 15, step: 0.1, own: guidance, most: 100 })} ${samplerField()} ${seedField()} ${more()}
      ${presetField()}
    </div>
    <div class="start">${estimate()} ${startButton()}</div>
  </section>`;
}
