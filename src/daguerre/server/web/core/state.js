// The page's state: one object, changed by `update`, which renders the page at most once a frame.

export const state = {
	view: "create", // create, edit, grid, gallery
	status: null, // of the server: version, device, memory
	connected: true,
	models: [],
	model: null, // the name of the model that jobs use
	samplers: { samplers: [], spacings: [], presets: {}, default: { steps: 20, guidance_scale: null, sampler: null, spacing: null, width: null, height: null } },
	adapters: { loras: [], embeddings: [], controlnets: [], preprocessors: [] },
	suggestions: [],
	check: null, // what the server found in the prompt: words, unknown, warnings, error
	plan: null, // of the form's request: nodes, edges, memory, seconds, warnings, error
	jobs: [], // running, queued in order, finished
	paused: false,
	pausedReason: null,
	limit: 64,
	progress: new Map(), // job id -> the last step event
	following: true, // the stage shows the running job
	shownJob: null, // id of the job that the stage shows
	shown: null, // the image that the stage shows
	editingJob: null, // id of the queued job whose settings are in the form
	theme: "auto",
	language: "en",
	toasts: [],
	announcement: "",
};

let render = () => {};
let scheduled = false;

export function update(changes = {}) {
	Object.assign(state, changes);
	if (scheduled) return;
	scheduled = true;
	requestAnimationFrame(() => {
		scheduled = false;
		render();
	});
}

export function onUpdate(renderPage) {
	render = renderPage;
}

// A function that runs `action` once, `wait` milliseconds after its last call; `.now()` runs a waiting action at once.
export function debounce(action, wait) {
	let timer = null;
	const later = () => {
		clearTimeout(timer);
		timer = setTimeout(() => {
			timer = null;
			action();
		}, wait);
	};
	later.now = () => {
		if (timer === null) return;
		clearTimeout(timer);
		timer = null;
		action();
	};
	return later;
}

// The running job, the queued jobs in order.
export const runningJob = () => state.jobs.find((job) => job.state === "running");
export const queuedJobs = () => state.jobs.filter((job) => job.state === "queued");
export const jobById = (id) => state.jobs.find((job) => job.id === id);
export const currentModel = () => state.models.find((model) => model.name === state.model);
