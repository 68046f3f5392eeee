// Editing an image: start from the whole of it, paint over a part, or extend it by dragging its frame.

import { api, toDataUri } from "../core/api.js";
import { changed, edit } from "../core/form.js";
import { t } from "../core/language.js";
import { html, live, nothing } from "../core/lit.js";
import { state } from "../core/state.js";
import { button, checkbox, choice, numberField, slider } from "../parts/controls.js";
import { attempt } from "../parts/toasts.js";
import { board, setTool, tool, zoomBy } from "./board.js";
import { frame } from "./frame.js";
import { addStroke, canRedoStroke, canUndoStroke, maskFor, maskPng, redoStroke, undoStroke } from "./mask.js";

const MODES = [["whole", "Whole image"], ["part", "Paint a part"], ["extend", "Extend"]];
export const MARGIN_STEP = 8; // pixels
const MAX_MARGIN = 2048;
const CROP_PADDING = 32; // pixels around a painted part that is processed alone

// Edit an image of the gallery or an uploaded one: {id, width, height, url}.
export function openInEditor({ id, width, height, url }) {
	edit.input = { id, width, height, url };
	edit.margins = { left: 0, top: 0, right: 0, bottom: 0 };
	changed();
	location.hash = "#edit";
}

export function openFile(file) {
	return attempt(async () => {
		const { id, width, height } = await api("/api/inputs", { image: await toDataUri(file) });
		openInEditor({ id, width, height, url: `/api/inputs/${id}` });
	});
}

// The task of the present settings. For a plan a missing mask or image is no error.
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
	const data = maskPng(forPlan);
	if (!data) throw new Error(t("Paint the part to change first."));
	return { name: "inpaint", image, mask: { data }, strength: edit.strength.part, ...blur, crop_padding: edit.crop ? CROP_PADDING : null };
}

function set(changes) {
	Object.assign(edit, changes);
	changed();
}

// Extend one side by so many pixels, rounded to what models take.
export function setMargin(side, value) {
	const rounded = Math.min(MAX_MARGIN, Math.max(0, Math.round(value / MARGIN_STEP) * MARGIN_STEP));
	set({ margins: { ...edit.margins, [side]: rounded } });
}

export function editFields() {
	if (!edit.input) return nothing;
	const { mode, strength } = edit;
	const sides = [["left", t("Left")], ["right", t("Right")], ["top", t("Top")], ["bottom", t("Bottom")]];
	const fits = [["crop", t("cut")], ["pad", t("pad")], ["stretch", t("stretch")]];
	const setStrength = (value) => set({ strength: { ...strength, [mode]: Math.min(1, Math.max(0, value ?? 1)) } });
	return html`<div class="stack" id="f-image">
		${mode === "extend"
			? html`<div class="row">${sides.map(([side, text]) => numberField(side, text, edit.margins[side], (value) => setMargin(side, value ?? 0), { max: MAX_MARGIN, step: MARGIN_STEP }))}</div>`
			: slider("strength", t("Strength"), strength[mode], { min: 0, max: 1, step: 0.05 }, setStrength)}
		${mode === "whole"
			? choice("resize_mode", t("Fit to size"), fits, edit.resize_mode, (value) => set({ resize_mode: value }))
			: numberField("mask_blur", t("Feather"), edit.mask_blur, (value) => set({ mask_blur: value }), { max: 256, step: 1 })}
		${mode === "part" ? checkbox("crop", t("Only the painted part, at the full size"), edit.crop, (crop) => set({ crop })) : nothing}
	</div>`;
}

function chooser() {
	const chosen = (event) => event.target.files[0] && openFile(event.target.files[0]);
	return html`<div class="welcome">
		<p>${t("Drop an image here, paste one, or choose a file.")}</p>
		<ul>
			<li><label class="button"><input class="visually-hidden" type="file" accept="image/png,image/jpeg,image/webp" @change=${chosen}>${t("Choose a file")}</label></li>
			${state.shown ? html`<li>${button(t("Take the image shown"), () => openInEditor(state.shown))}</li>` : nothing}
		</ul>
	</div>`;
}

function paintTools() {
	const act = (run) => () => {
		run();
		changed();
	};
	return html`<div class="tools" role="toolbar" aria-label=${t("Brush")}>
		${button(t("Brush"), () => setTool({ erase: false }), { title: t("Paint what is generated"), pressed: !tool.erase })}
		${button(t("Eraser"), () => setTool({ erase: true }), { title: t("Erase from the mask"), pressed: tool.erase })}
		<label class="brush-size">${t("Size")} <input type="range" id="brush-size" min="1" max="100" .value=${live(String(tool.size))} @input=${(event) => setTool({ size: Number(event.target.value) })}></label>
		${button("↶", act(undoStroke), { label: t("Undo the stroke"), disabled: !canUndoStroke() })} ${button("↷", act(redoStroke), { label: t("Redo the stroke"), disabled: !canRedoStroke() })}
		${button(t("Invert"), act(() => addStroke({ kind: "invert" })), { title: t("Paint everything else instead") })} ${button(t("Clear"), act(() => addStroke({ kind: "clear" })), { title: t("Clear the mask") })}
		${button("−", () => zoomBy(1 / 1.5), { label: t("Zoom out") })} ${button("+", () => zoomBy(1.5), { label: t("Zoom in") })}
	</div>`;
}

export function editorView() {
	const { input, mode } = edit;
	if (!input) return chooser();
	maskFor(input);
	const gone = () => set({ input: null });
	const whole = () => html`<figure class="canvas" .style=${`--w:${input.width};--h:${input.height}`}><img src=${input.url} alt=${t("The image to start from")} @error=${gone}></figure>`;
	const hints = {
		whole: t("Noise is added to the image, then it is generated again with the prompt."),
		part: t("Painted parts are generated; every other pixel stays as it is."),
		extend: t("Drag an edge outwards; the image itself stays as it is."),
	};
	return html`<div class="tools modes" role="group" aria-label=${t("What to edit")}>
			${MODES.map(([value, text]) => button(t(text), () => set({ mode: value }), { pressed: value === mode }))} ${button(t("Other image"), gone)}
		</div>
		${mode === "part" ? [paintTools(), board(input, gone)] : mode === "extend" ? frame(input, gone) : whole()}
		<p class="hint">${hints[mode]}</p>`;
}
