"""Inflate any 2D image network into a 3D one, provably; and I3D to the last digit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.clips.clip import Clip as Clip
    from inflate3d.clips.clip import ClipSpec as ClipSpec
    from inflate3d.clips.video import read_clip as read_clip
    from inflate3d.errors import InflateError as InflateError
    from inflate3d.errors import InflateWarning as InflateWarning
    from inflate3d.inflation.adapters import adapts as adapts
    from inflate3d.inflation.build import build as build
    from inflate3d.inflation.build import deflate as deflate
    from inflate3d.inflation.build import inflate as inflate
    from inflate3d.inflation.build import make_plan as make_plan
    from inflate3d.inflation.channels import with_input_channels as with_input_channels
    from inflate3d.inflation.cost import estimate_cost as estimate_cost
    from inflate3d.inflation.inflated import Inflated as Inflated
    from inflate3d.inflation.kernels import inflate_conv as inflate_conv
    from inflate3d.inflation.kernels import inflate_weight as inflate_weight
    from inflate3d.inflation.kernels import load_2d_into as load_2d_into
    from inflate3d.inflation.plan import Insert as Insert
    from inflate3d.inflation.plan import Plan as Plan
    from inflate3d.inflation.plan import Rule as Rule
    from inflate3d.inflation.proof import Proof as Proof
    from inflate3d.inflation.proof import prove as prove
    from inflate3d.models.inception import InceptionI3d as InceptionI3d
    from inflate3d.results.network import PredictOptions as PredictOptions
    from inflate3d.results.predict import predict as predict
    from inflate3d.results.predict import predict_many as predict_many
    from inflate3d.results.prediction import Failure as Failure
    from inflate3d.results.prediction import VideoPrediction as VideoPrediction
    from inflate3d.weights.fetch import fetch as fetch
    from inflate3d.weights.load import load as load

__version__ = "0.1.0"

# Each public name and the module it lives in: imported when first used, so that `inflate3d --help` needs no torch.
_HOMES = {
    "Clip": "clips.clip",
    "ClipSpec": "clips.clip",
    "Failure": "results.prediction",
    "InceptionI3d": "models.inception",
    "InflateError": "errors",
    "InflateWarning": "errors",
    "Inflated": "inflation.inflated",
    "Insert": "inflation.plan",
    "Plan": "inflation.plan",
    "PredictOptions": "results.network",
    "Proof": "inflation.proof",
    "Rule": "inflation.plan",
    "VideoPrediction": "results.prediction",
    "adapts": "inflation.adapters",
    "build": "inflation.build",
    "deflate": "inflation.build",
    "estimate_cost": "inflation.cost",
    "fetch": "weights.fetch",
    "inflate": "inflation.build",
    "inflate_conv": "inflation.kernels",
    "inflate_weight": "inflation.kernels",
    "load": "weights.load",
    "load_2d_into": "inflation.kernels",
    "make_plan": "inflation.build",
    "predict": "results.predict",
    "predict_many": "results.predict",
    "prove": "inflation.proof",
    "read_clip": "clips.video",
    "with_input_channels": "inflation.channels",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inflate3d' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"inflate3d.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
