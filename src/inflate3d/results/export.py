"""Predictions as JSON and CSV files."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inflate3d.atomic import replacing
from inflate3d.results.prediction import Failure, Score, VideoPrediction, top_scores

COLUMNS = ("source", "window", "start_seconds", "end_seconds", "rank", "label", "index", "probability", "logit")


def to_json(
    predictions: Sequence[VideoPrediction], failures: Sequence[Failure] = (), *, settings: Mapping[str, str], k: int = 5
) -> str:
    """Write a run as JSON: `settings`, `videos` (each with its `top` classes and `windows`) and `failures`.

    Raises:
        ValueError: A logit is NaN or infinite, for which JSON has no word; `predict` gives none.
    """
    document = {
        "settings": dict(settings),
        "videos": [_video(prediction, k) for prediction in predictions],
        "failures": [{"source": failure.source, "reason": failure.reason} for failure in failures],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, text: str) -> None:
    """Write what `to_json` made; whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_csv(path: Path, predictions: Sequence[VideoPrediction], k: int = 5) -> None:
    """Write a row for each rank of each window, and of each whole video (`window` is `all`); whole or not at all.

    Columns: `COLUMNS`; times in seconds from the first frame of the video.
    """
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for video in predictions:
            end = video.windows[-1].end_seconds
            spans = [("all", 0.0, end, video.top(k))]
            for number, window in enumerate(video.windows):
                top = top_scores(window.logits, video.class_names, k)
                spans.append((str(number), window.start_seconds, window.end_seconds, top))
            for name, start, stop, top in spans:
                for rank, score in enumerate(top, start=1):
                    values = (rank, score.label, score.index, f"{score.probability:.6f}", f"{score.logit:.6f}")
                    writer.writerow((video.source, name, f"{start:.3f}", f"{stop:.3f}", *values))


def _video(video: VideoPrediction, k: int) -> dict[str, Any]:
    windows = [
        {
            "start_seconds": round(window.start_seconds, 6),
            "end_seconds": round(window.end_seconds, 6),
            "top": _scores(top_scores(window.logits, video.class_names, k)),
        }
        for window in video.windows
    ]
    found = {
        "source": video.source,
        "num_frames": video.num_frames,
        "fps": video.fps or "native",
        "top": _scores(video.top(k)),
        "windows": windows,
    }
    streams = {name: {"top": _scores(stream.top(k))} for name, stream in video.streams.items()}
    return {**found, "streams": streams} if streams else found


def _scores(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [
        {
            "label": score.label,
            "index": score.index,
            "probability": round(score.probability, 8),
            "logit": round(score.logit, 6),
        }
        for score in scores
    ]
