// The gallery: every image that was made, newest first, as a list of which only the visible part is rendered.

import { api } from "../core/api.js";
import { number, t } from "../core/language.js";
import { html, live, nothing, repeat } from "../core/lit.js";
import { debounce, state, update } from "../core/state.js";
import { attempt, failed, toast } from "../parts/toasts.js";

const PAGE = 100; // images in one answer
const GAP = 6;
const NARROW = 760; // pixels; one column
const SPARE_ROWS = 2; // rendered above and below the visible ones
const FILTERS = [["", "All images"], ["deleted=1", "Deleted"]];
const CELL = { sidebar: 80, full: 150 }; // least width in pixels

const list = { images: [], total: 0, next: null, search: "", filter: "", loading: false, loaded: false };
const box = { width: 268, height: 600, top: 0 };
let marked = null; // id of the image that the arrow keys reached
let version = 0; // of the search, so that a late answer of an earlier one is dropped

export async function reload() {
	const own = ++version;
	list.loading = true;
	try {
		const answer = await api(query());
		if (own !== version) return;
		Object.assign(list, { images: answer.images, total: answer.total, next: answer.next, loaded: true });
		box.top = 0;
		document.getElementById("gallery")?.scrollTo(0, 0);
	} catch (error) {
		failed(error);
	} finally {
		list.loading = false;
		update();
	}
}

async function loadMore() {
	if (list.loading || !list.next) return;
	const own = version;
	list.loading = true;
	try {
		const answer = await api(query(list.next));
		if (own !== version) return;
		list.images = [...list.images, ...answer.images];
		Object.assign(list, { total: answer.total, next: answer.next });
	} catch (error) {
		failed(error);
	} finally {
		list.loading = false;
		update();
	}
}

function query(before = null) {
	const search = list.search.trim() ? `&search=${encodeURIComponent(list.search.trim())}` : "";
	return `/api/images?limit=${PAGE}${before === null ? "" : `&before=${encodeURIComponent(before)}`}${search}${list.filter ? `&${list.filter}` : ""}`;
}

const searchSoon = debounce(reload, 200);
const reloadSoon = debounce(reload, 300);

export function addImage(image) {
	if (list.images.some((each) => each.id === image.id)) return;
	if (list.search || list.filter) return reloadSoon();
	list.images = [image, ...list.images];
	list.total += 1;
	update();
}

// Take deleted images out, and load again if some came back.
export function changeImages(deleted, restored) {
	const gone = new Set(deleted);
	if (list.filter === "deleted=1") return reloadSoon();
	const kept = list.images.filter((image) => !gone.has(image.id));
	list.total -= list.images.length - kept.length;
	if (gone.has(state.shown?.id)) {
		const at = list.images.findIndex((image) => image.id === state.shown.id);
		update({ shown: list.images.slice(at).find((image) => !gone.has(image.id)) ?? kept.at(-1) ?? null });
	}
	list.images = kept;
	if (restored.length) reloadSoon();
	update();
}

export const galleryImages = () => list.images;

// The image before (−1) or after (1) another one in the gallery.
export function neighbour(id, by) {
	const at = list.images.findIndex((image) => image.id === id);
	return at < 0 ? undefined : list.images[at + by];
}

// Delete images; they can be brought back by the message's button, or for 30 days from the list of deleted images.
export async function deleteImages(ids) {
	try {
		await api("/api/images/delete", { ids });
	} catch (error) {
		failed(error);
		return;
	}
	changeImages(ids, []);
	toast(ids.length === 1 ? t("The image is deleted.") : t("{n} images are deleted.", { n: ids.length }), { label: t("Undo"), run: () => restore(ids) });
}

function restore(ids) {
	return attempt(async () => {
		await api("/api/images/restore", { ids });
		await reload();
		const image = list.images.find((each) => each.id === ids[0]);
		if (image) update({ shown: image });
	});
}

// Show an image; in a comparison it becomes the other side.
export function open(image) {
	marked = image.id;
	if (list.filter === "deleted=1") return restore([image.id]);
	if (state.compare) return update({ compare: { ...state.compare, b: image } });
	update({ shown: image, shownJob: null, following: false });
	if (innerWidth <= NARROW) scrollTo(0, 0); // the image is above the gallery
	if (state.view === "gallery" || state.view === "edit") location.hash = "#create";
}

// Columns, cell size and rows for the measured width.
function layout(kind) {
	const columns = Math.max(2, Math.floor((box.width + GAP) / (CELL[kind] + GAP)));
	const cell = (box.width - GAP * (columns - 1)) / columns;
	return { columns, step: cell + GAP, rows: Math.ceil(list.total / columns) };
}

// Measure the list after each render; a change renders again.
export function measure() {
	const element = document.getElementById("gallery");
	if (!element) return;
	const style = getComputedStyle(element);
	const width = element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
	if (Math.abs(width - box.width) > 0.5 || element.clientHeight !== box.height) {
		Object.assign(box, { width, height: element.clientHeight });
		update();
	}
}

function scrolled(event) {
	box.top = event.target.scrollTop;
	update();
}

function keys(event, kind) {
	const { columns, step } = layout(kind);
	const at = list.images.findIndex((image) => image.id === event.target.closest("button")?.dataset.id);
	const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: list.images.length - 1 - at }[event.key];
	if (event.key === "Delete" && at >= 0) {
		const next = list.images[at + 1] ?? list.images[at - 1];
		deleteImages([list.images[at].id]).then(() => next && focusImage(next.id));
	} else if (by !== undefined && at >= 0) {
		event.preventDefault();
		const image = list.images[Math.min(Math.max(at + by, 0), list.images.length - 1)];
		const row = Math.floor(list.images.indexOf(image) / columns);
		const element = document.getElementById("gallery");
		if (row * step < element.scrollTop) element.scrollTop = row * step;
		else if ((row + 1) * step > element.scrollTop + element.clientHeight - 20) element.scrollTop = (row + 1) * step - element.clientHeight + 20;
		box.top = element.scrollTop;
		marked = image.id;
		update();
		focusImage(image.id);
	}
}

function focusImage(id) {
	requestAnimationFrame(() => requestAnimationFrame(() => document.querySelector(`#gallery [data-id="${CSS.escape(id)}"]`)?.focus({ preventScroll: true })));
}

function item(image, index) {
	const current = image.id === state.shown?.id;
	const tabbable = marked ? image.id === marked : index === 0;
	return html`<li aria-setsize=${list.total} aria-posinset=${index + 1}>
		<button type="button" data-id=${image.id} tabindex=${tabbable ? 0 : -1} aria-current=${current ? "true" : nothing} @click=${() => open(image)}
			title=${image.prompt || nothing}>
			<img src=${image.thumbnail} loading="lazy" decoding="async" alt=${image.prompt || t("image without a prompt")}>
		</button>
	</li>`;
}

function items(kind) {
	const { columns, step, rows } = layout(kind);
	const first = Math.max(0, Math.floor(box.top / step) - SPARE_ROWS);
	const last = Math.min(rows, Math.ceil((box.top + box.height) / step) + SPARE_ROWS);
	const from = first * columns;
	const images = list.images.slice(from, last * columns);
	if (last * columns > list.images.length && list.next) loadMore();
	const anyTabbable = images.some((image) => image.id === marked);
	if (!anyTabbable && images.length) marked = images[Math.min(SPARE_ROWS * columns, images.length - 1) * (first > 0 ? 1 : 0)].id;
	return html`<ul class="cells" .style=${`height:${rows * step}px;--columns:${columns};padding-top:${first * step}px;--cell:${step - GAP}px`}>
		${repeat(images, (image) => image.id, (image, i) => item(image, from + i))}
	</ul>`;
}

function empty() {
	if (!list.loaded) return nothing;
	if (list.search || list.filter) return html`<p class="hint pad">${t("No image matches.")}</p>`;
	return html`<p class="hint pad">${t("Your images will be here.")}</p>`;
}

// The search field and the images; `kind` is "sidebar" or "full".
export function gallerySection(kind) {
	const search = (event) => {
		list.search = event.target.value;
		searchSoon();
	};
	const filter = (event) => {
		list.filter = event.target.value;
		reload();
	};
	const placeholder = list.search || list.filter || list.total < 2 ? t("Search") : t("Search {n} images", { n: number(list.total) });
	return html`<section class="gallery ${kind}" aria-label=${t("Gallery")}>
		<div class="search">
			<input class="text" id="search" type="search" placeholder=${placeholder} aria-label=${t("Search the gallery")} .value=${live(list.search)} @input=${search}>
			${kind === "full"
				? html`<select class="text" aria-label=${t("Show")} @change=${filter}>${FILTERS.map(([value, text]) => html`<option value=${value} ?selected=${value === list.filter}>${t(text)}</option>`)}</select>`
				: nothing}
			<span class="visually-hidden" role="status">${list.loaded ? t("{n} images", { n: number(list.total) }) : ""}</span>
		</div>
		${list.filter === "deleted=1" ? html`<p class="hint pad">${t("Choose an image to bring it back. Deleted images stay for 30 days.")}</p>` : nothing}
		<div class="gal" id="gallery" @scroll=${scrolled} @keydown=${(event) => keys(event, kind)}>${list.images.length ? items(kind) : empty()}</div>
	</section>`;
}
