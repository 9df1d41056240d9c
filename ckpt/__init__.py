# SPDX-License-Identifier: Apache-2.0
"""Checkpoint/restore of Linux processes with a target that hardly notices."""

__version__ = "0.1.0"

__version__ = "0.1.0"
