"""Tests. No model or dataset is ever fetched: everything is built here, bundled, or refused."""

import os
from pathlib import Path

os.environ.pop("COLUMNS", None)  # a console that is made while it is set keeps that width for good

from slim.cli import QUIET

ROOT = Path(__file__).resolve().parent.parent
APP = str(ROOT / "app.py")
FILES = ROOT / "tests" / "files"
"""Files that earlier builds wrote."""
TEST_CACHE = Path(os.environ.get("SLIM_TEST_CACHE") or ROOT / "cache" / "tests").absolute()
"""Folder that is kept between runs: the unpacked bundled model and an environment without slim."""

os.environ |= QUIET  # before the libraries that read it are imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_MODULES_CACHE", str(TEST_CACHE / "modules"))
