"""The page in a browser: the system's Chromium."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest

import ttm_jax
from ttm_jax.multiplication.demo.picture import save_picture
from ttm_jax.multiplication.demo.trace import trace

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with (
        playwright.sync_playwright() as engines,
        engines.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture
def visit(browser):
    """`visit(address, ...)` opens a page; what it logs as an error or loads from elsewhere fails the test."""
    with contextlib.ExitStack() as stack:
        wrong = []

        def open_page(address, **options):
            def log(message):
                refused = message.location["url"].startswith(f"{ours}multiply")  # bad input: the page says so itself
                if message.type in ("error", "warning") and not refused:
                    wrong.append(message.text)

            ours = address.split("?")[0]
            page = stack.enter_context(contextlib.closing(browser.new_page(**options)))
            page.on("console", log)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: request.url.startswith((ours, "data:")) or wrong.append(request.url))
            page.goto(address)
            return page

        yield open_page
        assert wrong == []


@pytest.fixture
def told(checkpoint):
    """What the page has to say of a product: the network's answer, and whether it is right."""

    def tell(a, b):
        (answer,) = ttm_jax.load(checkpoint).multiply([a], [b])
        verdict = "✓ right" if answer == a * b else f"✗ wrong, it is {a * b}"
        return f"{a} × {b} = {'no number' if answer is None else answer} {verdict}"

    return tell


def tab_to(page, name):
    """Presses Tab until the element has the focus."""
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == name:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not lead to {name}")


def test_the_page_loads(address, visit):
    page = visit(address)
    assert page.locator("#problem").is_visible()
    assert page.locator("#show").is_hidden()
    assert page.locator("#error").is_hidden()


def test_a_product_typed_and_its_steps(address, visit, told):
    page = visit(address)
    page.keyboard.press("Control+A")  # the field has the focus
    page.keyboard.type("12 x 34")
    page.click("text=Multiply")
    expect(page.locator("#result")).to_have_text(told(12, 34))
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
    page.fill("#problem", "7*8")
    page.click("text=Multiply")
    expect(page.locator("#result")).to_have_text(told(7, 8))
    assert page.locator("#operands .box").count() == 3


def test_by_keyboard_alone(address, visit, told):
    page = visit(address, reduced_motion="reduce")
    page.keyboard.press("Control+A")
    page.keyboard.type("12*34")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_have_text(told(12, 34))
    steps = page.locator("#table tbody tr").count()
    assert page.inner_text("#play") == "Play", "nothing moves by itself where motion is not wanted"
    tab_to(page, "play")
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause"
    page.keyboard.press("Enter")
    assert page.inner_text("#play") == "Play"
    tab_to(page, "slider")
    page.keyboard.press("End")
    assert page.inner_text("#step-title").startswith(f"Step {steps} of {steps}")
    page.keyboard.press("Home")
    assert page.inner_text("#step-title").startswith(f"Step 1 of {steps}")
    assert page.get_attribute("#slider", "aria-valuetext") == "step 1, units"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#step-title").startswith(f"Step 2 of {steps}")


def test_nonsense_is_said_where_it_was_typed(address, visit, told):
    page = visit(address)
    page.fill("#problem", "twelve")
    page.click("text=Multiply")
    expect(page.locator("#error")).to_contain_text("'twelve' is no product")
    assert page.locator("#show").is_hidden()
    assert page.evaluate("document.activeElement.id") == "problem"
    page.fill("#problem", "12*3")
    page.click("text=Multiply")
    expect(page.locator("#result")).to_have_text(told(12, 3))
    assert page.locator("#error").is_hidden()


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
