"""The report is well-formed, shows every value once, covers its data, and runs or fetches nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from agfl_models.errors import AgflError, DataError
from agfl_models.tasks.language_modeling import MAIN_METRIC
from agfl_server.report.page import Section, write_report

SVG = "{http://www.w3.org/2000/svg}"
VOID_TAGS = {"meta", "line", "circle", "polyline"}
CURVE_KEYS = {
    "training": "train/loss",
    "from clients": "bytes_up",
    "to clients": "bytes_down",
    "whole round": "seconds",
    "relative error": "quantization/relative_error",
    "took part": "clients",
    "refused": "refused",
}


def round_row(number: int) -> dict[str, float | None]:
    trained = number > 0
    return {
        "round": number,
        "train/loss": 5.5 / (number + 1) if trained else None,
        "eval/loss": 5.6 / (number + 1),
        "eval/bits_per_byte": 8.0 / (number + 1),
        "eval/perplexity": 270.0 / (number + 1),
        "clients": 10 if trained else 0,
        "refused": number % 2,
        "bytes_up": 4_000_000 * trained,
        "bytes_down": 3_000_000 * trained,
        "seconds": 1.25 * trained,
        "update/l2": 0.5 if trained else None,
        "quantization/relative_error": 0.0007 if trained else None,
    }


def report_of(folder: Path, rows: list[dict[str, float | None]], configuration: str = "seed: 1\n") -> str:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(configuration, encoding="utf-8")
    report = write_report(folder, MAIN_METRIC)
    assert report == folder / "report.html"
    return report.read_text(encoding="utf-8")


def test_a_score_that_others_count_otherwise_says_how_it_was_counted(tmp_path: Path) -> None:
    rows = [{**round_row(1), "eval/rougeL": 12.5}]
    assert "rougeL: as rouge-score 0.1.2|stem:no|" in report_of(tmp_path, rows)
    assert "rouge" not in report_of(tmp_path, [round_row(1)])


def svgs_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


class Page(HTMLParser):
    """Collects tags and text, and fails at the first tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open_tags:
            self.texts.setdefault(self.open_tags[-1], []).append(data)


def test_page_is_well_formed_and_says_the_totals(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, [round_row(i) for i in range(5)], "seed: 42\n"))
    assert page.texts["dd"] == ["8", "1.600", "4", "10", "16 MB", "12 MB", "5.0 s"]
    assert page.texts["dt"][-1] == "Time in rounds"
    assert "seed: 42" in page.text
    assert tmp_path.name in page.text


def test_every_table_cell_has_a_header(tmp_path: Path) -> None:
    rows = [round_row(i) for i in range(5)]
    tags = Page(report_of(tmp_path, rows)).tags
    scopes = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert scopes == ["col"] * len(rows[0]) + ["row"] * len(rows)
    assert sum(tag == "td" for tag, _ in tags) == len(rows) * (len(rows[0]) - 1)


def test_every_curve_has_a_point_for_each_value(tmp_path: Path) -> None:
    rows = [round_row(i) for i in range(7)]
    rows[3]["seconds"] = None
    del rows[4]["bytes_up"]
    svgs = svgs_of(report_of(tmp_path, rows))
    assert len(svgs) == 6
    groups = {group.get("data-curve"): group for svg in svgs for group in svg.iter(f"{SVG}g")}
    for name, key in CURVE_KEYS.items():
        expected = sum(row.get(key) is not None for row in rows[1:])  # before round 1 nothing took place
        line = groups[name].find(f"{SVG}polyline")
        assert line is not None
        assert len(line.attrib["points"].split()) == expected, name
        assert len(groups[name].findall(f"{SVG}circle")) == expected, name


def test_every_metric_of_a_method_has_a_curve(tmp_path: Path) -> None:
    """Whatever its name is: no list of them is kept."""
    rows = [{**round_row(i), "new_method/share": i / 7 if i else None, "central/bleu": None} for i in range(4)]
    rows[3]["central/bleu"] = 12.5
    svgs = svgs_of(report_of(tmp_path, rows))
    titles = [title.text for svg in svgs if (title := svg.find(f"{SVG}title")) is not None]
    assert len(svgs) == 6 + 2
    groups = {group.get("data-curve"): group for svg in svgs for group in svg.iter(f"{SVG}g")}
    assert [len(groups[name].findall(f"{SVG}circle")) for name in ("new_method/share", "central/bleu")] == [3, 1]
    assert any("new_method/share" in str(title) for title in titles)


@pytest.mark.parametrize("trained", [False, True])
def test_round_0_shows_what_took_place_in_it_and_nothing_else(tmp_path: Path, trained: bool) -> None:
    """Before round 1 a tokenizer may be learned; else nothing was sent, which is no zero."""
    row = {**round_row(0), "quantization/relative_error": 0.0}
    row |= {"clients": 4, "bytes_up": 1000, "bytes_down": 0, "seconds": 2.5} if trained else {}
    page = report_of(tmp_path, [row, round_row(1)])
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page[page.index("<tbody>") :])[len(row) :][: len(row)]
    shown = dict(zip(row, cells, strict=True))
    traffic = [shown[key] for key in ("clients", "refused", "bytes_up", "bytes_down", "seconds")]
    assert traffic == (["4", "0", "1,000", "0", "2.500"] if trained else ["&ndash;"] * 5)
    assert shown["eval/loss"] == "5.600"
    groups = {group.get("data-curve"): group for svg in svgs_of(page) for group in svg.iter(f"{SVG}g")}
    for name in ("from clients", "to clients", "whole round", "took part", "refused"):
        assert len(groups[name].findall(f"{SVG}circle")) == 1 + trained, name


def test_the_newest_round_comes_first(tmp_path: Path) -> None:
    page = report_of(tmp_path, [round_row(i) for i in range(12)])
    assert re.findall(r'<th scope="row">(.*?)</th>', page) == [str(i) for i in reversed(range(12))]


def test_a_report_of_a_thousand_rounds_stays_light(tmp_path: Path) -> None:
    assert len(report_of(tmp_path, [round_row(i) for i in range(1001)])) < 1_000_000


def test_sections_stand_between_numbers_and_curves_with_their_style(tmp_path: Path) -> None:
    report_of(tmp_path, [round_row(0)])
    sections = [Section("<p>one</p>", ".one { color: red }"), Section(""), Section("<p>two</p>")]
    page = write_report(tmp_path, MAIN_METRIC, sections, tmp_path / "other.html").read_text()
    places = [page.index(text) for text in (".one {", "</dl>", "<p>one</p>\n<p>two</p>", 'id="curves"')]
    assert places == sorted(places)


def test_a_page_that_quotes_owners_is_for_its_owner_only(tmp_path: Path) -> None:
    report_of(tmp_path, [round_row(0)])
    for section, mode in [(Section("x", quotes_owners=True), 0o600), (Section("", quotes_owners=True), 0o644)]:
        report = write_report(tmp_path, MAIN_METRIC, [section])
        assert report.stat().st_mode & 0o777 == mode


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    report_of(tmp_path, [round_row(0)])
    with pytest.raises(DataError, match=r"no/report\.html: .*AGFL-DATA-058"):
        write_report(tmp_path, MAIN_METRIC, output=tmp_path / "no" / "report.html")


def test_every_picture_has_a_title_and_description(tmp_path: Path) -> None:
    svgs = svgs_of(report_of(tmp_path, [round_row(i) for i in range(3)]))
    named = [[svg.find(f"{SVG}{tag}") for tag in ("title", "desc")] for svg in svgs]
    for svg, elements in zip(svgs, named, strict=True):
        assert all(element is not None and element.text for element in elements)
        ids = [element.attrib["id"] for element in elements if element is not None]
        assert svg.attrib["aria-labelledby"].split() == ids
    all_ids = [element.attrib["id"] for svg in svgs for element in svg.iter() if "id" in element.attrib]
    assert len(set(all_ids)) == len(all_ids)


def test_text_from_files_stays_text(tmp_path: Path) -> None:
    hostile = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    folder = tmp_path / "<b>run&"
    folder.mkdir()
    page = Page(report_of(folder, [{"round": 0.0, hostile: 1.0}], f"note: {hostile}\n"))
    assert not {"script", "img", "b"} & {tag for tag, _ in page.tags}
    assert f"note: {hostile}" in page.text
    assert "<b>run&" in page.text


def test_page_fetches_nothing(tmp_path: Path) -> None:
    page = report_of(tmp_path, [round_row(i) for i in range(3)])
    urls = set(re.findall(r"https?://[^\s\"'<]*", page))
    assert urls == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src=|href|url\(|@import)", page)
    assert "default-src 'none'" in page


def test_one_row_is_enough(tmp_path: Path) -> None:
    page = report_of(tmp_path, [{"round": 0, "eval/loss": 5.5}])
    assert len(svgs_of(page)) == 6
    assert page.count("<circle") == 1
    assert page.count('<text x="8" y="46">not recorded</text>') == 5


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.jsonl").write_text('{"round": 0, "eval/loss": NaN, "seconds": Infinity, "clients": 1e999}\n')
    page = write_report(tmp_path, MAIN_METRIC).read_text()
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
    assert page.count("<circle") == 0


@pytest.mark.parametrize("missing", ["metrics.jsonl", "config.yaml"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    report_of(tmp_path, [round_row(0)])
    (tmp_path / missing).unlink()
    with pytest.raises(AgflError, match=rf"{missing}: .*AGFL-(CHECKPOINT-003|DATA-059)"):
        write_report(tmp_path, MAIN_METRIC)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"round": 1', r"metrics\.jsonl:2: .*AGFL-CHECKPOINT-001"),
        ("[1]", r"metrics\.jsonl:2: .*AGFL-CHECKPOINT-001"),
        ('{"eval/loss": 1.0}', r"metrics\.jsonl:2: round: .*AGFL-DATA-063"),
        ('{"round": 1, "clients": "ten"}', r"metrics\.jsonl:2: clients: .*got 'ten'.*AGFL-DATA-062"),
        ('{"round": 1, "clients": true}', r"metrics\.jsonl:2: clients: .*got True.*AGFL-DATA-062"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    report_of(tmp_path, [round_row(0)])
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write(line + "\n")
    with pytest.raises(AgflError, match=problem):
        write_report(tmp_path, MAIN_METRIC)


def test_line_that_a_crash_has_cut_short_is_left_out(tmp_path: Path) -> None:
    page = report_of(tmp_path, [round_row(0)])
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"round": 1, "ev')
    assert write_report(tmp_path, MAIN_METRIC).read_text() == page


def test_empty_metrics_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="AGFL-DATA-061"):
        report_of(tmp_path, [])
