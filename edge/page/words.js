// Numbers in words, as the server writes them.

const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

export function bytes(n) {
	let unit = 0;
	for (; n >= (unit ? 999.5 : 1000) && unit < units.length - 1; unit++) n /= 1000;
	return (unit && n < 9.95 ? n.toFixed(1) : n.toFixed(0)) + " " + units[unit];
}

export const rate = n => bytes(n) + "/s";

// span is a time, given in milliseconds.
export function span(milliseconds) {
	const s = Math.floor(Math.max(0, milliseconds) / 1000), part = (n, of) => Math.floor(n) % of;
	if (s < 60) return `${s} s`;
	if (s < 3600) return `${part(s / 60, 60)} min ${s % 60} s`;
	if (s < 86400) return `${part(s / 3600, 24)} h ${part(s / 60, 60)} min`;
	return `${Math.floor(s / 86400)} d ${part(s / 3600, 24)} h`;
}

export function left(milliseconds) {
	if (milliseconds <= 0) return "expired";
	return milliseconds < 48 * 3600000 ? span(milliseconds) : `${Math.floor(milliseconds / 86400000)} days`;
}

export const stamp = time => new Date(time).toISOString().slice(0, 19).replace("T", " ");

export const issuer = directory => /:\/\/([^/]*)/.exec(directory)?.[1] ?? directory;
