"""Read lenses of the package tuned-lens as lenses of ours.

Its translator i reads the input of block i, which is resid_post[i - 1], and acts before the final norm:

    z = g( N(h + h A_i^T + b_i) W_U + bias )        A_i (d_model, d_model), b_i (d_model)

This is our placement `residual` with U = A_i^T, c = b_i at block i - 1. The last block has no translator there
and gets the identity. Translator 0, which reads the embedding, is left out: our lenses have none there.

    config.json   d_model, num_hidden_layers, bias, unembed_hash, lens_type, base_model_name_or_path, …
    params.pt     a dictionary of tensors as torch saves it, <i>.weight and <i>.bias

params.pt is a zip archive of plain numbers and one pickle. A pickle is a program: its size and each of its instructions
are checked before `torch.load` reads it, and with `weights_only` it can only make tensors.
"""

import hashlib
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensmith.files import untrusted
from lensmith.hub.pins import LENS_CONFIG, LENS_PARAMS, REPACK, LensPin, lens_folder
from lensmith.lens.lens import LARGEST, Lens
from lensmith.process.errors import InputError, IntegrityError, LensmithError, NumericError, first_line, shown
from lensmith.source.backbone import Backbone

LENS_TYPE = "linear_tuned_lens"
UNREAD = "Nothing was imported."

LARGEST_NUMBER = 8  # bytes
SLACK = 2 << 20  # bytes of an archive besides its numbers
PICKLE_BYTES = 1 << 18
ENTRIES = 10_000
ENTRY = b"PK\x01\x02"  # begins each entry of an archive's list
CHUNK = 1 << 20
# What torch writes for tensors by name.
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {dtype}Storage" for dtype in ("Float", "Half", "Double", "BFloat16")),
}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
INSTRUCTIONS = TUPLES | PUT | GET | {
    "PROTO", "GLOBAL", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "EMPTY_DICT",
    "MARK", "BINPERSID", "REDUCE", "SETITEM", "SETITEMS", "BUILD", "STOP",
}  # fmt: skip


def load(pin: LensPin | None, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """The lens of a pin, and where it comes from, for its provenance.

    Raises:
        InputError: not a linear lens of tuned-lens.
        IntegrityError: a file is broken or changed, the lens is another model's, or prefetch pinned none.
        NumericError: a number is not finite.
    """
    if pin is None:
        raise IntegrityError(f"fit.kind is imported, but the corpus has no pinned lens. {REPACK} {UNREAD}")
    folder = lens_folder(pin)
    try:
        config = _read_config(folder / LENS_CONFIG, backbone)
        tensors = _translators(folder / LENS_PARAMS, config, backbone.d_model)
    except LensmithError as error:
        raise type(error)(f"imported lens {pin.place}: {error}. {UNREAD}") from None
    origin = pin.model_dump(mode="json") | {
        "config": config,
        "left_out": "translator 0, which reads the embedding",
        "unembed_hash_checked": config.get("unembed_hash") is not None,
    }
    return _lens(tensors, backbone.n_layers, backbone.d_model), origin


def unembed_hash(W_U: Tensor) -> str:
    """tuned-lens's hash of W_U (d_vocab, d_model): of NumPy's printed form, so that dtypes hardly change it."""
    printed = np.array_str(W_U.float().cpu().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def _read_config(path: Path, backbone: Backbone) -> dict[str, Any]:
    """config.json of a linear lens of this model."""
    config = untrusted.read_json(path)
    if not isinstance(config, dict) or not {"d_model", "num_hidden_layers"} <= config.keys():
        raise InputError(f"{path.name} has no d_model and num_hidden_layers")
    if (kind := config.get("lens_type", LENS_TYPE)) != LENS_TYPE:
        raise InputError(f"lens_type is {shown(kind)!r}, only {LENS_TYPE} is read")
    shape = (config["num_hidden_layers"], config["d_model"])
    if shape != (backbone.n_layers, backbone.d_model):
        raise IntegrityError(
            f"made for a model of (n_layers, d_model) {shape}, this one has {(backbone.n_layers, backbone.d_model)}"
        )
    recorded, computed = config.get("unembed_hash"), unembed_hash(backbone.head.W_U)
    if recorded is not None and recorded != computed:
        raise IntegrityError(
            f"made for {config.get('base_model_name_or_path')} with unembed_hash {recorded}, this model's is "
            f"{computed}. Another revision, or another source.dtype, may be the right one"
        )
    return config


def _translators(path: Path, config: dict[str, Any], d_model: int) -> dict[str, Tensor]:
    """Weights and biases of all translators by name, float32, of the shapes that `config` asks for."""
    count = config["num_hidden_layers"] * (d_model * d_model + d_model)
    stored = read_tensors(path, SLACK + LARGEST_NUMBER * count)
    indices, is_biased = range(config["num_hidden_layers"]), config.get("bias", True)
    wanted: dict[str, tuple[int, ...]] = {f"{i}.weight": (d_model, d_model) for i in indices}
    wanted |= {f"{i}.bias": (d_model,) for i in indices if is_biased}
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != wanted:
        name = min(key for key in (shapes.keys() | wanted.keys()) if shapes.get(key) != wanted.get(key))
        raise InputError(
            f"{path.name}: {shown(name)} is {shapes.get(name, 'missing')}, must be {wanted.get(name, 'absent')}; only "
            "full linear translators are read, no low-rank or MLP ones"
        )
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        if not (tensor.abs() <= LARGEST).all():  # so that NaN fails
            raise NumericError(f"{name} holds a number that is not finite, or above {LARGEST:g}")
    return tensors


def read_tensors(path: Path, limit: int) -> dict[str, Tensor]:
    """All tensors of a file that torch saved, of at most `limit` bytes.

    Raises:
        IntegrityError: the file is larger, not whole, compressed, or holds anything but floating-point tensors by name.
    """
    try:
        return _load_checked(path, entry_sizes=_check_archive(path, limit))
    except Exception as error:  # noqa: BLE001, zipfile, pickletools and torch raise many kinds, all mean one thing
        raise IntegrityError(f"{path.name} is not tensors alone ({shown(first_line(error))})") from None


def _load_checked(path: Path, entry_sizes: set[int]) -> dict[str, Tensor]:
    """The tensors of an archive whose pickle was checked."""
    # The file is mapped; only the pickle is read, and its instructions can only make tensors.
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251, see above
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise TypeError("not a dictionary of tensors")
    if not all(isinstance(name, str) for name in stored):
        raise TypeError("not tensors by name")
    if not all(tensor.is_contiguous() for tensor in stored.values()):
        raise ValueError("a tensor is not stored row by row")
    # A storage longer than its entry would read the bytes of the next one.
    if {tensor.untyped_storage().nbytes() for tensor in stored.values()} - {0} - entry_sizes:
        raise ValueError("a storage holds more or fewer numbers than it says")
    return stored


def _check_archive(path: Path, limit: int) -> set[int]:
    """The sizes of the entries of an archive whose reading is bounded by `limit`; ValueError for any other file."""
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes, the tensors take at most {limit:,}")
    with path.open("rb") as file:
        entries = sum(chunk.count(ENTRY) for chunk in iter(lambda: file.read(CHUNK), b""))
    if entries > ENTRIES:
        raise ValueError(f"{entries:,} entries, at most {ENTRIES:,} are read")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
            raise ValueError("an entry is compressed")
        if sum(info.file_size for info in infos) > limit:
            raise ValueError("its entries overlap")
        pickles = [info for info in infos if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
            raise ValueError(f"not one data.pkl of at most {PICKLE_BYTES:,} bytes")
        orders = [archive.read(info) for info in infos if info.filename.endswith("/byteorder")]
        if any(order != b"little" for order in orders):
            raise ValueError("its numbers are not little-endian")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"CRC of {damaged} is wrong")
        _check_pickle(archive.read(pickles[0]))
    return {info.file_size for info in infos}


def _check_pickle(program: bytes) -> None:
    """ValueError for a pickle with anything that torch does not write for a dictionary of tensors."""
    memo: dict[object, str] = {}  # the instruction that made the object of each slot
    maker = ""  # the last instruction that left something on the stack
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name not in INSTRUCTIONS:
            raise ValueError(f"its pickle has the instruction {name}")
        if name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"its pickle names {argument}")
        # Nested tuples may be as deep as the file is long, or take for ever to hash. Torch writes none.
        if name in TUPLES - {"EMPTY_TUPLE"} and maker in TUPLES:
            raise ValueError("its pickle has a tuple in a tuple")
        if name in GET and memo.get(argument) in TUPLES:
            raise ValueError("its pickle uses a tuple twice")
        if name in PUT:
            memo[argument] = maker
        else:
            maker = name


def _lens(tensors: dict[str, Tensor], n_layers: int, d_model: int) -> Lens:
    maps, c = torch.zeros(n_layers - 1, d_model, d_model), torch.zeros(n_layers - 1, d_model)
    for i in range(1, n_layers):
        maps[i - 1] = tensors[f"{i}.weight"].T
        if f"{i}.bias" in tensors:
            c[i - 1] = tensors[f"{i}.bias"]
    return Lens.of_maps("imported", maps, scale=1.0, c=c)
