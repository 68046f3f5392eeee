// An image that is dropped, pasted or chosen: all that made it, what could not be read, and making it again.

import { api, toDataUri } from "../core/api.js";
import { t } from "../core/language.js";
import { html, nothing } from "../core/lit.js";
import { generate, takeSettings } from "../core/run.js";
import { state, update } from "../core/state.js";
import { openFile, openInEditor } from "../edit/editor.js";
import { button } from "./controls.js";
import { closeDialog, openDialog } from "./dialog.js";
import { openGrid } from "./grid.js";
import { failed, toast } from "./toasts.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
let depth = 0; // of the elements that a dragged file has entered

// Read an image file and show what made it. In the editor without an image it becomes the image to edit.
export async function readFile(file) {
	if (!TYPES.includes(file.type)) return toast(t("“{name}” is no PNG, JPEG or WebP.", { name: file.name }), null, "warn");
	try {
		const found = await api("/api/drop", { image: await toDataUri(file) });
		if (!found.request && !found.grid && state.view === "edit") return openFile(file);
		openDialog(found.request ? t("What made this image") : t("This image"), () => report(found, file));
	} catch (error) {
		failed(error);
	}
	return undefined;
}

const shown = (value) => (value !== null && typeof value === "object" ? (value.id ? t("image") : JSON.stringify(value)) : String(value));

function rows(request) {
	const { task, ...rest } = request;
	const values = { ...rest, ...(task ? { task: task.name } : {}) };
	for (const [name, value] of Object.entries(task ?? {})) if (name !== "name") values[name] = value;
	return Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
}

function report(found, file) {
	const act = (run) => () => {
		closeDialog();
		run();
	};
	const { input, request, unread = {}, missing_inputs: missing = [], warnings = [] } = found;
	const model = found.model && !found.model_known ? t("The model {model} is not here; the model {current} takes its place.", { model: found.model, current: state.model }) : null;
	const again = () => {
		if (found.model && found.model_known) update({ model: found.model });
		takeSettings(request);
		generate(request);
	};
	const leftovers = Object.entries(unread);
	return html`<div class="dropped">
		<img src="/api/inputs/${input.id}" alt=${t("the dropped image")}>
		<div class="stack">
			<p>${found.software ? t("Made by {software}.", { software: found.software }) : t("The file does not say how it was made.")}
				${input.width}×${input.height}${found.exact ? html` · <span class="ok">${t("can be made again exactly")}</span>` : nothing}</p>
			${[model, missing.length ? t("Not here: {names}. Choose them again.", { names: missing.join(", ") }) : null, ...warnings].filter(Boolean).map((text) => html`<p class="hint warn">${text}</p>`)}
			${request ? html`<table class="facts"><caption>${t("Settings")}</caption><tbody>${rows(request).map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${shown(value)}</td></tr>`)}</tbody></table>` : nothing}
			${leftovers.length ? html`<table class="facts unread"><caption>${t("Not read")}</caption><tbody>${leftovers.map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${shown(value)}</td></tr>`)}</tbody></table>` : nothing}
		</div>
	</div>
	<div class="buttons">
		${button(t("Edit this image"), act(() => openInEditor({ ...input, url: `/api/inputs/${input.id}` })))}
		${found.grid ? button(t("Open the grid"), act(() => openGrid(found.grid))) : nothing}
		${request ? [button(t("Use these settings"), act(() => takeSettings(request))), button(t("Make it again"), act(again), { kind: "button main", disabled: missing.length > 0 })] : nothing}
	</div>`;
}

const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

// Listen for files dropped or pasted anywhere on the page.
export function listenForFiles() {
	addEventListener("dragenter", (event) => holdsFile(event) && update({ dropping: (depth += 1) > 0 }));
	addEventListener("dragleave", (event) => holdsFile(event) && update({ dropping: (depth -= 1) > 0 }));
	addEventListener("dragover", (event) => holdsFile(event) && event.preventDefault());
	addEventListener("drop", (event) => {
		if (!holdsFile(event)) return;
		event.preventDefault();
		depth = 0;
		update({ dropping: false });
		if (event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]);
	});
	addEventListener("paste", (event) => {
		const file = [...(event.clipboardData?.files ?? [])].find((each) => TYPES.includes(each.type));
		if (!file) return;
		event.preventDefault();
		readFile(file);
	});
}

// The button that opens a file, and the veil while a file is dragged over the page.
export function openButton() {
	const chosen = (event) => {
		if (event.target.files[0]) readFile(event.target.files[0]);
		event.target.value = "";
	};
	return html`<label class="chip"><input class="visually-hidden" id="open-file" type="file" accept=${TYPES.join()} @change=${chosen}>${t("Open image")}</label>`;
}

export function dropVeil() {
	return state.dropping ? html`<div class="veil"><p>${t("Drop the image to read its settings")}</p></div>` : nothing;
}
