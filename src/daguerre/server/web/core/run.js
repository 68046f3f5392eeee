// Starting, changing and cancelling jobs, and what the page does with the events of the server.

import { editTask, openInEditor } from "../edit/editor.js";
import { addImage, changeImages } from "../panes/gallery.js";
import { checkPromptSoon } from "../panes/prompt.js";
import { gridBody } from "../parts/grid.js";
import { announce, attempt, failed, toast } from "../parts/toasts.js";
import { api } from "./api.js";
import { change, completeRequest, form, fromRequest, linkTo, onFormChange, remember, replaceForm, toRequest, undo } from "./form.js";
import { duration, t } from "./language.js";
import { debounce, jobById, runningJob, state, update } from "./state.js";

const FINISHED = new Set(["done", "failed", "cancelled"]);
let planning = null; // the request for a plan that is on its way
let kept = null; // the form before a queued job's settings came into it

// Ask what the run of the present settings takes.
export const planSoon = debounce(async () => {
	planning?.abort();
	planning = new AbortController();
	try {
		const request = toRequest(state.view === "edit" ? await editTask({ forPlan: true }) : null);
		update({ plan: await api("/api/plan", { request, model: state.model }, { signal: planning.signal }) });
	} catch (error) {
		if (error.name !== "AbortError" && error.code !== "offline") update({ plan: { nodes: [], edges: [], error: error.message } });
	}
}, 200);
onFormChange(planSoon);

async function post(request) {
	const job = await api("/api/jobs", { request, model: state.model });
	remember(form.prompt);
	addJob(job);
	update({ following: true, shownJob: runningJob() ? state.shownJob : job.id });
	if (state.view === "edit") location.hash = "#create";
	announce(t("The job is in the queue."));
	for (const warning of job.warnings ?? []) toast(warning);
}

// Start what the view shows: a run, an edit of an image, or a grid.
export function start() {
	return attempt(async () => {
		const unfinished = form.controls.find((each) => !each.map);
		if (unfinished) throw new Error(t("Choose the image that the ControlNet {name} follows.", { name: unfinished.name }));
		if (state.view === "grid") {
			addJob(await api("/api/grids", gridBody()));
			remember(form.prompt);
			update({ following: true });
		} else {
			await post(toRequest(state.view === "edit" ? await editTask() : null));
		}
	});
}

export function generate(request) {
	return post(request).catch(failed);
}

// Cancel a job; it ends within one step.
export function cancel(id) {
	return api(`/api/jobs/${id}/cancel`, {}).catch(failed);
}

// Put the settings of an image or a dropped file into the form.
export function takeSettings(request, said = t("The settings are in the form.")) {
	replaceForm(fromRequest(request));
	checkPromptSoon();
	toast(said, { label: t("Undo"), run: undo });
}

export const actions = {
	suggest(text) {
		change({ prompt: text });
		checkPromptSoon();
		return start();
	},
	again: (image) => generate(image.request),
	vary(image) {
		const seed = Math.floor(Math.random() * 2 ** 31);
		return generate({ ...image.request, variation: { seed, strength: 0.3 } });
	},
	enlarge(image) {
		return generate({ ...image.request, task: { name: "hires", scale: 2, strength: 0.55, upscaler: "lanczos" } });
	},
	edit: (image) => openInEditor(image),
	settings: (image) => takeSettings(image.request),
	async link(image) {
		const link = linkTo(image.request);
		try {
			await navigator.clipboard.writeText(link);
			toast(t("The link is copied; it carries all settings."));
		} catch {
			location.hash = new URL(link).hash;
		}
	},
};

// Bring the settings of a queued job into the form; `saveEditing` writes them back.
export function editJob(job) {
	kept = { ...form };
	replaceForm(fromRequest(job.request));
	update({ editingJob: job.id });
	document.getElementById("f-prompt")?.focus();
}

export async function saveEditing() {
	const { task: before } = jobById(state.editingJob)?.request ?? {};
	try {
		putJob(await api(`/api/jobs/${state.editingJob}/edit`, { request: completeRequest(before?.image ? before : null) }));
		toast(t("The job is changed."));
	} catch (error) {
		failed(error);
		return;
	}
	cancelEditing();
}

export function cancelEditing() {
	update({ editingJob: null });
	if (kept) change(kept);
	kept = null;
}

// Add a job that was just submitted, unless an event has already said more about it.
export function addJob(job) {
	if (!jobById(job.id)) putJob(job);
}

// Insert or replace a job in the list, which has running, queued and finished jobs in this order.
function putJob(job) {
	const known = state.jobs.some((each) => each.id === job.id);
	const jobs = known ? state.jobs.map((each) => (each.id === job.id ? job : each)) : [...state.jobs, job];
	update({ jobs: sorted(jobs) });
}

function sorted(jobs) {
	const rank = (each) => (each.state === "running" ? 0 : each.state === "queued" ? 1 : 2);
	return jobs.toSorted((a, b) => rank(a) - rank(b) || (rank(a) === 1 ? (a.position ?? 1e9) - (b.position ?? 1e9) : 0));
}

// Ask for all jobs again, as after the connection was lost.
async function refresh() {
	try {
		const { jobs, paused, paused_reason: pausedReason } = await api("/api/jobs");
		const before = state.jobs;
		update({ jobs, paused, pausedReason });
		jobs.filter((job) => FINISHED.has(job.state) && before.some((each) => each.id === job.id && !FINISHED.has(each.state))).forEach(finished);
	} catch {
		update({ connected: false });
	}
}
const refreshSoon = debounce(refresh, 100);

function jobChanged(job) {
	const before = jobById(job.id)?.state;
	putJob(job);
	if (job.state === "running" && state.following) update({ shownJob: job.id });
	if (FINISHED.has(job.state) && !FINISHED.has(before)) finished(job);
}

function finished(job) {
	state.progress.delete(job.id);
	if (state.editingJob === job.id) cancelEditing();
	if (job.state === "failed") toast(job.error?.message ?? t("The job failed."), null, "warn");
	if (job.state === "done") announce(t("The image is ready: {prompt}", { prompt: job.request?.prompt ?? "" }));
	if (job.state === "cancelled" && state.shownJob === job.id) update({ shownJob: null });
	for (const warning of job.warnings ?? []) if (!state.toasts.some((each) => each.text === warning)) toast(warning);
}

export const handlers = {
	open() {
		if (!state.connected) refresh();
		update({ connected: true });
	},
	lost: () => update({ connected: false }),
	job: ({ value }) => jobChanged(value),
	step(event) {
		state.progress.set(event.job, { ...state.progress.get(event.job), ...event, preview: event.preview ?? state.progress.get(event.job)?.preview });
		update(state.following && state.shownJob !== event.job ? { shownJob: event.job } : {});
	},
	image({ job, value }) {
		addImage(value);
		if (state.following && (state.shownJob === job || !state.shownJob)) update({ shown: value, shownJob: job });
	},
	queue({ value }) {
		update({ paused: value.paused, pausedReason: value.paused_reason ?? null });
		const order = new Map(value.queued.map((id, i) => [id, i]));
		const queued = state.jobs.filter((job) => job.state === "queued");
		if (queued.length !== order.size || queued.some((job) => !order.has(job.id))) refreshSoon();
		update({ jobs: sorted(state.jobs.map((job) => (order.has(job.id) ? { ...job, position: order.get(job.id) } : job))) });
	},
	images: ({ deleted, restored }) => changeImages(deleted ?? [], restored ?? []),
};

// How far a job is: the last event, or what the job said; `text` is its stage in words.
export function progressOf(job) {
	const progress = state.progress.get(job.id) ?? { ...job.progress, seconds_left: job.seconds_left };
	const steps = t("step {step} of {steps}", { step: progress.step ?? 0, steps: progress.steps || "?" });
	return { ...progress, fraction: progress.fraction ?? 0, text: progress.stage === "loading" ? t("opening the model") : steps };
}

// The title of the browser's tab: how far the running job is.
export function title() {
	const job = runningJob();
	if (!job) return "Daguerre";
	const { seconds_left: left, fraction } = progressOf(job);
	const share = `${Math.round(100 * fraction)} %`;
	return `${share}${left ? ` · ${duration(left)}` : ""} · ${job.request?.prompt ?? ""} · Daguerre`;
}
