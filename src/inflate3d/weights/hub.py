"""Networks as folders of the Hugging Face hub: weights with card and plan in one file, and a page for readers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from inflate3d import __version__
from inflate3d.atomic import replacing, write_text
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, in_a_line
from inflate3d.inflation.inflated import Inflated
from inflate3d.weights.catalogue import CATALOGUE, Card
from inflate3d.weights.checkpoint import (
    CARD_KEY,
    INFLATED_KEY,
    metadata_in,
    read_card,
    read_unchanged,
    tensors_sha256,
    write_safetensors,
)
from inflate3d.weights.containers import missing_file
from inflate3d.weights.fetch import fetched_path
from inflate3d.weights.inflated_file import InflatedCard, inflated_card, load_inflated, save_inflated
from inflate3d.weights.load import load
from inflate3d.weights.model_page import AnyCard, model_page
from inflate3d.weights.stored import MAX_BYTES

MODEL_FILE, PAGE_FILE, CONFIG_FILE = "model.safetensors", "README.md", "config.json"
CLASSES_KEY = "inflate3d.classes"  # beside the card, in the metadata of the file: names of classes of no known set
LONGEST_NAME = 500  # letters
REPO = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")


def card_for(model: nn.Module, architecture: str, *, license: str, source: str, accuracy: str = "") -> Card:  # noqa: A002
    """Write the card of a network of the zoo that you trained.

    Args:
        model: With `clip_spec`, `num_classes` and `in_channels`, as networks here have.
        architecture: Its name: a key of `inflate3d.models.zoo.MODELS`, or `inflated/torchvision/resnet18`, say.
        license: Under which you give it away.
        source: What it was trained on, and from what.
        accuracy: What you measured, and how.

    Raises:
        InflateError: The network does not say what it is fed with, or how many classes it has.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> card_for(InceptionI3d(7), "i3d", license="MIT", source="trained on my cats").num_classes
        7
    """
    facts = {name: getattr(model, name, None) for name in ("clip_spec", "num_classes", "in_channels")}
    spec, classes, channels = facts.values()
    if not isinstance(spec, ClipSpec) or not isinstance(classes, int) or not isinstance(channels, int):
        raise InflateError(
            "the network does not tell what its card has to",
            where="card_for",
            expected="clip_spec (a ClipSpec), num_classes and in_channels",
            got=", ".join(f"{name}={value!r:.60}" for name, value in facts.items()),
            fix="set them: model.clip_spec = inflate3d.ClipSpec(...)",
        )
    return Card(
        name=architecture.replace("/", "-"),
        architecture=architecture,
        num_classes=classes,
        label_set=None,
        in_channels=channels,
        clip=spec,
        license=license,
        repackaged_under="nobody: by those who trained it",
        source=source,
        source_sha256="",
        reported_accuracy=accuracy or "none reported",
        accuracy_protocol="as those who trained it say",
        inflate3d_version=__version__,
    )


def save_pretrained(model: nn.Module | str | Path, folder: str | Path, *, card: AnyCard | None = None) -> AnyCard:
    """Write a network into a folder as the hub has it, and see that the folder gives it back.

    The folder then holds `model.safetensors` (weights, card, plan), which alone counts, and for readers a README.md and
    the card as config.json.

    Args:
        model: The name of fetched weights or a file that this package wrote; or a network with its card: of the zoo
            (`card_for`), or an Inflated (`InflatedCard`, as `save_inflated` and `inflated_card` give it).
        folder: Made if it is not there.
        card: What is known about a network that you pass itself.

    Returns:
        The card as it was written.

    Raises:
        InflateError: The file is none of this package, model and card do not go together, or the folder cannot be
            written.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> model = InceptionI3d(7).eval()
        >>> with TemporaryDirectory() as folder:
        ...     card = save_pretrained(model, folder, card=card_for(model, "i3d", license="MIT", source="random"))
        ...     again, again_card = from_pretrained(folder), pretrained_card(folder)
        >>> again.num_classes, card == again_card
        (7, True)
    """
    folder = Path(folder)
    path = folder / MODEL_FILE
    if isinstance(model, str | Path) and card is None:
        written = _copy(model, path)
    elif isinstance(model, Inflated) and isinstance(card, InflatedCard):
        facts: dict[str, Any] = {"options": card.options, "weights": card.weights, "class_names": card.class_names}
        written = save_inflated(model, path, card.name, **facts)
    elif isinstance(model, nn.Module) and not isinstance(model, Inflated) and isinstance(card, Card):
        written = _save(model, path, card)
    else:
        raise InflateError(
            "model and card do not go together",
            where="save_pretrained",
            expected="a name or a file without card=, an Inflated with an InflatedCard, another network with a Card",
            got=f"{type(model).__name__} with card={type(card).__name__}",
            fix="card=inflate3d.weights.hub.card_for(model, ...), or card=inflated_card(FILE) of an Inflated",
        )
    write_text(folder / CONFIG_FILE, written.to_json() + "\n")
    write_text(folder / PAGE_FILE, model_page(written, _class_names_in(path)))
    return written


def from_pretrained(folder_or_repo: str | Path, *, revision: str | None = None, trust: bool = False) -> nn.Module:
    """Build a network from a folder, or from a repository of the Hugging Face hub, which is downloaded.

    Of either only `model.safetensors` is read: nothing else can change what is built, and no code runs.

    Args:
        folder_or_repo: What `save_pretrained` wrote; or `OWNER/NAME` on the hub.
        revision: Branch, tag or commit on the hub.
        trust: For an inflated model of somebody's own code, see `load_inflated`.

    Returns:
        The network in eval mode, to the last bit, with its class names; an Inflated with its plan.

    Raises:
        InflateError: There is no such folder or repository, or what it holds is damaged, too large, a link to somewhere
            else, or not written by this package.

    Example:
        See `save_pretrained`.
    """
    path = _local(Path(folder_or_repo)) if Path(folder_or_repo).is_dir() else _download(str(folder_or_repo), revision)
    _check_size(path)
    if INFLATED_KEY in metadata_in(path):
        return load_inflated(path, trust=trust)
    card, names = read_card(path), _class_names_in(path)
    read_unchanged(path, card.tensors_sha256)
    model = load(path)
    if names:
        model.class_names = names  # type: ignore[assignment]  # nn.Module knows no others
    return model


def pretrained_card(folder: str | Path) -> AnyCard:
    """Read the card of a folder that `save_pretrained` wrote.

    Raises:
        InflateError: There is none, or it cannot be read.
    """
    path = _local(Path(folder))
    return inflated_card(path) or read_card(path)


def push_to_hub(
    model: nn.Module | str | Path,
    repo: str,
    *,
    card: AnyCard | None = None,
    private: bool = False,
    api: Any = None,
) -> str:
    """Upload a network to the Hugging Face hub, as `save_pretrained` writes it.

    Log in before: `hf auth login`.

    Args:
        model: As for `save_pretrained`, likewise `card`.
        repo: `OWNER/NAME`; made if it is not there.
        card: What is known about it.
        private: Whether a repository that is made is for you alone.
        api: A `huggingface_hub.HfApi` of your own, with an endpoint or a token, say.

    Returns:
        The address of the repository.

    Raises:
        InflateError: What `save_pretrained` refuses; the name is none, or the hub refuses it.
    """
    _check_repo(repo)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, card=card)
        try:
            api = api or _hub().HfApi()
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"inflate3d {__version__}",
                allow_patterns=[MODEL_FILE, PAGE_FILE, CONFIG_FILE],
            )
        except Exception as error:  # the client raises whatever its transport does
            raise InflateError(
                "the hub does not take the model",
                where=repo,
                expected="a connection, and a token that may write there",
                got=in_a_line(error),
                fix="hf auth login, or save_pretrained(model, FOLDER) and hf upload",
            ) from error
    return str(address)


def _copy(source: str | Path, path: Path) -> AnyCard:
    """Copy a file of this package, byte by byte, once it has been read whole."""
    found = fetched_path(str(source)) if str(source) in CATALOGUE else Path(source)
    if not found.is_file():
        raise missing_file(found)
    _check_size(found)
    card = inflated_card(found) or read_card(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_bytes(found.read_bytes())
    return card


def _save(model: nn.Module, path: Path, card: Card) -> Card:
    state = model.state_dict()
    card = replace(card, tensors_sha256=tensors_sha256(state))
    names = tuple(getattr(model, "class_names", None) or ())
    more = {CLASSES_KEY: json.dumps(names)} if names and not card.label_set else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as trial:
        draft = Path(trial) / MODEL_FILE
        write_safetensors(state, draft, {CARD_KEY: card.to_json(), **more})
        from_pretrained(trial)  # a card that names another network is found out before anything is replaced
        draft.replace(path)
    return card


def _class_names_in(path: Path) -> tuple[str, ...]:
    """Read the names of the classes that stand beside a card; none where there are none."""
    text = metadata_in(path).get(CLASSES_KEY)
    if text is None:
        return ()
    try:
        names = json.loads(text)
        if not isinstance(names, list) or len(names) != read_card(path).num_classes:
            raise ValueError("not a name for each class")
        if not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names):
            raise ValueError(f"a name is no text of {LONGEST_NAME} letters at most")
    except (ValueError, RecursionError) as error:
        raise InflateError(
            "the names of the classes in the file cannot be read",
            where=str(path),
            expected="a JSON list with a name for each class",
            got=in_a_line(error),
            fix="save the model anew: save_pretrained(model, FOLDER, card=...)",
        ) from error
    return tuple(names)


def _local(folder: Path) -> Path:
    """Find the file in a folder; a link that leads out of the folder is refused."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise missing_file(path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InflateError(
            "the folder's weights are a link to somewhere else",
            where=str(path),
            expected="a file in the folder itself",
            got=str(path.resolve()),
            fix="copy the file into the folder, if you know whose it is",
        )
    return path


def _download(repo: str, revision: str | None) -> Path:
    _check_repo(repo)
    hub = _hub()
    try:
        found = hub.HfApi().get_paths_info(repo, [MODEL_FILE], revision=revision)
        size = found[0].size if found else None
        path = Path(hub.hf_hub_download(repo, MODEL_FILE, revision=revision)) if size and size <= MAX_BYTES else None
    except Exception as error:  # the client raises whatever its transport does
        raise InflateError(
            "the model cannot be had from the hub",
            where=repo,
            expected="a repository that is there for you, and a connection",
            got=in_a_line(error),
            fix="check the name; hf auth login for one that is private; or name a folder",
        ) from error
    if path is None:
        raise InflateError(
            "the repository has no weights that can be taken",
            where=repo,
            expected=f"{MODEL_FILE} of at most {MAX_BYTES:,} bytes",
            got="no such file" if size is None else f"{size:,} bytes",
            fix="name a repository that push_to_hub wrote",
        )
    return path


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise InflateError(
            "the file takes more memory than allowed",
            where=str(path),
            expected=f"at most {MAX_BYTES:,} bytes",
            got=f"{path.stat().st_size:,} bytes",
            fix="load it with safetensors yourself, if you know whose it is",
        )


def _check_repo(repo: str) -> None:
    if not REPO.fullmatch(repo) or ".." in repo:
        raise InflateError(
            "this names neither a folder nor a repository of the hub",
            where="hub",
            expected="a folder that is there, or OWNER/NAME of letters, digits, - _ .",
            got=repr(repo),
            fix="check the spelling",
        )


def _hub() -> Any:
    import huggingface_hub  # noqa: PLC0415 - half a second of import, for its users alone

    return huggingface_hub
