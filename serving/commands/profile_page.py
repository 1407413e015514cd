"""The analysis as one HTML page that needs nothing else."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Final

from scheduler.step_statistics import figures
from serving.commands.profile_charts import Chart
from serving.commands.profile_findings import findings
from serving.commands.profile_reading import Reading

HEAD: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Step records</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .15rem 1rem .15rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #8884 }
img { max-width: 100%; background: #fff; margin: .5rem 0 }
</style></head><body>
<h1>Step records</h1>
"""


def table(readings: Sequence[Reading]) -> list[list[str]]:
    """Statistics by row, files by column, the names first; of two files also the second over the first."""
    columns = [{figure.label: figure for figure in figures(reading.statistics)} for reading in readings]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [["", *(reading.name for reading in readings), *(["second / first"] if len(readings) == 2 else [])]]
    for label in labels:
        cells = [column.get(label) for column in columns]
        row = [label, *("–" if cell is None else cell.text() for cell in cells)]
        if len(cells) == 2:
            first, second = cells
            row.append(f"{second.value / first.value:.2f}" if first and second and first.value else "–")
        rows.append(row)
    return rows


def page(readings: Sequence[Reading], charts: Sequence[Chart]) -> str:
    """The page."""
    parts = [HEAD]
    for reading in readings:
        bad = f", {reading.bad:,} lines that are no records" if reading.bad else ""
        parts.append(f"<p><b>{escape(reading.name)}</b>: {escape(reading.statistics.span)}{bad}</p>\n")
    header, *rows = table(readings)
    parts.append("<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>\n")
    parts += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows]
    parts.append("</table>\n<h2>What stands out</h2>\n")
    for reading in readings:
        found = findings(reading.statistics) or ["Nothing."]
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
        parts.append(f"<h3>{escape(reading.name)}</h3><ul>{items}</ul>\n")
    for chart in charts:
        title = escape(chart.title)
        parts.append(
            f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{b64encode(chart.png).decode()}">\n'
        )
    parts.append("</body></html>\n")
    return "".join(parts)
