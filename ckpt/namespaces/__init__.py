# SPDX-License-Identifier: Apache-2.0
"""Namespaces: `kind.py` is the interface, and then there is one file per kind."""

from ckpt.namespaces.ipc import Ipc
from ckpt.namespaces.kind import NamespaceKind

KINDS: tuple[type[NamespaceKind], ...] = (Ipc,)
"""The kinds that a task may have of its own."""
