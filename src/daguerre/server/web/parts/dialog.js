// One modal dialog at a time; the browser keeps the focus inside and closes it with Escape.

import { t } from "../core/language.js";
import { html, nothing } from "../core/lit.js";
import { update } from "../core/state.js";

let content = null; // {title, body, closed}

// Open a dialog; `body` is a function that renders its content.
export function openDialog(title, body, closed = () => {}) {
	content = { title, body, closed };
	update();
	requestAnimationFrame(() => {
		const dialog = document.getElementById("dialog");
		if (dialog && !dialog.open) dialog.showModal();
	});
}

export function closeDialog() {
	document.getElementById("dialog")?.close();
}

function closed() {
	const last = content;
	content = null;
	update();
	last?.closed();
}

// Ask for a name; `take` gets it.
export function askName(title, take) {
	const submit = (event) => {
		event.preventDefault();
		const name = new FormData(event.target).get("name").trim().slice(0, 60);
		closeDialog();
		if (name) take(name);
	};
	openDialog(title, () => html`<form class="stack" @submit=${submit}>
		<div class="labelled"><label for="asked">${t("Name")}</label><input class="text" id="asked" name="name" autocomplete="off" autofocus required maxlength="60"></div>
		<div class="buttons"><button class="button main">${t("Save")}</button></div>
	</form>`);
}

const KEYS = [
	["Ctrl ↵", "Generate"],
	["Ctrl .", "Cancel the running job"],
	["Ctrl Z", "Undo a setting or a brush stroke; also Ctrl ⇧ Z"],
	["Ctrl ↑ ↓", "In a prompt: more or less weight for the word or the selection"],
	["Alt ↑ ↓", "In a prompt: earlier prompts"],
	["/", "Search the gallery"],
	["← → ↑ ↓", "In the gallery: choose; Enter opens, Delete deletes"],
	["[ ]", "In the editor: brush size; X eraser, I invert, arrows move the brush, Space paints"],
	["?", "This list"],
];

export function openKeys() {
	openDialog(t("Keys"), () => html`<dl class="keys">${KEYS.map(([key, text]) => html`<dt><kbd>${key}</kbd></dt><dd>${t(text)}</dd>`)}</dl>`);
}

export function dialogArea() {
	return html`<dialog id="dialog" aria-labelledby="dialog-title" @close=${closed}>
		${content
			? html`<div class="between"><h2 id="dialog-title">${content.title}</h2>
						<button class="quiet" type="button" aria-label=${t("Close")} @click=${closeDialog}>✕</button></div>
					${content.body()}`
			: nothing}
	</dialog>`;
}
