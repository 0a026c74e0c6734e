"""Load a model and its tokenizer from a folder, a registered name, or the Hugging Face hub.

1. an existing local folder is used as it is;
2. a registered name (see `registry`) is fetched into the cache at first use;
3. anything else is taken as a hub id: from the local hub cache when it is whole there, else downloaded. The hub id that
   a registered checkpoint was made from means the hub's own weights too; the checkpoint is taken where they cannot be
   had, and that is said.

All three end in a folder, which is checked before transformers sees it, because transformers fills missing
tensors with random numbers and reports a damaged file from deep inside. From then on nothing touches the
network. Only safetensors are read: a pickle can run code when it is opened.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlab.errors import ConfigError, ModelError, did_you_mean
from editlab.models import registry
from editlab.models.offload import folder_of_offloaded
from editlab.models.pull import folder_of, pull_entry, read_record
from editlab.models.quiet import quiet_transformers
from editlab.models.room import INDEX, SINGLE, bytes_of, check_room, header, read_json, weight_files
from editlab.progress import OnStep, StepInfo, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DeviceMap = str | dict[str, int | str] | None
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors", "memories/*.safetensors"]
_HUB_SKIPPED = ["onnx/*", "original/*", "*.onnx"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use: in eval mode, with no parameter asking for a gradient.

    Attributes:
        name: how the user called it, or what the checkpoint is called that stands for a hub model.
        path: the folder it was read from.
        revision: the commit for a hub model, the SHA-256 of the weights for a fetched checkpoint, else None.
        trusts_code: Python files in the folder may run.
    """

    model: PreTrainedModel
    name: str
    path: Path
    revision: str | None
    trusts_code: bool = False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, read at its first use: parsing it takes longer than mapping the weights.

        Raises:
            ModelError: it is damaged or gives no character offsets.
        """
        with quiet_transformers():
            return _tokenizer(self.path, self.trusts_code)


def load(
    name_or_path: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    device_map: DeviceMap = None,
    max_memory: dict[int | str, int | str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_step: OnStep = silent,
) -> LoadedModel:
    """Load a causal language model; with no name, the default checkpoint.

    Args:
        dtype: one of `DTYPES`; "auto" keeps the precision that the folder was saved in.
        device: a torch device, or "auto" for the first GPU if there is one.
        device_map: spread the layers over devices instead, as accelerate does: one of `DEVICE_MAPS`, or a device,
            "cpu" or "disk" by module. What does not fit on the GPUs stays in memory, and then on disk, and is read
            when it is its turn. Such a model can be analysed; weights that are not on a device cannot be edited.
        max_memory: with it, the most to use of each device (by number) and of "cpu", in bytes or as in "8GB".
        revision: branch, tag or commit of a hub model. A hub model in the local cache is used without
            asking the hub whether it has changed.
        trust_remote_code: let the folder's own Python files run.

    Raises:
        ConfigError: the dtype, the device or the map does not exist.
        ModelError: no such model, or it is incomplete, damaged, larger than what is free, or of a kind that editlab
            cannot use.
    """
    from editlab.hooks.wrappers import unwrapped

    torch_dtype = _dtype(dtype)
    torch_device = _device(device)
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise ConfigError(f"No device map '{device_map}'.", f"Use one of {', '.join(DEVICE_MAPS)}.")
    folder, found_revision = find_folder(
        name_or_path, revision=revision, trust_remote_code=trust_remote_code, on_step=on_step
    )
    check_folder(folder, trust_remote_code=trust_remote_code)
    entry = registry.default() if name_or_path is None else registry.find(str(name_or_path))
    # A copy of a hub model is called by its own name, so that who opens the run later gets the same weights.
    is_copy = entry is not None and (name_or_path is None or entry.copies(str(name_or_path)))
    name = entry.name if entry is not None and is_copy and folder == folder_of(entry) else str(name_or_path)
    wanted = str(dtype).removeprefix("torch.")
    needed = bytes_of(folder, wanted)
    if device_map is None:
        check_room(name, folder, needed, wanted, torch_device)
    told = f"loading {name} ({needed / 1e9:.2f} GB)"
    on_step(StepInfo(told, 0, 1))
    with quiet_transformers():
        if device_map is None:
            model = _model(folder, torch_dtype, trust_remote_code).to(torch_device)
        else:
            model = _spread_model(folder, torch_dtype, trust_remote_code, device_map, max_memory)
    unwrapped(model)  # transformers itself puts an adapter on
    model = model.eval().requires_grad_(False)
    on_step(StepInfo(told, 1, 1))
    return LoadedModel(model, name, folder, found_revision, trust_remote_code)


def find_folder(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_step: OnStep = silent,
) -> tuple[Path, str | None]:
    """The local folder of a model, fetched if need be, and its revision (see `LoadedModel`)."""
    if name_or_path is not None:
        folder = Path(name_or_path).expanduser()
        if folder.is_dir():
            if revision is not None:
                raise ConfigError(
                    f"'{name_or_path}' is a folder here, and only models on the hub have revisions.",
                    "Leave the revision out, or name a hub id.",
                )
            return folder.absolute(), _recorded(folder)
        if folder.exists():
            raise ModelError(
                f"'{name_or_path}' is a file, not a model folder.",
                "Name the folder that holds config.json and *.safetensors.",
            )
        if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
            raise ModelError(
                f"There is no folder '{name_or_path}'.",
                f"Name a model folder or a registered checkpoint. {registry.hint(folder.name)}",
            )
    entry = registry.default() if name_or_path is None else registry.find(str(name_or_path))
    if entry is not None and revision is None:
        if name_or_path is not None and entry.copies(str(name_or_path)):
            try:
                return _hub_folder(str(entry.hub), None, trust_remote_code, on_step)
            except ModelError:
                registry.tell_of_copy(entry)
        folder = pull_entry(entry, on_step)
        return folder, _recorded(folder)
    # A revision can only mean the hub's own weights, also for a model that has a registered copy.
    hub_id = entry.hub if entry is not None and entry.hub else str(name_or_path)
    return _hub_folder(hub_id, revision, trust_remote_code, on_step)


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model folder that is incomplete or damaged, naming the file.

    Reads only headers and sizes, so it costs milliseconds for any size of model.
    """
    config = folder / "config.json"
    is_adapted = (folder / "adapter_config.json").is_file()
    if is_adapted and config.is_file():
        raise ModelError(
            f"{folder} has an adapter beside the model, and an edit of the weights under it is lost where only the "
            "adapter is saved.",
            "Merge it into the model, or move adapter_config.json away to load the model without it.",
        )
    if not config.is_file():
        if is_adapted:
            raise ModelError(
                f"{folder} is a LoRA adapter, not a model.",
                "Merge it into its base model and name that folder.",
            )
        raise ModelError(
            f"{folder} has no config.json, so it is not a model folder.",
            "Name the folder that holds config.json and *.safetensors.",
        )
    if "model_type" not in read_json(config) and not trust_remote_code:
        raise ModelError(
            f"{config} names no model_type, so the architecture is unknown.",
            "If the folder's own Python files define it and you trust them, load it with trust_remote_code=True.",
        )
    shards = weight_files(folder)
    if not shards:
        raise _no_weights(folder)
    for shard in shards:
        if not shard.is_file():
            raise ModelError(f"The model folder is incomplete: {shard} is missing.", "Copy or download it again.")
        header(shard)
    if not trust_remote_code and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer (no tokenizer.json).",
            "Save it there with tokenizer.save_pretrained(folder).",
        )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def _recorded(folder: Path) -> str | None:
    record = read_record(folder)
    return None if record is None else record.get("weights", {}).get("sha256")


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} has its weights only as {pickles[0]}, a pickle, and editlab reads safetensors only: "
            "opening a pickle can run code.",
            "If you trust the file, load it with transformers and save it again with save_pretrained.",
        )
    found = f"{INDEX} lists none" if (folder / INDEX).is_file() else f"neither {SINGLE} nor {INDEX} is there"
    return ModelError(f"{folder} has no weights: {found}.", "Copy or download them again.")


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(
            f"The tokenizer in {folder} could not be loaded: {_first_line(error)}",
            "Copy or download its files again.",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in {folder} cannot say which characters a token covers, and editlab needs that "
            "to find a subject in a prompt.",
            "Use a model with a tokenizer.json.",
        )
    return tokenizer


def _spread_model(folder: Path, dtype: Any, trust_remote_code: bool, device_map: Any, max_memory: Any) -> Any:
    kept, drop = folder_of_offloaded()
    try:
        model = _model(
            folder, dtype, trust_remote_code, device_map=device_map, max_memory=max_memory, offload_folder=str(kept)
        )
    except BaseException:
        drop()
        raise
    weakref.finalize(model, drop)
    return model


def _model(folder: Path, dtype: Any, trust_remote_code: bool, **placing: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placing,
        )
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        fix = "Copy or download the folder again, or update transformers if the architecture is new."
        if "trust_remote_code" in str(error):
            fix = "If you trust the Python files in it, load it with trust_remote_code=True."
        raise ModelError(f"transformers could not load {folder}: {_first_line(error)}", fix) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in {folder} lack {len(missing)} tensors of the architecture in config.json, "
            f"the first being {missing[0]}.",
            "The folder is incomplete, or it is not a causal language model.",
        )
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is memory running out, in any of the forms that Python and torch give it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _hub_folder(hub_id: str, revision: str | None, trust_remote_code: bool, on_step: OnStep) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    tried = f"'{hub_id}' is neither a folder nor a registered checkpoint"
    if not _HUB_ID.match(hub_id):
        raise ModelError(f"{tried}, and cannot be a hub id.", registry.hint(hub_id))
    patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    wanted = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": _HUB_SKIPPED}
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, **wanted))
        check_folder(folder, trust_remote_code=trust_remote_code)
        return folder, folder.name
    except (OSError, ValueError, ModelError):
        pass  # not in the hub cache, or only in part
    on_step(StepInfo(f"downloading {hub_id} from the hub", 0))
    try:
        with quiet_transformers():
            folder = Path(snapshot_download(hub_id, **wanted))
        return folder, folder.name
    except GatedRepoError as error:
        raise ModelError(
            f"The hub model '{hub_id}' is gated and you are not logged in with access to it.",
            "Accept its terms on the hub and run 'hf auth login'.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"The hub model '{hub_id}' has no revision '{revision}'.",
            "Name a branch, a tag or a commit of it, or leave the revision out.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{tried}, and the hub has no model of that name.", registry.hint(hub_id)) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{tried}, and the hub could not be reached.",
            f"Name a local folder or a registered checkpoint, or connect. {registry.hint(hub_id)}",
        ) from error
    except Exception as error:  # the HTTP client's own classes differ between versions of the hub library
        raise ModelError(
            f"{tried}, and the hub did not provide it: {_first_line(error)}", registry.hint(hub_id)
        ) from error


def _dtype(dtype: str | torch.dtype) -> Any:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"No dtype '{dtype}'.", did_you_mean(dtype, list(DTYPES)))
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def _device(device: str) -> Any:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"No device '{device}'.", "Use cpu, cuda, cuda:N or auto.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device '{device}' was asked for and torch sees {torch.cuda.device_count()} GPUs.",
            "Use --device cpu, or a torch build for this GPU.",
        )
    return chosen


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
