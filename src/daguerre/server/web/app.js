// The studio's page: starts it, renders its panes, and holds what belongs to the whole page: views, keys, theme, language.

import { api, listen } from "./core/api.js";
import { redo, requestOfLink, restoreSettings, store, undo, unsavedSettings } from "./core/form.js";
import { bytes, LANGUAGES, preferredLanguage, setLanguage, t } from "./core/language.js";
import { html, live, nothing, render } from "./core/lit.js";
import { cancel, handlers, planSoon, saveEditing, start, takeSettings, title } from "./core/run.js";
import { onUpdate, runningJob, state, update } from "./core/state.js";
import { drawBoard } from "./edit/board.js";
import { gallerySection, measure, reload } from "./panes/gallery.js";
import { drawEdges, planStrip } from "./panes/plan.js";
import { checkPromptSoon } from "./panes/prompt.js";
import { queueSection } from "./panes/queue.js";
import { settingsPane } from "./panes/settings.js";
import { stagePane } from "./panes/stage.js";
import { button } from "./parts/controls.js";
import { dialogArea, openKeys } from "./parts/dialog.js";
import { dropVeil, listenForFiles, openButton } from "./parts/drop.js";
import { attempt, failed, toastArea } from "./parts/toasts.js";

const VIEWS = { create: "Create", edit: "Edit", grid: "Grid", gallery: "Gallery" };
const THEMES = { auto: ["◐", "Colours: as the system"], light: ["○", "Colours: light"], dark: ["●", "Colours: dark"] };
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 760px)");

function chooseModel(event) {
	return attempt(async () => {
		const { current } = await api("/api/models/select", { model: event.target.value });
		update({ model: current ?? event.target.value });
		await loadModelFacts();
	});
}

// What depends on the model: its defaults, its words, the adapters that fit.
async function loadModelFacts() {
	const [samplers, vocabulary, adapters] = await Promise.all([api("/api/samplers"), api("/api/vocabulary"), api("/api/models/adapters")].map((each) => each.catch(() => null)));
	update({ samplers: samplers ?? state.samplers, suggestions: vocabulary?.suggestions ?? [], adapters: adapters ?? state.adapters });
	planSoon();
	checkPromptSoon();
}

function modelChip() {
	const { plan } = state;
	const fits = plan?.memory ? (plan.memory < plan.memory_free ? t("fits memory") : t("more than the free memory: {memory}", { memory: bytes(plan.memory_free) })) : null;
	return html`<span class="chip"><label class="visually-hidden" for="model">${t("Model")}</label>
		<select id="model" @change=${chooseModel}>${state.models.map((model) => html`<option value=${model.name} ?selected=${model.name === state.model}>${model.title ?? model.name}${model.family ? ` · ${model.family}` : ""}</option>`)}</select>
		${plan?.width ? html`<span class="more-facts">· ${plan.width}×${plan.height}${fits ? ` · ${fits}` : ""}</span>` : nothing}</span>`;
}

function changeLanguage() {
	const language = state.language === "en" ? "zh-CN" : "en";
	setLanguage(language).catch(failed);
	store({ language });
}

function changeTheme() {
	const names = Object.keys(THEMES);
	const theme = names[(names.indexOf(state.theme) + 1) % names.length];
	update({ theme });
	store({ theme });
}

function pageHeader() {
	const [sign, name] = THEMES[state.theme];
	return html`<header>
		<h1>Daguerre</h1>
		<nav class="tabs" aria-label=${t("Views")}>${Object.entries(VIEWS).map(([view, text]) => html`<a href="#${view}" aria-current=${view === state.view ? "page" : nothing}>${t(text)}</a>`)}</nav>
		<span class="grow"></span>
		<div class="chips">
			${openButton()} ${state.models.length ? modelChip() : nothing}
			<button class="chip" type="button" lang=${state.language === "en" ? "zh-CN" : "en"} @click=${changeLanguage}>EN / 中文</button>
			${button(sign, changeTheme, { label: t(name), kind: "chip" })} ${button("?", openKeys, { label: t("Keys"), kind: "chip room" })}
		</div>
	</header>`;
}

function page() {
	const full = state.view === "gallery";
	return html`<a class="skip" href="#stage" @click=${(event) => {
			event.preventDefault();
			document.getElementById("stage")?.focus();
		}}>${t("Skip to the image")}</a>
		<div class="app ${full ? "full" : ""}">
			${pageHeader()}
			${full
				? html`<main class="stage galleryview" id="stage" tabindex="-1">${gallerySection("full")}</main>`
				: html`${settingsPane()} ${stagePane()}
						<aside class="right" aria-label=${t("Queue and gallery")}>${queueSection()} ${gallerySection("sidebar")}</aside>
						${planStrip()}`}
		</div>
		${toastArea()} ${dialogArea()} ${dropVeil()}`;
}

function renderPage() {
	const dark = state.theme === "dark" || (state.theme === "auto" && systemDark.matches);
	document.documentElement.dataset.theme = dark ? "dark" : "light";
	document.documentElement.lang = state.language;
	document.title = title();
	render(page(), document.getElementById("app"));
	measure();
	drawBoard();
	drawEdges();
}

// The view of the address; a link with settings puts them into the form.
function route() {
	const request = requestOfLink(location.hash);
	if (request) {
		history.replaceState(null, "", "#create");
		takeSettings(request, t("The link’s settings are in the form."));
	}
	const view = location.hash.slice(1);
	update({ view: view in VIEWS ? view : "create", compare: null });
	planSoon();
}

const inText = (target) => target.closest?.("input, textarea, select, [contenteditable]");

function keys(event) {
	const control = event.ctrlKey || event.metaKey;
	if (control && event.key === "Enter") {
		event.preventDefault();
		event.target.dispatchEvent(new Event("change", { bubbles: true })); // takes what was typed, as leaving the field does
		if (state.editingJob) saveEditing();
		else start();
	} else if (control && event.key === ".") {
		const job = runningJob();
		if (job) cancel(job.id);
	} else if (control && event.key.toLowerCase() === "z" && !inText(event.target)) {
		event.preventDefault();
		(event.shiftKey ? redo : undo)();
	} else if (!control && !event.altKey && !inText(event.target) && event.key === "/") {
		event.preventDefault();
		document.getElementById("search")?.focus();
	} else if (!control && !inText(event.target) && event.key === "?") {
		openKeys();
	} else if (event.key === "Escape" && state.compare) {
		update({ compare: null });
	}
}

// The page is shown when all is known but the gallery, so that nothing that a person has typed or chosen changes under their hands.
async function load() {
	const gallery = reload();
	const facts = loadModelFacts();
	const [saved, models, jobs, status] = await Promise.all(
		[api("/api/settings"), api("/api/models"), api("/api/jobs"), api("/api/status")].map((each) => each.catch(failed)),
	);
	const settings = { ...saved, ...unsavedSettings() };
	restoreSettings(settings);
	await setLanguage(settings.language in LANGUAGES ? settings.language : preferredLanguage()).catch(failed);
	update({
		theme: settings.theme in THEMES ? settings.theme : "auto",
		layout: settings.layout ?? {},
		models: models?.models ?? [],
		model: models?.current ?? null,
		jobs: jobs?.jobs ?? [],
		paused: jobs?.paused ?? false,
		pausedReason: jobs?.paused_reason ?? null,
		limit: jobs?.limit ?? 64,
		status: status ?? null,
		shownJob: jobs?.jobs?.find((job) => job.state === "running")?.id ?? null,
	});
	await facts;
	onUpdate(renderPage);
	route();
	await gallery;
}

systemDark.addEventListener("change", () => update());
narrow.addEventListener("change", () => update());
addEventListener("resize", () => update());
addEventListener("hashchange", route);
addEventListener("keydown", keys);
listenForFiles();
load().finally(() => listen(handlers));

