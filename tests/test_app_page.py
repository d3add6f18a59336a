"""The page in a real browser: headless Chromium goes through all tabs, alone and beside another visitor.

`make screenshots` takes the pictures of docs/app.md on the way, with the real network and the demo clip.
"""

import base64
import os
import shutil
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from colors import Colors, film
from inflate3d import load
from inflate3d.app.inflating import Bounds
from inflate3d.app.jobs import Desk, Limits
from inflate3d.app.page import Serving, serving
from inflate3d.clips.transforms import resize_picture
from inflate3d.clips.video import open_frames
from inflate3d.weights.fetch import fetch_demo_clip
from videos import write_video

PICTURES = os.environ.get("INFLATE3D_SCREENSHOTS")
PATIENCE = 900 if PICTURES else 120  # seconds, for a machine that does other things as well
NAME = "i3d-kinetics400"
WIDTH, SCALE, LARGEST_BYTES = 1120, 0.8, 200_000
TELLING_SECONDS = 0.9  # of the demo clip, when the arms are up
LIMITS = Limits(megabytes=8, seconds=30)


class Visitor:
    """A window of the browser."""

    def __init__(self, driver, address):
        driver.switch_to.new_window("window")
        self.driver, self.address, self.window = driver, address, driver.current_window_handle
        self.opens()

    def opens(self, theme="light"):
        self.driver.switch_to.window(self.window)
        self.driver.get(f"{self.address}?__theme={theme}")
        self.sees("#predict-button")

    def sees(self, selector, words=""):
        """Wait until something with these words is there, and give it."""
        self.driver.switch_to.window(self.window)

        def there(driver):
            # as one question: the page draws itself anew at any time
            script = "return [...document.querySelectorAll(arguments[0])].find(e => e.innerText.includes(arguments[1]))"
            return driver.execute_script(script, selector, words)

        return WebDriverWait(self.driver, PATIENCE).until(there, f"{selector} with {words!r}")

    def finds(self, selector):
        self.driver.switch_to.window(self.window)
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def clicks(self, name):
        self.sees(f"#{name}").click()

    def goes_to(self, tab):
        self.sees("button[role=tab]", tab).click()

    def uploads(self, path, to="predict"):
        self.sees(f"#{to}-video")
        self.finds(f"#{to}-video input[type=file]")[0].send_keys(str(path))

    def shows(self, path, to="predict"):
        """Upload a video and wait until it is there."""
        self.uploads(path, to)
        self.sees(f"#{to}-video video[src*='{path.name}']")

    def types(self, name, words):
        field = self.sees(f"#{name} input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(words)
        self.driver.execute_script("arguments[0].blur()", field)  # the next field would open its list

    def plays(self, selector):
        """Wait until a video's pictures come."""
        script = "return arguments[0].readyState > 2 && arguments[0].videoWidth > 0"
        video = self.finds(selector)[0]
        WebDriverWait(self.driver, PATIENCE).until(lambda driver: driver.execute_script(script, video), selector)

    def stops(self, video):
        """Let a video stand still where there is something to see."""
        script = "arguments[0].pause(); arguments[0].controls = false; arguments[0].currentTime = arguments[1]"
        self.driver.execute_script(script, video, TELLING_SECONDS if PICTURES else 0)
        WebDriverWait(self.driver, PATIENCE).until(
            lambda driver: driver.execute_script("return !arguments[0].seeking && arguments[0].readyState > 1", video)
        )

    def is_pictured(self, name):
        """Write what the window shows, all of its length, where pictures are asked for."""
        if not PICTURES:
            return
        self.driver.switch_to.window(self.window)
        self.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        bottom = (
            "return Math.ceil(Math.max(...[...document.querySelectorAll('.tabitem, .tab-content, [role=tabpanel]')]"
        )
        height = self.driver.execute_script(f"{bottom}.map(e => e.getBoundingClientRect().bottom))) + 16")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": SCALE}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        picture = Image.open(BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        for colors in (256, 128, 64, 32):
            buffer = BytesIO()
            picture.quantize(colors, Image.Quantize.MAXCOVERAGE).save(buffer, "PNG", optimize=True)
            if buffer.tell() < LARGEST_BYTES:
                break
        Path(PICTURES, f"{name}.png").write_bytes(buffer.getvalue())


@pytest.fixture(scope="module")
def driver():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is missing, and continuous integration has to have it")
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WIDTH},1000"),
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--mute-audio"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def desk(driver):
    """A network that names colors, or for pictures the real one."""
    return Desk(load(NAME) if PICTURES else Colors().eval(), NAME if PICTURES else "colors", LIMITS)


@pytest.fixture(scope="module")
def address(desk):
    bounds = Bounds() if PICTURES else Bounds(seconds=PATIENCE)
    options = Serving(port=None, bounds=bounds, clip=fetch_demo_clip() if PICTURES else None)
    with serving(desk, options) as found:
        yield found


@pytest.fixture
def visits(driver, address):
    """Opens windows. A browser has six connections to a host, and a window holds two: the third has another host."""
    first, opened = driver.current_window_handle, []

    def visit():
        host = "127.0.0.1" if len(opened) < 2 else "localhost"
        opened.append(Visitor(driver, address.replace("127.0.0.1", host)))
        return opened[-1]

    yield visit
    for one in opened:
        driver.switch_to.window(one.window)
        driver.close()
    driver.switch_to.window(first)


@pytest.fixture
def visitor(visits):
    return visits()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    if PICTURES:
        small = [resize_picture(torch.from_numpy(frame.picture), 360) for frame in open_frames(fetch_demo_clip())]
        backwards = write_video(folder / "demo-backwards.mp4", [picture.numpy() for picture in small[::-1]], fps=25)
        return {"red": fetch_demo_clip(), "green": backwards}
    colors = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
    return {name: film(folder / f"{name}.mp4", color, num_frames=40) for name, color in colors.items()}


def test_a_visitor_walks_through_the_page(visitor, films):
    visitor.shows(films["red"])
    visitor.clicks("predict-button")
    answer = visitor.sees("#predict-answer .i3d-bars").text
    assert PICTURES or answer.startswith("red\n")
    assert visitor.finds("#predict-timeline polyline")
    visitor.clicks("saliency-button")
    overlay = visitor.sees("#saliency-answer video")
    assert overlay.get_attribute("src").startswith("data:video/mp4")
    visitor.stops(overlay)
    visitor.is_pictured("app_predict")

    visitor.opens("dark" if PICTURES else "light")
    visitor.goes_to("Filters")
    assert int(visitor.sees("#filters img").get_property("naturalWidth")) > 0

    visitor.goes_to("Inflate")
    if not PICTURES:
        visitor.types("inflate-name", "timm/test_resnet")
    visitor.clicks("inflate-button")
    assert visitor.sees("#inflate-answer .i3d-badge").text == "PROVED"
    assert "parameters" in visitor.sees("#inflate-answer .i3d-tiles").text
    assert visitor.finds("#inflate-answer tr.time")
    visitor.is_pictured("app_inflate")

    visitor.opens()
    visitor.goes_to("Compare")
    visitor.shows(films["red"], "first")
    visitor.shows(films["green"], "second")
    visitor.clicks("compare-button")
    alike = float(visitor.sees("#compare-answer .i3d-one").text)
    assert 0 < alike < 1
    visitor.is_pictured("app_compare")

    own = (visitor.address, "data:", "blob:")
    names = visitor.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names
    assert [name for name in names if not name.startswith(own)] == []
    assert not [line for line in visitor.driver.get_log("browser") if "Content Security Policy" in line["message"]]


def test_bad_uploads_are_told_on_the_page(visitor, films, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(films["red"].read_bytes()[:999])
    long = film(tmp_path / "long.mp4", (9, 9, 9), num_frames=LIMITS.seconds + 1, size=(16, 32), fps=1)
    for path, words in ((tmp_path / "broken.mp4", "broken.mp4"), (long, "at most 30 seconds")):
        visitor.opens()
        visitor.shows(path)
        visitor.clicks("predict-button")
        told = visitor.sees("#predict-answer [role=alert]", words).text
        assert "fix" in told
        assert "Traceback" not in told
        assert str(tmp_path) not in told
    (tmp_path / "large.mp4").write_bytes(bytes(LIMITS.megabytes * 2**20 + 1))
    visitor.opens()
    visitor.uploads(tmp_path / "large.mp4")
    visitor.sees(".toast-body, [data-testid=toast-body]", "maximum allowed size of 8")
    visitor.opens()
    visitor.clicks("predict-button")
    visitor.sees("#predict-answer [role=alert]", "There is no video")


def test_names_of_models_are_words_and_no_code(visitor):
    visitor.goes_to("Inflate")
    for words in ("timm/resnet1888", "${document.title='taken'}{{7*7}}<img src=x onerror=document.title=1>"):
        visitor.types("inflate-name", words)
        visitor.clicks("inflate-button")
        told = visitor.sees("#inflate-answer [role=alert]", words[:20]).text
        assert "did you mean" in told
        assert words in told
    assert visitor.driver.title == "inflate3d"


def test_two_visitors_at_once_get_their_own_answers(visits, films, desk):
    """Both questions are under way together, and a third one, that needs no network, is not stuck behind them."""
    gate = threading.Event()
    desk.fast.model.waits = gate.wait
    visitors = {name: visits() for name in ("red", "green")}
    try:
        for name, one in visitors.items():
            one.shows(films[name])
            one.clicks("predict-button")
        third = visits()
        third.clicks("predict-button")
        third.sees("#predict-answer [role=alert]", "There is no video")
        assert not any(one.finds("#predict-answer .i3d-bars") for one in visitors.values())
    finally:
        gate.set()
        desk.fast.model.waits = lambda: None
    for name, one in visitors.items():
        answer = one.sees("#predict-answer .i3d-bars").text
        assert answer.startswith(f"{name}\n")
        assert one.sees("#predict-answer", f"{name}.mp4")


def test_a_webcam_is_recorded_and_answered(visitor):
    """The browser's stand-in for a camera shows a green field."""
    visitor.sees("#predict-video button[aria-label='Capture from camera']").click()
    visitor.sees("#predict-video [title='grant webcam access'] button").click()
    visitor.plays("#predict-video video[data-testid=webcam-video]")
    visitor.sees("#predict-video button", "Record").click()
    visitor.sees("#predict-video button", "Stop")
    time.sleep(1)  # of film
    visitor.sees("#predict-video button", "Stop").click()
    visitor.sees("#predict-video video[src*='.webm']")
    visitor.clicks("predict-button")
    assert visitor.sees("#predict-answer .i3d-bars").text.startswith("green\n")
