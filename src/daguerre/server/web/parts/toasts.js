// Short messages at the bottom, such as "Deleted. Undo", and what a screen reader announces.

import { t } from "../core/language.js";
import { html, nothing, repeat } from "../core/lit.js";
import { state, update } from "../core/state.js";

const SHOWN_MS = 12000;
let count = 0;

// Show a message; `action` is {label, run}, such as undo.
export function toast(text, action = null, kind = "note") {
	const entry = { id: ++count, text, action, kind };
	update({ toasts: [...state.toasts.filter((each) => each.text !== text), entry].slice(-3) });
	setTimeout(() => dismiss(entry), SHOWN_MS);
}

// Show what went wrong.
export function failed(error) {
	if (error.name === "AbortError") return;
	toast(error.code === "offline" ? t("The server does not answer. Your settings are kept; this page goes on when it is back.") : error.message, null, "warn");
}

// Run an action; show what goes wrong.
export const attempt = (action) => action().catch(failed);

export function announce(text) {
	update({ announcement: text });
}

function dismiss(entry) {
	update({ toasts: state.toasts.filter((each) => each !== entry) });
}

export function toastArea() {
	const act = (entry) => {
		dismiss(entry);
		entry.action.run();
	};
	return html`<div class="toasts" role="status" aria-live="polite">
			${repeat(state.toasts, (entry) => entry.id, (entry) => html`<div class="toast ${entry.kind}">
					<span>${entry.text}</span>
					${entry.action ? html`<button class="button" type="button" @click=${() => act(entry)}>${entry.action.label}</button>` : nothing}
					<button class="quiet" type="button" aria-label=${t("Close")} @click=${() => dismiss(entry)}>✕</button>
				</div>`)}
		</div>
		<div class="visually-hidden" role="status" aria-live="polite">${state.announcement}</div>`;
}
