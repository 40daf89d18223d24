"""The page as it is served: by the command, to any client, and in a browser where there is one."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

import ttm_jax

pytest.importorskip("starlette", reason="the extra demo is not installed")
pytest.importorskip("uvicorn", reason="the extra demo is not installed")


@contextlib.contextmanager
def serving(environment, *arguments):
    """The process of the command, once it has said its address, and that."""
    command = [sys.executable, "-m", "ttm_jax.demo", "--page", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), process.stderr.read()
            yield process, line.split()[0]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(environment, tiny_run):
    with serving(environment, "--checkpoint", tiny_run.path) as (_, address):
        yield address


def get(address, **headers):
    """Status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page(address):
    status, page = get(address)
    assert status == 200
    assert "<title>A Token Turing Machine multiplies</title>" in page
    assert '"trace": null' in page


def test_a_product(address, tiny_run):
    status, text = get(f"{address}multiply?problem=12*34")
    assert status == 200
    answer = json.loads(text)
    assert answer["problem"] == "12 × 34"
    assert answer["answer"] == ttm_jax.load(tiny_run.path).multiply([12], [34])[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "nothing to multiply; type a product such as 123*45"),
        ("?problem=", "nothing to multiply; type a product such as 123*45"),
        ("?problem=hello", "'hello' is no product: type two numbers from 0 to 99999, such as 123*45"),
        ("?problem=123456*2", "123456 has 6 digits, too many: the numbers are from 0 to 99999"),
    ],
)
def test_what_is_no_product_is_the_command_s_line(query, message, address):
    status, text = get(f"{address}multiply{query}")
    assert status == 400
    assert json.loads(text) == {"error": message}


def test_only_this_machine_s_names_are_answered(address):
    assert get(address, Host="evil.example")[0] == 400
    assert get(address, Host="localhost")[0] == 200
    assert get(f"{address}nothing")[0] == 404


def test_ctrl_c_ends_it_and_a_taken_port_is_said(environment, tiny_run):
    with serving(environment, "12*34", "--checkpoint", tiny_run.path) as (process, address):
        assert address.endswith("/?problem=12%2A34")
        port = address.split(":")[2].split("/")[0]
        command = [sys.executable, "-m", "ttm_jax.demo", "--page", "--port", port, "--checkpoint", str(tiny_run.path)]
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2
        assert second.stderr == (
            f"python -m ttm_jax.demo: error: --port {port}: Address already in use; leave it out for a free one\n"
        )
        assert get(address)[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def browser():
    """Chromium: the one of the system, or that of Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as engines:
        try:
            browser = engines.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def expect():
    """Playwright's assertions, which wait."""
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def visit(browser):
    """`visit(address, ...)` opens a page; what it logs as an error or loads from elsewhere fails the test."""
    with contextlib.ExitStack() as stack:
        wrong = []

        def open_page(address, **options):
            page = stack.enter_context(contextlib.closing(browser.new_page(**options)))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: wrong.append(request.url) if not_ours(request.url, address) else None)
            page.goto(address)
            return page

        yield open_page
        assert wrong == []


def not_ours(url, address):
    return not url.startswith((address.split("?")[0], "data:"))


def test_type_a_product_and_see_the_steps_play(address, visit, expect):
    page = visit(address)
    assert not page.locator("#show").is_visible()
    page.keyboard.press("Control+A")  # the field has the focus
    page.keyboard.type("12 x 34")
    page.keyboard.press("Enter")
    page.wait_for_selector("#show", state="visible")
    assert page.inner_text("#result").startswith("12 × 34 = ")
    assert "so far" in page.inner_text("#facts")
    steps = page.locator("#table tbody tr").count()
    assert steps > 0
    assert page.inner_text("#play") == ("Pause" if steps > 1 else "Play")
    assert page.locator("#operands .box").count() == 5
    assert page.locator("#read-memory i").count() == page.locator("#new-memory i").count() == 4
    assert page.locator("#read-map rect").count() == 4 * steps
    expect(page.locator("#play")).to_have_text("Play", timeout=60_000)
    expect(page.locator("#slider")).to_have_value(str(steps - 1))
    assert page.inner_text("#step-title").startswith(f"Step {steps} of {steps}")


def test_by_keyboard_alone(address, visit):
    page = visit(f"{address}?problem=12*34", reduced_motion="reduce")
    page.wait_for_selector("#show", state="visible")
    steps = page.locator("#table tbody tr").count()
    assert page.inner_text("#play") == "Play", "nothing moves by itself where motion is not wanted"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "slider":
            break
    page.keyboard.press("End")
    assert page.inner_text("#step-title").startswith(f"Step {steps} of {steps}")
    page.keyboard.press("Home")
    assert page.inner_text("#step-title").startswith(f"Step 1 of {steps}")
    assert page.get_attribute("#slider", "aria-valuetext") == "step 1, units"


def test_nonsense_is_said_where_it_was_typed(address, visit, expect):
    page = visit(address)
    page.fill("#problem", "twelve")
    page.click("text=Multiply")
    expect(page.locator("#error")).to_contain_text("'twelve' is no product")
    assert not page.locator("#show").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(scheme, address, visit):
    page = visit(f"{address}?problem=12345*67890", color_scheme=scheme, viewport={"width": 360, "height": 740})
    page.wait_for_selector("#show", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    channels = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(channels) < 64) if scheme == "dark" else (min(channels) > 192)


@pytest.mark.parametrize(
    ("fields", "sums", "products"),
    [
        (dict(schedule="product", carry_head=True), True, True),
        (dict(schedule="product", carry_head=False), False, True),
        (dict(carry_head=True), False, False),
    ],
)
def test_a_row_of_several_machine_steps_says_so(fields, sums, products, make_multiplier, visit, tmp_path):
    from ttm_jax.multiplication.demo.picture import save_picture
    from ttm_jax.multiplication.demo.trace import trace

    path = tmp_path / "memory.html"
    result = trace(make_multiplier(**fields), 123, 45)
    save_picture(path, result)
    page = visit(path.as_uri())
    assert page.locator("#products-note").is_visible() is products
    assert page.locator("#sums-note").is_visible() is sums
    head = page.locator("#table thead th").all_inner_texts()
    assert ("its sums" in head, "it holds" in head) == (sums, fields["carry_head"])
    widths = page.locator("#table tr").evaluate_all("rows => rows.map((row) => row.cells.length)")
    assert widths == [len(head)] * (1 + len(result.steps))
    if sums:
        column = page.locator(f"#table tbody tr td:nth-child({head.index('its sums') + 1})").all_inner_texts()
        told = [" ".join(f"{held}{'' if right else ' ✗'}" for held, right in result.held_sums(t)) for t in result.steps]
        assert column == told


def test_the_page_in_a_file(multiplier, visit, tmp_path):
    from ttm_jax.multiplication.demo.picture import save_picture
    from ttm_jax.multiplication.demo.trace import trace

    path = tmp_path / "memory.html"
    result = trace(multiplier, 123, 45)
    most = 0.0013  # 100 most / most > 100
    save_picture(path, dataclasses.replace(result, read_TxM=np.full_like(result.read_TxM, most, np.float64)))
    page = visit(path.as_uri())
    assert page.inner_text("#result").startswith("123 × 45 = ")
    assert not page.locator("#form").is_visible()
    page.click("#play")
    assert page.locator("#new-map rect").count() > 0
    fills = page.locator("rect").evaluate_all("cells => cells.map((cell) => getComputedStyle(cell).fill)")
    assert "rgb(0, 0, 0)" not in fills, "what a browser paints for a colour that it cannot read"
