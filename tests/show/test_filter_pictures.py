"""Filters over time: each tap where it belongs, in a color that says its sign and size; and files by their ending."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from inflate3d import InceptionI3d, InflateError, inflate
from inflate3d.cli import app
from inflate3d.show.filters import (
    BLOCK_GAP,
    EDGE,
    LINE,
    MOST_FILTERS,
    Filters,
    animate_filters,
    draw_filters,
    filter_colors,
    find_filters,
    write_filters,
)
from inflate3d.show.pictures import heat_colors, write_animation, write_picture


def random_filters(count=11, time=5, title=""):
    return Filters("stem", torch.randn(count, 3, time, 3, 4), title)


def test_colors_say_sign_and_size_over_all_frames_of_a_filter():
    weight = torch.randn(6, 3, 5, 3, 4)
    weight[1, :, 2] = 0
    colors = filter_colors(weight)
    assert torch.equal(colors[1, 2], torch.full((3, 4, 3), 0.5))
    torch.testing.assert_close(filter_colors(7 * weight), colors)  # each filter fills the range
    torch.testing.assert_close(filter_colors(-weight), 1 - colors)
    largest = (colors - 0.5).abs().amax((1, 2, 3, 4))
    torch.testing.assert_close(largest, torch.full((6,), 0.5))
    channel = colors[..., 0] - 0.5
    assert torch.equal(channel.sign(), weight[:, 0].sign())


def test_one_channel_and_many_are_gray_to_blue_and_vermilion():
    weight = torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 3, 1, 1)
    for shown in (weight, weight.repeat(1, 5, 1, 1, 1)):
        up, none, down = filter_colors(shown)[0, :, 0, 0].tolist()
        assert up[2] > up[0] and down[0] > down[2] and none == [0.5, 0.5, 0.5]
    flow = torch.zeros(1, 2, 2, 1, 1)
    flow[0, 0, 0], flow[0, 0, 1] = 1, -1
    right, left = filter_colors(flow)[0, :, 0, 0].tolist()
    assert right[0] > right[2] and left[2] > left[0]  # red is to the right, cyan to the left


def test_the_figure_of_the_paper_has_time_from_left_to_right():
    filters = random_filters(title="mine")
    picture = draw_filters(filters).numpy()
    colors = (filter_colors(filters.weight) * 255).round().numpy()
    across, zoom = 4, 12  # of 11 filters; a picture as wide as allowed
    step_x, step_y = 4 * zoom + 1, 3 * zoom + 1
    block = across * step_x - 1 + BLOCK_GAP
    for index, time, row, column in ((0, 0, 0, 0), (6, 3, 2, 1), (10, 4, 1, 3)):
        left = EDGE + time * block + index % across * step_x + column * zoom
        top = 2 * LINE + index // across * step_y + row * zoom
        tap = picture[top : top + zoom, left : left + zoom]
        assert (tap == [*colors[index, time, row, column], 255]).all()
    assert picture.shape == (2 * LINE + 3 * step_y - 1 + EDGE, 2 * EDGE + 5 * block - BLOCK_GAP, 4)
    assert (picture[:, 0, 3] == 0).all()  # the ground is transparent: on dark pages it is dark


def test_rows_hold_one_filter_each():
    filters = random_filters(count=17)
    picture = draw_filters(filters, layout="rows")
    colors = (filter_colors(filters.weight) * 255).round().to(torch.uint8)
    flat = set(map(tuple, picture.flatten(0, 1).unique(dim=0).tolist()))
    assert all((*tap, 255) in flat for tap in colors.flatten(0, 3).tolist())
    found = (picture[..., :3] == colors[1, 0, 0, 0]).all(-1) & (picture[..., 3] == 255)
    later = (picture[..., :3] == colors[1, 4, 0, 0]).all(-1) & (picture[..., 3] == 255)
    assert found.nonzero()[0, 0] == later.nonzero()[0, 0]  # time goes to the right in one row
    assert found.nonzero()[0, 1] < later.nonzero()[0, 1]


def test_before_stands_below_and_in_animations_beside():
    after, before = random_filters(time=5), random_filters(time=1)
    both, alone = draw_filters(after, before), draw_filters(after)
    assert torch.equal(both[: len(alone), : alone.shape[1]], alone)
    assert len(both) > len(alone)
    moving = animate_filters(after, before)
    assert len(moving) == 5
    middle = animate_filters(after).shape[2]
    assert torch.equal(moving[0, :, middle:], moving[4, :, middle:])  # a 2D filter stands still
    assert not torch.equal(moving[0, :, :middle], moving[4, :, :middle])


def test_more_filters_than_fit_are_counted_and_not_drawn():
    many = Filters("patches", torch.randn(MOST_FILTERS + 9, 3, 1, 2, 2))
    few = Filters("patches", many.weight[:MOST_FILTERS])
    assert draw_filters(many).shape == draw_filters(few).shape
    assert not torch.equal(draw_filters(many), draw_filters(few))  # the line above tells


def test_layers_are_found_by_the_names_that_users_know():
    model = InceptionI3d(3)
    assert find_filters(model).layer == "Conv3d_1a_7x7.conv_3d"
    assert find_filters(model, "Conv3d_2c_3x3").weight.shape == (192, 64, 3, 3, 3)
    net2d = torchvision.models.squeezenet1_1().eval()
    model3d = inflate(net2d, "i3d", example=torch.zeros(1, 3, 65, 67))
    assert find_filters(net2d).weight.shape == (64, 3, 1, 3, 3)
    assert find_filters(model3d).weight.shape == (64, 3, 3, 3, 3)
    inner = find_filters(model3d, "features.3.expand3x3", title="squeeze")
    assert (inner.layer, inner.title, inner.weight.ndim) == ("net.features.3.expand3x3", "squeeze", 5)
    torch.testing.assert_close(find_filters(model3d).weight.sum(2), net2d.features[0].weight.detach())
    with pytest.raises(InflateError, match="no such layer of filters") as told:
        find_filters(model, "Conv3d_9a")
    assert "Conv3d_" in told.value.fix
    with pytest.raises(InflateError, match="no filters to show"):
        find_filters(nn.Linear(2, 3))


def test_files_are_what_their_ending_says(tmp_path):
    filters = random_filters(time=5)
    sizes = {}
    for name, count in (("a.png", 1), ("a.webp", 1), ("a.gif", 5), ("a.moving.webp", 5)):
        write_filters(tmp_path / name, filters)
        picture = Image.open(tmp_path / name)
        assert getattr(picture, "n_frames", 1) == count
        sizes[name] = picture.size
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), draw_filters(filters).numpy())
    assert sizes["a.gif"] == sizes["a.moving.webp"] != sizes["a.png"]
    with pytest.raises(InflateError, match="ending of the file") as told:
        write_filters(tmp_path / "a.jpg", filters)
    assert told.value.fix == "-o a.png"
    with pytest.raises(InflateError, match="there is no such layout"):
        draw_filters(filters, layout="columns")
    with pytest.raises(InflateError, match="there is nothing to draw"):
        write_animation(tmp_path / "none.gif", [], fps=10.0)
    with pytest.raises(InflateError, match="ending of the file"):
        write_picture(tmp_path / "a.tiff", torch.zeros(2, 2, 3, dtype=torch.uint8))
    assert not (tmp_path / "none.gif").exists()


def test_heat_gets_lighter_all_the_way():
    light = heat_colors(torch.linspace(0, 1, 101)) @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((light.diff() > 0).all())


def run(*arguments):
    return CliRunner().invoke(app, ["show", *map(str, arguments)], catch_exceptions=False)


def test_the_commands_take_models_of_all_kinds(tmp_path):
    assert run("filters", "timm/test_resnet", "-o", tmp_path / "a.png", "--before", "c3d").exit_code == 0
    assert Image.open(tmp_path / "a.png").mode == "RGBA"
    assert run("plan", "timm/test_resnet", "--preset", "i3d", "-o", tmp_path / "plan.svg").exit_code == 0
    assert "timm/test_resnet, i3d" in (tmp_path / "plan.svg").read_text()
    assert run("plan", "i3d", "-o", tmp_path / "plan.png").exit_code == 0
    with pytest.raises(InflateError, match="ending of the file"):
        run("plan", "i3d", "-o", tmp_path / "plan.pdf")


def test_before_and_after_training_are_shown_from_the_checkpoint_of_a_run(tmp_path):
    from inflate3d.train.checkpoint import describe_run
    from inflate3d.train.network import build_for
    from inflate3d.train.recipe import Recipe

    recipe, names = Recipe("mine", network="inflated/timm/test_resnet", init="none"), ("run", "jump")
    model = build_for(recipe, names)
    first = find_filters(model)
    model.get_submodule(first.layer).weight.data[0] += 1
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "inflate3d": describe_run(recipe, names, model)}, tmp_path / "best.ckpt")
    done = run("filters", tmp_path / "best.ckpt", "--before", "timm/test_resnet", "-o", tmp_path / "change.png")
    assert done.exit_code == 0
    after = draw_filters(find_filters(model, title=str(tmp_path / "best.ckpt")))
    written = torch.from_numpy(np.array(Image.open(tmp_path / "change.png")))
    assert len(written) > len(after)
    assert torch.equal(written[2 * LINE : len(after), : after.shape[1]], after[2 * LINE :])
