"""The report in a real JupyterLab and Notebook 7 and browser: trusted and not, light and dark, run and only opened.

``pytest --screenshots FOLDER tests/test_browser.py`` keeps what was seen. It needs ``pip install ".[browser]"`` and a
Chromium; Playwright drives one that is installed, where Selenium would need a driver of the very same version.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from sample_reports import gan, large, odd, rnn, stats
from test_front_ends import GRAPHIC, SIGN, TEXT, THEMES, color, contrast, notebook

from gradmagic.comparison import Comparison
from gradmagic.records import Finding, Source
from gradmagic.report import Report, ReportOptions

pytest.importorskip("jupyterlab")
pytest.importorskip("playwright")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

pytestmark = pytest.mark.real

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
WAIT = 60_000
"""Milliseconds for a page, or a whole notebook, to come; the first page of a server takes the longest."""
PAINT = 300
"""Milliseconds in which JupyterLab paints a cell that has come near the window."""
SMALL = (800, 500)
"""A window that holds neither the width nor the height of a large table, in pixels."""
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"


# ---- a server and a browser


@dataclass(frozen=True)
class FrontEnd:
    """A Jupyter front end: the module that starts it, the class of its server, and where it shows a notebook."""

    module: str
    app: str
    path: str


FRONT_ENDS = {
    "JupyterLab": FrontEnd("jupyterlab", "LabApp", "doc/tree"),
    "Notebook 7": FrontEnd("notebook", "JupyterNotebookApp", "notebooks"),
}


@dataclass(frozen=True)
class Lab:
    """A front end with settings of its own, a browser that looks at it, and where it keeps what it saw."""

    browser: Browser
    address: str
    token: str
    folder: Path
    settings: Path
    pictures: Path
    front_end: FrontEnd

    @contextmanager
    def opened(self, name: str, theme: str = LIGHT, size: tuple[int, int] = (1300, 1000)) -> Iterator[Page]:
        """A notebook of the folder, alone in the window."""
        self._set("apputils-extension/themes", theme=theme)
        # JupyterLab's own question about news lies over the page.
        self._set("apputils-extension/notification", fetchNews="false", checkForUpdates=False)
        page = self.browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.set_default_timeout(WAIT)
        try:
            page.goto(f"{self.address}/{self.front_end.path}/{name}?token={self.token}")
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            page.wait_for_function("jupyterapp.shell.currentWidget?.context?.isReady")
            page.wait_for_function(f"document.body.dataset.jpThemeName === '{theme}'")
            yield page
        finally:
            page.close()

    def picture(self, page: Page, name: str, of: Locator | None = None) -> None:
        """Keep what is to be seen now, or once this is in sight: JupyterLab paints cells as they come near."""
        if of is not None:
            of.scroll_into_view_if_needed()
        page.wait_for_timeout(PAINT)
        page.screenshot(path=self.pictures / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.png")

    def _set(self, plugin: str, **values: object) -> None:
        file = self.settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")


def environment(home: Path) -> dict[str, str]:
    """The tester's own, but for settings, trusted notebooks, workspaces and profiles."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    lab = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    return os.environ | {name: str(home / name.lower()) for name in (*places, *lab)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(front_end: FrontEnd, home: Path, folder: Path, token: str) -> Iterator[str]:
    """The address of a front end that shows a folder."""
    port = free_port()
    options = [
        "--no-browser",
        "--allow-root",  # where the tests run in a container
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}",
        f"--{front_end.app}.expose_app_in_browser=True",
    ]
    with (home / "server.log").open("wb") as log:
        command = [sys.executable, "-m", front_end.module, *options]
        process = subprocess.Popen(command, env=environment(home), stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/api/status?token={token}", process, home / "server.log")
            yield address
        finally:
            process.terminate()  # the server ends its kernels
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT / 1000
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"The server did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module", params=FRONT_ENDS.values(), ids=FRONT_ENDS.keys())
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Lab]:
    front_end: FrontEnd = request.param
    pytest.importorskip(front_end.module)
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "notebooks"
    folder.mkdir()
    for example in EXAMPLES:
        shutil.copy(example, folder)
    asked = pytestconfig.getoption("--screenshots")
    pictures = Path(asked) / front_end.module if asked else tmp_path_factory.mktemp("screenshots")
    pictures.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        address = stack.enter_context(server(front_end, home, folder, token))
        chromium = stack.enter_context(sync_playwright()).chromium
        # A container has neither the namespaces of Chromium's sandbox nor a graphics card; the page is our own.
        browser = chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        stack.callback(browser.close)
        settings = Path(environment(home)["JUPYTERLAB_SETTINGS_DIR"])
        yield Lab(browser, address, token, folder, settings, pictures, front_end)


# ---- what a person does


def run_all(page: Page) -> None:
    """ "Run All Cells" of the menu, until the last cell has ended."""
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    page.wait_for_function(
        """() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'
        && jupyterapp.shell.currentWidget.content.widgets.every(
            (cell) => cell.model.type !== 'code' || !cell.model.sharedModel.source.trim() || cell.model.executionCount)
        && !document.querySelector('.jp-InputPrompt')?.textContent.includes('*')"""
    )


def trusted(page: Page) -> set[bool]:
    """Whether JupyterLab takes the code cells' outputs for the person's own."""
    cells = "jupyterapp.shell.currentWidget.content.widgets.filter((cell) => cell.model.type === 'code')"
    return set(page.evaluate(f"{cells}.map((cell) => cell.model.trusted)"))


def tables(page: Page) -> Locator:
    """The tables of gradients, by their role and the name that a screen reader says."""
    return page.get_by_role("table", name=re.compile("^gradients( of|$)"))


def saved(lab: Lab, name: str, *reports: Report | Comparison) -> str:
    """A notebook with the outputs of these reports, from somebody else: nobody here has run or trusted it."""
    return written(lab, name, notebook(*reports))


def written(lab: Lab, name: str, made: nbformat.NotebookNode) -> str:
    """A notebook in the folder, with the name of its kernel: JupyterLab would ask for it."""
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(made, lab.folder / name)
    return name


# ---- the examples


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_shows_its_tables(lab: Lab, example: Path) -> None:
    """Every traced cell that displays a table does so again, and the errors are those that the notebook is about."""
    kept = outputs(nbformat.read(example, as_version=4).cells)
    name = f"run_{example.name}"
    shutil.copy(example, lab.folder / name)
    with lab.opened(name) as page:
        run_all(page)
        assert trusted(page) == {True}
        now = outputs(page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")["cells"])
        assert [output["output_type"] for output in now] == [output["output_type"] for output in kept]
        expected = sum(has_table(output) for output in kept)
        assert expected > 0
        expect(tables(page)).to_have_count(expected)
        lab.picture(page, f"{example.stem} run", tables(page).first)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_that_is_only_opened_shows_them_too(lab: Lab, example: Path) -> None:
    """Without trust, and in the dark: JupyterLab takes out what might do harm; tables and bars stay."""
    kept = outputs(nbformat.read(example, as_version=4).cells)
    with lab.opened(example.name, DARK) as page:
        assert trusted(page) == {False}
        expect(tables(page)).to_have_count(sum(map(has_table, kept)))
        drawn = page.locator("td > div[style*=width]").evaluate_all(BARS)
        assert [asked for asked, _ in drawn] == [width for output in kept for width in bars(output)]
        assert all(seen in (asked, None) for asked, seen in drawn)
        lab.picture(page, f"{example.stem} opened", tables(page).first)


def outputs(cells: list[Any]) -> list[Any]:
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


BARS = "bars => bars.map(bar => [parseInt(bar.style.width), bar.checkVisibility() ? bar.offsetWidth : null])"
"""The width that each bar asks for, and the one it has, in pixels; what lies in a closed fold has none."""


def bars(output: Any) -> list[int]:
    html = "".join(output.get("data", {}).get("text/html", ""))
    return [int(width) for width in re.findall(r'<td[^>]*><div style="width: (\d+)px', html)]


def has_table(output: Any) -> bool:
    return "<caption" in "".join(output.get("data", {}).get("text/html", ""))


# ---- one report, from somebody else, and run here


def far_down() -> Report:
    """A finding about the last of many rows."""
    report = large(40)
    finding = Finding(kind="unused", severity="error", message="`h38` is not used.", rows=(38,))
    return replace(report, findings=[finding])


CELL = """%%gradtrace --source
import torch
h = w = torch.ones(4, 8, requires_grad=True)
"""  # a name of its own for each of the rows
CELL += "\n".join(f"h{i} = {f'h{i - 1}' if i else 'w'} * 1.5" for i in range(30))
CELL += """
last = torch.ones(4, 8, requires_grad=True)
loss = (h29 * last.argmax()).sum()"""


@pytest.fixture
def run_here(lab: Lab) -> Iterator[Page]:
    """A long report that was made in this JupyterLab: what it shows is taken for the person's own."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("%load_ext gradmagic", CELL)]
    name = written(lab, "run_here.ipynb", nbformat.v4.new_notebook(cells=cells))
    with lab.opened(name, size=SMALL) as page:
        run_all(page)
        assert trusted(page) == {True}
        yield page


@pytest.fixture
def from_elsewhere(lab: Lab) -> Iterator[Page]:
    """A long report in a notebook that nobody here has run."""
    with lab.opened(saved(lab, "from_elsewhere.ipynb", far_down()), size=SMALL) as page:
        assert trusted(page) == {False}
        yield page


@pytest.mark.parametrize("kind", ["run_here", "from_elsewhere"])
def test_a_findings_link_leads_to_its_row(request: pytest.FixtureRequest, lab: Lab, kind: str) -> None:
    """With its sign and its name in sight; JupyterLab follows it also where it took the `id` for one of its own."""
    page = request.getfixturevalue(kind)
    row = "last" if kind == "run_here" else "h38"
    name = tables(page).locator("code", has_text=row).first
    link = page.get_by_role("link", name="show the row")
    link.scroll_into_view_if_needed()
    expect(name).not_to_be_in_viewport()
    link.click()
    expect(name).to_be_in_viewport(ratio=1)
    sign = tables(page).get_by_role("cell", name=f"✖ {row}").first.get_by_title("error")
    expect(sign).to_be_in_viewport(ratio=1)
    lab.picture(page, f"link {kind}")


def test_the_reason_for_a_none_is_in_sight_in_a_narrow_window(lab: Lab) -> None:
    """Beside the `None`, without scrolling to the end of the line."""
    with lab.opened(saved(lab, "narrow.ipynb", rnn()), size=SMALL) as page:
        line = tables(page).get_by_role("row").filter(has_text="encoder.bias")
        line.get_by_text("encoder.bias").scroll_into_view_if_needed()
        expect(line.get_by_role("cell", name="cut off from the root")).to_be_in_viewport()
        lab.picture(page, "narrow")


def test_a_fold_opens(from_elsewhere: Page, lab: Lab) -> None:
    """The inner steps of a row, and the code, in a notebook of somebody else's too."""
    step = from_elsewhere.get_by_text("SoftmaxBackward0").first
    assert not step.is_visible()
    from_elsewhere.get_by_text("with 1 inner step").first.click()
    assert step.is_visible()
    lab.picture(from_elsewhere, "fold open", step)


def test_a_module_opens_to_its_rows(lab: Lab) -> None:
    """Of a deep model, without trust."""
    with lab.opened(saved(lab, "deep.ipynb", large(200))) as page:
        fold = tables(page).locator("summary").first
        inside = tables(page).locator("details table").first
        assert not inside.is_visible()
        fold.click()
        assert inside.is_visible()
        lab.picture(page, "module open", inside)


def test_a_tooltip_tells_more(from_elsewhere: Page) -> None:
    """`title` is left where JupyterLab distrusts: dtype, device and node of a tensor, and what a sign means."""
    cell = tables(from_elsewhere).locator("tbody > tr").first.locator("td").nth(1)
    assert "64×128×14×14 float32 on cpu" in (cell.get_attribute("title") or "")
    assert from_elsewhere.get_by_title("error", exact=True).count() > 0


def test_every_table_has_a_name_for_a_screen_reader(lab: Lab) -> None:
    """Without trust a caption or `title` is left of all names: the ledger, the code, the gradients, a comparison."""
    source = Source("\n".join(f"line_{number}" for number in range(1, 14)))
    reports = [gan(), replace(rnn(), source=source, options=ReportOptions(source=True))]
    before = replace(rnn(), rows=[replace(row, grad=row.grad and stats(9.0)) for row in rnn().rows])
    with lab.opened(saved(lab, "names.ipynb", *reports, rnn().compare(before))) as page:
        expect(tables(page)).to_have_count(2)
        names = ("the lines that ran backward", "the code, each line", "changes since the last run")
        for name in names:
            expect(page.get_by_role("table", name=name)).to_have_count(1)


def test_mathjax_leaves_names_alone(lab: Lab) -> None:
    """What stands between two dollars in a name is no formula."""
    rows = [replace(row, name="$x$") for row in rnn().rows[:2]]
    with lab.opened(saved(lab, "dollars.ipynb", replace(rnn(), rows=rows, findings=[], root=None))) as page:
        assert tables(page).get_by_text("$x$", exact=True).count() == 2
        assert page.locator("mjx-container").count() == 0


# ---- colours as they are seen


SEEN = """(root) => {
    const found = [];
    const layers = (node) => {
        const above = [];
        for (let at = node; at; at = at.parentElement) {
            const style = getComputedStyle(at);
            above.push([style.backgroundColor, Number(style.opacity)]);
        }
        return above;
    };
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode, parent = node.parentElement;
        if (node.data.trim() && parent.checkVisibility())
            found.push([node.data.trim(), getComputedStyle(parent).color, layers(parent)]);
    }
    return found;
}"""
"""Each visible text below an element, its colour, and the backgrounds and opacities around it, inside first."""


def contrast_of(front: str, layers: list[tuple[str, float]]) -> float:
    """Of a text to what is behind it. Opacity is that of the text alone: what is dim has no background here."""
    back = color(THEMES["white"][0])
    for background, _ in reversed(layers):
        back = color(background).over(back)
    opacity = 1.0
    for _, each in layers:
        opacity *= each
    seen = color(front)
    return contrast(seen._replace(alpha=seen.alpha * opacity).over(back), back)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_everything_can_be_read_as_jupyterlab_shows_it(lab: Lab, theme: str) -> None:
    """With JupyterLab's own colours of links, code and rows: text 4.5:1, signs and sparklines 3:1 (WCAG 2.1 AA)."""
    reports = [report.with_options(ReportOptions(source=True, all=True)) for report in (rnn(), gan(), odd())]
    with lab.opened(saved(lab, "colours.ipynb", *reports), theme) as page:
        poor = set()
        for index, shown in enumerate(page.locator(".jp-RenderedHTML").all()):
            lab.picture(page, f"colours {theme} {index}", shown)
            pieces = shown.evaluate(SEEN)
            assert pieces
            for text, front, layers in pieces:
                ratio = contrast_of(front, layers)
                if ratio < (GRAPHIC if SIGN.fullmatch(text) else TEXT):
                    poor.add((text[:40], front, round(ratio, 2)))
        assert poor == set()


@pytest.mark.parametrize(("theme", "known"), [(LIGHT, "white"), (DARK, "JupyterLab dark")])
def test_the_pages_that_contrast_is_computed_for_are_the_real_ones(lab: Lab, theme: str, known: str) -> None:
    """`test_front_ends.THEMES` has JupyterLab's background, and text that is no stronger than JupyterLab's."""
    back, text = map(color, THEMES[known])
    with lab.opened(saved(lab, "themes.ipynb", rnn()), theme) as page:
        shown = page.locator(".jp-RenderedHTML").first
        (_, front, layers), *_ = shown.evaluate(SEEN)
        page_back = page.locator(".jp-Notebook").evaluate("notebook => getComputedStyle(notebook).backgroundColor")
        assert color(page_back) == back
        assert contrast_of(front, layers) >= contrast(text, back)
