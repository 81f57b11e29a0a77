"""A report as one page of HTML: nothing is loaded from anywhere, and nothing in the log can become markup or script."""

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from tapeseal.audit_log.report import NEW_DAYS, SOON_DAYS, Day, Due, Report

MAX_ROWS: Final = 500
"""Of each table the first so many; --json has all."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_STYLE = """
:root{--bg:#f5f6f8;--card:#fff;--ink:#18202e;--soft:#5d6879;--line:#e3e7ed;--grid:#eceff3;--accent:#3566d6;
--tint:#e9effc;--bad:#c8352b;--badtint:#fcebea;--warn:#a86a08;--warntint:#fdf3dd;--good:#1d7f53;--goodtint:#e4f5ec;
--bar:#c9d7f5;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#0f131a;--card:#171d27;--ink:#e5e9f0;--soft:#98a3b5;--line:#283142;
--grid:#212938;--accent:#7ba2ff;--tint:#1d2a48;--bad:#ff8078;--badtint:#3b1f21;--warn:#f0b95b;--warntint:#382c16;
--good:#5fd39c;--goodtint:#15332a;--bar:#2b3f6d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1180px;margin:0 auto;padding:40px 28px 64px}
header{display:flex;flex-wrap:wrap;gap:12px 24px;align-items:flex-end;justify-content:space-between;margin-bottom:28px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.02em;margin:0 0 4px;font-weight:650}
h2{font-size:17px;letter-spacing:-.01em;margin:0;font-weight:620}
p{margin:0}
.soft{color:var(--soft)}
.badge{display:inline-flex;gap:8px;align-items:center;padding:6px 13px;border-radius:99px;font-weight:560;
font-size:14px}
.badge svg{flex:none}
.good{color:var(--good)}.badge.good{background:var(--goodtint)}
.bad{color:var(--bad)}.badge.bad,.pill.bad{background:var(--badtint)}
.warn{color:var(--warn)}.badge.warn,.pill.warn{background:var(--warntint)}
.pill.good{background:var(--goodtint)}.pill.plain{background:var(--tint);color:var(--accent)}
.numbers{display:grid;grid-template-columns:repeat(6,1fr);gap:1px;background:var(--line);border:1px solid var(--line);
border-radius:14px;overflow:hidden;margin-bottom:20px}
.numbers div{background:var(--card);padding:17px 20px 16px}
.numbers b{display:block;font-size:29px;line-height:1.15;letter-spacing:-.02em;font-weight:620;
font-variant-numeric:tabular-nums}
.numbers span{color:var(--soft);font-size:13.5px}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:22px 24px;margin-bottom:20px}
.pair{display:grid;grid-template-columns:minmax(0,1.5fr) minmax(0,1fr);gap:20px}
.pair section{margin-bottom:20px}
.top{display:flex;align-items:baseline;justify-content:space-between;gap:16px;margin-bottom:14px}
.top p{font-size:13.5px}
ul.look{list-style:none;margin:0;padding:0}
ul.look li{display:grid;grid-template-columns:104px minmax(0,1fr) auto;gap:14px;padding:10px 0;align-items:baseline;
border-top:1px solid var(--grid)}
ul.look li:first-child{border-top:0;padding-top:2px}
ul.look li:last-child{padding-bottom:0}
.pill{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12.5px;font-weight:560;white-space:nowrap}
code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:0 -24px -6px;padding:0 24px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:560;color:var(--soft);text-align:left;font-size:12.5px;padding:0 14px 8px 0;white-space:nowrap;
border-bottom:1px solid var(--line)}
td{padding:8px 14px 8px 0;border-bottom:1px solid var(--grid);vertical-align:baseline}
tr:last-child td{border-bottom:0}
th:last-child,td:last-child{padding-right:0}
.n svg{margin:2px 0 0 auto}
.w{white-space:nowrap}
td .soft{white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.t{white-space:nowrap;font-variant-numeric:tabular-nums;color:var(--soft)}
th button{all:unset;cursor:pointer}
th button:hover,th button:focus-visible{color:var(--ink)}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:3px}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
tr.more{display:none}
button.all{all:unset;cursor:pointer;color:var(--accent);font-size:14px;margin-top:14px;font-weight:560}
button.all:hover{text-decoration:underline}
button.all:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:3px}
input{font:inherit;font-size:14px;color:inherit;background:var(--bg);border:1px solid var(--line);border-radius:8px;
padding:5px 11px;width:220px}
input:focus{outline:2px solid var(--accent);outline-offset:-1px}
svg{display:block;max-width:100%}
svg text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--soft);
font-variant-numeric:tabular-nums}
.chart{width:100%;height:auto}
.fdone{fill:var(--accent)}.ffail{fill:var(--bad)}.fgrid{fill:var(--grid)}.fbar{fill:var(--bar)}
.fgood{fill:var(--good)}.fwarn{fill:var(--warn)}
.sgrid{stroke:var(--grid)}.sline{stroke:var(--line)}
.key{display:inline-flex;gap:6px;align-items:center;margin-left:14px}
.empty{color:var(--soft)}
footer{color:var(--soft);font-size:13px;margin-top:28px;display:flex;flex-wrap:wrap;gap:4px 20px}
@media(max-width:860px){main{padding:24px 14px}.numbers{grid-template-columns:repeat(2,1fr)}.pair{display:block}
ul.look li{grid-template-columns:1fr;gap:3px}section{padding:18px 16px}.wide{margin:0 -16px;padding:0 16px}
.wide table{min-width:760px}}
@media print{body{background:#fff}section,.numbers{break-inside:avoid}input{display:none}.wide{overflow:visible}}
"""

_SCRIPT = """
const few = 20;
const shorten = (table, all) => [...table.tBodies[0].rows].forEach((row, at) => {
  row.classList.toggle("more", !all && at >= few);
});
for (const table of document.querySelectorAll("table")) {
  const count = table.tBodies[0].rows.length;
  if (count <= few + 5) continue;
  shorten(table, false);
  const button = document.createElement("button");
  button.className = "all";
  button.textContent = "Show all " + count;
  button.addEventListener("click", () => { button.remove(); shorten(table, true); });
  table.parentElement.after(button);
}
const isShort = table => table.parentElement.nextElementSibling?.className === "all";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    head.firstElementChild?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = (a, b) => head.classList.contains("n") ? a - b : a < b ? -1 : a > b ? 1 : 0;
      const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1));
      body.append(...rows);
      if (isShort(table)) shorten(table, false);
    });
  });
}
for (const input of document.querySelectorAll("input")) {
  input.hidden = false;
  const table = document.getElementById(input.dataset.of);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/);
    if (isShort(table)) shorten(table, input.value !== "");
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
"""


def build_page(report: Report, title: str = "Audit report") -> str:
    """Return the whole page, in UTF-8 when it is written."""
    late = [each for each in report.overdue if each.state in ("overdue", "never")]
    parts = [
        _head(title),
        "<main>",
        _top(report, title),
        _numbers(report, len(late)),
        _attention(report, late),
        '<div class="pair">',
        _activity(report),
        _rhythm(report),
        "</div>",
        _uses(report),
        _failures(report),
        _rotations(report) if report.overdue else "",
        '<div class="pair">',
        _unused(report),
        _parts(report),
        "</div>",
        _patterns(report),
        _footer(report),
        f"</main><script>{_SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _text(value: object) -> str:
    """Return text as markup: what is not printable as its escape, so that nothing turns the line around either."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "replace").decode()
        for each in str(value)
    )
    return html.escape(shown)


def _head(title: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    policy = (
        f"default-src 'none'; style-src 'sha256-{digest(_STYLE)}'; script-src 'sha256-{digest(_SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
    )


# Pieces


def _top(report: Report, title: str) -> str:
    since, until = _date(report.since), _date(report.until)
    zone = "UTC"
    if report.zone != "UTC":
        zone = f"UTC, days and hours in {_text(report.zone)}"
    period = since if since == until else f"{since} to {until}"
    tick = '<svg width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="2" '
    tick += 'stroke-linecap="round" stroke-linejoin="round"><path d="{}"/></svg>'
    if report.verified is None:
        path, kind, text = "M8 4v5M8 12v.01", "warn", "not verified: no key was given"
    elif report.verified:
        path, kind, text = "M3 8.5l3.5 3.5L13 5", "good", "every entry is authentic"
    else:
        count = len(report.problems)
        path, kind = "M4 4l8 8M12 4l-8 8", "bad"
        text = f"the log does not verify: {count} problem{'' if count == 1 else 's'}"
    return (
        f'<header><div><h1>{_text(title)}</h1><p class="soft">{period}, times in {zone}</p></div>'
        f'<p class="badge {kind}">{tick.format(path)}{text}</p></header>'
    )


def _numbers(report: Report, late: int) -> str:
    share = f"{report.failed / report.entries:.1%} of all" if report.entries else "of none"
    cells = [
        (f"{report.entries:,}", "operations", ""),
        (f"{report.failed:,}", f"failed, {share}", "bad" if report.failed else ""),
        (f"{len(report.people):,}", "services and people", ""),
        (f"{report.subjects:,}", "keys and secrets", ""),
        (f"{late:,}" if report.overdue else "\u2013", "overdue" if report.overdue else "overdue: no plan given",
         "bad" if late else ""),
        (f"{len(report.unused):,}", "unused for long", "warn" if report.unused else ""),
    ]  # fmt: skip
    shown = (
        f'<div><b class="{kind}">{number}</b><span>{label}</span></div>'
        for number, label, kind in cells
    )
    return f'<div class="numbers">{"".join(shown)}</div>'


def _attention(report: Report, late: Sequence[Due]) -> str:
    """What somebody should look at, the worst first."""
    items: list[tuple[str, str, str, str]] = []
    items += [("bad", "the log", _text(problem), "") for problem in report.problems[:8]]
    if len(report.problems) > 8:
        items.append(("bad", "the log", f"and {len(report.problems) - 8:,} problems more", ""))
    for each in late[:6]:
        what = "never rotated" if each.days is None else f"{_days(each.days)} overdue"
        text = f"<b>{_text(each.name)}</b> of {_text(each.owner or 'nobody')}, {_text(each.kind)}: {what}"
        items.append(("bad", "overdue", text, f"every {_days(each.every_days)}"))
    if len(late) > 6:
        items.append(("bad", "overdue", f"and {len(late) - 6} more, listed below", ""))
    # Those of late first, and what was refused before what was away.
    edge = _before(report.until, NEW_DAYS)
    failures = sorted(
        report.failures,
        key=lambda each: (each.last < edge, each.result == "ServiceUnavailableError", -each.count),
    )
    for failure in failures[:4]:
        text = (
            f"{_name(failure.who, 'b')} failed at {_text(failure.action)} of <code>{_text(failure.subject)}</code> "
            f"with {_text(failure.result)}, {_times(failure.count)}"
        )
        items.append(("bad", "failed", text, f"last {_moment(failure.last)}"))
    for kind, pill in (("burst", "burst"), ("off-hours", "off hours"), ("new", "new")):
        of_kind = [each for each in report.patterns if each.kind == kind]
        for pattern in of_kind[:3]:
            text = f"{_name(pattern.who, 'b')}, <code>{_text(pattern.subject)}</code>: {_text(pattern.text)}"
            items.append(("warn", pill, text, f"last {_moment(pattern.last)}"))
    if not items:
        body = '<p class="empty">Nothing: no failures, nothing overdue, nothing unlike before.</p>'
    else:
        body = "".join(
            f'<li><span><span class="pill {kind}">{pill}</span></span><span>{text}</span>'
            f'<span class="t">{aside}</span></li>'
            for kind, pill, text, aside in items
        )
        body = f'<ul class="look">{body}</ul>'
    return _section("Needs a look", "", body)


def _activity(report: Report) -> str:
    note = (
        '<span class="key"><svg width="10" height="10"><rect width="10" height="10" rx="2" class="fdone"/></svg>done'
        '</span><span class="key"><svg width="10" height="10"><rect width="10" height="10" rx="2" class="ffail"/></svg>'
        "failed</span>"
    )
    return _section("Operations a day", note, _bars(report.days))


def _bars(days: Sequence[Day]) -> str:
    if not days:
        return '<p class="empty">There were none.</p>'
    step = max(1, math.ceil(len(days) / 120))
    groups = [days[at : at + step] for at in range(0, len(days), step)]
    width, height, left, bottom = 680, 230, 46, 24
    most = max(sum(each.done + each.failed for each in group) for group in groups)
    tick = _tick(most)
    top = tick * math.ceil(most / tick)
    space = (width - left) / len(groups)
    bar = max(1.0, min(space * 0.72, 34.0))
    scale = (height - bottom - 8) / top
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="operations by day">'
    ]
    for number in range(0, top + 1, tick):
        y = height - bottom - number * scale
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="sgrid"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(number)}</text>'
        )
    labels = max(1, math.ceil(len(groups) / 8))
    for at, group in enumerate(groups):
        done, failed = sum(each.done for each in group), sum(each.failed for each in group)
        x = left + at * space + (space - bar) / 2
        base = height - bottom
        name = group[0].day if step == 1 else f"{group[0].day} to {group[-1].day}"
        parts.append(f"<g><title>{name}: {done:,} done, {failed:,} failed</title>")
        high = done * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{base - high:.1f}" width="{bar:.1f}" height="{high:.1f}" rx="1.5" class="fdone"/>'
        )
        if failed:
            more = max(failed * scale, 1.5)
            parts.append(
                f'<rect x="{x:.1f}" y="{base - high - more:.1f}" width="{bar:.1f}" height="{more:.1f}" rx="1" '
                'class="ffail"/>'
            )
        parts.append("</g>")
        if at % labels == 0:
            day = datetime.fromisoformat(group[0].day)
            parts.append(
                f'<text x="{x + bar / 2:.1f}" y="{height - 6}" text-anchor="middle">{day.day} {day:%b}</text>'
            )
    return "".join(parts) + "</svg>"


def _tick(most: int) -> int:
    """Return a round distance of the lines of a grid, of which there are five at most."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if most <= 5 * size * factor:
                return size * factor
        size *= 10


def _rhythm(report: Report) -> str:
    most = max((max(row) for row in report.hours), default=0)
    if not most:
        return _section("When", "", '<p class="empty">Never.</p>')
    size, high, gap, left = 14.5, 27.0, 2.5, 34
    width = left + 24 * (size + gap)
    height = 7 * (high + gap) + 22
    parts = [
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'aria-label="operations by hour of the week">'
    ]
    for day, row in enumerate(report.hours):
        y = day * (high + gap)
        parts.append(f'<text x="0" y="{y + high / 2 + 4:.1f}">{_DAYS[day]}</text>')
        for hour, count in enumerate(row):
            x = left + hour * (size + gap)
            # By the logarithm: one operation at night is to be seen beside thousands by day.
            shade = math.log1p(count) / math.log1p(most)
            look = (
                f'class="fdone" fill-opacity="{0.1 + 0.9 * shade:.2f}"'
                if count
                else 'class="fgrid"'
            )
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{size}" height="{high}" rx="3" {look}>'
                f"<title>{_DAYS[day]} {hour:02d}:00: {count:,}</title></rect>"
            )
    for hour in range(0, 24, 6):
        x = left + hour * (size + gap)
        parts.append(f'<text x="{x:.1f}" y="{height - 4:.1f}">{hour:02d}:00</text>')
    return _section("When in the week", "darker is more", "".join(parts) + "</svg>")


def _uses(report: Report) -> str:
    most = max((each.count for each in report.uses), default=1)
    table = _table(
        ["Who", "What", "How", "#Times", "#Failed", "Versions", "Last"],
        (
            [
                _name(each.who),
                f"<code>{_text(each.subject)}</code>",
                _actions(each.usual_actions()),
                (each.count, _in_bar(each.count, most)),
                (each.failed, f'<span class="bad">{each.failed:,}</span>' if each.failed else "0"),
                _versions(each.versions),
                _when(each.last),
            ]
            for each in report.uses
        ),
        len(report.uses),
        "uses",
    )
    note = '<input type="search" placeholder="Filter" aria-label="Filter" data-of="uses" hidden>'
    return _section("Who used what", note, table)


def _failures(report: Report) -> str:
    if not report.failures:
        return _section("Failed attempts", "", '<p class="empty">There were none.</p>')
    table = _table(
        ["Who", "Operation", "What", "Ended with", "#Times", "First", "Last"],
        (
            [
                _name(each.who),
                _text(each.action),
                f"<code>{_text(each.subject)}</code>",
                f'<span class="pill bad">{_text(each.result)}</span>',
                (each.count, f"{each.count:,}"),
                _when(each.first),
                _when(each.last),
            ]
            for each in report.failures
        ),
        len(report.failures),
        "failures",
    )
    return _section("Failed attempts", f"{report.failed:,} in all", table)


def _rotations(report: Report) -> str:
    looks = {"overdue": "bad", "never": "bad", "soon": "warn", "fine": "good"}
    words = {"overdue": "overdue", "never": "never rotated", "soon": "due soon", "fine": "in time"}
    table = _table(
        ["Secret", "Kind", "Owner", "State", "#Age", "Last rotation", "Due"],
        (
            [
                f"<b>{_text(each.name)}</b>",
                _text(each.kind),
                _text(each.owner),
                f'<span class="pill {looks[each.state]}">{words[each.state]}</span>',
                _age(each),
                _when(each.last) if each.last else "",
                _when(each.due) if each.due else "",
            ]
            for each in report.overdue
        ),
        len(report.overdue),
        "rotations",
    )
    return _section("Rotation", f"soon means within {SOON_DAYS} days", table)


def _age(each: Due) -> tuple[float, str]:
    if each.days is None:
        return math.inf, "\u2013"
    age = each.every_days + each.days
    full = min(1.0, age / each.every_days)
    look = {"overdue": "ffail", "soon": "fwarn"}.get(each.state, "fgood")
    bar = (
        '<svg width="74" height="6" viewBox="0 0 74 6" role="presentation"><rect width="74" height="6" rx="3" '
        f'class="fgrid"/><rect width="{74 * full:.1f}" height="6" rx="3" class="{look}"/></svg>'
    )
    return age, f"{age:,.0f} of {_days(each.every_days)}{bar}"


def _unused(report: Report) -> str:
    if not report.unused:
        return _section(
            "Unused", "", '<p class="empty">Everything that the log knows was used.</p>'
        )
    table = _table(
        ["Key or secret", "#Idle", "Last used", "By"],
        (
            [
                f"<code>{_text(each.subject)}</code>",
                (each.days, _days(each.days)),
                _when(each.last),
                _name(each.who),
            ]
            for each in report.unused
        ),
        len(report.unused),
        "unused",
    )
    return _section("Unused", "revoke what nobody needs", table)


def _parts(report: Report) -> str:
    most = max((count for _, count, _ in report.actions), default=1)
    table = _table(
        ["Part", "#Operations", "#Failed"],
        (
            [
                f"<code>{_text(name)}</code>",
                (count, _in_bar(count, most)),
                (failed, f'<span class="bad">{failed:,}</span>' if failed else "0"),
            ]
            for name, count, failed in report.actions
        ),
        len(report.actions),
        "parts",
    )
    return _section("Parts of the system", "", table)


def _patterns(report: Report) -> str:
    if not report.patterns:
        return ""
    words = {"new": "new", "off-hours": "off hours", "burst": "burst"}
    table = _table(
        ["Pattern", "Who", "What", "#Times", "How", "First", "Last"],
        (
            [
                f'<span class="pill {"plain" if each.kind == "new" else "warn"}">{words[each.kind]}</span>',
                _name(each.who),
                f"<code>{_text(each.subject)}</code>",
                (each.count, f"{each.count:,}"),
                _text(each.text),
                _when(each.first),
                _when(each.last),
            ]
            for each in report.patterns
        ),
        len(report.patterns),
        "patterns",
    )
    return _section("Unlike before", "no proof of anything, but worth a question", table)


def _footer(report: Report) -> str:
    log = f"<span>log <code>{_text(report.log_id)}</code></span>" if report.log_id else ""
    unreadable = (
        f'<span class="bad">{report.unreadable:,} lines could not be read</span>'
        if report.unreadable
        else ""
    )
    period = f"<span>from {_stamp(report.since)}</span><span>to {_stamp(report.until)}</span>"
    return f"<footer>{log}{period}{unreadable}</footer>"


# Helpers


def _section(name: str, note: str, body: str) -> str:
    aside = f'<p class="soft">{note}</p>' if note else ""
    return f'<section><div class="top"><h2>{name}</h2>{aside}</div>{body}</section>'


_Cell = str | tuple[float | str, str]


def _table(columns: Sequence[str], rows: Iterable[Sequence[_Cell]], total: int, name: str) -> str:
    """Return a table that sorts by its heads; a `#` before a name means numbers, a pair is (what sorts, what shows)."""
    kinds = ["n" if each.startswith("#") else "" for each in columns]
    heads = "".join(
        f'<th class="{kind}"><button type="button">{each.lstrip("#")}</button></th>'
        for each, kind in zip(columns, kinds, strict=True)
    )
    lines = []
    for number, row in enumerate(rows):
        if number >= MAX_ROWS:
            break
        cells = []
        for cell, kind in zip(row, kinds, strict=True):
            value, shown = cell if isinstance(cell, tuple) else (None, cell)
            sort = "" if value is None else f' data-v="{_sortable(value)}"'
            look = kind or ("t" if isinstance(value, str) else "")
            cells.append(f'<td class="{look}"{sort}>{shown}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = ""
    if total > MAX_ROWS:
        more = f'<p class="soft">and {total - MAX_ROWS:,} more, in the report as JSON</p>'
    return (
        f'<div class="wide"><table id="{name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>" + more
    )


def _sortable(value: float | str) -> str:
    if isinstance(value, str):
        return _text(value)
    return "1e99" if math.isinf(value) else f"{value:.6g}"


def _in_bar(count: int, most: int) -> str:
    width = max(1.0, 74 * count / most)
    return (
        f'{count:,}<svg width="74" height="4" viewBox="0 0 74 4" role="presentation"><rect x="{74 - width:.1f}" '
        f'width="{width:.1f}" height="4" rx="2" class="fbar"/></svg>'
    )


def _name(who: str, tag: str = "span") -> str:
    """Return who, with the user of the system behind an identity in the background."""
    name, bracket, user = who.partition(" (")
    behind = f' <span class="soft">{_text(user.removesuffix(")"))}</span>' if bracket else ""
    return f'<{tag} class="w">{_text(name)}</{tag}>{behind}'


def _actions(actions: Sequence[str]) -> str:
    """Return the most usual actions; of one part of the system that did many things only its name."""
    parts = {name.partition(".")[0] for name in actions}
    if len(actions) > 3 and len(parts) == 1:
        return _text(f"{parts.pop()}, {len(actions)} operations")
    more = f' <span class="soft">+{len(actions) - 2}</span>' if len(actions) > 2 else ""
    return _text(", ".join(actions[:2])) + more


def _versions(versions: Sequence[str]) -> str:
    if not versions:
        return ""
    *older, newest = [_text(each if len(each) <= 20 else f"{each[:17]}\u2026") for each in versions]
    before = f'<span class="soft">{", ".join(older)}, </span>' if older else ""
    return f"{before}{newest}"


def _when(text: str) -> tuple[str, str]:
    return text, _moment(text)


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text[:19])
    return f'<time datetime="{_text(text)}" title="{_text(text)}">{moment.day} {moment:%b %H:%M}</time>'


def _date(text: str) -> str:
    moment = datetime.fromisoformat(text[:19])
    return f"{moment.day} {moment:%B %Y}"


def _stamp(text: str) -> str:
    return f"{text[:10]} {text[11:19]} UTC"


def _before(text: str, days: int) -> str:
    return f"{datetime.fromisoformat(text[:19]) - timedelta(days=days):%Y-%m-%dT%H:%M:%S}"


def _days(days: float) -> str:
    count = round(days)
    return "less than a day" if count < 1 else "1 day" if count == 1 else f"{count:,} days"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count:,} times"


def _short(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else f"{number:,}"
