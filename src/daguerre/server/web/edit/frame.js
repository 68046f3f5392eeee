// Extending an image: its frame, whose four edges are dragged outwards or moved by the arrow keys.

import { edit } from "../core/form.js";
import { t } from "../core/language.js";
import { html } from "../core/lit.js";
import { MARGIN_STEP, setMargin } from "./editor.js";

const SIDES = { left: [-1, 0], right: [1, 0], top: [0, -1], bottom: [0, 1] };
const NAMES = { left: "Extend to the left", right: "Extend to the right", top: "Extend upwards", bottom: "Extend downwards" };
let drag = null; // {side, x, y, margin, scale}

function down(event, side, total) {
	const box = document.getElementById("frame").getBoundingClientRect();
	event.currentTarget.setPointerCapture(event.pointerId);
	drag = { side, x: event.clientX, y: event.clientY, margin: edit.margins[side], scale: total.width / box.width };
	event.preventDefault();
}

function move(event) {
	if (!drag) return;
	const [dx, dy] = SIDES[drag.side];
	setMargin(drag.side, drag.margin + drag.scale * (dx * (event.clientX - drag.x) + dy * (event.clientY - drag.y)));
}

function keys(event, side) {
	const [dx, dy] = SIDES[side];
	const by = { ArrowLeft: -dx, ArrowRight: dx, ArrowUp: -dy, ArrowDown: dy }[event.key];
	if (!by) return;
	event.preventDefault();
	setMargin(side, edit.margins[side] + by * MARGIN_STEP * (event.shiftKey ? 4 : 1));
}

// The image in its frame; `gone` is called if the image no longer exists.
export function frame(input, gone) {
	const { left, top, right, bottom } = edit.margins;
	const total = { width: input.width + left + right, height: input.height + top + bottom };
	const percent = (part, whole) => `${(100 * part) / whole}%`;
	const inner = `left:${percent(left, total.width)};top:${percent(top, total.height)};width:${percent(input.width, total.width)};height:${percent(input.height, total.height)}`;
	return html`<div class="canvas frame" id="frame" .style=${`--w:${total.width};--h:${total.height}`}>
			<img src=${input.url} alt=${t("The image to extend")} draggable="false" .style=${inner} @error=${gone}>
			${Object.keys(SIDES).map((side) => html`<button type="button" class="handle ${side}" role="slider" aria-label=${t(NAMES[side])} aria-orientation=${SIDES[side][0] ? "horizontal" : "vertical"}
				aria-valuemin="0" aria-valuemax="2048" aria-valuenow=${edit.margins[side]} aria-valuetext="${edit.margins[side]} px"
				@pointerdown=${(event) => down(event, side, total)} @pointermove=${move} @pointerup=${() => (drag = null)} @pointercancel=${() => (drag = null)} @keydown=${(event) => keys(event, side)}></button>`)}
		</div>
		<p class="hint" aria-live="polite">${total.width}×${total.height}</p>`;
}
