// The queue: what runs, what comes, in which order; finished jobs leave it.

import { api } from "../core/api.js";
import { duration, t } from "../core/language.js";
import { html, nothing, repeat } from "../core/lit.js";
import { cancel, editJob, progressOf } from "../core/run.js";
import { queuedJobs, runningJob, state, update } from "../core/state.js";
import { button, progressBar } from "../parts/controls.js";
import { attempt, failed } from "../parts/toasts.js";

const SHOWN = 30; // queued jobs in the list
let dragged = null;

// Move a queued job before another one; null is the end.
async function moveBefore(job, before) {
	try {
		await api(`/api/jobs/${job.id}/move`, { before: before?.id ?? null });
		const list = await api("/api/jobs");
		update({ jobs: list.jobs });
	} catch (error) {
		if (error.status !== 409) failed(error); // 409: it runs by now
	}
}

async function moveBy(job, by, event) {
	const queued = queuedJobs();
	const at = queued.findIndex((each) => each.id === job.id);
	const before = by < 0 ? queued[at - 1] : (queued[at + 2] ?? null);
	const id = event.currentTarget.id;
	await moveBefore(job, before);
	requestAnimationFrame(() => document.getElementById(id)?.focus());
}

function pause() {
	return attempt(async () => {
		const { paused } = await api("/api/queue/pause", { paused: !state.paused });
		update({ paused, pausedReason: null });
	});
}

const nameOf = (job) => (job.kind === "attention" ? t("attention of each word") : job.kind === "grid" ? t("grid: {prompt}", { prompt: job.request?.prompt ?? "" }) : job.request?.prompt || t("no prompt"));

function running(job) {
	const progress = progressOf(job);
	const left = progress.seconds_left ? ` · ${duration(progress.seconds_left)}` : "";
	const show = () => update({ following: true, shownJob: job.id });
	return html`<li class="job">
		${progress.preview ? html`<img src=${progress.preview} alt="">` : html`<span class="thumb"></span>`}
		<div class="about">
			<button class="name" type="button" @click=${show}>${nameOf(job)}</button>
			${progressBar(nameOf(job), progress)}
			<p class="hint">${progress.text}${left}</p>
		</div>
		${button("✕", () => cancel(job.id), { label: t("Cancel {name}", { name: nameOf(job) }), kind: "button small" })}
	</li>`;
}

function waiting(job, i) {
	const all = queuedJobs();
	const drop = (event) => {
		event.preventDefault();
		if (dragged && dragged !== job) moveBefore(dragged, all.indexOf(dragged) < i ? (all[i + 1] ?? null) : job);
		dragged = null;
	};
	const names = { name: nameOf(job) };
	return html`<li class="job" draggable="true" @dragstart=${() => (dragged = job)} @dragover=${(event) => dragged && event.preventDefault()} @drop=${drop}>
		<span class="thumb number">${i + 1}</span>
		<div class="about"><span class="name">${nameOf(job)}</span>
			<p class="hint">${i === 0 ? t("next") : ""}${i === 0 && job.seconds_left ? " · " : ""}${job.seconds_left ? duration(job.seconds_left) : ""}${job.client !== "page" ? ` · ${job.client}` : ""}</p></div>
		<span class="tools">
			${button("↑", (event) => moveBy(job, -1, event), { id: `up-${job.id}`, label: t("Earlier: {name}", names), disabled: i === 0, kind: "quiet" })}
			${button("↓", (event) => moveBy(job, 1, event), { id: `down-${job.id}`, label: t("Later: {name}", names), disabled: i === all.length - 1, kind: "quiet" })}
			${job.kind === "generate" ? button("✎", () => editJob(job), { label: t("Edit {name}", names), kind: "quiet" }) : nothing}
		</span>
		${button("✕", () => cancel(job.id), { label: t("Cancel {name}", names), kind: "button small" })}
	</li>`;
}

export function queueSection() {
	const queued = queuedJobs();
	const now = runningJob();
	const count = queued.length + (now ? 1 : 0);
	const rest = queued.length - SHOWN;
	return html`<section class="sec" aria-labelledby="queue-title">
		<div class="between">
			<h2 id="queue-title">${count ? t("Queue · {n}", { n: count }) : t("Queue")}</h2>
			${button(state.paused ? t("go on") : t("pause"), pause, { kind: "link" })}
		</div>
		${state.paused ? html`<p class="hint warn">${state.pausedReason ?? t("Paused. Jobs wait; nothing is lost.")}</p>` : nothing}
		${count ? html`<ol class="jobs">${now ? running(now) : nothing}${repeat(queued.slice(0, SHOWN), (job) => job.id, waiting)}</ol>` : nothing}
		${rest > 0 ? html`<p class="hint">${t("and {n} more", { n: rest })}</p>` : nothing}
		${!count && !state.paused ? html`<p class="hint">${t("Nothing waits.")}</p>` : nothing}
	</section>`;
}
