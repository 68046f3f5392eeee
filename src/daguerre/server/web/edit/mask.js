// The mask of a painted part, as a list of brush strokes: undo takes the last one away, and the list survives a reload.

const STORE = "daguerre.mask";
const MAX_STORED = 2_000_000; // characters

const mask = { id: null, width: 1, height: 1, done: [], undone: [], version: 0 };

// Begin a mask for an input image, or continue the one that was stored for it.
export function maskFor(input) {
	if (mask.id === input.id) return;
	Object.assign(mask, { id: input.id, width: input.width, height: input.height, done: [], undone: [], version: mask.version + 1 });
	try {
		const stored = JSON.parse(localStorage.getItem(STORE));
		if (stored?.id === input.id && Array.isArray(stored.done)) mask.done = stored.done;
	} catch {
		localStorage.removeItem(STORE);
	}
}

function changed() {
	mask.version += 1;
	const text = JSON.stringify({ id: mask.id, done: mask.done });
	try {
		if (text.length < MAX_STORED) localStorage.setItem(STORE, text);
	} catch {
		// a full or closed storage: the mask lives on in this page
	}
}

// Add a stroke {erase, size, points: [[x, y, pressure]]}, or {kind: "invert"} or {kind: "clear"}.
export function addStroke(stroke) {
	mask.done.push(stroke);
	mask.undone.length = 0;
	changed();
}

export function extendStroke(point) {
	mask.done.at(-1).points.push(point);
	mask.version += 1;
}

export const endStroke = changed;

// Take back a stroke that was begun by mistake, as by the first finger of two.
export function dropStroke() {
	mask.done.pop();
	changed();
}

export const canUndoStroke = () => mask.done.length > 0;
export const canRedoStroke = () => mask.undone.length > 0;

export function undoStroke() {
	if (mask.done.length) mask.undone.push(mask.done.pop());
	changed();
}

export function redoStroke() {
	if (mask.undone.length) mask.done.push(mask.undone.pop());
	changed();
}

export const maskVersion = () => mask.version;

// Paint the strokes onto a canvas of the image's size: opaque where the image is generated.
export function paintMask(canvas, colour) {
	if (canvas.width !== mask.width || canvas.height !== mask.height) Object.assign(canvas, { width: mask.width, height: mask.height });
	const context = canvas.getContext("2d", { willReadFrequently: true });
	context.globalCompositeOperation = "source-over";
	context.clearRect(0, 0, mask.width, mask.height);
	for (const stroke of mask.done) paintStroke(context, stroke, colour);
	return context;
}

function paintStroke(context, stroke, colour) {
	const { width, height } = mask;
	context.fillStyle = context.strokeStyle = colour;
	if (stroke.kind === "clear") return context.clearRect(0, 0, width, height);
	if (stroke.kind === "invert") {
		context.globalCompositeOperation = "xor"; // opaque becomes transparent and the other way round
		context.fillRect(0, 0, width, height);
	} else {
		context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
		context.lineCap = context.lineJoin = "round";
		let before = null;
		for (const [x, y, pressure] of stroke.points) {
			const size = stroke.size * (0.4 + 0.6 * pressure);
			context.beginPath();
			if (before) {
				context.lineWidth = size;
				context.moveTo(...before);
				context.lineTo(x, y);
				context.stroke();
			} else {
				context.arc(x, y, size / 2, 0, 2 * Math.PI);
				context.fill();
			}
			before = [x, y];
		}
	}
	context.globalCompositeOperation = "source-over";
	return undefined;
}

// The mask as a PNG, white where the image is generated and black elsewhere; null if nothing is painted, or white all over with `orFull`.
export function maskPng(orFull) {
	const canvas = document.createElement("canvas");
	const context = paintMask(canvas, "#fff");
	const { data } = context.getImageData(0, 0, mask.width, mask.height);
	let painted = false;
	for (let i = 3; i < data.length && !painted; i += 4) painted = data[i] > 0;
	if (!painted && !orFull) return null;
	context.globalCompositeOperation = "destination-over";
	context.fillStyle = painted ? "#000" : "#fff";
	context.fillRect(0, 0, mask.width, mask.height);
	return canvas.toDataURL("image/png");
}
