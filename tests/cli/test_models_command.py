"""`inflate3d models`: every network of the zoo with its figures, one in detail, and a way out of a mistyped name."""

import pytest
from typer.testing import CliRunner

from inflate3d.cli import app
from inflate3d.errors import InflateError
from inflate3d.models.zoo import MODELS


@pytest.fixture
def run():
    def run(*args):
        return CliRunner().invoke(app, ["models", *args])

    return run


def test_all_networks_are_listed_with_what_is_reported(run):
    found = run()
    assert found.exit_code == 0
    rows = {line.split()[0]: line for line in found.output.splitlines() if line.strip()}
    assert set(MODELS) <= set(rows)
    table, reported = found.output.split("Best reported")
    assert "12.7   111.2  64 rgb, 224            i3d-kinetics400" in table
    assert "1 rgb + 10 flow, 224" in table
    assert "two-stream-i3d            RGB and flow: 74.2 / 91.3, ImageNet, then Kinetics-400; Kinetics" in reported


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("i3d", ["parameters  12,697,264", "arithmetic  111.15 GMAC (222.30 GFLOP)", "weights     i3d-kinetics400"]),
        ("c3d", ["weights     none in the catalogue", "note        61.1 is of another data set"]),
        ("3d-resnet50", ["reported    nothing", "note        Nobody has published"]),
        ("3d-fused", ["example     rgb 3 x 5 x 224 x 224, flow 2 x 50 x 224 x 224"]),
    ],
)
def test_one_network_is_told_in_detail(run, name, lines):
    found = run(name)
    assert found.exit_code == 0
    for line in lines:
        assert line in found.output
    for one in MODELS[name].reported:
        assert str(one) in found.output


def test_a_mistyped_name_is_refused(run):
    found = run("two-stream-i3")
    assert isinstance(found.exception, InflateError)
    assert "did you mean two-stream-i3d" in str(found.exception)
