// The surface for painting a mask: mouse, pen with pressure, touch with pinch to zoom, and the keyboard.

import { changed } from "../core/form.js";
import { t } from "../core/language.js";
import { html } from "../core/lit.js";
import { update } from "../core/state.js";
import { addStroke, dropStroke, endStroke, extendStroke, maskVersion, paintMask, redoStroke, undoStroke } from "./mask.js";

const MAX_ZOOM = 16;
export const tool = { erase: false, size: 18 }; // size: of the brush, percent of the image's longer side
const view = { zoom: 1, x: 0, y: 0 }; // x, y: shift in pixels of the screen
const pointers = new Map(); // id -> position on the screen
let painting = null; // id of the pointer that paints
let panning = null; // {x, y} the last position while panning
let pinch = null; // {distance, x, y} of the last move with two fingers
let keyboard = null; // [x, y] of the brush moved by keys, in pixels of the image
let keyStroke = false;
let painted = { canvas: null, version: -1, theme: "" };
let input = { width: 1, height: 1 };

export function setTool(changes) {
	Object.assign(tool, changes);
	update();
}

const brushPixels = () => Math.max(1, (tool.size / 100) * 0.6 * Math.max(input.width, input.height));

// Zoom about a point of the screen, by default the middle.
export function zoomBy(factor, point = null) {
	const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
	const box = document.getElementById("board")?.getBoundingClientRect();
	const [px, py] = point && box ? [point.x - box.left - box.width / 2, point.y - box.top - box.height / 2] : [0, 0];
	view.x = px - ((px - view.x) * zoom) / view.zoom;
	view.y = py - ((py - view.y) * zoom) / view.zoom;
	view.zoom = zoom;
	keepInside(box);
	update();
}

function keepInside(box) {
	if (!box) return;
	const [mx, my] = [((view.zoom - 1) * box.width) / 2, ((view.zoom - 1) * box.height) / 2];
	view.x = Math.min(mx, Math.max(-mx, view.x));
	view.y = Math.min(my, Math.max(-my, view.y));
}

// A position on the screen in pixels of the image.
function toImage(event) {
	const box = document.getElementById("mask").getBoundingClientRect();
	const round = (value) => Math.round(value * 100) / 100;
	return [round(((event.clientX - box.left) / box.width) * input.width), round(((event.clientY - box.top) / box.height) * input.height)];
}

const pressureOf = (event) => (event.pointerType === "pen" ? event.pressure : 1);

function down(event) {
	const element = event.currentTarget;
	element.setPointerCapture(event.pointerId);
	pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
	if (pointers.size === 2) {
		if (painting !== null) dropStroke();
		painting = null;
		pinch = pinchOf();
	} else if (event.button === 1 || event.altKey) {
		panning = { x: event.clientX, y: event.clientY };
	} else if (event.button === 0 || event.button === 5) {
		painting = event.pointerId;
		keyboard = null;
		addStroke({ erase: tool.erase || event.button === 5, size: Math.round(brushPixels() * 10) / 10, points: [[...toImage(event), pressureOf(event)]] });
	}
	event.preventDefault();
	element.focus({ preventScroll: true });
	update();
}

function pinchOf() {
	const [a, b] = [...pointers.values()];
	return { distance: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

function move(event) {
	showCursor(event);
	if (!pointers.has(event.pointerId)) return;
	pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
	const box = event.currentTarget.getBoundingClientRect();
	if (pinch && pointers.size >= 2) {
		const next = pinchOf();
		view.x += next.x - pinch.x;
		view.y += next.y - pinch.y;
		zoomBy(next.distance / Math.max(pinch.distance, 1), next);
		pinch = next;
	} else if (panning) {
		view.x += event.clientX - panning.x;
		view.y += event.clientY - panning.y;
		panning = { x: event.clientX, y: event.clientY };
		keepInside(box);
	} else if (painting === event.pointerId) {
		for (const each of event.getCoalescedEvents?.() ?? []) extendStroke([...toImage(each), pressureOf(each)]);
		extendStroke([...toImage(event), pressureOf(event)]);
	}
	update();
}

function up(event) {
	pointers.delete(event.pointerId);
	if (painting === event.pointerId) {
		painting = null;
		endStroke();
		changed();
	}
	if (pointers.size < 2) pinch = null;
	panning = null;
	update();
}

function wheel(event) {
	event.preventDefault();
	zoomBy(Math.exp(-event.deltaY / 400), { x: event.clientX, y: event.clientY });
}

function showCursor(event) {
	const cursor = document.getElementById("cursor");
	const box = document.getElementById("board")?.getBoundingClientRect();
	if (!cursor || !box || event.pointerType === "touch") return;
	placeCursor(cursor, event.clientX - box.left, event.clientY - box.top, box);
}

function placeCursor(cursor, x, y, box) {
	const size = (brushPixels() / input.width) * box.width * view.zoom;
	Object.assign(cursor.style, { width: `${size}px`, height: `${size}px`, transform: `translate(${x - size / 2}px, ${y - size / 2}px)`, opacity: 1 });
}

function hideCursor() {
	const cursor = document.getElementById("cursor");
	if (cursor) cursor.style.opacity = 0;
}

// Keys of the surface: arrows move the brush, Space paints, and the keys of the tools.
export function boardKeys(event) {
	const step = (event.shiftKey ? 0.5 : 0.125) * brushPixels();
	const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
	const undoKey = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z";
	if (by) {
		keyboard ??= [input.width / 2, input.height / 2];
		keyboard = [Math.min(input.width, Math.max(0, keyboard[0] + by[0])), Math.min(input.height, Math.max(0, keyboard[1] + by[1]))];
		if (keyStroke) extendStroke([...keyboard, 1]);
	} else if (event.key === " ") {
		keyboard ??= [input.width / 2, input.height / 2];
		if (!event.repeat) {
			keyStroke = !keyStroke;
			if (keyStroke) addStroke({ erase: tool.erase, size: brushPixels(), points: [[...keyboard, 1]] });
			else endStroke();
		}
	} else if (undoKey) (event.shiftKey ? redoStroke : undoStroke)();
	else if (event.key === "[") tool.size = Math.max(1, tool.size - 3);
	else if (event.key === "]") tool.size = Math.min(100, tool.size + 3);
	else if (event.key.toLowerCase() === "x") tool.erase = !tool.erase;
	else if (event.key.toLowerCase() === "i" && !event.ctrlKey) addStroke({ kind: "invert" });
	else if (event.key === "+" || event.key === "=") zoomBy(1.5);
	else if (event.key === "-") zoomBy(1 / 1.5);
	else return;
	event.preventDefault();
	event.stopPropagation();
	changed();
}

// After each render: paint the mask if it changed, and the cursor of the keyboard.
export function drawBoard() {
	const canvas = document.getElementById("mask");
	if (!canvas) return;
	const theme = document.documentElement.dataset.theme;
	if (canvas !== painted.canvas || maskVersion() !== painted.version || theme !== painted.theme) {
		paintMask(canvas, getComputedStyle(canvas).color);
		painted = { canvas, version: maskVersion(), theme };
	}
	const cursor = document.getElementById("cursor");
	if (keyboard && cursor && document.activeElement?.id === "board") {
		const box = document.getElementById("board").getBoundingClientRect();
		const at = canvas.getBoundingClientRect();
		placeCursor(cursor, at.left - box.left + (keyboard[0] / input.width) * at.width, at.top - box.top + (keyboard[1] / input.height) * at.height, box);
	}
}

// The surface with the image and the mask over it; `gone` is called if the image no longer exists.
export function board(image, gone) {
	input = image;
	const label = t("Mask: arrow keys move the brush, Space begins and ends painting, X changes to the eraser, square brackets change the size");
	return html`<div class="canvas board" id="board" tabindex="0" role="application" aria-label=${label} .style=${`--w:${image.width};--h:${image.height}`}
		@pointerdown=${down} @pointermove=${move} @pointerup=${up} @pointercancel=${up} @pointerleave=${hideCursor} @wheel=${wheel} @keydown=${boardKeys}
		@contextmenu=${(event) => event.preventDefault()}>
		<div class="sheet" .style=${`transform:translate(${view.x}px,${view.y}px) scale(${view.zoom})`}>
			<img src=${image.url} alt=${t("The image to edit")} draggable="false" @error=${gone}>
			<canvas id="mask"></canvas>
		</div>
		<span class="cursor" id="cursor"></span>
	</div>`;
}
