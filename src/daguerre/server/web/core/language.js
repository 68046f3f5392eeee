// The page's language. A text is written in English where it is used; `chinese.json` maps it to Simplified Chinese.

import { state, update } from "./state.js";

export const LANGUAGES = { en: "EN", "zh-CN": "中文" };

let chinese = {};

// Change the language; the texts of another one than English are loaded first.
export async function setLanguage(language) {
	if (language === "zh-CN" && !("Generate" in chinese)) chinese = await (await fetch("/web/chinese.json")).json();
	update({ language });
}

// A text in the page's language; `{name}` is replaced by that value.
export function t(text, values = {}) {
	const template = state.language === "zh-CN" ? (chinese[text] ?? text) : text;
	return template.replace(/\{(\w+)\}/g, (match, name) => (name in values ? values[name] : match));
}

// The language that the browser asks for, of those that the page has.
export function preferredLanguage() {
	return navigator.languages?.some((each) => /^zh\b/i.test(each)) && !/^en\b/i.test(navigator.language) ? "zh-CN" : "en";
}

// A whole number with a comma at each thousand, as both languages write it; the first Intl.NumberFormat of a page would take long.
export function number(value) {
	return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

// A time span in words: "2 s", "1 min 20 s", "2 h 5 min".
export function duration(seconds) {
	const whole = Math.max(seconds, 0);
	if (whole < 10) return t("{n} s", { n: whole < 1 ? whole.toFixed(1) : Math.round(whole) });
	if (whole < 60) return t("{n} s", { n: Math.round(whole) });
	if (whole < 3600) return t("{m} min {s} s", { m: Math.floor(whole / 60), s: Math.round(whole % 60) });
	return t("{h} h {m} min", { h: Math.floor(whole / 3600), m: Math.round((whole % 3600) / 60) });
}

// Bytes in GB or MB.
export function bytes(value) {
	return value >= 1e8 ? `${(value / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(value / 1e6))} MB`;
}
