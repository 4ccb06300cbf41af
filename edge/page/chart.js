// A chart of the last minutes: lines with an area below, a grid, and values under the pointer.

const svgSpace = "http://www.w3.org/2000/svg";
const margin = { left: 62, right: 8, top: 8, bottom: 20 };
const lines = 4; // of the grid

function draw(tag, attributes, text) {
	const element = document.createElementNS(svgSpace, tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
	if (text !== undefined) element.textContent = text;
	return element;
}

// roundUp is the next number that reads well in four parts.
function roundUp(n) {
	const power = 10 ** Math.floor(Math.log10(n));
	return [1, 2, 4, 6, 8, 10].find(m => m * power >= n) * power;
}

export class Chart {
	// series are [class, label, sample => value]; words writes a value; least is the lowest top of the scale.
	constructor(place, series, words, least) {
		Object.assign(this, { place, series, words, least, samples: [], pointer: null });
		this.svg = draw("svg", { role: "img" });
		this.output = document.createElement("output");
		this.output.hidden = true;
		place.append(this.svg, this.output);
		place.addEventListener("pointermove", event => { this.pointer = event.clientX - place.getBoundingClientRect().left; this.render(); });
		place.addEventListener("pointerleave", () => { this.pointer = null; this.render(); });
		new ResizeObserver(() => this.render()).observe(place);
	}

	show(history, now) {
		this.samples = history.samples.map(s => ({ ...s, at: Date.parse(s.time) }));
		this.now = now;
		// At first there is less to show: two minutes at least, and whole pairs of them.
		const age = this.samples.length ? (now - this.samples[0].at) / 60000 : 0;
		this.minutes = Math.min(10, Math.max(2, 2 * Math.ceil(age / 2)));
		this.span = this.minutes * 60000;
		this.render();
	}

	render() {
		if (!this.now) return;
		const width = this.place.clientWidth, height = this.place.clientHeight;
		const right = width - margin.right, bottom = height - margin.bottom;
		const top = roundUp(Math.max(this.least, ...this.samples.flatMap(s => this.series.map(([, , value]) => value(s)))));
		const x = at => right - (this.now - at) / this.span * (right - margin.left);
		const y = value => bottom - value / top * (bottom - margin.top);
		const shapes = [];
		for (let n = 0; n <= lines; n++) {
			const value = top * n / lines;
			shapes.push(draw("line", { class: "grid", x1: margin.left, x2: right, y1: y(value), y2: y(value) }));
			shapes.push(draw("text", { x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, this.words(value)));
		}
		for (let minutes = 0; minutes <= this.minutes; minutes += this.minutes > 4 ? 2 : 0.5 * this.minutes) {
			shapes.push(draw("text", { x: x(this.now - minutes * 60000), y: height - 4, "text-anchor": minutes ? "middle" : "end" }, minutes ? `−${minutes} min` : "now"));
		}
		const inside = this.samples.filter(s => s.at > this.now - this.span);
		for (const [kind, , value] of this.series) {
			if (inside.length === 0) continue;
			const points = inside.map(s => `${x(s.at).toFixed(1)},${y(value(s)).toFixed(1)}`);
			shapes.push(draw("polygon", { class: "area " + kind, points: [`${x(inside[0].at)},${bottom}`, ...points, `${x(inside.at(-1).at)},${bottom}`].join(" ") }));
			shapes.push(draw("polyline", { class: "line " + kind, points: points.join(" ") }));
		}
		const near = this.nearest(inside, x);
		if (near) shapes.push(draw("line", { class: "cross", x1: x(near.at), x2: x(near.at), y1: margin.top, y2: bottom }));
		this.svg.setAttribute("aria-label", this.describe(inside.at(-1)));
		this.svg.replaceChildren(...shapes);
		this.point(near, x, width);
	}

	// nearest is the sample under the pointer.
	nearest(samples, x) {
		if (this.pointer === null || samples.length === 0) return null;
		return samples.reduce((a, b) => Math.abs(x(b.at) - this.pointer) < Math.abs(x(a.at) - this.pointer) ? b : a);
	}

	point(sample, x, width) {
		this.output.hidden = !sample;
		if (!sample) return;
		this.output.textContent = new Date(sample.at).toISOString().slice(11, 19) + " · " + this.describe(sample);
		const past = x(sample.at) > width / 2;
		this.output.style.left = past ? "auto" : x(sample.at) + 8 + "px";
		this.output.style.right = past ? width - x(sample.at) + 8 + "px" : "auto";
	}

	describe(sample) {
		return sample ? this.series.map(([, label, value]) => `${label} ${this.words(value(sample))}`).join(", ") : "nothing measured yet";
	}
}
