"""`vlrt info`: versions, engines, devices, and what is wrong with the installation."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

import vlrt
from vlrt import zoo
from vlrt.engines import cuda_driver, openvino, tensorrt
from vlrt.engines.onnxruntime import PROVIDERS, load_library
from vlrt.errors import EngineError

_PACKAGES = (
    *("numpy", "Pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "onnx"),
)


@click.command(short_help="Show versions, engines and devices; name what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def info(as_json: bool) -> None:
    """Show what is installed, which devices can be used, and name what is wrong with a hint."""
    found = _gather()
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    if found["problems"]:
        sys.exit(1)


def _gather() -> dict[str, Any]:
    packages = {package: installed for package in _PACKAGES if (installed := _version(package))}
    problems: list[dict[str, str]] = []
    devices: list[str] = []
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        hint = "pip uninstall onnxruntime onnxruntime-gpu, then pip install the one you want"
        problems.append({"what": "onnxruntime and onnxruntime-gpu are both installed and clash", "hint": hint})
    try:
        available = load_library().get_available_providers()
        devices = [device for device, (provider, _) in PROVIDERS.items() if provider in available]
    except EngineError as error:
        problems.append({"what": error.what, "hint": error.hint})
    devices = _by_gpu(devices, "tensorrt" in packages, problems)
    if "openvino" in packages:
        try:
            devices += [f"{device} ({precision})" for device, precision in openvino.devices().items()]
        except EngineError as error:
            problems.append({"what": error.what, "hint": error.hint})
    return {
        "vlrt": vlrt.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
        "devices": devices,
        "bundles": str(zoo.home()),
        "cache": str(zoo.cache_folder()),
        "problems": problems,
    }


def _by_gpu(devices: list[str], with_tensorrt: bool, problems: list[dict[str, str]]) -> list[str]:
    """The devices, each GPU by its own name where an engine for GPUs is installed."""
    kinds = [kind for kind in devices if kind == "cuda"]
    others = [kind for kind in devices if kind != "cuda"]
    try:
        if with_tensorrt:
            tensorrt.load_library()
            kinds.append("tensorrt")
        gpus = cuda_driver.driver().gpus() if kinds else []
    except EngineError as error:
        problems.append({"what": error.what, "hint": error.hint})
        return others
    return others + [f"{kind}:{gpu.index} ({gpu.name}, {gpu.memory / 1e9:.0f} GB)" for kind in kinds for gpu in gpus]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(found: dict[str, Any]) -> None:
    click.echo(f"vlrt {found['vlrt']}, Python {found['python']}, {found['platform']}, {found['processors']} processors")
    click.echo("packages  " + ", ".join(f"{name} {number}" for name, number in found["packages"].items()))
    click.echo("devices   " + (", ".join(found["devices"]) or "none"))
    click.echo(f"bundles   {found['bundles']}")
    click.echo(f"cache     {found['cache']}")
    for problem in found["problems"]:
        click.echo(f"error: {problem['what']}\nhint: {problem['hint']}", err=True)
