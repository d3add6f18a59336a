"""Class names of the data sets that weights were trained on, in the order of the network's outputs."""

from functools import lru_cache
from importlib.resources import files

from inflate3d.errors import InflateError, nearest_names

# Name of the set and its number of classes, in the order and spelling of those who made it. Sources:
# kinetics: kinetics-i3d data/label_map.txt and label_map_600.txt (Apache-2.0)
# ucf-101: classInd.txt of the official splits (Soomro et al. 2012), numbered 1 to 101 there
# hmdb-51: names of the archives of the data set (Kuehne et al. 2011), in the order of the alphabet
# charades: Charades_v1_classes.txt (Sigurdsson et al. 2016), c000 to c156; a video has several of them
LABEL_SETS: dict[str, int] = {"kinetics-400": 400, "kinetics-600": 600, "ucf-101": 101, "hmdb-51": 51, "charades": 157}


@lru_cache
def read_labels(label_set: str) -> tuple[str, ...]:
    """Read the class names of a label set.

    Raises:
        InflateError: There is no such label set.

    Example:
        >>> labels = read_labels("kinetics-400")
        >>> len(labels), labels[0], labels[-1]
        (400, 'abseiling', 'zumba')
    """
    if label_set not in LABEL_SETS:
        raise InflateError(
            "there is no label set of that name",
            where="read_labels",
            expected=", ".join(LABEL_SETS),
            got=repr(label_set),
            fix=f"did you mean {nearest_names(label_set, LABEL_SETS)}?",
        )
    text = (files("inflate3d.weights") / "labels" / f"{label_set}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
