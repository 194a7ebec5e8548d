"""The report as text: the same numbers on every face, hostile texts inert, runs with holes in them."""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from quantlab.errors import BadInput, LedgerProblem
from quantlab.records import Number, Run, encode
from quantlab.report import charts, figures, rows, scale, terminal, to_html, to_json, to_markdown, write
from quantlab.report.clean import clean, plain
from quantlab.report.html import typeset
from tests.report_runs import HOSTILE, bare, demo, gpu, hostile

RUNS = {"demo": demo, "gpu": gpu, "hostile": hostile, "bare": bare}


def screen(run: Run, width: int, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    terminal(run, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag if tag in ("script", "style") else self.hidden

    def handle_endtag(self, tag: str) -> None:
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


NUMBERS = ("68.1 ± 1.0", "67.3 ± 1.0", "0.0343", "0.208", "89.1", "1.037", "163 MB", "0.61x", "35.9", "20.1", "51.9")
"""Score, KL, same token, perplexity ratio, size and speed as the run has them."""


def test_every_face_shows_the_same_numbers() -> None:
    run = demo()
    for face in (to_markdown(run), screen(run, 140), Page(to_html(run)).text.replace("−", "-")):
        for number in (*NUMBERS, "-0.8", "[-1.8, +0.1]", "81", "61"):
            assert number in face, number
        for each in run.candidates:
            assert each.recipe_name in face
            assert each.verdict.status in face
        assert "emulated" in face
        assert "simulated" in face


@pytest.mark.parametrize("name", RUNS)
def test_json_is_the_run(name: str) -> None:
    run = RUNS[name]()
    assert msgspec.json.decode(to_json(run), type=Run) == run
    assert to_json(run) == encode(run)


def test_faces_are_pure() -> None:
    assert to_html(demo()) == to_html(demo())
    assert to_markdown(demo()) == to_markdown(demo())


def test_the_page_loads_nothing_and_is_small() -> None:
    source = to_html(demo())
    assert len(source.encode()) < 600_000
    assert not re.search(r"https?://|@import|url\(", source)
    page = Page(source)
    assert {attrs["href"] for tag, attrs in page.tags if tag == "link"} == {"data:,"}
    assert not [attrs for tag, attrs in page.tags if tag in ("iframe", "img", "object", "embed", "form")]
    assert not [attrs for _, attrs in page.tags if "style" in attrs or any(name.startswith("on") for name in attrs)]


def test_tables_are_readable_by_a_screen_reader() -> None:
    page = Page(to_html(demo()))
    tables = [attrs for tag, attrs in page.tags if tag == "table"]
    captions = [attrs for tag, attrs in page.tags if tag == "caption"]
    assert len(tables) == len(captions) > 10
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} <= {f"#{each}" for each in ids}


def test_hostile_texts_stay_texts() -> None:
    source = to_html(hostile())
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]
    assert "<script>window.pwned=1</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    for bad in ("\x1b", "\x00", "\u202e"):
        assert bad not in source
        assert bad not in to_markdown(hostile())
        assert bad not in screen(hostile(), 100)


def test_hostile_texts_in_markdown() -> None:
    text = to_markdown(hostile())
    fenced = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)
    assert "<script" not in fenced
    assert "<img" not in fenced
    assert not re.search(r"(?<!\\)\]\(javascript", fenced)
    assert not re.search(r"(?<!\\)`", fenced)


def test_rich_markup_is_not_read() -> None:
    assert "[bold red]rich[/bold red]" in screen(hostile(), 140).replace("\n", " ")


@pytest.mark.parametrize("name", RUNS)
def test_markdown_tables_are_aligned(name: str) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", to_markdown(RUNS[name]()), flags=re.MULTILINE)
    assert len(blocks) >= 1
    for block in blocks:
        lines = block.splitlines()
        assert len({cell_len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [140, 100, 80, 60, 40])
def test_no_width_cuts_a_number(name: str, width: int) -> None:
    run = RUNS[name]()
    shown = screen(run, width)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    for row in rows.rows(clean(run)):
        for text in (figures.score(row.score), figures.interval(row.difference), figures.size(row.bytes)):
            assert text == figures.NOTHING or text in shown


def test_the_table_takes_more_lines_where_it_is_narrow() -> None:
    def height(width: int) -> int:
        return len(screen(demo(), width).split("bf16 baseline:")[0].splitlines())

    assert height(140) < height(100) < height(80) < height(50)


def test_colour_only_repeats_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = screen(demo(), 100, force_terminal=True, color_system="standard")
    assert "\x1b[1;31mregression" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == screen(demo(), 100)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", screen(demo(), 100, force_terminal=True))


def test_a_console_without_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal(hostile(), Console(file=file, width=100))
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    assert b"68.1 +- 1.0" in file.buffer.getvalue()


def test_paths_are_shown_whole(tmp_path: Path) -> None:
    far = tmp_path / ("deep" * 30) / "report.html"
    console = Console(file=io.StringIO(), width=60)
    from quantlab.report.screen import terminal as show

    show(demo(), console, {"html": far})
    assert isinstance(console.file, io.StringIO)
    assert str(far) in console.file.getvalue()


def test_speed_is_drawn_for_native_cells_only() -> None:
    run = demo()
    assert charts.speed_panels(run, rows.rows(run)) == []
    assert "Speed is not drawn" in to_html(run)
    native = gpu()
    panels = charts.speed_panels(native, rows.rows(native))
    assert [panel.title for _, panel in panels] == ["Accuracy against speed"] * 3  # the invalid cell has no panel
    assert {mark.name for mark in panels[0][1].marks} == {"bf16", "fp8", "int4_awq"}


def test_a_panel_names_what_it_leaves_out() -> None:
    run = gpu()
    mixed = msgspec.structs.replace(run, candidates=(*run.candidates[:2], demo().candidates[2]))
    _, panel = charts.speed_panels(mixed, rows.rows(mixed))[0]
    assert {mark.name for mark in panel.marks} == {"bf16", "fp8"}
    assert panel.absent == ("int4_awq: emulated here, so its speed is not the format's",)


def test_marks_lie_where_their_numbers_say() -> None:
    run = demo()
    panel = charts.size_panel(run, rows.rows(run))
    assert panel is not None
    marks = {mark.name: mark for mark in panel.marks}
    assert "int2_rtn" not in marks
    assert marks["bf16"].y == panel.zero
    assert marks["int4_awq"].y > panel.margin > panel.zero
    assert marks["fp8"].x / marks["bf16"].x == pytest.approx(163_012_344 / 269_060_552, abs=1e-3)
    assert marks["fp8"].hollow
    assert not marks["bf16"].hollow
    assert abs(marks["fp8"].label_y - marks["fp8_kv"].label_y) >= charts.LABEL
    for mark in panel.marks:
        assert mark.top <= mark.y <= mark.bottom <= panel.height


def test_ticks_are_round_and_inside() -> None:
    assert scale.ticks(-7.4, 2.9) == [-6, -4, -2, 0, 2]
    for low, high in ((-0.003, 0.001), (-98.0, 3.0), (0.0, 1e9), (-1.0, 1.0)):
        found = scale.ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(low <= value <= high for value in found)


def test_incomparable_tasks_show_the_reason_instead_of_a_difference() -> None:
    why = "the rendered prompts differ, first at item arithmetic-0001"
    for face in (to_markdown(demo()), Page(to_html(demo())).text):
        assert why in face
    row = next(line for line in to_markdown(demo()).splitlines() if "not comparable" in line)
    assert not re.search(r"[+-]\d", row.split("39.7")[1].split("not comparable")[0])


def test_invalid_cells_keep_their_place_and_reason() -> None:
    for face in (to_markdown(demo()), Page(to_html(demo())).text):
        assert face.count("repeats spread by 41 %") == 3


def test_checks_canary_and_cure_are_shown() -> None:
    text = Page(to_html(demo())).text
    for words in ("420 of 420 enabled quantizers saw data", "the the the the", "Set group_size: auto", "5ca1ab1e" * 8):
        assert words in text
    assert "lm-eval 0.4.13" in text


def test_what_is_not_finite_is_named() -> None:
    run = demo()
    fp8 = run.candidates[1]
    assert fp8.fidelity is not None
    assert fp8.comparison is not None
    lost = Number(value=float("nan"), unit="points", low=float("-inf"), high=float("nan"))
    whole = msgspec.structs.replace(fp8.comparison.suite, difference=lost)
    broken = msgspec.structs.replace(
        fp8,
        fidelity=msgspec.structs.replace(fp8.fidelity, kl=Number(value=float("inf"), unit="nats")),
        comparison=msgspec.structs.replace(fp8.comparison, suite=whole),
    )
    run = msgspec.structs.replace(run, candidates=(run.candidates[0], broken, *run.candidates[2:]))
    for face in (to_markdown(run), Page(to_html(run)).text, screen(run, 140)):
        assert "NaN" in face
        assert "inf" in face
    panel = charts.size_panel(run, rows.rows(run))
    assert panel is not None
    assert "fp8" not in {mark.name for mark in panel.marks}


@pytest.mark.parametrize("left", ["throughput", "fidelity", "accuracy", "comparison", "calibrated", "canary", "flips"])
def test_a_run_with_a_hole(left: str) -> None:
    empty: object = () if left == "flips" else None
    run = demo()
    holed = tuple(msgspec.structs.replace(each, **{left: empty}) for each in run.candidates)
    run = msgspec.structs.replace(run, candidates=holed, suite=None, grid=None)
    assert "int4_awq" in to_markdown(run)
    assert "int4_awq" in screen(run, 80)
    assert ("Not measured in this run." in to_html(run)) == (left in ("throughput", "fidelity"))


def test_a_run_without_candidates() -> None:
    run = msgspec.structs.replace(demo(), candidates=())
    assert "smollm2-135m" in to_html(run)
    assert "smollm2-135m" in to_markdown(run)
    assert "smollm2-135m" in screen(run, 80)


def test_long_prompts_and_many_flips_keep_the_page_small() -> None:
    run = demo()
    flip = msgspec.structs.replace(run.candidates[1].flips[0], prompt="<shot> " * 4000 + "THE QUESTION")
    many = tuple(msgspec.structs.replace(each, flips=(flip,) * 500, flipped=700) for each in run.candidates)
    source = to_html(msgspec.structs.replace(run, candidates=many))
    assert 1_500_000 < len(source.encode()) < 3_000_000
    listed = source.count("THE QUESTION")
    assert sum(int(found) for found in re.findall(r"(\d+) shown of 700", source)) == listed > 100
    assert all(int(a) + int(b) == 700 for a, b in re.findall(r"(\d+) shown of 700; (\d+) less", source))
    assert "THE QUESTION" in source
    assert "characters left out" in source


def test_figures() -> None:
    assert [figures.three(value) for value in (0, 1204, 38.14, 0.03427, -5.6, 2e-6)] == [
        "0", "1,204", "38.1", "0.0343", "-5.60", "2.00e-06",
    ]  # fmt: skip
    assert figures.fixed(-0.04, 1, sign=True) == "0.0"
    assert figures.fixed(None, 1) == figures.NOTHING
    assert [figures.size(count) for count in (None, 0, 900, 163_012_344, 16_060_000_000)] == [
        "–", "–", "0.900 kB", "163 MB", "16.1 GB",
    ]  # fmt: skip
    assert [figures.seconds(value) for value in (None, 0.74, 73.2, 622, 7300)] == [
        "–", "740 ms", "73.2 s", "10 min 22 s", "2 h 1 min",
    ]  # fmt: skip
    assert figures.clip("abcdefgh" * 100, 80).endswith("abcdefgh")
    assert typeset("-5.6 [-7.3, -3.9] of int4-awq-2") == "−5.6 [−7.3, −3.9] of int4-awq-2"


def test_plain_shows_what_it_removes() -> None:
    assert plain("a\x1b[0m\x00\u202eb\r\nc\td") == "a␛[0m␀<U+202E>b\nc\td"
    assert clean(demo()) == demo()
    assert all(plain(plain(text)) == plain(text) for text in HOSTILE)


def test_write(tmp_path: Path) -> None:
    paths = write(demo(), tmp_path / "new" / "folder", "smollm2-135m")
    assert {kind: path.name for kind, path in paths.items()} == {
        "html": "smollm2-135m.html", "md": "smollm2-135m.md", "json": "smollm2-135m.json",
    }  # fmt: skip
    assert sorted(os.listdir(paths["html"].parent)) == sorted(path.name for path in paths.values())
    assert msgspec.json.decode(paths["json"].read_bytes(), type=Run) == demo()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(paths["html"].stat().st_mode) == 0o666 & ~mask


def test_write_twice_at_once(tmp_path: Path) -> None:
    runs = [demo(), gpu()]
    threads = [threading.Thread(target=write, args=(run, tmp_path, "same")) for run in runs * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["same.html", "same.json", "same.md"]
    assert (tmp_path / "same.html").read_text("utf-8") in [to_html(run) for run in runs]
    assert (tmp_path / "same.json").read_bytes() in [to_json(run) for run in runs]


@pytest.mark.parametrize("stem", ["", ".", "..", "../up", "a/b", "/etc/x", ".hidden", "nul\x00"])
def test_write_refuses_a_stem_that_leaves_the_folder(tmp_path: Path, stem: str) -> None:
    with pytest.raises(BadInput, match="plain file name"):
        write(demo(), tmp_path, stem)
    assert not os.listdir(tmp_path)


def test_write_into_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(LedgerProblem, match="cannot be written"):
        write(demo(), tmp_path / "file", "report")
    with pytest.raises(LedgerProblem, match="cannot be written"):
        write(demo(), tmp_path, "x" * 300)
    assert os.listdir(tmp_path) == ["file"]


def test_a_note_that_holds_for_several_recipes_names_them_together() -> None:
    named = [candidate.recipe_name for candidate in demo().candidates[:2]]
    notes = (f"{named[0]}: same", "of all", f"{named[1]}: same", "nobody: same", f"{named[0]}: own", "of all")
    found = rows.notes(msgspec.structs.replace(demo(), notes=notes))
    assert found == [f"{', '.join(named)}: same", "of all", "nobody: same", f"{named[0]}: own"]
