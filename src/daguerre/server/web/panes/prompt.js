// The prompt field: unknown words underlined, weights by key, suggestions, and the history of prompts.

import { api } from "../core/api.js";
import { change, form, promptHistory } from "../core/form.js";
import { number, t } from "../core/language.js";
import { html, live, nothing } from "../core/lit.js";
import { debounce, state, update } from "../core/state.js";

const WEIGHT_STEP = 0.1;
const SHOWN_HISTORY = 30;
const MAX_PROMPT = 32_000; // characters, as the server takes
let historyOpen = false;
let recalled = -1; // position in the history that Alt+↑ shows; −1 is the text being written
let draft = "";

const checkSoon = debounce(checkPrompt, 250);

// Ask the server which words it knows and whether the syntax is right.
async function checkPrompt() {
	const prompt = form.prompt;
	try {
		const found = await api("/api/prompt", { prompt, negative_prompt: form.negative_prompt });
		if (prompt === form.prompt) update({ check: { ...found, prompt } });
	} catch {
		update({ check: null });
	}
}

// Check the prompt after it changed by other means than typing.
export { checkSoon as checkPromptSoon };

function typed(name, text) {
	recalled = -1;
	change({ [name]: text });
	checkSoon();
}

// A text with a weight, "(cat:1.1)", around the selection or the word at the caret, changed by `by`: the new text and selection.
export function changeWeight(text, start, end, by) {
	if (start === end) {
		while (start > 0 && /[^\s,()[\]:]/.test(text[start - 1])) start -= 1;
		while (end < text.length && /[^\s,()[\]:]/.test(text[end])) end += 1;
	}
	while (start < end && /\s/.test(text[start])) start += 1;
	while (end > start && /\s/.test(text[end - 1])) end -= 1;
	if (start === end) return null;
	let inner = text.slice(start, end);
	let weight = 1;
	const whole = /^\(([^()]*):(-?[\d.]+)\)$/.exec(inner);
	const after = /^:(-?[\d.]+)\)/.exec(text.slice(end));
	if (whole) {
		[, inner, weight] = [null, whole[1], Number(whole[2])];
	} else if (after && text[start - 1] === "(") {
		weight = Number(after[1]);
		start -= 1;
		end += after[0].length;
	}
	weight = Math.round((weight + by) * 100) / 100;
	const changed = weight === 1 ? inner : `(${inner}:${weight})`;
	const from = start + (weight === 1 ? 0 : 1);
	return { text: text.slice(0, start) + changed + text.slice(end), replaced: [start, end, changed], select: [from, from + inner.length] };
}

// Replace a part of a text field so that the browser's own undo can take it back.
function replaceRange(field, start, end, text) {
	field.setSelectionRange(start, end);
	if (!document.execCommand("insertText", false, text)) {
		field.setRangeText(text, start, end, "end");
		field.dispatchEvent(new Event("input", { bubbles: true }));
	}
}

function promptKeys(event) {
	const field = event.target;
	const up = event.key === "ArrowUp";
	if (!up && event.key !== "ArrowDown") return;
	if (event.ctrlKey || event.metaKey) {
		const result = changeWeight(field.value, field.selectionStart, field.selectionEnd, up ? WEIGHT_STEP : -WEIGHT_STEP);
		if (!result) return;
		event.preventDefault();
		replaceRange(field, ...result.replaced);
		field.setSelectionRange(...result.select);
	} else if (event.altKey && promptHistory.length) {
		event.preventDefault();
		if (recalled < 0) draft = form.prompt;
		recalled = Math.min(Math.max(recalled + (up ? 1 : -1), -1), promptHistory.length - 1);
		const text = recalled < 0 ? draft : promptHistory[recalled];
		change({ prompt: text });
		checkSoon();
	}
}

// The prompt in pieces, the unknown words marked, to lie under the text field.
function marked(check) {
	const text = form.prompt;
	if (check?.prompt !== text) return text;
	const signs = [...text]; // positions count characters, and JavaScript's own count halves of some
	const part = (start, end) => signs.slice(start, end).join("");
	const pieces = [];
	let at = 0;
	for (const { start, end } of check.unknown.toSorted((a, b) => a.start - b.start)) {
		pieces.push(part(at, start), html`<mark class="unknown">${part(start, end)}</mark>`);
		at = end;
	}
	return [...pieces, part(at), "\n"];
}

function unknownSentence({ unknown }) {
	const near = unknown[0].nearest?.length ? t(" Near: {words}.", { words: unknown[0].nearest.slice(0, 3).join(", ") }) : "";
	return t("{words} never occurred in the captions of this model.", { words: unknown.map(({ word }) => `“${word}”`).join(", ") }) + near;
}

function hints() {
	const { check } = state;
	if (form.prompt.length >= MAX_PROMPT) return html`<p class="hint warn" id="prompt-hint" role="status">${t("A prompt has at most {n} characters; the rest was left out.", { n: number(MAX_PROMPT) })}</p>`;
	const current = check?.prompt === form.prompt ? check : null;
	if (current?.error) return html`<p class="hint warn" id="prompt-hint" role="status">${current.error.message}</p>`;
	if (current?.unknown?.length) return html`<p class="hint" id="prompt-hint" role="status">${unknownSentence(current)}</p>`;
	if (current?.warnings?.length) return html`<p class="hint" id="prompt-hint" role="status">${current.warnings[0].message}</p>`;
	if (!state.suggestions.length) return nothing;
	const shown = state.suggestions.slice(0, 3);
	return html`<p class="hint" id="prompt-hint">
		${t("Try:")}
		${shown.map((text, i) => html`${i ? " · " : ""}<button class="link" type="button" @click=${() => take(text)}>${text}</button>`)}
	</p>`;
}

function take(text) {
	historyOpen = false;
	typed("prompt", text);
	document.getElementById("f-prompt")?.focus();
}

function history() {
	if (!historyOpen) return nothing;
	const close = (event) => {
		if (event.key !== "Escape") return;
		event.stopPropagation();
		historyOpen = false;
		update();
		document.getElementById("prompt-history")?.focus();
	};
	return html`<ul class="history" aria-label=${t("Earlier prompts")} @keydown=${close}>
		${promptHistory.slice(0, SHOWN_HISTORY).map((text) => html`<li><button type="button" @click=${() => take(text)}>${text}</button></li>`)}
	</ul>`;
}

function scrolled(event) {
	event.target.previousElementSibling.scrollTop = event.target.scrollTop;
}

export function promptFields() {
	const toggle = () => {
		historyOpen = !historyOpen;
		update();
	};
	const described = state.check || state.suggestions.length ? "prompt-hint" : nothing;
	return html`<div class="labelled">
			<div class="between">
				<label for="f-prompt">${t("Prompt")}</label>
				${promptHistory.length
					? html`<button class="link" type="button" id="prompt-history" aria-expanded=${historyOpen} @click=${toggle}>${t("Earlier")}</button>`
					: nothing}
			</div>
			${history()}
			<div class="marked">
				<div class="marks" aria-hidden="true">${marked(state.check)}</div>
				<textarea id="f-prompt" rows="3" maxlength=${MAX_PROMPT} spellcheck="false" autocapitalize="none" aria-describedby=${described}
					placeholder=${t("What the image shows")} .value=${live(form.prompt)} @scroll=${scrolled} @keydown=${promptKeys}
					@input=${(event) => typed("prompt", event.target.value)}></textarea>
			</div>
			${hints()}
		</div>
		<div class="labelled">
			<label for="f-negative_prompt">${t("Negative prompt")}</label>
			<textarea id="f-negative_prompt" rows="1" maxlength=${MAX_PROMPT} spellcheck="false" .value=${live(form.negative_prompt)} @keydown=${promptKeys}
				@input=${(event) => typed("negative_prompt", event.target.value)}></textarea>
		</div>`;
}
