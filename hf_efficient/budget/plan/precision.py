"""The precision that weights have when they are loaded: a quantization config of transformers, as its plain dict."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from typing import Any

from hf_efficient.checks import check_choice
from hf_efficient.reading import shown

#: Library -> its quantization config in transformers.
CONFIGS = {"bitsandbytes": "BitsAndBytesConfig", "torchao": "TorchAoConfig"}


def precision_of(value: Any) -> dict[str, Any]:
    """The settings of a quantization config, checked, with all defaults filled in.

    Args:
        value: a `BitsAndBytesConfig` or `TorchAoConfig` of transformers, or its `to_dict()`.

    Raises:
        ValueError: it is neither, of another method, or a setting is not known or out of range.
    """
    values = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(
            f"precision={shown(value)} is not a precision; expected a BitsAndBytesConfig or TorchAoConfig of "
            "transformers, its to_dict(), or None."
        )
    values = {name: v for name, v in values.items() if not name.startswith("_")}  # copies that transformers writes
    method = getattr(values.get("quant_method"), "value", values.get("quant_method"))
    check_choice("precision: quant_method", method, tuple(CONFIGS))
    assert isinstance(method, str)
    values["quant_method"] = method
    known = {*inspect.signature(_class(method).__init__).parameters, "quant_method"} - {"self", "kwargs"}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"precision: unknown settings {shown(unknown)}; expected only those of {_class(method).__name__}: "
            f"{', '.join(sorted(known))}. Remove them, or upgrade transformers."
        )
    if "load_in_4bit" in known:
        if bool(values.get("load_in_4bit")) == bool(values.get("load_in_8bit")):
            raise ValueError("precision: expected either load_in_4bit=True or load_in_8bit=True, as bitsandbytes does.")
        check_choice("precision: bnb_4bit_quant_type", values.get("bnb_4bit_quant_type", "fp4"), ("fp4", "nf4"))
        made = _made(values).to_dict()
        values = {n: getattr(v, "value", v) for n, v in made.items() if not n.startswith("_")}
    elif find_spec("torchao") is not None:
        _made(values)
    elif not isinstance(values.get("quant_type"), dict):
        raise ValueError(
            f"precision: quant_type={shown(values.get('quant_type'))} is not known; expected that of "
            "TorchAoConfig(...).to_dict()."
        )
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"precision: {error}; expected plain JSON values.") from error
    return values


def quantization_config(precision: dict[str, Any]) -> Any:
    """What `from_pretrained(quantization_config=...)` of transformers takes.

    Raises:
        ModuleNotFoundError: the library is not installed.
        ValueError: a value is out of range.
    """
    method = precision["quant_method"]
    if find_spec(method) is None:
        raise ModuleNotFoundError(f"precision: {method} is not installed: pip install {method}", name=method)
    return _made(precision)


def check_loaded(precision: dict[str, Any], loaded: Any) -> None:
    """Refuse a model that was not loaded with this precision.

    Args:
        precision: of the plan.
        loaded: `quantization_config` of the model's config, or None.

    Raises:
        ValueError: it has none, or another one.
    """
    how = (
        "Precision is applied on load: EfficiencyPlan.load(folder_or_id, plan=plan), or "
        "from_pretrained(..., quantization_config=plan.precision)"
    )
    if loaded is None:
        raise ValueError(
            f"The plan has precision={shown(precision)}, but the model was loaded without quantization. {how}."
        )
    found = precision_of(loaded)
    other = {
        name: found.get(name)
        for name, value in precision.items()
        if found.get(name) != value and name not in ("llm_int8_skip_modules", "modules_to_not_convert")
    }
    if other:  # names of modules are filled in by the model
        raise ValueError(
            f"The model was loaded with {shown(other)}, where the plan's precision has "
            f"{shown({name: precision[name] for name in other})}. {how}; or give the plan the precision that it has."
        )


def _made(precision: dict[str, Any]) -> Any:
    cls = _class(precision["quant_method"])
    try:
        return cls.from_dict(dict(precision))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"precision: {error}; expected settings of {cls.__name__}.") from error


def _class(method: str) -> Any:
    import transformers

    return getattr(transformers, CONFIGS[method])
