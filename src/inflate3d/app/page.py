"""The page itself, by gradio: tabs, what happens at a click, and a server that tells nobody else about it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inflate3d.app import pieces
from inflate3d.app.inflating import PAGE_PRESETS, Bounds, Step, Weights, Wish, inflate_within
from inflate3d.app.jobs import MEGABYTE, Desk, Upload, check_upload
from inflate3d.errors import InflateError, check_options, import_extra, is_count
from inflate3d.inflation.presets import PRESETS
from inflate3d.models.sources import model_names
from inflate3d.show.filters import find_filters, write_filters
from inflate3d.show.saliency import write_saliency

LARGEST_PORT = 65535
MOST_WAITING = 32  # questions of one kind in the queue; the next one is told to come back
KEPT_SECONDS = 3600  # an upload, so that questions about it can follow
SWEEP_SECONDS = 60
# How many questions of a kind are worked on at once; of those to the network, one window at a time
AT_ONCE = {"predict": 8, "saliency": 2, "compare": 4, "inflate": 1}
STARTING_MODEL = "torchvision/resnet18"

# A browser that obeys this loads nothing from anywhere else, whatever the page asks for
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)


@dataclass(frozen=True)
class Serving:
    """Where the page is, and what it offers.

    Attributes:
        host: The address; 127.0.0.1 is reached from this machine alone.
        port: Of it; None takes the first free one from 7860.
        bounds: Of a model that is inflated.
        pretrained: Whether visitors may have weights downloaded.
        clip: A video for those who have none at hand.

    Raises:
        InflateError: The port is none.
    """

    host: str = "127.0.0.1"
    port: int | None = 7860
    bounds: Bounds = field(default_factory=Bounds)
    pretrained: bool = False
    clip: Path | None = None

    def __post_init__(self) -> None:
        check_options(self, {"port": (f"1 to {LARGEST_PORT}", self.port is None or is_count(self.port, LARGEST_PORT))})


def import_gradio() -> Any:
    """Import what draws the page.

    Raises:
        InflateError: It is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: importing may report
    return import_extra("gradio", "app", where="inflate3d app")


@contextmanager
def serving(desk: Desk, options: Serving) -> Iterator[str]:
    """Serve the page while the block runs, and give its address; what was uploaded is deleted at the end.

    Raises:
        InflateError: gradio is missing, or the port is taken.
    """
    gr = import_gradio()
    with TemporaryDirectory(prefix="inflate3d-app-") as folder, _uploads_in(folder):
        page = _Page(gr, desk, options, Path(folder)).blocks
        try:
            yield _launch(gr, page, desk, options)
        finally:
            page.close(verbose=False)


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Let gradio, which reads the environment, keep its files there."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        os.environ.update({"GRADIO_TEMP_DIR": before} if before is not None else {})


def _launch(gr: Any, page: Any, desk: Desk, options: Serving) -> str:
    from starlette.middleware import Middleware  # noqa: PLC0415 - comes with gradio

    page.queue(max_size=MOST_WAITING, api_open=False)
    theme = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        _, url, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            max_file_size=int(desk.limits.megabytes * MEGABYTE),
            allowed_paths=[str(options.clip)] if options.clip else None,
            app_kwargs={"middleware": [Middleware(_Policy)]},
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=theme,
            css=pieces.STYLE,
        )
    except OSError as error:
        raise InflateError(
            "the page cannot be served here",
            where="inflate3d app",
            expected="an address of this machine, and a port that is free",
            got=f"{options.host}:{options.port}: {error}",
            fix=f"--port {(options.port or 7860) + 1}",
        ) from error
    return str(url)


class _Policy:
    """Sends `POLICY` with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


class _Page:
    """Builds the tabs; each click has a function of its own, and none of them keeps anything."""

    def __init__(self, gr: Any, desk: Desk, options: Serving, folder: Path) -> None:
        self.gr, self.desk, self.options, self.folder = gr, desk, options, folder
        with gr.Blocks(
            title="inflate3d", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)
        ) as self.blocks:
            gr.HTML(pieces.head(desk.name))
            with gr.Tab("Predict"):
                self._predict_tab()
            with gr.Tab("Inflate"):
                self._inflate_tab()
            with gr.Tab("Filters"):
                self._filters_tab()
            with gr.Tab("Compare"):
                self._compare_tab()

    def _video(self, label: str, name: str) -> Any:
        video = self.gr.Video(
            label=label, sources=["upload", "webcam"], include_audio=False, height=300, elem_id=f"{name}-video"
        )
        # gradio would run ffmpeg, which may not be there, to take the sound off; a file may as well keep it
        video.preprocess = lambda payload: payload.path if payload else None
        return video

    def _upload(self, given: str | None) -> Upload:
        return check_upload(given, self.desk.limits, self.folder)

    def _html(self, name: str, words: str = "") -> Any:
        return self.gr.HTML(pieces.nothing_yet(words) if words else "", elem_id=name)

    def _click(self, button: Any, does: Callable[..., Any], inputs: list[Any], outputs: list[Any], kind: str) -> None:
        button.click(
            does,
            inputs,
            outputs,
            concurrency_id=kind,
            concurrency_limit=AT_ONCE[kind],
            api_visibility="private",
            show_progress_on=outputs[:1],
        )

    def _predict_tab(self) -> None:
        gr = self.gr
        answered = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column():
                video = self._video("Your video", "predict")
                with gr.Row():
                    if self.options.clip:
                        example = gr.Button("Use the demo clip", elem_id="demo-button")
                        example.click(lambda: str(self.options.clip), None, video, api_visibility="private")
                    predict = gr.Button("What is going on?", variant="primary", elem_id="predict-button")
                gr.HTML(pieces.limits_note(self.desk.limits))
            with gr.Column():
                found = self._html("predict-answer", "The five likeliest actions appear here.")
        line = self._html("predict-timeline")
        with gr.Row(visible=False, equal_height=True) as more:
            label = gr.Dropdown(label="Where does it look for", choices=[], elem_id="saliency-class", scale=3)
            look = gr.Button("Show where it looks", elem_id="saliency-button", scale=1)
        overlay = self._html("saliency-answer")

        def answer(given: str | None, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008 - gradio's way
            def tell(done: float, total: float | None) -> None:
                progress(min(done / total, 1.0) if total else 0.5, desc="looking")

            try:
                upload = self._upload(given)
                progress(0.0, desc="looking")
                prediction = self.desk.predict(upload, tell)
            except InflateError as error:
                return pieces.wrong(error), "", None, gr.update(), gr.update(visible=False), ""
            top = prediction.top(5)
            choices = gr.update(choices=[(score.label, score.index) for score in top], value=top[0].index)
            return pieces.bars(prediction), pieces.timeline(prediction), upload, choices, gr.update(visible=True), ""

        def saliency(upload: Upload | None, index: int | None) -> str:
            try:
                checked = self._upload(str(upload.path) if upload else None)
                found = self.desk.saliency(checked, int(index or 0))
            except InflateError as error:
                return pieces.wrong(error)
            fps = self.desk.spec.fps
            return pieces.moving(lambda path: write_saliency(path, found, fps=fps), ".mp4", found.score.label)

        self._click(predict, answer, [video], [found, line, answered, label, more, overlay], "predict")
        self._click(look, saliency, [answered, label], [overlay], "saliency")

    def _inflate_tab(self) -> None:
        gr = self.gr
        presets = [(f"{name}: {PRESETS[name].meaning}", name) for name in PAGE_PRESETS]
        name = gr.Dropdown(
            model_names(),
            value=STARTING_MODEL,
            label="2D model of timm or torchvision",
            allow_custom_value=True,
            elem_id="inflate-name",
        )
        preset = gr.Dropdown(presets, value=PAGE_PRESETS[0], label="How it gets time", elem_id="inflate-preset")
        with gr.Row(equal_height=True):
            weights = gr.Checkbox(
                False, label="with its pretrained weights (a download)", visible=self.options.pretrained
            )
            proof = gr.Checkbox(True, label="prove that nothing was lost", elem_id="inflate-proof")
            go = gr.Button("Inflate", variant="primary", elem_id="inflate-button")
        bounds = self.options.bounds
        gr.HTML(
            pieces.note(
                f"Up to {bounds.parameters / 1e6:g} million parameters, {bounds.seconds:g} seconds and "
                f"{bounds.megabytes / 1000:g} GB of memory. Weights are random unless you ask for others: what is "
                "proved holds for all."
            )
        )
        found = self._html("inflate-answer", "Plan, cost and proof appear here.")

        def inflate(*given: Any) -> Iterator[str]:
            chosen, how, is_pretrained, is_proved = given
            kind: Weights = "pretrained" if is_pretrained and self.options.pretrained else "none"
            steps: list[Step] = []
            try:
                wish = Wish(str(chosen), str(how), kind, bool(is_proved))
            except InflateError as error:
                yield pieces.wrong(error)
                return
            try:
                yield pieces.inflated(wish, steps, None, done=False)
                for step in inflate_within(wish, bounds):
                    steps.append(step)
                    yield pieces.inflated(wish, steps, None, done=False)
            except InflateError as error:
                yield pieces.inflated(wish, steps, error, done=True)
                return
            yield pieces.inflated(wish, steps, None, done=True)

        self._click(go, inflate, [name, preset, weights, proof], [found], "inflate")

    def _filters_tab(self) -> None:
        try:
            filters = find_filters(self.desk.model, title=self.desk.name)
            shown = [
                pieces.moving(lambda path: write_filters(path, filters), ending, "the filters of the first layer")
                for ending in (".moving.webp", ".png")
            ]
        except InflateError as error:
            shown = [pieces.wrong(error)]
        words = "The filters of the first layer, moving as they see the frames go by, and side by side at each time."
        self.gr.HTML(pieces.note(words) + "".join(shown), elem_id="filters")

    def _compare_tab(self) -> None:
        gr = self.gr
        with gr.Row():
            first, second = self._video("One video", "first"), self._video("Another video", "second")
        compare = gr.Button("How alike are they?", variant="primary", elem_id="compare-button")
        found = self._html("compare-answer", "One number, and how alike each two moments are, appear here.")

        def alike(one: str | None, other: str | None) -> str:
            try:
                return pieces.comparison(self.desk.compare(self._upload(one), self._upload(other)))
            except InflateError as error:
                return pieces.wrong(error)

        self._click(compare, alike, [first, second], [found], "compare")
