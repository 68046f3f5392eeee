/** Editing an image: start from the whole of it, paint over a part, or extend it by dragging its frame. */

import { api, toDataUri } from "../core/api.js";
import { board, setTool, tool, zoomBy } from "./board.js";
import { changed, edit } from "../core/form.js";
import { frame } from "./frame.js";
import { t } from "../core/language.js";
import { addStroke, canRedoStroke, canUndoStroke, fullMaskPng, maskFor, maskPng, redoStroke, undoStroke } from "./mask.js";
import { state } from "../core/state.js";
import { failed } from "../parts/toasts.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";

const MODES = [["whole", "Whole image"], ["part", "Paint a part"], ["extend", "Extend"]];
export const MARGIN_STEP = 8; // pixels
const MAX_MARGIN = 2048;

/** Edit an image of the gallery or an uploaded one: {id, width, height, url}. */
export function openInEditor(input) {
  edit.input = input;
  edit.margins = { left: 0, top: 0, right: 0, bottom: 0 };
  changed();
  location.hash = "#edit";
}

/** Upload a file as the image to edit. */
export async function openFile(file) {
  try {
    const { id, width, height } = await api("/api/inputs", { image: await toDataUri(file) });
    openInEditor({ id, width, height, url: `/api/inputs/${id}` });
  } catch (error) {
    failed(error);
  }
}

/** The task of the present settings. For a plan a missing mask or image is no error. */
export async function editTask({ forPlan = false } = {}) {
  const { input, mode, margins } = edit;
  if (!input) {
    if (forPlan) return null;
    throw new Error(t("Choose an image to edit first."));
  }
  const image = { id: input.id };
  if (mode === "whole") return { name: "img2img", image, strength: edit.strength.whole, resize_mode: edit.resize_mode };
  const blur = edit.mask_blur === null ? {} : { mask_blur: edit.mask_blur };
  if (mode === "extend") {
    if (Object.values(margins).some((each) => each > 0)) return { name: "outpaint", image, ...margins, ...blur };
    if (forPlan) return null;
    throw new Error(t("Drag an edge outwards first, or type how far to extend."));
  }
  maskFor(input);
  const data = maskPng() ?? (forPlan ? fullMaskPng() : null);
  if (!data) throw new Error(t("Paint the part to change first."));
  return { name: "inpaint", image, mask: { data }, strength: edit.strength.part, ...blur };
}

const numberOf = (event, fallback) => (event.target.value.trim() === "" || !Number.isFinite(Number(event.target.value)) ? fallback : Number(event.target.value));

function set(changes) {
  Object.assign(edit, changes);
  changed();
}

function strengthField() {
  const value = edit.strength[edit.mode];
  const take = (event) => set({ strength: { ...edit.strength, [edit.mode]: Math.min(1, Math.max(0, numberOf(event, value))) } });
  return html`<div class="labelled slider">
    <div class="between"><label for="f-strength">${t("Strength")}</label><input class="value" type="number" aria-label=${t("Strength")} min="0" max="1" step="0.05" .value=${live(String(value))} @change=${take}></div>
    <input type="range" id="f-strength" min="0" max="1" step="0.05" .value=${live(String(value))} @input=${take}>
  </div>`;
}

function marginFields() {
  const names = [["left", t("Left")], ["right", t("Right")], ["top", t("Top")], ["bottom", t("Bottom")]];
  return html`<div class="row">${names.map(([side, text]) => html`<div class="field">
    <label for="f-${side}">${text}</label>
    <input id="f-${side}" type="number" min="0" max=${MAX_MARGIN} step=${MARGIN_STEP} .value=${live(String(edit.margins[side]))} @change=${(event) => setMargin(side, numberOf(event, 0))}>
  </div>`)}</div>`;
}

/** Extend one side by so many pixels, rounded to what models take. */
export function setMargin(side, value) {
  const rounded = Math.min(MAX_MARGIN, Math.max(0, Math.round(value / MARGIN_STEP) * MARGIN_STEP));
  set({ margins: { ...edit.margins, [side]: rounded } });
}

function featherField() {
  return html`<div class="field">
    <label for="f-mask_blur">${t("Feather")}</label>
    <input id="f-mask_blur" type="number" min="0" max="256" step="1" placeholder=${t("own")} .value=${live(edit.mask_blur === null ? "" : String(edit.mask_blur))} @change=${(event) => set({ mask_blur: numberOf(event, null) })}>
  </div>`;
}

/** The settings of the edit, in the left pane. */
export function editFields() {
  if (!edit.input) return nothing;
  const fits = [["crop", t("cut")], ["pad", t("pad")], ["stretch", t("stretch")]];
  return html`<div class="stack" id="f-image">
    ${edit.mode === "extend" ? marginFields() : strengthField()}
    ${edit.mode === "whole"
      ? html`<div class="field"><label for="f-resize_mode">${t("Fit to size")}</label>
          <select id="f-resize_mode" @change=${(event) => set({ resize_mode: event.target.value })}>${fits.map(([value, text]) => html`<option value=${value} ?selected=${value === edit.resize_mode}>${text}</option>`)}</select></div>`
      : featherField()}
  </div>`;
}

function chooser() {
  const chosen = (event) => event.target.files[0] && openFile(event.target.files[0]);
  return html`<div class="welcome">
    <p>${t("Drop an image here, paste one, or choose a file.")}</p>
    <ul>
      <li><label class="button"><input class="visually-hidden" type="file" accept="image/png,image/jpeg,image/webp" @change=${chosen}>${t("Choose a file")}</label></li>
      ${state.shown ? html`<li><button class="button" type="button" @click=${() => openInEditor({ id: state.shown.id, width: state.shown.width, height: state.shown.height, url: state.shown.url })}>${t("Take the image shown")}</button></li>` : nothing}
    </ul>
  </div>`;
}

function paintTools() {
  const button = (text, title, run, extra = {}) => html`<button class="button" type="button" title=${title} aria-label=${title} aria-pressed=${extra.pressed ?? nothing} ?disabled=${extra.disabled ?? false} @click=${run}>${text}</button>`;
  const act = (run) => () => {
    run();
    changed();
  };
  return html`<div class="tools" role="toolbar" aria-label=${t("Brush")}>
    ${button(t("Brush"), t("Paint what is generated"), () => setTool({ erase: false }), { pressed: !tool.erase })}
    ${button(t("Eraser"), t("Erase from the mask"), () => setTool({ erase: true }), { pressed: tool.erase })}
    <label class="brush-size">${t("Size")} <input type="range" id="brush-size" min="1" max="100" .value=${live(String(tool.size))} @input=${(event) => setTool({ size: Number(event.target.value) })}></label>
    ${button("↶", t("Undo the stroke"), act(undoStroke), { disabled: !canUndoStroke() })} ${button("↷", t("Redo the stroke"), act(redoStroke), { disabled: !canRedoStroke() })}
    ${button(t("Invert"), t("Paint everything else instead"), act(() => addStroke({ kind: "invert" })))} ${button(t("Clear"), t("Clear the mask"), act(() => addStroke({ kind: "clear" })))}
    ${button("−", t("Zoom out"), () => zoomBy(1 / 1.5))} ${button("+", t("Zoom in"), () => zoomBy(1.5))}
  </div>`;
}

/** The editor, in the middle pane. */
export function editorView() {
  const { input, mode } = edit;
  if (!input) return chooser();
  maskFor(input);
  const gone = () => {
    set({ input: null });
  };
  const choose = (value) => set({ mode: value });
  return html`<div class="tools modes" role="group" aria-label=${t("What to edit")}>
      ${MODES.map(([value, text]) => html`<button class="button" type="button" aria-pressed=${value === mode} @click=${() => choose(value)}>${t(text)}</button>`)}
      <button class="button" type="button" @click=${gone}>${t("Other image")}</button>
    </div>
    ${mode === "part" ? paintTools() : nothing}
    ${mode === "part" ? board(input, gone) : mode === "extend" ? frame(input, gone) : html`<figure class="canvas" .style=${`--w:${input.width};--h:${input.height}`}><img class=${input.width < 300 ? "small" : ""} src=${input.url} alt=${t("The image to start from")} @error=${gone}></figure>`}
    <p class="hint">${mode === "part" ? t("Painted parts are generated; every other pixel stays as it is.") : mode === "extend" ? t("Drag an edge outwards; the image itself stays as it is.") : t("Noise is added to the image, then it is generated again with the prompt.")}</p>`;
}

