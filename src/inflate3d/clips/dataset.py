"""Lists of labelled videos as people have them, read into one form, and cut into training, validation and test."""

import os
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inflate3d.clips.decoding import unreadable
from inflate3d.clips.stills import VIDEO_SUFFIXES
from inflate3d.clips.tables import MOST_DIGITS, is_index, read_list, read_table
from inflate3d.errors import InflateError, InflateWarning, check_choice, list_faults, nearest_names

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "validate": "val", "validation": "val"} | {
    "valid": "val",
    "test": "test",
    "testing": "test",
}
ROW_WORDS = f"splits among {', '.join(SPLIT_NAMES)}, folds that are whole numbers"
PATH_COLUMNS, LABEL_COLUMNS = ("path", "video", "file", "filename"), ("label", "class", "class_name")
DRAWS = 1000  # of groups, of which the best is taken
HMDB_SPLITS = {"1": "train", "2": "test"}  # 0 stands in neither; Source: hmdb51, test_train_splits/README
UCF_GROUP = re.compile(r"v_(.+_g\d+)_c\d+")  # a group is cut from one video; Source: UCF-101's own page


@dataclass(frozen=True)
class Sample:
    """A video and what is known of it.

    Attributes:
        path: The file, or a folder of pictures.
        labels: Numbers of its classes: one, several, or none if they are not known.
        group: What it was cut from: a scene, a person, a longer video. "" if that is not known.
        split: "train", "val", "test", or "" if the list does not say.
        fold: For cross-validation; None if the list has no folds.
        spans: Seconds from and to which each of its labels holds; empty if they hold throughout.
    """

    path: str
    labels: tuple[int, ...]
    group: str = ""
    split: str = ""
    fold: int | None = None
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Listing:
    """Labelled videos.

    Attributes:
        samples: In the order of the list.
        class_names: One for each class.
        source: Where the list stands.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Splits:
    """Videos to learn from, to choose by, and to judge with.

    Attributes:
        train: To learn from.
        val: To stop early and to choose the best checkpoint by; may be empty.
        test: To judge with, once; may be empty.
        class_names: One for each class.
        source: Where the list stands.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    class_names: tuple[str, ...]
    source: str

    def check_training(self) -> None:
        """Refuse to learn from nothing; a list of a test alone is one to evaluate with.

        Raises:
            InflateError: There is nothing to learn from.
        """
        if not self.train:
            raise InflateError(
                "there is nothing to learn from",
                where=self.source,
                expected="samples for training",
                got=f"{len(self.val)} for validation, {len(self.test)} for test",
                fix="check the column split, or take another fold",
            )


@dataclass
class _Row:
    path: str
    labels: list[str]
    group: str = ""
    split: str = ""
    fold: str = ""
    spans: tuple[tuple[float, float], ...] = ()


def read_listing(
    path: str | Path,
    *,
    root: str | Path | None = None,
    only: Mapping[str, str] | None = None,
    number: int = 1,
    class_names: Sequence[str] = (),
) -> Listing:
    """Read a list of labelled videos, in whatever form it is.

    | form | how it is known |
    |---|---|
    | folder of classes | a folder of folders of videos; above them there may be `train`, `val`, `test` |
    | table | .csv or .tsv with the columns path and label, and if you like split, group and fold |
    | Kinetics | .csv with label, youtube_id, time_start, time_end and split |
    | Charades | .csv with id and actions |
    | UCF-101 | a folder with `classInd.txt`, `trainlist01.txt`, `testlist01.txt` |
    | HMDB-51 | a folder with `*_test_split1.txt` |
    | mmaction2 | .txt with a path and one or several numbers of classes in each line |

    Args:
        path: The folder or the file.
        root: Where paths in the list begin; by default the folder of the list.
        only: Rows of a table to take: column to value.
        number: Of the official split: 1 to 3, for UCF-101 and HMDB-51.
        class_names: All classes in order, where the list does not name them or another order is wanted.

    Raises:
        InflateError: There is no such list, or it has no form that is known; faulty lines are told together.

    Example:
        >>> import tempfile
        >>> table = Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = table.write_text("path,label,fold\\na.mp4,run,0\\nb.mp4,jump,1\\n")
        >>> listing = read_listing(table)
        >>> listing.class_names, [sample.labels for sample in listing.samples]
        (('jump', 'run'), [(1,), (0,)])
    """
    path = Path(path)
    try:
        rows, names = _rows(path, dict(only or {}), number)
    except OSError as error:
        raise unreadable(path, error) from error
    base = Path(root) if root else (path if path.is_dir() else path.parent)
    given = tuple(class_names) or names
    known = given or tuple(sorted({label for row in rows for label in row.labels}))
    numbers = {name: index for index, name in enumerate(known)}
    faults = [f"{row.path}: {label!r}" for row in rows for label in row.labels if label not in numbers]
    faults += [fault for row in rows for fault in row_faults(row.path, row.split, row.fold)]
    if faults or not rows:
        raise InflateError(
            "there are no videos in the list" if not rows else "lines of the list cannot be understood",
            where=str(path),
            expected=f"labels among {list_faults(known)}, {ROW_WORDS}" if rows else "a video or more",
            got=list_faults(faults) or f"none, with only={only}" if only else list_faults(faults) or "none",
            fix="mend the lines, or name all classes in order with --labels FILE; a trained network has its own",
        )
    samples = tuple(
        Sample(
            str(_find_file(base, row)),
            tuple(numbers[label] for label in row.labels),
            row.group,
            SPLIT_NAMES.get(row.split.lower(), ""),
            fold_in(row.fold),
            row.spans,
        )
        for row in rows
    )
    return Listing(samples, known, str(path))


def fold_in(text: str) -> int | None:
    """Read the number of a fold; a column with gaps is written as floats by pandas.

    Example:
        >>> fold_in("3"), fold_in("3.0"), fold_in(""), fold_in("3.5")
        (3, 3, None, None)
    """
    whole = text.removesuffix(".0")
    return int(whole) if is_index(whole) else None


def row_faults(path: str, split: str, fold: str) -> list[str]:
    """Tell what of the split and the fold of a line cannot be understood.

    Example:
        >>> row_faults("a.mp4", "Validation", "1"), row_faults("a.mp4", "exclude", "")
        ([], ["a.mp4: split 'exclude'"])
    """
    faults = [f"{path}: split {split!r:.80}"] if split and split.lower() not in SPLIT_NAMES else []
    return faults + ([f"{path}: fold {fold!r:.80}"] if fold and fold_in(fold) is None else [])


def class_folders(path: Path) -> list[tuple[Path, str]]:
    """List the folders of classes, each with its split, where all lie in folders of train, val and test."""
    folders = [item for item in sorted(path.iterdir()) if item.is_dir() and not item.name.startswith(".")]
    if folders and all(item.name.lower() in SPLIT_NAMES for item in folders):
        return [(one, split.name) for split in folders for one in sorted(split.iterdir()) if one.is_dir()]
    return [(folder, "") for folder in folders]


def _rows(path: Path, only: dict[str, str], number: int) -> tuple[list[_Row], tuple[str, ...]]:
    if path.is_dir():
        return _folder(path, number)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return _table(path, only), ()
    if path.is_file() and path.suffix.lower() in (".txt", ".list"):
        return _mmaction2(path)
    raise InflateError(
        "there is no list of videos",
        where=str(path),
        expected="a folder of classes, .csv, .tsv, or a .txt of mmaction2; see `inflate3d.clips.dataset.read_listing`",
        got="a file of another kind" if path.exists() else "nothing at this path",
        fix="check the path, or write a table with the columns path and label",
    )


def _folder(path: Path, number: int) -> tuple[list[_Row], tuple[str, ...]]:
    if (path / "classInd.txt").is_file():
        return _ucf(path, number)
    hmdb = sorted(path.glob(f"*_test_split{number}.txt"))
    if hmdb:
        return _hmdb(hmdb, number), ()
    return [
        _Row(str(video.relative_to(path)), [folder.name], split=split)
        for folder, split in class_folders(path)
        for video in sorted(folder.rglob("*"))
        if video.suffix.lower() in VIDEO_SUFFIXES
    ], ()


def _ucf(path: Path, number: int) -> tuple[list[_Row], tuple[str, ...]]:
    names = tuple(line.split(maxsplit=1)[-1] for line in _lines(path / "classInd.txt"))
    rows = []
    for split in ("train", "test"):
        for line in _lines(path / f"{split}list{number:02d}.txt"):
            video = line.split()[0]
            cut_from = UCF_GROUP.match(Path(video).name)
            rows.append(_Row(video, [video.partition("/")[0]], cut_from[1] if cut_from else "", split))
    return rows, names


def _hmdb(files: list[Path], number: int) -> list[_Row]:
    rows = []
    for file in files:
        label = file.name.removesuffix(f"_test_split{number}.txt")
        for line in _lines(file):
            video, _, kind = line.rpartition(" ")
            if kind in HMDB_SPLITS:
                rows.append(_Row(f"{label}/{video.strip()}", [label], split=HMDB_SPLITS[kind]))
    return rows


def _mmaction2(path: Path) -> tuple[list[_Row], tuple[str, ...]]:
    split = next((name for name in SPLIT_NAMES if name in path.stem.lower().split("_")), "")
    rows = []
    for line in _lines(path):
        video, *numbers = line.split()
        if len(numbers) == 2 and os.path.isdir(path.parent / video):  # noqa: PTH112 - false for names too long to be
            numbers = numbers[1:]  # of a folder of frames, the first number counts them
        rows.append(_Row(video, numbers, split=split))
    wrong = [row.path for row in rows if not row.labels or not all(map(is_index, row.labels))]
    if wrong:
        raise InflateError(
            "these lines are not of mmaction2's form",
            where=str(path),
            expected=f"a path and one or several numbers of classes below {10**MOST_DIGITS:,}, separated by spaces",
            got=list_faults(wrong),
            fix="write a table instead: .csv with the columns path and label",
        )
    most = max((int(label) for row in rows for label in row.labels), default=-1)
    return rows, tuple(map(str, range(most + 1)))


def _table(path: Path, only: dict[str, str]) -> list[_Row]:
    columns, lines = read_table(path)
    for column, value in only.items():
        check_choice(column, columns, what="column", where=str(path))
        check_choice(value, sorted({line[column] for line in lines}), what=f"value of {column}", where=str(path))
    lines = [line for line in lines if all(line[column] == value for column, value in only.items())]
    for needed, row in (({"youtube_id", "label"}, _kinetics_row), ({"id", "actions"}, _charades_row)):
        if needed <= set(columns):
            return _understood(path, lines, row)
    at, label = (next((name for name in names if name in columns), "") for names in (PATH_COLUMNS, LABEL_COLUMNS))
    if not at or not label:
        raise InflateError(
            "the table says not where the videos are, or not what they show",
            where=str(path),
            expected="columns path and label; or Kinetics' label and youtube_id, or Charades' id and actions",
            got=", ".join(columns) or "no columns",
            fix=f"write them into the first line; nearest to path: {nearest_names('path', columns) or 'nothing'}",
        )
    return [
        _Row(line[at], [line[label]], line.get("group", ""), line.get("split", ""), line.get("fold", ""))
        for line in lines
    ]


def _understood(path: Path, lines: list[dict[str, str]], row: Callable[[dict[str, str]], _Row]) -> list[_Row]:
    rows, faults = [], []
    for line in lines:
        try:
            rows.append(row(line))
        except (ValueError, OverflowError) as error:
            faults.append(f"{', '.join(line.values()):.80} ({error!s:.80})")
    if faults:
        raise InflateError(
            "lines of the table cannot be understood",
            where=str(path),
            expected="time_start and time_end in seconds; actions as CLASS START END, with a semicolon between them",
            got=list_faults(faults, shown=3),
            fix="mend these lines, or take them out",
        )
    return rows


def _kinetics_row(line: dict[str, str]) -> _Row:
    """Name the file as the common downloaders do: id, and six digits for each of the two times."""
    name = line["youtube_id"]
    if line.get("time_start"):
        name += f"_{int(float(line['time_start'])):06d}_{int(float(line.get('time_end', ''))):06d}"
    return _Row(f"{name}.mp4", [line["label"]], line["youtube_id"], line.get("split", ""))


def _charades_row(line: dict[str, str]) -> _Row:
    actions = [action.split() for action in line["actions"].split(";") if action.strip()]
    spans = tuple((float(start), float(end)) for _, start, end in actions)
    return _Row(f"{line['id']}.mp4", [name for name, _, _ in actions], line.get("subject", ""), "", spans=spans)


def _find_file(base: Path, row: _Row) -> Path:
    """Look below the root as the list says it, then below a folder of the class."""
    places = [base / row.path, *(base / row.split / label / row.path for label in row.labels[:1])]
    places += [base / label / row.path for label in row.labels[:1]]
    # unlike that of a Path, this is false for names too long to be
    return next((place for place in places if os.path.exists(place)), places[0])  # noqa: PTH110


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_list(path).splitlines() if line.strip()]


def make_splits(
    listing: Listing, *, fold: int | None = None, val_share: float = 0.15, test_share: float = 0.2, seed: int = 0
) -> Splits:
    """Cut a list into training, validation and test; groups are never divided by us.

    With `fold`, that fold is the test and nothing else looks at it. Else splits that the list names are taken. What it
    does not name is drawn from the training part, whole groups at a time (a sample without a group is one by itself).

    Args:
        listing: What `read_listing` gives.
        fold: Which one to test on.
        val_share: Part of the training samples to choose by; 0 for none.
        test_share: Part to test with where the list names neither folds nor a test.
        seed: Of what is drawn.

    Raises:
        InflateError: There is no such fold, or there are none.

    Example:
        >>> samples = tuple(Sample(f"{i}.mp4", (i % 2,), fold=i % 5) for i in range(10))
        >>> splits = make_splits(Listing(samples, ("run", "jump"), "mine.csv"), fold=3, val_share=0)
        >>> len(splits.train), len(splits.val), [sample.path for sample in splits.test]
        (8, 0, ['3.mp4', '8.mp4'])
    """
    samples = listing.samples
    if fold is not None:
        folds = sorted({sample.fold for sample in samples if sample.fold is not None})
        if not folds:
            expected, fix = "a column fold", "leave the fold out, or write that column: a number for each video"
            raise InflateError(
                "the list names no folds", where=listing.source, expected=expected, got=f"fold {fold}", fix=fix
            )
        check_choice(str(fold), map(str, folds), what="fold", where=listing.source)
        train = [sample for sample in samples if sample.fold != fold]
        val, test = list[Sample](), [sample for sample in samples if sample.fold == fold]
    else:
        wanted = (("", "train"), ("val",), ("test",))
        train, val, test = ([one for one in samples if one.split in names] for names in wanted)
        if not test and not val:
            train, test = _drawn(train, test_share, seed)
    if not val:
        train, val = _drawn(train, val_share, seed + 1)
    splits = Splits(tuple(train), tuple(val), tuple(test), listing.class_names, listing.source)
    for warning in split_warnings(splits) if train else ():
        warnings.warn(warning, InflateWarning, stacklevel=2)
    return splits


def _drawn(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Draw whole groups until they hold the share; gives what is left, and what is drawn.

    Of many draws the one is taken whose classes are most like those of all: scenes often show one class alone.
    """
    if share <= 0:
        return samples, []
    sizes = Counter(_group(sample) for sample in samples)
    by_group: dict[str, Counter[int]] = {name: Counter() for name in sizes}
    for sample in samples:
        by_group[_group(sample)].update(sample.labels[:1])
    wanted = Counter(sample.labels[0] for sample in samples if sample.labels)
    generator, best = random.Random(seed), (float("inf"), set[str]())
    for _ in range(DRAWS):
        order, drawn, held = sorted(sizes), set[str](), 0
        generator.shuffle(order)
        for name in order:
            if held + sizes[name] / 2 <= share * len(samples):
                drawn.add(name)
                held += sizes[name]
        found = sum((by_group[name] for name in drawn), Counter[int]())
        best = min(best, (sum(abs(found[label] - share * count) for label, count in wanted.items()), drawn), key=_first)
    return [one for one in samples if _group(one) not in best[1]], [one for one in samples if _group(one) in best[1]]


def _first(pair: tuple[float, set[str]]) -> float:
    return pair[0]


def _group(sample: Sample) -> str:
    return sample.group or sample.path


def split_warnings(splits: Splits) -> list[str]:
    """Tell what makes a result look better than it is, or cannot be learned: shared groups, labels never seen."""
    parts = {"training": splits.train, "validation": splits.val, "test": splits.test}
    found = []
    for name, part in list(parts.items())[1:]:
        shared = {one.group for one in splits.train if one.group} & {one.group for one in part}
        if shared:
            few = list_faults(sorted(shared), shown=3)
            found.append(f"{splits.source}: {len(shared)} groups are in training and in {name} alike: {few}")
        unseen = _labels(part) - _labels(splits.train)
        if unseen:
            few = list_faults(sorted(splits.class_names[label] for label in unseen), shown=3)
            found.append(f"{splits.source}: classes of the {name} that training never shows: {few}")
    return found


def _labels(samples: Iterable[Sample]) -> set[int]:
    return {label for sample in samples for label in sample.labels}
