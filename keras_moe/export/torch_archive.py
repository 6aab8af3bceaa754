"""Refuse PyTorch programs that run code of their author when they are loaded.

`torch.export.load` (2.13) unpickles weights, constants, custom objects, and
example inputs, and loads compiled libraries. From the program's JSON, it
evaluates sizes (`sympify`) and guards (`exec`), writes names into generated
code, and looks operators up by `getattr`, including `torch.os.system`.
Therefore an archive may contain only what keras_moe writes. Everything else is
refused: records by their names, configurations by their entries, and every
string of the program by its key.

Like `runtimes.py`, this file imports nothing from the package.
"""

import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

MODEL = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
# The configurations of weights and constants, and the prefix of their records.
CONFIGS = {
    "data/weights/model_weights_config.json": "weight",
    "data/constants/model_constants_config.json": "tensor",
}
DATA = r"data/weights/weight_\d+|data/constants/tensor_\d+"
ABOUT = r"archive_(format|version)|byteorder|\.data/(version|serialization_id)"
RECORD = re.compile(
    "|".join([DATA, ABOUT, *map(re.escape, (MODEL, EXAMPLES, *CONFIGS))])
)

WORD = re.compile(r"-?\w*", re.ASCII)
# Attributes that are set, except those of Python with double underscores.
PATH = re.compile(r"(?!.*__)\w*(\.\w+)*", re.ASCII)
VERSION = re.compile(r"[\w.+]*", re.ASCII)
ANY = re.compile(r".*", re.DOTALL)
RULES = {
    **dict.fromkeys(("stack_trace", "nn_module_stack", "torch_fn"), ANY),
    **dict.fromkeys(("as_string", "as_strings"), ANY),
    **dict.fromkeys(("parameter_name", "buffer_name"), PATH),
    **dict.fromkeys(("tensor_constant_name", "fqn"), PATH),
    "torch_version": VERSION,
}
FORBIDDEN = ("custom_obj", "as_custom_obj", "as_operator")

ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.([A-Za-z]\w*)", re.ASCII)
WITH_FILES = ("save", "from_file")
COMPARED = "eq|ne|lt|le|gt|ge"
COMPUTED = "add|sub|mul|floordiv|truediv|mod|neg|pow|and_|or_|getitem"
BATCHED = "add_batch_dim|remove_batch_dim|vmap_(increment|decrement)_nesting"
OPERATOR = re.compile(
    "|".join(
        [
            rf"_operator\.({COMPARED}|{COMPUTED})",
            r"math\.(ceil|floor|trunc|sqrt)",
            r"torch\.sym_(max|min|not|ite|int|float|sum)",
            rf"torch\._functorch\.predispatch\._({BATCHED})",
            r"torch\._functorch\.predispatch\.lazy_load_decompositions",
            r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl)",
            r"torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)",
        ]
    )
)

SIZES = "|".join(
    [
        r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|And|Or|Not|Eq",
        r"Ne|Equality|Unequality|(?:Strict)?(?:Less|Greater)Than|max|min",
        r"FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|FloatTrueDiv|PythonMod|Where",
        r"(?:Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|ToFloat|RoundDecimal",
        r"ModularIndexing|PowByNatural|FloatPow|[LR]Shift|Identity",
        r"IsNonOverlappingAndDenseIndicator",
    ]
)
SYMBOL = r"[a-z]+\d{1,6}"
# These parts are arithmetic in any order.
EXPRESSION = re.compile(
    rf"(?>\b(?:{SIZES}|and|or|not|True|False)\b|'{SYMBOL}'|\d++|\.\d++"
    r"|\b(?:integer|positive|nonnegative|real|finite)="
    r"|\bL\['\w+'\]|\.(?:size|stride|storage_offset)\(\)"
    r"|[-+*/%<>=!(), \[\]])*+",
    re.ASCII,
)


class _Refused(Exception):
    """Report what an archive may not contain."""


def refusal(path: str) -> str | None:
    """Return what an archive contains that keras_moe does not write.

    Args:
        path: File that `torch.export.save` wrote.

    Returns:
        Description of the first such content; `None` if the archive may be
        loaded.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        try:
            reader = PT2ArchiveReader(path)
            records = reader.get_file_names()
            read = functools.cache(reader.read_bytes)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise _Refused(f"no archive of a program ({error})") from None
        _check_records(records, path)
        for name, prefix in CONFIGS.items():
            _check_config(_decoded(read(name), name), name, prefix)
        _check_strings(_decoded(read(MODEL), MODEL), "")
        _check_examples(read(EXAMPLES))
    except _Refused as refused:
        return str(refused)
    except RecursionError:
        return "a program that is nested too deeply"
    return None


def _check_records(records: Sequence[str], path: str) -> None:
    """Check the names that PyTorch reads, and those that `zipfile` reads."""
    for record in records:
        if not RECORD.fullmatch(record):
            raise _Refused(f"the record {record!r}")
    missing = {MODEL, EXAMPLES, *CONFIGS} - set(records)
    if missing:
        raise _Refused(f"no record {min(missing)!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _Refused(f"a damaged archive ({error})") from None
    roots = {name.split("/", 1)[0] for name in names}
    inside = [name.split("/", 1)[-1] for name in names]
    if len(roots) > 1 or sorted(inside) != sorted(set(records)):
        raise _Refused("records that are hidden or listed twice")


def _decoded(content: bytes, name: str) -> Any:
    try:
        return json.loads(content.decode())
    except ValueError as error:
        raise _Refused(f"no JSON in {name!r} ({error})") from None


def _check_config(config: Any, name: str, prefix: str) -> None:
    """Check that weights or constants are plain arrays in their records."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _Refused(f"no entries in {name!r}")
    for key, entry in entries.items():
        place = f"{name!r}, {key!r}"
        if not isinstance(entry, dict) or not PATH.fullmatch(key):
            raise _Refused(f"an unknown entry in {place}")
        if entry.get("use_pickle") is not False:
            raise _Refused(f"a pickled tensor: `use_pickle` in {place}")
        record = entry.get("path_name")
        if not re.fullmatch(rf"{prefix}_\d+", str(record)):
            raise _Refused(f"a custom object or record: {record!r} in {place}")
        _check_strings(entry.get("tensor_meta"), "tensor_meta")


def _check_strings(value: Any, key: str) -> None:
    """Check each string of a program by its key."""
    if isinstance(value, str):
        check = _CHECKS.get(key)
        if check is not None:
            check(value)
        elif not RULES.get(key, WORD).fullmatch(value):
            raise _Refused(f"the string {value[:80]!r} under `{key}`")
    elif isinstance(value, list):
        for element in value:
            _check_strings(element, key)
    elif isinstance(value, dict):
        for name, element in value.items():
            _check_key(name, element)
            _check_strings(element, name)


def _check_key(name: str, value: Any) -> None:
    if not WORD.fullmatch(name):
        raise _Refused(f"the key {name[:80]!r}")
    if name in FORBIDDEN or (name == "custom_obj_values" and value):
        raise _Refused(f"a custom object or operator under `{name}`")
    # When PyTorch loads a symbol, it counts up to the symbol's number.
    if re.fullmatch(r"[a-z]+\d{7,}", name):
        raise _Refused(f"the symbol {name[:80]!r}")


@functools.cache
def _check_operator(name: str) -> None:
    """Accept PyTorch's own operators on tensors and sizes."""
    import torch

    if OPERATOR.fullmatch(name):
        return
    found = ATEN.fullmatch(name)
    if found and found[1] not in WITH_FILES:
        packet = getattr(torch.ops.aten, found[1], None)
        operator = getattr(packet, found[2], None)
        if isinstance(operator, type(torch.ops.aten.add.Tensor)):
            return
    raise _Refused(f"the operator {name[:80]!r}")


def _check_expression(text: str) -> None:
    """Accept arithmetic on sizes."""
    if not EXPRESSION.fullmatch(text):
        raise _Refused(f"the expression {text[:80]!r}")


@functools.cache
def _check_structure(text: str) -> None:
    """Accept nests of tuples, lists, and dicts of inputs or outputs."""
    try:
        version, spec = json.loads(text)
        _check_spec(spec)
    except (ValueError, TypeError, KeyError) as error:
        raise _Refused(f"the structure {text[:80]!r} ({error})") from None


def _check_spec(spec: Any) -> None:
    kind, context = spec["type"], spec["context"]
    if kind == "builtins.dict":
        names = json.loads(context)
        known = isinstance(names, list) and all(
            isinstance(n, str) and WORD.fullmatch(n) for n in names
        )
    else:
        known = kind in (None, "builtins.tuple", "builtins.list")
        known = known and context in (None, "null")
    if not known:
        raise ValueError(f"{kind} with {context}")
    for child in spec["children_spec"]:
        _check_spec(child)


_CHECKS: dict[str, Callable[[str], None]] = {
    "target": _check_operator,
    "expr_str": _check_expression,
    "guards_code": _check_expression,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
}


def _check_examples(content: bytes) -> None:
    """Check that example inputs can be unpickled without running code."""
    import torch

    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # noqa: BLE001  unpickling raises anything
        reason = str(error).strip().split("\n")[0]
        raise _Refused(f"pickled objects in {EXAMPLES!r} ({reason})") from None
