# SPDX-License-Identifier: Apache-2.0
"""Only what pyproject.toml cannot say: cffi builds its extension through setuptools."""

from setuptools import setup

setup(cffi_modules=["ckpt/kernel/build.py:ffi"])
