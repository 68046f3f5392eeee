// Requests to the server and its stream of events. Whole numbers beyond 2⁵³, as seeds can be, stay exact.

// An answer of the server that is not a success; `message` is for people.
export class ApiError extends Error {
	constructor(status, error) {
		super(error.message);
		Object.assign(this, { status, code: error.code, param: error.param });
	}
}

// Parse JSON; large whole numbers become BigInt. A text without any is parsed without the slow look at each value.
export function parseJson(text) {
	if (!/[^.\d]\d{16}/.test(text)) return JSON.parse(text);
	return JSON.parse(text, (_key, value, context) =>
		Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value,
	);
}

export function writeJson(value) {
	const write = JSON.rawJSON ?? Number;
	return JSON.stringify(value, (_key, each) => (typeof each === "bigint" ? write(String(each)) : each));
}

// GET a path, or POST a body to it; the parsed answer. Throws ApiError.
export async function api(path, body, options = {}) {
	let response;
	try {
		response = await fetch(path, {
			...(body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: writeJson(body) }),
			...options,
		});
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw new ApiError(0, { message: "", code: "offline" });
	}
	const text = await response.text();
	let value = null;
	try {
		value = text ? parseJson(text) : null;
	} catch {
		value = null;
	}
	if (!response.ok) throw new ApiError(response.status, value?.error ?? { message: `${response.status} ${response.statusText}` });
	return value;
}

/**
 * Listen to all events of the server; the browser reconnects by itself and asks for what it missed.
 *
 * handlers: by event name; `open` and `lost` for the connection.
 */
export function listen(handlers) {
	const source = new EventSource("/api/events");
	source.onopen = () => handlers.open();
	source.onerror = () => {
		handlers.lost();
		if (source.readyState === EventSource.CLOSED) setTimeout(() => listen(handlers), 2000);
	};
	for (const name of ["job", "step", "image", "queue", "images"]) {
		source.addEventListener(name, (event) => handlers[name](parseJson(event.data)));
	}
}

export function toDataUri(blob) {
	return new Promise((resolve, reject) => {
		const reader = new FileReader();
		reader.onload = () => resolve(reader.result);
		reader.onerror = () => reject(reader.error);
		reader.readAsDataURL(blob);
	});
}
