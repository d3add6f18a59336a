"""Draw the pictures of README and docs from real runs: `make figures`."""

from pathlib import Path

from inflate3d import PredictOptions, load, predict
from inflate3d.show.timeline import timeline_svg
from inflate3d.weights.fetch import fetch, fetch_demo_clip

FIGURES = Path(__file__).parent / "figures"


def main() -> None:
    """Draw them all."""
    fetch("i3d-kinetics400")
    answer = predict(load("i3d-kinetics400"), fetch_demo_clip(), PredictOptions(stride=16, key_frames=True))
    (FIGURES / "demo.svg").write_text(timeline_svg(answer))


if __name__ == "__main__":
    main()
