"""Lists of labelled videos in every form, and how they are parted."""

import pytest

from inflate3d import InflateError, InflateWarning
from inflate3d.clips.dataset import Listing, Sample, make_splits, read_listing


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def facts(listing):
    names = listing.class_names
    return [
        (sample.path.rsplit("/", 1)[-1], tuple(names[label] for label in sample.labels), sample.split)
        for sample in listing.samples
    ]


def test_folder_of_classes(tmp_path):
    write(tmp_path, run__a_DOT_mp4="", run__b_DOT_avi="", jump__deep__c_DOT_mkv="", jump__note_DOT_txt="")
    listing = read_listing(tmp_path)
    assert listing.class_names == ("jump", "run")
    assert facts(listing) == [("c.mkv", ("jump",), ""), ("a.mp4", ("run",), ""), ("b.avi", ("run",), "")]
    assert listing.samples[0].path == str(tmp_path / "jump/deep/c.mkv")


def test_folders_of_splits(tmp_path):
    write(tmp_path, train__run__a_DOT_mp4="", validation__run__b_DOT_mp4="", test__jump__c_DOT_mp4="")
    assert facts(read_listing(tmp_path)) == [
        ("c.mp4", ("jump",), "test"),
        ("a.mp4", ("run",), "train"),
        ("b.mp4", ("run",), "val"),
    ]


def test_tables(tmp_path):
    text = "label\tsplit\tvideo\tgroup\tfold\trun\nrun\ttesting\ta.mp4\tg1\t3\tx\njump\tval\tb.mp4\t\t\tx\n"
    listing = read_listing(write(tmp_path, list_DOT_tsv=text) / "list.tsv", root=tmp_path / "videos")
    assert facts(listing) == [("a.mp4", ("run",), "test"), ("b.mp4", ("jump",), "val")]
    assert [(s.group, s.fold) for s in listing.samples] == [("g1", 3), ("", None)]
    assert listing.samples[0].path == str(tmp_path / "videos/a.mp4")


def test_folds_are_read_as_pandas_writes_them(tmp_path):
    """As floats, where a column has gaps."""
    text = "path,label,fold\na.mp4,run,0.0\nb.mp4,jump,1.0\nc.mp4,jump,\n"
    listing = read_listing(write(tmp_path, list_DOT_csv=text) / "list.csv")
    assert [sample.fold for sample in listing.samples] == [0, 1, None]


def test_unknown_words_of_splits_are_told_with_those_that_are_known(tmp_path):
    text = "path,label,split\na.mp4,run,Train\nb.mp4,run,dev\nc.mp4,run,exclude\n"
    with pytest.raises(InflateError, match="lines of the list cannot be understood") as told:
        read_listing(write(tmp_path, list_DOT_csv=text) / "list.csv")
    assert told.value.got == "b.mp4: split 'dev'; c.mp4: split 'exclude'"
    assert "train, training, val, validate" in told.value.expected


def test_rows_and_order_of_classes(tmp_path):
    text = "path,label,dataset\na.mp4,run,one\nb.mp4,jump,two\nc.mp4,fall,two\n"
    path = write(tmp_path, list_DOT_csv=text) / "list.csv"
    listing = read_listing(path, only={"dataset": "two"}, class_names=("run", "jump", "fall"))
    assert facts(listing) == [("b.mp4", ("jump",), ""), ("c.mp4", ("fall",), "")]
    assert [sample.labels for sample in listing.samples] == [(1,), (2,)]
    with pytest.raises(InflateError, match="there is no such value of dataset"):
        read_listing(path, only={"dataset": "tow"})
    with pytest.raises(InflateError, match="there is no such column"):
        read_listing(path, only={"data": "two"})
    with pytest.raises(InflateError, match="lines of the list cannot be understood") as told:
        read_listing(path, class_names=("run",))
    assert "b.mp4: 'jump'; c.mp4: 'fall'" in str(told.value)


def test_kinetics(tmp_path):
    """Files named as common downloaders name them, in folders of classes or in one."""
    text = "label,youtube_id,time_start,time_end,split\nabseiling,-a_B,7,17,train\nzumba,xyz,120,130,test\n"
    write(tmp_path, list_DOT_csv=text, abseiling__a="")
    (tmp_path / "abseiling" / "-a_B_000007_000017.mp4").touch()
    listing = read_listing(tmp_path / "list.csv")
    assert facts(listing) == [
        ("-a_B_000007_000017.mp4", ("abseiling",), "train"),
        ("xyz_000120_000130.mp4", ("zumba",), "test"),
    ]
    assert listing.samples[0].path == str(tmp_path / "abseiling/-a_B_000007_000017.mp4")
    assert listing.samples[0].group == "-a_B"


def test_charades(tmp_path):
    text = 'id,subject,actions\nABC12,S1,"c092 11.90 21.20;c147 0.00 12.60"\nXYZ,S2,\n'
    listing = read_listing(write(tmp_path, list_DOT_csv=text) / "list.csv")
    assert facts(listing) == [("ABC12.mp4", ("c092", "c147"), ""), ("XYZ.mp4", (), "")]
    assert listing.samples[0].spans == ((11.9, 21.2), (0.0, 12.6)) and listing.samples[0].group == "S1"


UCF = {
    "classInd_DOT_txt": "1 Jump\n2 Archery\n",
    "trainlist02_DOT_txt": "Archery/v_Archery_g08_c01.avi 2\n",
    "testlist02_DOT_txt": "Jump/v_Jump_g01_c02.avi\n",
}


def test_ucf101(tmp_path):
    listing = read_listing(write(tmp_path, **UCF), number=2, root=tmp_path / "videos")
    assert listing.class_names == ("Jump", "Archery")
    assert facts(listing) == [
        ("v_Archery_g08_c01.avi", ("Archery",), "train"),
        ("v_Jump_g01_c02.avi", ("Jump",), "test"),
    ]
    assert listing.samples[0].group == "Archery_g08"
    with pytest.raises(InflateError, match="a list cannot be read"):
        read_listing(tmp_path, number=1)


def test_hmdb51(tmp_path):
    lines = "April_09 brush_hair_u (x).avi 1 \nb.avi 2 \nc.avi 0 \n"
    write(tmp_path, brush_hair_test_split1_DOT_txt=lines, cart_test_split1_DOT_txt="d.avi 1\n")
    (tmp_path / "brush_hair_test_split1.txt").write_text(lines)
    listing = read_listing(tmp_path)
    assert listing.class_names == ("brush_hair", "cart")
    assert [split for _, _, split in facts(listing)] == ["train", "test", "train"]


def test_mmaction2(tmp_path):
    (tmp_path / "frames").mkdir()
    text = "a.mp4 2\nb.mp4 0 1\nframes 31 2\n"
    listing = read_listing(write(tmp_path, mine_val_list_DOT_txt=text) / "mine_val_list.txt")
    assert [(sample.labels, sample.split) for sample in listing.samples] == [
        ((2,), "val"),
        ((0, 1), "val"),
        ((2,), "val"),
    ]
    with pytest.raises(InflateError, match="these lines are not of mmaction2's form"):
        read_listing(write(tmp_path, bad_DOT_txt="a.mp4 run\n") / "bad.txt")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("list.csv", "path,label\n", "there are no videos in the list"),
        ("list.csv", "name,kind\na.mp4,run\n", "the table says not where the videos are"),
        ("list.csv", "path,label,fold\na.mp4,run,x\n", "lines of the list cannot be understood"),
        ("list.csv", "path,label,split\na.mp4,run,exclude\n", "lines of the list cannot be understood"),
        ("list.csv", "path,label,fold\na.mp4,run,1.5\n", "lines of the list cannot be understood"),
        ("list.json", "{}", "there is no list of videos"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(InflateError, match=problem):
        read_listing(tmp_path / name)


def listing(groups=(3, 5, 2, 4), **known):
    samples = [
        Sample(f"{g}-{i}.mp4", (i % 2,), group=f"g{g}", **{key: value(g, i) for key, value in known.items()})
        for g, size in enumerate(groups)
        for i in range(size)
    ]
    return Listing(tuple(samples), ("run", "jump"), "mine.csv")


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
@pytest.mark.parametrize("seed", range(5))
def test_what_no_list_parts_is_parted_by_groups(seed):
    splits = make_splits(listing(groups=(3,) * 20), val_share=0.2, test_share=0.3, seed=seed)
    parts = [{sample.group for sample in part} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 20 and len(set.union(*parts)) == 20
    assert len(splits.test) == 18 and 6 <= len(splits.val) <= 9


def test_folds_and_splits_that_are_given_stay():
    splits = make_splits(listing(fold=lambda g, i: g), fold=1, val_share=0)
    assert {sample.group for sample in splits.test} == {"g1"} and not splits.val
    assert len(splits.train) == 9
    with pytest.raises(InflateError, match="there is no such fold"):
        make_splits(listing(fold=lambda g, i: g), fold=7)
    with pytest.raises(InflateError, match="the list names no folds"):
        make_splits(listing(), fold=0)
    named = make_splits(listing(split=lambda g, i: ("train", "val", "test", "train")[g]))
    assert (len(named.train), len(named.val), len(named.test)) == (7, 5, 2)
    named.check_training()
    alone = make_splits(listing(split=lambda g, i: "test"))
    assert len(alone.test) == len(listing().samples) and not alone.train and not alone.val
    with pytest.raises(InflateError, match="there is nothing to learn from"):
        alone.check_training()


def test_groups_on_both_sides_and_classes_never_seen_are_warned_about():
    crossing = listing(split=lambda g, i: "test" if i == 0 else "train")
    with pytest.warns(InflateWarning, match="4 groups are in training and in test alike: g0; g1; g2; and 1 more"):
        make_splits(crossing, val_share=0)
    alone = tuple(Sample(f"{i}.mp4", (i % 2,), split="test" if i % 2 else "train") for i in range(6))
    unseen = Listing(alone, ("run", "jump"), "mine.csv")
    with pytest.warns(InflateWarning, match="classes of the test that training never shows: jump"):
        make_splits(unseen, val_share=0)
