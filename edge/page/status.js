// Keeps the status page fresh. All that is shown goes in as text, never as HTML: clients choose some of it.

import { Chart } from "./chart.js";
import { bytes, rate, span, left, stamp, issuer } from "./words.js";

const every = 2000; // milliseconds, as often as the edge measures
const worrying = 10 * 86400; // seconds

const at = id => document.getElementById(id);
const tell = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

// cell makes a td; what is not a string is put into it as it is.
function cell(content, kind = "") {
	const td = document.createElement("td");
	td.className = kind;
	td.append(...[content].flat());
	return td;
}

function wrap(tag, kind, ...content) {
	const element = document.createElement(tag);
	element.className = kind;
	element.append(...content);
	return element;
}

const code = text => wrap("code", "", text);

// fill puts rows, lists of cells, into the body of a table.
function fill(id, rows, columns, empty) {
	const body = at(id);
	if (rows.length === 0) {
		const none = cell(empty, "aside");
		none.colSpan = columns;
		rows = [[none]];
	}
	body.replaceChildren(...rows.map(cells => wrap("tr", "", ...cells)));
}

function worry(c, now) {
	const until = Date.parse(c.not_after ?? 0), seconds = (until - now) / 1000;
	if (!c.not_after || seconds <= 0) return "bad";
	const life = (until - Date.parse(c.not_before)) / 1000;
	return c.last_error || seconds < worrying && seconds < life / 4 ? "warn" : "good";
}

function siteRows(site) {
	const names = site.names?.join(", ") || "any name";
	if (site.routes.length === 0) {
		const none = cell("no tunnels", "aside");
		none.colSpan = 6;
		return [[cell(site.label), cell(names), none]];
	}
	return site.routes.map((r, n) => [
		cell(n ? "" : site.label), cell(n ? "" : names), cell(code(r.label)), cell(code(r.target)),
		cell(r.limit ? `${r.open} / ${r.limit}` : String(r.open), "n"), cell(String(r.opened), "n"), cell(bytes(r.sent), "n"), cell(bytes(r.received), "n"),
	]);
}

function certificateRow(c, now) {
	const time = text => text ? stamp(text) : "";
	return [
		cell(c.name), cell(wrap("span", "state " + worry(c, now), c.not_after ? left(Date.parse(c.not_after) - now) : "none yet")),
		cell(time(c.not_after)), cell(time(c.next_renewal)), cell(c.staple_until ? left(Date.parse(c.staple_until) - now) : ""),
		cell(issuer(c.issuer ?? "")), cell(c.hint ? [c.last_error ?? "", " ", wrap("span", "aside", c.hint)] : c.last_error ?? "", "text"),
	];
}

function tunnelRow(t, now) {
	return [
		cell(code(t.client)), cell(t.user ?? ""), cell(t.site), cell(code(t.route)), cell(span(now - Date.parse(t.begin))),
		cell(bytes(t.sent), "n"), cell(bytes(t.received), "n"), cell(rate(t.send_rate), "n"), cell(rate(t.receive_rate), "n"),
	];
}

function logRow(e) {
	const attrs = (e.attrs ?? []).flatMap(a => [wrap("span", "attr", wrap("b", "", a.key), " ", a.value), " "]);
	return [cell(stamp(e.time)), cell(wrap("span", "state " + (e.level === "WARN" ? "warn" : "bad"), e.level)), cell(e.message), cell(attrs, "text")];
}

function listeners(all) {
	return "Listening on " + (all.map(l => l.address + (l.plain ? " (plain)" : "") + (l.proxy_header ? " (PROXY header)" : "") +
		(l.open ? "" : " (not open)")).join(", ") || "nothing") + ".";
}

const rates = new Chart(at("rates"), [["sent", "from clients", s => s.send_rate], ["received", "to clients", s => s.receive_rate]], rate, 1000);
const counts = new Chart(at("counts"), [["count", "open", s => s.tunnels]], n => String(Math.round(n)), 4);

function show(s) {
	const now = Date.parse(s.now);
	tell("version", s.version);
	tell("uptime", span(now - Date.parse(s.started)));
	tell("now", stamp(s.now));
	tell("state", s.ready ? "ready" : "not ready");
	at("state").className = "state " + (s.ready ? "good" : "bad");
	at("problems").replaceChildren(...s.problems.map(p => wrap("li", "", p)));
	tell("tunnels-open", String(s.total.open));
	tell("tunnels-opened", s.total.opened + " since start");
	tell("connections", String(s.connections));
	tell("connections-limit", s.connections_limit ? "of " + s.connections_limit : "no limit");
	tell("send-rate", rate(s.total.send_rate));
	tell("receive-rate", rate(s.total.receive_rate));
	tell("sent", bytes(s.total.sent) + " in all");
	tell("received", bytes(s.total.received) + " in all");
	tell("listeners", listeners(s.listeners));
	tell("tunnels-shown", s.tunnels.length < s.total.open ? `the busiest ${s.tunnels.length} of ${s.total.open}` : "");
	fill("sites", s.sites.flatMap(siteRows), 8, "none");
	fill("certificates", s.certificates.map(c => certificateRow(c, now)), 7, "none is obtained from a CA");
	fill("tunnels", s.tunnels.map(t => tunnelRow(t, now)), 9, "none is open");
	fill("log", (s.log ?? []).map(logRow), 4, "none");
	at("charts").hidden = false;
	rates.show(s.history, now);
	counts.show(s.history, now);
}

// selected tells whether somebody is about to copy something, which new rows would undo.
const selected = () => String(getSelection()) !== "";

async function refresh() {
	try {
		const answer = await fetch("/status.json", { signal: AbortSignal.timeout(20000) });
		if (!answer.ok) throw new Error(`the edge answers ${answer.status}`);
		const status = await answer.json();
		if (!selected()) show(status);
		tell("live", "");
		document.documentElement.dataset.updates = Number(document.documentElement.dataset.updates ?? 0) + 1;
	} catch (error) {
		tell("live", ` · not fresh: ${error.message}`);
		at("live").className = "stale";
	}
	setTimeout(refresh, every);
}

refresh();
