// The plan strip: how the image is made, as a small graph. A node leads to its settings and lights up while it works.

import { form, showMore } from "../core/form.js";
import { t } from "../core/language.js";
import { html, nothing, repeat, svg } from "../core/lit.js";
import { runningJob, state, update } from "../core/state.js";

const MAIN = new Set(["prompt", "conditioning", "guidance", "denoiser", "sampler", "hires", "refiner", "decode", "output"]); // the upper row
let lines = []; // of the edges, measured after a render

// The column of each node: its longest way from a node without inputs; what is not in the main row is as near as possible to where it leads.
export function columnsOf(nodes, edges) {
	const column = new Map(nodes.map((node) => [node.id, 0]));
	for (let round = 0; round < nodes.length; round += 1) {
		for (const [from, to] of edges) {
			if (column.has(from) && column.has(to) && column.get(to) <= column.get(from) && column.get(from) + 1 < nodes.length) column.set(to, column.get(from) + 1);
		}
	}
	for (const node of nodes.toReversed()) {
		const targets = edges.filter(([from]) => from === node.id).map(([, to]) => column.get(to));
		if (targets.length && !MAIN.has(node.kind)) column.set(node.id, Math.min(...targets) - (node.kind === "schedule" ? 0 : 1));
	}
	return column;
}

// The states of the nodes while a job runs: "done" before the node at work, "on" for it.
function states(nodes, column) {
	const job = runningJob();
	const progress = job && state.progress.get(job.id);
	if (!job || job.kind !== "generate" || !progress) return { of: () => "", progress: null };
	const node = nodes.find((each) => each.id === progress.node) ?? nodes.find((each) => each.kind === "sampler");
	if (!node) return { of: () => "", progress };
	const ended = progress.fraction >= 1;
	const at = column.get(node.id);
	const around = new Set(["guidance", "denoiser"]);
	return {
		progress,
		of(each) {
			if (each === node || around.has(each.kind)) return ended ? "done" : "on";
			return column.get(each.id) <= at || ended ? "done" : "";
		},
	};
}

// Show the field that sets a node, and put the focus on it.
function reveal(node) {
	const ids = { task: "f-task", variation: "f-variation", image: "f-image", strength: "f-strength" };
	const names = node.fields?.length ? node.fields : [node.kind];
	const find = () => names.map((name) => document.getElementById(ids[name] ?? `f-${name}`)).find(Boolean);
	const focus = () => {
		const field = find();
		const more = field?.closest("details");
		if (more) {
			more.open = true;
			showMore(true);
		}
		field?.scrollIntoView({ block: "center" });
		field?.focus();
	};
	if (state.view === "gallery") {
		location.hash = "#create";
		requestAnimationFrame(() => requestAnimationFrame(focus));
	} else focus();
}

export function planStrip() {
	const { nodes = [], edges = [] } = state.plan ?? {};
	if (!nodes.length) return html`<footer class="plan" aria-label=${t("How the image is made")}></footer>`;
	const column = columnsOf(nodes, edges);
	const last = Math.max(...column.values());
	const { of, progress } = states(nodes, column);
	const plain = (node) => (node.kind === "seed" && form.seed === "" ? t("new each time") : node.detail);
	const detail = (node, mode) => (mode === "on" && progress && node.kind !== "guidance" && node.kind !== "denoiser" ? `${t("step {step} of {steps}", { step: progress.step, steps: progress.steps })}${progress.sigma ? ` · σ ${Number(progress.sigma.toPrecision(2))}` : ""}` : plain(node));
	const columns = Array.from({ length: last + 1 }, (_each, i) => nodes.filter((node) => column.get(node.id) === i).toSorted((a, b) => MAIN.has(b.kind) - MAIN.has(a.kind)));
	return html`<footer class="plan" aria-label=${t("How the image is made")}>
		<div class="graph" id="graph">
			<svg class="edges" aria-hidden="true">${lines.map((path) => svg`<path d=${path}></path>`)}</svg>
			<ol>${columns.map((list) => html`<li>${repeat(list, (node) => node.id, (node) => {
				const mode = of(node);
				const text = detail(node, mode);
				return html`<button type="button" class="node ${mode}" data-node=${node.id} title=${text || nothing} @click=${() => reveal(node)}>${t(node.label)}<small>${text}</small>${mode ? html`<span class="visually-hidden">${mode === "on" ? t("at work") : t("done")}</span>` : nothing}</button>`;
			})}</li>`)}</ol>
		</div>
	</footer>`;
}

// After each render: measure where the edges run.
export function drawEdges() {
	const graph = document.getElementById("graph");
	if (!graph) return;
	const origin = graph.getBoundingClientRect();
	const boxes = new Map([...graph.querySelectorAll(".node")].map((node) => [node.dataset.node, node.getBoundingClientRect()]));
	const measured = (state.plan?.edges ?? []).flatMap(([from, to]) => {
		const [a, b] = [boxes.get(from), boxes.get(to)];
		if (!a || !b) return [];
		if (Math.abs(a.left - b.left) < 40) return [`M${Math.round(b.left - origin.left + 24)} ${Math.round(a.top - origin.top)} V${Math.round(b.bottom - origin.top)}`];
		const [x1, y1, x2, y2] = [a.right - origin.left, (a.top + a.bottom) / 2 - origin.top, b.left - origin.left, (b.top + b.bottom) / 2 - origin.top].map(Math.round);
		const bend = Math.max(8, (x2 - x1) / 2);
		return [`M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`];
	});
	if (measured.join() !== lines.join()) {
		lines = measured;
		update();
	}
}
