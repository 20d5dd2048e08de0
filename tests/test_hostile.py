"""What a person's strings hold reaches no sink: not HTML, MathJax, a terminal, rich's markup, a spreadsheet or JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import typing
import unicodedata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import html5lib
import pytest
import torch
from rich.cells import cell_len
from sample_reports import at, gan, large, row, series, small, stats
from shells import Session
from test_render_html import ATTRIBUTES, STYLES, TAGS, elements, parsed, words
from work import cpu_seconds

from gradmagic.curves import Curve, GradSeries
from gradmagic.raised import told_briefly
from gradmagic.records import BackwardPass, Finding, InnerStep, LedgerEntry, Location, TensorRow
from gradmagic.render.html import render_html, render_page
from gradmagic.render.live import TerminalLive
from gradmagic.render.markup import clean, is_code
from gradmagic.render.selection import select
from gradmagic.render.text import render_text
from gradmagic.report import Report, ReportOptions, TensorNotFoundError

PAYLOADS = {
    "an element": "<img src=x onerror=alert(1)>",
    "a script": "</script><script>alert(1)</script>",
    "the end of an attribute": '" onmouseover="alert(1)" x=\'',
    "the end of a style": '0;background:url(https://example.org/a.png)"',
    "the end of every element": "</code></b></td></tr></table></details></pre></div></title></style></textarea>",
    "a comment": "--><!-- <![CDATA[ ]]>",
    "entities": "&lt;b&gt;&#60;i&#62;&amp;amp;&nbsp",
    "a link": "javascript:alert(1) data:text/html,<a href='javascript:alert(1)'>",
    "a template": "{{ 7*7 }}{% raw %}{# x #}${7*7}",
    "a format": "{0.__class__}{source}%s%(name)s\\1\\g<0>",
    "a formula of TeX": r"$\href{javascript:alert(1)}{x}$ $$\require{html}$$ \(x\) \[y\] \begin{align}z\end{align}",
    "colours of a terminal": "\x1b[5;38;5;9mred\x1b[0m",
    "a link in a terminal": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x07",
    "commands of a terminal": "\x1b]0;title\x07\x1b[2J\x1b[1;1H\x1bc\x1b[6n\x1b[?1049h",
    "C1 controls": "\x9b31m\x90q\x9d0;t\x9c\x85",
    "control characters": "a\x00b\x07c\x08\x08\x08d\x0be\x0cf\x1cg\x7fh",
    "line ends": "a\rb\r\nc\nd\u2028e\u2029f\u0085g",
    "markup of rich": "[red]r[/red][link=https://example.org]l[/link][/] :smile: [blink]",
    "bidirectional overrides": "a\u202eb\u2066c\u2069d\u200fe\u061c",
    "invisible characters": "w\u200bx\u2060y\ufeffz\xad\u3164\u1160\U000e0041\u200d\ufe0f",
    "combining characters": "\u0338x\u0301>\u0338=\u0338 \u0301",
    "piled up marks": "z" + "\u0301\u0323\u0489" * 50,
    "unpaired surrogates": "\ud800x\udfff\udc80",
    "noncharacters": "\ufffe\uffff\ufdd0\U0010ffff",
    "backticks": "`a``b` c`",
    "a formula": '=HYPERLINK("https://example.org","x")',
    "a command": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a formula after a space": " \t=1+1",
    "other scripts": "重み🔥 👩‍💻 é नि שָׁ ๆ่ 1️⃣",
    "very long": "k" * 5_000,
    "very long and spaced": "word " * 1_000,
    "very long and wide": "🔥" * 2_000,
    "very long and invisible": "\u0301" * 2_000,
    "many digits": "7" * 10_000,
    "many lines": "x\n" * 2_000,
    "nested deeply": "(" * 5_000,
    "nothing": "",
}

FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]"
)
"""What must not be drawn; a line feed stands between lines."""

STYLED = re.compile(r"\x1b\[(0|1|2|33|34|36|1;2|1;31|2;36)m")
"""The codes of the seven styles and of those that meet, as rich writes them."""


def poisoned(record: Any, payload: str) -> Any:
    """The record with every string in it (but for words of a closed list) replaced, however deep."""
    if isinstance(record, str):
        return payload
    if isinstance(record, list | tuple):
        return type(record)(poisoned(item, payload) for item in record)
    if not is_dataclass(record) or isinstance(record, Curve | GradSeries | ReportOptions):
        return record
    types = typing.get_type_hints(type(record))
    free = [f.name for f in fields(record) if "Literal" not in str(types[f.name]) and f.name != "find_tensor"]
    return replace(record, **{name: poisoned(getattr(record, name), payload) for name in free})


def whole_report() -> Report:
    """One of everything: rows of all kinds and places, several losses, a ledger, findings, inner steps."""
    losses = gan()
    elsewhere = Location("/x/lib.py", 5, function="f", text="t", statement="s")
    inner = (InnerStep("I", (2,), None),)
    more = [
        row(None, 3, note="n", module="m", module_type="T", location=elsewhere, grad=small(-1.5), aliases=("a",)),
        row("v", 4, reason="unused", culprit=elsewhere, dtype="torch.int8", device="d", inner=inner),
        row("g", 5, grad=stats(1.0), location=replace(elsewhere, cell=3), cell_line=5, grads=series([1.0, 2.0])),
    ]
    findings = [
        Finding(kind="k", severity="error", message="m", hint="h", detail="d", location=at(2), rows=(0,)),
        Finding(kind="k", severity="info", message="m", hint="h = 1", location=elsewhere),
    ]
    failed = LedgerEntry(kind="backward", name="r", error="e", location=elsewhere)
    return replace(
        losses,
        rows=[*losses.rows, *more],
        findings=findings,
        passes=[*losses.passes, BackwardPass(root="r", error="e", location=elsewhere)],
        ledger=[*losses.ledger, failed],
        candidates=("a", "b"),
        guest=True,
        options=ReportOptions(all=True),
    )


@pytest.fixture(params=PAYLOADS.values(), ids=PAYLOADS.keys())
def payload(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(payload: str) -> Report:
    return poisoned(whole_report(), payload)  # type: ignore[no-any-return]  # a report is poisoned into one


def variants(report: Report) -> Iterator[Report]:
    """With all losses in columns, with one pass and no ledger, and with hints alone."""
    yield report
    yield replace(report, passes=report.passes[-1:], ledger=[], options=ReportOptions(sort="name"))
    hinted = [replace(finding, hint=f"f({finding.hint!r})") for finding in report.findings]
    yield replace(report, rows=[], passes=[], ledger=[], findings=hinted)


def text_of(html: str) -> str:
    """All text and tooltips of a fragment."""
    tips = (element.get("title", "") for element in elements(html))
    return "\n".join(("".join(parsed(html).itertext()), *tips))


def strings(data: Any) -> Iterator[str]:
    """Every string in exported data, but for the keys."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, list | dict):
        for item in data.values() if isinstance(data, dict) else data:
            yield from strings(item)


def literals(hint: Any) -> Iterator[str]:
    """The words of the closed lists in a type."""
    yield from (word for word in typing.get_args(hint) if isinstance(word, str))
    for part in typing.get_args(hint):
        yield from literals(part)


def test_every_string_of_every_record_is_replaced() -> None:
    """The corpus reaches all of them: nothing but words of a closed list, and numbers in words, is left."""
    records = (TensorRow, BackwardPass, LedgerEntry, Finding)
    closed = {word for record in records for hint in typing.get_type_hints(record).values() for word in literals(hint)}
    left = set(strings(poisoned(whole_report(), "#").to_dict())) - closed - {"#", "NaN"}
    assert {text for text in left if not re.fullmatch(r"(line |In \[\d+\]:|#:)\d+", text)} == set()


def test_html_holds_it_as_text_and_nothing_else(report: Report, payload: str) -> None:
    """Valid HTML5 of the template's own elements, attributes and styles; no address, no character out of place."""
    for shown in variants(report):
        html = render_html(shown)
        for element in elements(html):
            assert element.tag in TAGS
            assert set(element.attrib) <= ATTRIBUTES
            for declaration in filter(None, element.get("style", "").split(";")):
                prop, _, value = declaration.strip().partition(": ")
                assert re.fullmatch(STYLES[prop], value), declaration
        assert not FORBIDDEN.search(html)
    html5lib.HTMLParser(strict=True).parse(render_page(report))
    drawn = text_of(render_html(report))
    assert clean(payload).strip() in drawn.replace("\xa0", " ")


def test_mathjax_reads_no_formula(report: Report) -> None:
    """Everything stands inside an element that MathJax 2, 3 and 4 pass over."""
    (outermost,) = parsed(render_html(report)).findall("./*")
    assert outermost.get("class") == "mathjax_ignore tex2jax_ignore"


@pytest.mark.parametrize("mode", [{}, {"color": True}, {"ascii_only": True}], ids=["plain", "coloured", "ascii"])
def test_a_terminal_gets_text_and_its_own_colours(report: Report, mode: dict[str, bool]) -> None:
    """No escape sequence but those of the styles, no control, bidi or invisible character, no line too wide."""
    for shown in [report] if mode else variants(report):
        text = render_text(shown, width=100, **mode)
        bare = STYLED.sub("", text) if "color" in mode else text
        assert not FORBIDDEN.search(bare)
        assert max(map(cell_len, bare.splitlines())) <= 100
        assert "ascii_only" not in mode or bare.isascii()


@pytest.mark.parametrize("payload", [text for text in PAYLOADS.values() if FORBIDDEN.search(text) and len(text) < 99])
def test_a_live_display_sends_nothing_else_either(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rich's live machinery writes besides moves the cursor up and clears lines."""
    report = poisoned(whole_report(), payload)
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    live = TerminalLive(80, color=True, ascii_only=False)
    live.show(report)
    live.show(report)
    live.close()
    bare = re.sub(r"\x1b\[(1A|2K|\?25[hl])|\r", "", STYLED.sub("", screen.getvalue()))
    assert not FORBIDDEN.search(bare)


def test_markup_of_rich_is_shown_as_written() -> None:
    """Brackets, links and emoji names, in messages and hints too."""
    markup = PAYLOADS["markup of rich"]
    findings = [Finding(kind="k", severity="info", message=markup, hint=markup, detail=markup)]
    for color in (False, True):
        assert STYLED.sub("", render_text(Report(findings=findings), width=200, color=color)).count(markup) == 3


def test_json_is_strict_and_keeps_every_character(report: Report, payload: str) -> None:
    """Also those that no encoding has."""
    text = report.to_json()
    assert text.isascii()
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["rows"][0]["name"] == data["findings"][0]["message"] == data["candidates"][0] == payload


@pytest.mark.parametrize("long", [False, True], ids=["rows", "gradients"])
def test_no_cell_of_a_csv_is_a_formula_or_a_command(report: Report, long: bool) -> None:
    """It reads back, can be written as UTF-8, and holds text as text and numbers as numbers."""
    text = report.to_csv(long=long)
    text.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    numbers = {"norm", "rms", "mean", "min", "max"}
    for line in lines:
        for column, value in line.items():
            if column in numbers:
                assert value == "" or isinstance(float(value), float)
            else:
                assert not re.match(r"\s*[-=+@＝＋－＠]|[\t\r\n]", value)
    assert long or any(line["mean"] == "-1.5" for line in lines)


def test_pandas_gets_what_the_person_wrote(report: Report, payload: str) -> None:
    """Numbers as numbers, text as it is; pandas escapes it in its own HTML."""
    pytest.importorskip("pandas")
    frame = report.to_pandas()
    assert frame["expression"][1] == payload
    assert frame["mean"].dtype.kind == "f"


def test_what_python_prints_of_it_is_printable(report: Report, payload: str) -> None:
    """repr() of rows and findings, and the error of a name that is not there: short, and without control characters."""
    with pytest.raises(TensorNotFoundError) as caught:
        report[f"{payload}?"]
    for text in (repr(report.rows[0]), repr(report.findings[0]), repr(report), str(caught.value)):
        assert not FORBIDDEN.search(text)
    assert len(str(caught.value)) < 10_000


def test_nothing_very_long_blows_up_a_report() -> None:
    """Names, expressions, notes and errors of 100,000 characters: drawn in a few hundred, for what 10,000 cost."""
    long, longer = (poisoned(whole_report(), "k" * length) for length in (10_000, 100_000))
    assert len(render_html(longer)) < 500_000
    assert len(render_text(longer, width=100)) < 150_000
    for draw in (render_html, partial(render_text, width=100)):
        assert cpu_seconds(partial(draw, longer)) < 10 * cpu_seconds(partial(draw, long))  # measured: 1.7 and 1.2


def test_ten_thousand_rows_and_two_hundred_losses_stay_readable() -> None:
    """A thousand rows and fifty lines of the ledger are drawn, with what shows the rest; the data hold all of it."""
    ledger = [LedgerEntry(kind="backward", name=f"loss{i}", location=at(i)) for i in range(200)]
    passes = [BackwardPass(root=f"loss{i}", location=at(i), number=i, loss=i) for i in range(200)]
    flat = [replace(each, module=None) for each in large(10_000).rows]
    report = replace(large(10_000), rows=flat, root=None, ledger=ledger, passes=passes, pass_count=200)
    text, html = render_text(report, width=100), render_html(report)
    for drawn in (text, text_of(html)):
        assert "200 backward passes" in drawn
        assert "150 more lines of the ledger" in drawn
        assert "left out" in drawn
    assert html.count("<tr") < 1_100
    assert len(report.to_csv().splitlines()) == 10_001
    assert len(select(report.with_options(ReportOptions(all=True))).rows) == 10_000


def test_letters_of_every_script_and_emoji_stay_what_they_are() -> None:
    """Accents, vowel signs, joined emoji and keycaps are no attack."""
    text = PAYLOADS["other scripts"]
    assert clean(text) == text
    assert clean(unicodedata.normalize("NFD", "ĕ ẫ Å")) == unicodedata.normalize("NFD", "ĕ ẫ Å")


@pytest.mark.parametrize(("name", "shown"), [("w\u200bx", "w\\u200bx"), ("w\ufe0f", "w\\ufe0f"), ("\u3164", "\\u3164")])
def test_names_that_look_alike_are_told_apart(name: str, shown: str) -> None:
    """A character that cannot be seen is spelled out."""
    assert clean(name) == shown


@pytest.mark.parametrize("text", ["(" * 100_000, "-" * 100_000 + "1.", "f(" * 5_000 + ")" * 5_000, "a.b = '\\d'"])
def test_a_hint_that_python_chokes_on_is_no_code_or_quietly_is(text: str) -> None:
    """Neither an error nor a warning of the parser reaches the person."""
    is_code(text)


# ---- whole cells


@pytest.fixture
def shell(shell: Session) -> Session:
    shell.run("import torch\nfrom torch import nn")
    return shell


W = "w = torch.ones(2, requires_grad=True)\n"
BAD_TEXT = "class Bad(Exception):\n    def __str__(self):\n        raise RuntimeError('no text')\n"
KEYS = """
class Key(str):
    def __repr__(self):
        return '<b>\\x1b[5m'
d = {Key('k'): torch.ones(2, requires_grad=True)}
loss = d['k'].sum()
"""
FUNCTION = """
def forward(ctx, x):
    return x * 2
def backward(ctx, g):
    return g * 2
body = {'forward': staticmethod(forward), 'backward': staticmethod(backward)}
loss = type('<i>\\x1b[5m', (torch.autograd.Function,), body).apply(w).sum()
"""
DEVICE = """
class T(torch.Tensor):
    @property
    def device(self):
        return '<b>\\x1b[5m'
    def __repr__(self):
        raise ValueError('<b>')
w = torch.ones(2, requires_grad=True)
t = (w * 2).as_subclass(T)
loss = t.sum()
"""
MODULE = """
m = nn.Sequential()
m.add_module('<b>x\\n\\x1b]8;;u\\x07', nn.Linear(2, 1))
loss = m(torch.ones(2)).sum()
"""
CODE = """
def f(x):
    return x * 2
f.__code__ = f.__code__.replace(co_name='<b>\\x1b[5m')
loss = f(w).sum()
"""
CELLS = {
    "a variable": W + "v = globals()\nv['<img src=x>'] = w * 2\nloss = v['<img src=x>'].sum()",
    "a variable that reorders": W + "d = globals()\nd['\\u202e\\x1b[5m'] = w * 2\nloss = d['\\u202e\\x1b[5m'].sum()",
    "a string in the source": W + "d = {}\nd['\u202e<b>\u200b$x$`'] = w * 2\nloss = d['\u202e<b>\u200b$x$`'].sum()",
    "a key's repr": KEYS,
    "a class": "kind = type('<script>\\x1b[5m', (nn.Linear,), {})\nloss = kind(2, 1)(torch.ones(2)).sum()",
    "a module's name": MODULE,
    "a custom Function": W + FUNCTION,
    "a function's name": W + CODE,
    "a device and a repr": DEVICE,
}
HOOK = "y = w * 2\ny.register_hook(hook)\nloss = y.sum()\nloss.backward()"
ERRORS = {
    "its text": W + "loss = (w * 2).sum()\nraise ValueError('<b>\\x1b[5m\\u202e')",
    "no text": BAD_TEXT + W + "loss = (w * 2).sum()\nraise Bad",
    "its text, in a hook": W + "def hook(g):\n    raise ValueError('<b>\\x1b[5m\\u202e')\n" + HOOK,
    "no text, in a hook": BAD_TEXT + W + "def hook(g):\n    raise Bad\n" + HOOK,
}


def assert_harmless(report: Report) -> None:
    """In HTML and in the terminal, under all options."""
    for shown in (report, report.with_options(ReportOptions(all=True))):
        html = render_html(shown)
        assert {element.tag for element in elements(html)} <= TAGS
        assert all(set(element.attrib) <= ATTRIBUTES for element in elements(html))
        assert not FORBIDDEN.search(html)
        assert not FORBIDDEN.search(render_text(shown, width=120))


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_a_cell_with_a_hostile_name_is_reported_like_any_other(shell: Session, cell: str) -> None:
    """The report is there, every tensor on the way has its gradient, and nothing stirs."""
    ran = shell.run(f"%%gradtrace -o report\n{cell}")
    assert (ran.error, ran.stderr) == ("", "")
    assert not FORBIDDEN.search(ran.stdout)
    report = shell["report"]
    assert report["loss"].grad is not None
    assert not report.findings
    assert_harmless(report)


@pytest.mark.parametrize("cell", ERRORS.values(), ids=ERRORS.keys())
def test_an_error_with_a_hostile_text_is_the_persons_own_and_reported(shell: Session, cell: str) -> None:
    """The very exception comes out, also one that cannot be put into words, and the report is there."""
    shell.shell.user_ns["caught"] = caught = []
    shell.shell.set_custom_exc((Exception,), lambda _, kind, error, tb, tb_offset=None: caught.append(kind.__name__))
    try:
        ran = shell.shell.run_cell(f"%%gradtrace -q -o report\n{cell}")
    finally:
        shell.shell.CustomTB, shell.shell.custom_exceptions = None, ()
    assert ran.error_in_exec is not None
    assert type(ran.error_in_exec).__name__ in ("ValueError", "Bad")
    assert len(shell["report"].rows) == 3
    assert_harmless(shell["report"])


def test_a_root_that_is_hostile_is_told_harmlessly(shell: Session) -> None:
    """An expression for backward that fails, and one that works."""
    shell.run(f"%%gradtrace -q -o report -b \"d['<b>\\x1b[5m']\"\n{W}")
    assert [finding.severity for finding in shell["report"].findings] == ["error"]
    assert_harmless(shell["report"])
    shell.run(f"%%gradtrace -q -o report -b \"d['<b>'].sum()\"\n{W}d = {{'<b>': w * 2}}")
    assert shell["report"].root is not None
    assert_harmless(shell["report"])


@pytest.mark.parametrize("name", ["<img src=x>\x1b[5m.py", "\udcff\u202e.py", "=1+1.py", "--x.py"])
def test_a_file_with_a_hostile_name_is_shown_harmlessly(tmp_path: Path, shell: Session, name: str) -> None:
    """Also one whose name is no UTF-8."""
    try:
        (tmp_path / name).write_text("def double(x):\n    return x * 2\n", encoding="utf-8")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    spec = spec_from_file_location("double", tmp_path / name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    shell.shell.user_ns["double"] = module.double
    ran = shell.run(f"%%gradtrace -o report\n{W}loss = double(w).sum()")
    assert not FORBIDDEN.search(ran.stdout)
    assert any(row.file.endswith(name) for row in shell["report"].rows)
    assert_harmless(shell["report"])
    shell["report"].to_csv().encode()
    torch.set_grad_enabled(True)


def test_a_name_is_found_as_python_knows_it(shell: Session) -> None:
    """Python folds compatibility characters of identifiers (PEP 3131), and a name may be of any length."""
    shell.run(f"%%gradtrace -q -o report\n{W}ﬁ = w * 2\n{'n' * 5_000} = ﬁ * 2\nloss = {'n' * 5_000}.sum()")
    assert [row.name for row in shell["report"].rows] == ["w", "fi", "n" * 5_000, "loss"]
    assert words(parsed(render_html(shell["report"]))).count("fi") >= 1


def test_a_fault_of_ours_is_told_harmlessly() -> None:
    """In one short line without control characters, whatever exception of the person's came into our way."""

    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert told_briefly(SilentError()) == "SilentError (its text cannot be shown)"
    assert told_briefly(ValueError("a\x1b[5m\nb\u202e\ud800")) == "ValueError: a\\x1b[5m\\nb\\u202e\\ud800"
    assert len(told_briefly(ValueError("x" * 100_000))) == 300
